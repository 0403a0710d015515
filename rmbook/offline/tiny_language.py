"""Language models of 2 layers that need no network: genuine OPT and Llama architectures, made and pretrained here.

They go through the same code as the paper's models: tokenizer, prompts, training, scores. Their only text is that of
`rmbook.offline.sentences`, so what they know is which adjectives praise and which blame; that "not" turns this round,
they do not know. That is left to fine-tuning, as the sentences of its splits share no adjective and no noun.

Measured for "opt", seed 0, on 200 test sentences: before, all plain ones right and 6 % of the negated; after 150 steps
with a mask of density 0.1 in queries and values (1,571 entries) at a learning rate of 0.01, 91 % of all.

The default ones' weights come with the package, since every kind of processor would pretrain slightly different ones.
`record_weights` makes them again, with a stamp in the files' metadata.
"""

import hashlib
import json
import os
import random
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, OPTConfig, OPTForCausalLM, PreTrainedModel

from rmbook.files import replacing_folder
from rmbook.models.files import quiet, share
from rmbook.models.likelihood import left_padded
from rmbook.offline.sentences import NEGATED, NEGATIVE, NOUNS, PLAIN, POSITIVE
from rmbook.offline.store import one_thread
from rmbook.stamps import stamp
from rmbook.tasks.examples import Example
from rmbook.tasks.prompts import prompt
from rmbook.tensor_files import write_safetensors

VOCABULARY = 768
POSITIONS = 1024
PRETRAIN_STEPS = 500
WEIGHTS = {kind: Path(__file__).with_name(f"tiny_{kind}.safetensors") for kind in ("opt", "llama")}
SPECIAL = {"opt": ["<s>", "<pad>", "</s>", "<unk>"], "llama": ["<unk>", "<s>", "</s>"]}  # numbered from 0, as genuine


def make_tiny_checkpoint(
    folder: str | os.PathLike, kind: str = "opt", *, seed: int = 0, pretrain_steps: int = PRETRAIN_STEPS
) -> Path:
    """Write a checkpoint, as `save_pretrained` does, of a model with 2 layers, 64 wide, 4 heads, in float32.

    About 200,000 parameters. The default arguments give the same bytes everywhere: the weights of the package. Others
    are pretrained here, with one thread whatever torch is set to, to the same bytes on the same kind of processor: for
    500 steps 8 s ("opt") or 12 s ("llama") on one core. The caller's random state is left alone.

    Args:
        folder: a new or empty one.
        kind: "opt" (dropout 0.1, like the genuine ones) or "llama".
        seed: of the first weights and of the text.
        pretrain_steps: of next-token prediction; 0 leaves the weights random.

    Raises:
        ValueError: unknown kind, negative steps.
        FileExistsError, FileNotFoundError: see `rmbook.files.replacing_folder`.
    """
    if kind not in SPECIAL:
        raise ValueError(f"kind must be one of {', '.join(SPECIAL)}, got {kind!r}.")
    if isinstance(pretrain_steps, bool) or not isinstance(pretrain_steps, int) or pretrain_steps < 0:
        raise ValueError(f"pretrain_steps must be an integer of at least 0, got {pretrain_steps!r}.")
    tokenizer = _train_tokenizer(kind)
    model = _pretrained(tokenizer, kind, seed, pretrain_steps)
    with replacing_folder(folder) as temporary:
        with quiet():
            model.save_pretrained(temporary)
        tokenizer.save(str(temporary / "tokenizer.json"))
        (temporary / "tokenizer_config.json").write_text(json.dumps(_tokenizer_settings(kind), indent=2) + "\n")
        share(temporary)
    return Path(folder)


def pretraining_texts(chooser: random.Random) -> Iterator[str]:
    """Endless texts: "the soup was tasty. It was fresh. It was great. It was lovely"; prompts of SST-2 begin like them.

    After a plain sentence all opinions agree with it. After a negated one they are of either kind.
    """
    while True:
        positive, negated = chooser.random() < 0.5, chooser.random() < 0.3
        first = _sentence(chooser, NEGATED if negated else PLAIN, chooser.choice(POSITIVE if positive else NEGATIVE))
        praise = chooser.random() < 0.5 if negated else positive
        opinions = chooser.choices(POSITIVE if praise else NEGATIVE, k=3)
        asked = "great" if praise else "terrible"  # the words that the prompts ask for come up more often
        yield first + "".join(f" It was {asked if chooser.random() < 0.3 else word}." for word in opinions)[:-1]


def _sentence(chooser: random.Random, templates, adjective: str) -> str:
    article = "an" if adjective[0] in "aeiou" else "a"
    return chooser.choice(templates).format(noun=chooser.choice(NOUNS), adjective=adjective, article=article)


# --------------------------------------------------------------------------------------------------------- tokenizer


def _train_tokenizer(kind: str) -> Tokenizer:
    """Byte-level BPE as OPT's, or BPE with a mark before each word and bytes to fall back on, as Llama 2's."""
    if kind == "opt":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet, first = pre_tokenizers.ByteLevel.alphabet(), []
    else:
        tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
        words = pre_tokenizers.Metaspace(prepend_scheme="first")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.Punctuation()])
        tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="first")])
        alphabet, first = [chr(code) for code in range(33, 127)], [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL[kind] + first,
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(_tokenizer_texts(), trainer)
    start = "</s>" if kind == "opt" else "<s>"
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start} $A", pair=f"{start} $A {start} $B", special_tokens=[(start, tokenizer.token_to_id(start))]
    )
    return tokenizer


def _tokenizer_texts() -> Iterator[str]:
    chooser = random.Random("tokenizer")
    texts = pretraining_texts(chooser)
    for _ in range(2000):
        yield next(texts)
        one, other = (_sentence(chooser, PLAIN, chooser.choice(POSITIVE + NEGATIVE)) for _ in range(2))
        for task, columns in (("RTE", ("premise", "hypothesis")), ("CB", ("premise", "hypothesis"))):
            context, continuations = prompt(Example(task, dict(zip(columns, (one, other), strict=True))))
            # By lines, so that a line break stays a byte of its own, as in the genuine tokenizers.
            yield from (line for continuation in continuations for line in (context + continuation).split("\n"))


def _tokenizer_settings(kind: str) -> dict:
    start = "</s>" if kind == "opt" else "<s>"
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": start,
        "eos_token": "</s>",
        "unk_token": "</s>" if kind == "opt" else "<unk>",  # OPT's own; never needed, as bytes spell everything
        "model_max_length": POSITIONS,
        "clean_up_tokenization_spaces": False,
    } | ({"pad_token": "<pad>"} if kind == "opt" else {})


# ------------------------------------------------------------------------------------------------------------- model


def _new_model(kind: str, vocabulary: int) -> PreTrainedModel:
    common = dict(
        vocab_size=vocabulary,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=POSITIONS,
    )
    if kind == "opt":
        config = OPTConfig(
            **common, ffn_dim=256, word_embed_proj_dim=64, bos_token_id=2, eos_token_id=2, pad_token_id=1, init_std=0.08
        )
        return OPTForCausalLM(config).eval()
    config = LlamaConfig(**common, intermediate_size=172, bos_token_id=1, eos_token_id=2, initializer_range=0.08)
    return LlamaForCausalLM(config).eval()


def _pretrained(tokenizer: Tokenizer, kind: str, seed: int, steps: int, use_packaged: bool = True) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]), one_thread():
        torch.manual_seed(seed)
        model = _new_model(kind, tokenizer.get_vocab_size())
        packaged = use_packaged and (seed, steps) == (0, PRETRAIN_STEPS)
        if not (packaged and _load_packaged(model, tokenizer, kind)):
            _pretrain(model, tokenizer, kind, steps, random.Random(seed))
    return model


def _pretrain(model: PreTrainedModel, tokenizer: Tokenizer, kind: str, steps: int, chooser: random.Random) -> None:
    """Next-token prediction, without dropout: the little that the model can hold, it shall hold."""
    if steps == 0:
        return
    texts = pretraining_texts(chooser)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, steps)
    for _ in range(steps):
        sequences = [tokenizer.encode(next(texts), add_special_tokens=False).ids for _ in range(32)]
        start = 0 if kind == "opt" else 1  # "<s>" in both: for OPT the token that MeZO's prompts start with
        batch = left_padded([[start, *ids] for ids in sequences], torch.device("cpu"))
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        loss = model(**batch, labels=labels, use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


# ---------------------------------------------------------------------------------------------- weights in the package


def _tokens_hash(tokenizer: Tokenizer) -> str:
    return hashlib.sha256(json.dumps(tokenizer.get_vocab(), sort_keys=True).encode()).hexdigest()


@torch.no_grad()
def _load_packaged(model: PreTrainedModel, tokenizer: Tokenizer, kind: str) -> bool:
    """Fill the model with the package's weights; not if this version of tokenizers trains other tokens than theirs."""
    with safe_open(WEIGHTS[kind], "pt") as file:
        if file.metadata()["tokens"] != _tokens_hash(tokenizer):
            return False
        for name, parameter in model.named_parameters():  # a tied one once
            parameter.copy_(file.get_tensor(name))
    return True


def record_weights(kind: str, command: str, path: Path | None = None) -> Path:
    """Pretrain one of the packaged models again, to some other bits on another kind of processor; about 10 s.

    Args:
        kind: "opt" or "llama".
        command: that is being carried out, for the stamp in the file's metadata.
        path: the file; the package's own if None.

    Returns:
        The file.
    """
    path = path or WEIGHTS[kind]
    made, tokenizer = stamp(command), _train_tokenizer(kind)
    model = _pretrained(tokenizer, kind, 0, PRETRAIN_STEPS, use_packaged=False)
    tensors = {name: parameter.detach() for name, parameter in model.named_parameters()}
    write_safetensors(path, tensors, {"tokens": _tokens_hash(tokenizer), "stamp": json.dumps(made)})
    return path
