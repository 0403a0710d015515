"""Masks on whole models: what is trained, what is refused, and that nothing is left half done."""

import copy

import pytest
import torch
from conftest import TwoLayers, state_bytes
from sharded_cases import run_processes, save_values_of_ddp, trained_by_sgd
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
)
from transformers.pytorch_utils import Conv1D

from rmbook import (
    MaskedLinear,
    RandomMask,
    TargetError,
    apply_random_mask,
    masked_linear_reference,
    sample_mask,
)
from rmbook.engine import layer as layer_module


def tiny_opt(**changes):
    torch.manual_seed(0)
    settings = dict(
        vocab_size=50,
        hidden_size=32,
        ffn_dim=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        word_embed_proj_dim=32,
        max_position_embeddings=40,
        dropout=0.0,
    )
    return OPTForCausalLM(OPTConfig(**{**settings, **changes}))


MODELS = {
    "opt": (tiny_opt, ["q_proj", "v_proj"], 4),
    "llama": (
        lambda: LlamaForCausalLM(
            LlamaConfig(
                vocab_size=50,
                hidden_size=32,
                intermediate_size=48,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=1,
            )
        ),
        ["q_proj", "v_proj"],
        4,
    ),
    "bert": (
        lambda: BertModel(
            BertConfig(vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2)
        ),
        ["query", "value"],
        4,
    ),
    "vit": (
        lambda: ViTForImageClassification(
            ViTConfig(
                hidden_size=32,
                intermediate_size=48,
                num_hidden_layers=2,
                num_attention_heads=2,
                image_size=8,
                patch_size=4,
            )
        ),
        ["mlp.fc1", "mlp.fc2"],
        4,
    ),
    "clip": (
        lambda: CLIPVisionModel(
            CLIPVisionConfig(
                hidden_size=32,
                intermediate_size=48,
                num_hidden_layers=2,
                num_attention_heads=2,
                image_size=8,
                patch_size=4,
            )
        ),
        ["fc1", "fc2"],
        4,
    ),
    "plain": (TwoLayers, ["first"], 1),
}


@pytest.mark.parametrize("name", MODELS)
def test_models_of_transformers_and_plain_modules(name):
    make, targets, count = MODELS[name]
    model = make()
    before, total = state_bytes(model), sum(p.numel() for p in model.parameters())
    masking = apply_random_mask(model, targets, density=0.1, seed=3)
    assert len(masking.layers) == count
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {n for n, _ in masking.named_parameters()}
    assert masking.total == total
    assert masking.trainable == sum(v.numel() for v in masking.parameters()) == masking.table()["trained"].sum()
    for name, layer in masking.layers.items():  # from the seed and the parameter's name alone
        assert sample_mask(layer.mask.shape, 0.1, 3, f"{name}.weight").digest() == layer.mask.digest()
    masking.remove()
    assert state_bytes(model) == before
    assert all(p.requires_grad for p in model.parameters())


def test_ratio_counts_all_parameters():
    model = tiny_opt()
    masking = apply_random_mask(model, ["q_proj", "v_proj"], ratio=0.05, seed=0)
    total = sum(p.numel() for p in masking.remove().parameters())
    again = apply_random_mask(model, ["q_proj", "v_proj"], ratio=0.05, seed=0)
    expected = 0.05 * total
    assert abs(again.trainable - expected) < 4 * expected**0.5
    assert again.ratio == pytest.approx(again.trainable / total)
    assert again.density == pytest.approx(0.05 * total / (4 * 32 * 32))


def test_masks_do_not_depend_on_the_order_of_targets():
    one, two = (
        apply_random_mask(TwoLayers(), targets, density=0.2) for targets in (["first", "second"], ["second", "first"])
    )
    assert {n: x.mask.digest() for n, x in one.layers.items()} == {n: x.mask.digest() for n, x in two.layers.items()}


def test_whole_model_equals_a_dense_mask_over_twenty_steps():
    model, dense = tiny_opt().double(), tiny_opt().double()
    masking = apply_random_mask(model, ["q_proj", "v_proj"], density=0.05)
    dense.requires_grad_(False)
    weights = {n: m.weight.requires_grad_() for n, m in dense.named_modules() if n in masking.layers}
    base = {n: w.detach().clone() for n, w in weights.items()}
    fast = torch.optim.AdamW(masking.parameters(), lr=0.02, weight_decay=0)
    slow = torch.optim.AdamW(weights.values(), lr=0.02, weight_decay=0)
    ids = torch.randint(0, 50, (4, 12), generator=torch.Generator().manual_seed(1))
    for _ in range(20):
        fast.zero_grad(), slow.zero_grad()
        fast_loss, slow_loss = model(input_ids=ids, labels=ids).loss, dense(input_ids=ids, labels=ids).loss
        fast_loss.backward(), slow_loss.backward()
        for name, weight in weights.items():
            weight.grad *= masking.layers[name].mask.dense(torch.float64)  # Adam leaves entries of zero gradient alone
        fast.step(), slow.step()
    assert fast_loss.item() == pytest.approx(slow_loss.item(), abs=1e-10)
    for name, weight in weights.items():
        delta = (weight.detach() - base[name]).view(-1)[masking.layers[name].mask.positions.long()]
        assert (delta - masking.layers[name].values).abs().max() < 1e-10
    assert masking.distance() == pytest.approx(
        sum(float((weights[n].detach() - base[n]).square().sum()) for n in base) ** 0.5
    )


def test_transformers_trainer_with_its_fused_optimizer(tmp_path):
    model = tiny_opt()
    base = state_bytes(model)
    masking = apply_random_mask(model, ["q_proj", "v_proj"], density=0.2)
    ids = torch.randint(0, 50, (16, 10), generator=torch.Generator().manual_seed(1))
    rows = [{"input_ids": row, "labels": row} for row in ids]
    arguments = TrainingArguments(
        tmp_path,
        max_steps=15,
        learning_rate=0.05,
        per_device_train_batch_size=8,
        optim="adamw_torch_fused",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        save_steps=15,
        logging_steps=5,
    )
    before = model(input_ids=ids, labels=ids).loss.item()
    trainer = Trainer(model=model, args=arguments, train_dataset=rows)
    trainer.train()
    after = model(input_ids=ids, labels=ids).loss.item()
    assert after < before - 0.05 and masking.distance() > 0.1
    # The checkpoint holds the base's own entries beside the values: a fresh model loads it and gives the same loss.
    fresh = tiny_opt()
    apply_random_mask(fresh, ["q_proj", "v_proj"], density=0.2)
    from safetensors.torch import load_file

    missing = fresh.load_state_dict(load_file(tmp_path / "checkpoint-15" / "model.safetensors"), strict=False)
    assert missing.missing_keys in ([], ["lm_head.weight"])  # tied to the embedding
    assert fresh(input_ids=ids, labels=ids).loss.item() == pytest.approx(after, abs=1e-6)
    masking.remove()
    assert state_bytes(model) == base


def test_save_pretrained_gives_the_result_also_while_it_is_masked(tmp_path):
    model = tiny_opt()
    masking = apply_random_mask(model, ["q_proj", "v_proj"], density=0.2)
    with torch.no_grad():
        for values in masking.parameters():
            values.normal_()
    ids = torch.randint(0, 50, (2, 7))
    wanted = model(input_ids=ids).logits
    model.save_pretrained(tmp_path / "masked")
    masked = OPTForCausalLM.from_pretrained(tmp_path / "masked").eval()
    masking.merge().save_pretrained(tmp_path / "merged")
    merged = OPTForCausalLM.from_pretrained(tmp_path / "merged").eval()
    assert state_bytes(masked) == state_bytes(merged)
    torch.testing.assert_close(merged(input_ids=ids).logits, wanted, rtol=0, atol=1e-6)


def test_pitfall_5_two_ddp_processes_equal_one_with_the_whole_batch(tmp_path):
    run_processes(2, save_values_of_ddp, tmp_path)
    alone = trained_by_sgd()
    for rank in range(2):
        for got, wanted in zip(torch.load(tmp_path / f"{rank}.pt", weights_only=True), alone, strict=True):
            torch.testing.assert_close(got, wanted, atol=1e-12, rtol=0)


def test_masking_is_deep_copied_with_its_model():
    masking = apply_random_mask(TwoLayers(), ["first"], density=0.3)
    twin = copy.deepcopy(masking)
    assert isinstance(twin, RandomMask) and twin.layers["first"] is twin.model.first is not masking.model.first
    with torch.no_grad():
        next(twin.parameters()).fill_(1)
    assert masking.distance() == 0 < twin.distance()


# ------------------------------------------------------------------------------------- merging when the model is called


def merges(monkeypatch):
    """Counts the calls of `tap.merge` that write, and those that only look."""
    counts, real = {"wrote": 0, "looked": 0}, layer_module.merge

    def counting(*state):
        wrote = real(*state)
        counts["wrote" if wrote else "looked"] += 1
        return wrote

    monkeypatch.setattr(layer_module, "merge", counting)
    return counts


def test_each_layer_is_looked_at_once_a_forward_pass_and_never_in_its_backward_pass(monkeypatch):
    model, counts = TwoLayers(), merges(monkeypatch)
    masking = apply_random_mask(model, ["first", "second"], density=0.3)
    optimizer = torch.optim.AdamW(masking.parameters(), lr=0.1)
    for step in range(3):
        optimizer.zero_grad()
        model(torch.randn(4, 24)).sum().backward()
        optimizer.step()
        assert counts == {"wrote": 2 * step, "looked": 2}  # the first time, all values are still 0


def test_values_that_change_between_a_model_and_its_layer_are_noticed():
    model = TwoLayers()
    masking = apply_random_mask(model, ["first"], density=0.3)
    x = torch.randn(4, 24)

    def outside():
        return model.last(torch.tanh(model.second(torch.tanh(model.first(x)))))

    before = model(x)
    with torch.no_grad():
        next(masking.parameters()).fill_(0.5)
    assert torch.equal(outside(), model(x)) and not torch.equal(model(x), before)
    doubled = {"first.values": torch.full_like(model.first.values, 1.0)}
    swapped = torch.func.functional_call(model, doubled, (x,))
    with torch.no_grad():
        next(masking.parameters()).fill_(1.0)
    assert torch.equal(outside(), swapped)


def test_a_forward_pass_that_fails_leaves_no_layer_trusting_it():
    model = TwoLayers()
    masking = apply_random_mask(model, ["first"], density=0.3)
    with pytest.raises(RuntimeError, match="shape"):
        model(torch.randn(4, 23))
    x = torch.randn(4, 24)
    before = model.first(x)
    with torch.no_grad():
        next(masking.parameters()).fill_(0.5)
    assert not torch.equal(model.first(x), before)


@pytest.mark.parametrize("end", ["remove", "merge"])
def test_no_hook_stays_on_the_model(end):
    model = TwoLayers()
    masking = apply_random_mask(model, ["first"], density=0.3)
    assert model._forward_pre_hooks and model._forward_hooks
    getattr(masking, end)()
    assert not model._forward_pre_hooks and not model._forward_hooks and not model._forward_hooks_always_called


def test_a_copied_model_merges_its_own_layers():
    model = TwoLayers()
    masking = apply_random_mask(model, ["first", "second"], density=0.3)
    twin, x = copy.deepcopy(model), torch.randn(4, 24)
    before = model(x)
    with torch.no_grad():
        twin.first.values.fill_(0.5)
    assert torch.equal(model(x), before) and not torch.equal(twin(x), before)
    assert masking.distance() == 0 and twin.first.up_to_date is not model.first.up_to_date
    twin.first.detach()  # one layer alone; the other stays masked
    with torch.no_grad():
        twin.second.values.fill_(0.5)
    assert type(twin.first) is nn.Linear and not torch.equal(twin(x), before)


def test_layers_in_dense_form_and_back_are_merged_again():
    model = TwoLayers()
    masking = apply_random_mask(model, ["first", "second"], density=0.3)
    with torch.no_grad():
        for values in masking.parameters():
            values.fill_(0.5)
    x = torch.randn(4, 24)
    fast = model(x)
    with masking.dense_form():
        torch.testing.assert_close(model(x), fast)
    assert torch.equal(model(x), fast)


# ------------------------------------------------------------------------------------------------------ bad input


class FakeQuantised(nn.Linear):
    """Stands for bitsandbytes' Linear4bit, which is a subclass of nn.Linear."""


def _quantised(model):
    model.second = FakeQuantised(40, 16)


def _meta(model):
    model.second = nn.Linear(40, 16, device="meta")


def _eight_bit(model):
    model.second.weight = nn.Parameter(torch.zeros(16, 40, dtype=torch.int8), requires_grad=False)


def _float8(model):
    model.second.weight = nn.Parameter(torch.zeros(16, 40).to(torch.float8_e4m3fn), requires_grad=False)


def _strided(model):
    model.second.weight = nn.Parameter(torch.randn(40, 16).t())


def _embedding(model):
    model.second = nn.Embedding(40, 16)


def _conv1d(model):
    model.second = Conv1D(16, 40)  # GPT-2's linear layer, with the weight transposed


def _one_dimensional(model):
    model.second = nn.LayerNorm(40)


def _tied(model):
    model.other = nn.Linear(40, 16)
    model.other.weight = model.second.weight


def _overlapping(model):
    block = torch.randn(20, 40)
    model.second.weight = nn.Parameter(block[:16])
    model.register_buffer("table", block[10:])


REFUSED = {
    "quantised": (_quantised, "FakeQuantised"),
    "meta": (_meta, "meta device"),
    "int8": (_eight_bit, "int8"),
    "float8": (_float8, "float8"),
    "not contiguous": (_strided, "contiguous"),
    "embedding": (_embedding, "Embedding"),
    "Conv1D": (_conv1d, "Conv1D"),
    "one-dimensional": (_one_dimensional, "LayerNorm"),
    "tied": (_tied, "other.weight"),
    "overlapping memory": (_overlapping, "table"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_layers_are_named_and_the_model_is_untouched(case):
    change, words = REFUSED[case]
    model = TwoLayers()
    change(model)
    types = {n: type(m) for n, m in model.named_modules()}
    flags = {n: p.requires_grad for n, p in model.named_parameters()}
    with pytest.raises(TargetError, match="second.*" + words.replace(".", r"\.")):
        apply_random_mask(model, ["first", "second"], density=0.1)
    assert types == {n: type(m) for n, m in model.named_modules()}
    assert flags == {n: p.requires_grad for n, p in model.named_parameters()}


def test_tied_output_layer_of_a_real_architecture_is_refused():
    with pytest.raises(TargetError, match="tied.*embed_tokens"):
        apply_random_mask(tiny_opt(tie_word_embeddings=True), ["lm_head"], density=0.1)


def test_a_layer_masked_twice_is_refused_and_stays_masked():
    model = TwoLayers()
    first = apply_random_mask(model, ["first"], density=0.3)
    with pytest.raises(TargetError, match="masked already"):
        apply_random_mask(model, ["second", "first"], density=0.3)
    with pytest.raises(TargetError, match="masked already, at first"):
        apply_random_mask(model, ["second"], density=0.3)
    assert isinstance(model.first, MaskedLinear) and type(model.second) is nn.Linear
    assert model.first.values.requires_grad
    first.remove()
    apply_random_mask(model, ["second", "first"], density=0.3)


def test_unknown_target_lists_close_names():
    with pytest.raises(TargetError, match="'q_prj'.*q_proj"):
        apply_random_mask(tiny_opt(), ["q_prj"], density=0.1)
    with pytest.raises(TargetError, match="no layer matches.*k_proj"):
        apply_random_mask(tiny_opt(), ["zzz"], density=0.1)
    with pytest.raises(TargetError, match="no linear layer"):
        apply_random_mask(nn.Sequential(nn.ReLU()), ["q_proj"], density=0.1)
    for targets in ([], "", [""], [3]):
        with pytest.raises(TargetError, match="targets must be"):
            apply_random_mask(tiny_opt(), targets, density=0.1)


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"density": 1.5}, "density"),
        ({"density": float("nan")}, "density"),
        ({"ratio": -0.1}, "ratio"),
        ({}, "either"),
        ({"ratio": 0.1, "density": 0.1}, "either"),
        ({"density": 0.1, "seed": 0.5}, "seed"),
        ({"ratio": 0.9}, "largest possible ratio here is 0.3"),
        ({"ratio": float("nan")}, "ratio"),
        ({"ratio": "1"}, "ratio"),
    ],
)
def test_bad_numbers_are_named_and_the_model_is_untouched(arguments, words):
    model = TwoLayers()  # 960 of 1,707 parameters are in `first`, 640 in `second`
    with pytest.raises(ValueError, match=words):
        apply_random_mask(model, ["second"], **arguments)
    assert type(model.second) is nn.Linear and all(p.requires_grad for p in model.parameters())


def test_dense_form_is_left_on_error():
    model = TwoLayers()
    masking = apply_random_mask(model, ["first"], density=0.3)
    with torch.no_grad():
        next(masking.parameters()).fill_(1)
    x = torch.randn(2, 24)
    fast = model(x)
    with pytest.raises(ZeroDivisionError), masking.dense_form():
        torch.testing.assert_close(model(x), fast)
        raise ZeroDivisionError
    assert not model.first.dense_form
    torch.testing.assert_close(model(x), fast)


def test_reference_is_exported():
    mask = sample_mask((3, 2), 1.0, 0, "w")
    output = masked_linear_reference(torch.eye(2), torch.zeros(3, 2), None, mask, torch.arange(6.0))
    assert torch.equal(output, torch.arange(6.0).view(3, 2).T)
