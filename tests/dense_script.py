"""Random masking in plain PyTorch, as one would write it in an afternoon: a dense change of which most is masked out.

The reference that `rmbook train` is compared with. It knows nothing of rmbook: the mask comes as a file.
"""

import csv

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch.nn.utils.parametrize import register_parametrization
from transformers import AutoModelForCausalLM, AutoTokenizer


class MaskedChange(torch.nn.Module):
    def __init__(self, mask):
        super().__init__()
        self.mask, self.change = mask, torch.nn.Parameter(torch.zeros_like(mask))

    def forward(self, weight):
        return weight + self.mask * self.change


def losses(folder, records, positions, steps, learning_rate, train_size, dev_size, seed=0, batch_size=8, dropout=None):
    """Loss of each training step on SST-2 under masks that a safetensors file holds as flat positions by layer."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model.requires_grad_(False)
    changes = []
    for name, flat in load_file(positions).items():
        if name.endswith(".positions"):
            layer = model.get_submodule(name.removesuffix(".positions"))
            mask = torch.zeros(layer.weight.numel())
            mask[flat.long()] = 1.0
            register_parametrization(layer, "weight", MaskedChange(mask.view_as(layer.weight)))
            changes.append(layer.parametrizations.weight[0].change)
    for module in model.modules():
        if dropout is not None and isinstance(getattr(module, "dropout", None), float):
            module.dropout = dropout
    rows = list(csv.DictReader(open(records), delimiter="\t", quoting=csv.QUOTE_NONE))
    order = np.random.RandomState(seed).permutation(len(rows))[: train_size + dev_size][:train_size]
    examples = []
    for number in order:
        prompt = f"{rows[number]['sentence'].strip()} It was"
        context = len(tokenizer.encode(prompt, add_special_tokens=False))
        ids = [tokenizer.encode(prompt + word, add_special_tokens=False) for word in (" terrible", " great")]
        examples.append(([([0, *option], len(option) - context) for option in ids], int(rows[number]["label"])))
    loader = torch.utils.data.DataLoader(
        examples, batch_size, shuffle=True, generator=torch.Generator().manual_seed(seed), collate_fn=list
    )
    optimizer = torch.optim.AdamW(changes, lr=learning_rate, weight_decay=0.0)
    torch.manual_seed(seed)
    found = []
    while True:
        model.train()
        for batch in loader:
            options = [option for example, _ in batch for option in example]
            longest = max(len(ids) for ids, _ in options)
            ids = torch.tensor([[1] * (longest - len(ids)) + ids for ids, _ in options])
            mask = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids, _ in options])
            logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1].log_softmax(-1)
            picked = logits.gather(2, ids[:, 1:, None])[..., 0]  # log-probability of each token given those before
            scores = torch.stack([row[-length:].mean() for row, (_, length) in zip(picked, options, strict=True)])
            loss = F.cross_entropy(scores.view(len(batch), 2), torch.tensor([label for _, label in batch]))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(changes, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            found.append(loss.item())
            if len(found) == steps:
                return found
