"""Backends: equal results, a choice that explains itself, and refusals that change nothing."""

import contextlib

import pytest
import torch
import transformers
from accelerate import cpu_offload, disk_offload, dispatch_model
from conftest import TwoLayers, state_bytes

from rmbook import MaskedLinear, apply_random_mask, sample_mask
from rmbook.engine import backends, product_torch
from rmbook.engine.backends import BACKENDS, choose_backend
from rmbook.engine.targets import TargetError
from rmbook.masks.recipe import STRUCTURES
from rmbook.methods import settings


def gradients(density, structure, backend="auto", dense_form=False):
    """Gradients of the input and of all values, in float64."""
    model = TwoLayers(torch.float64)
    targets = ["first", "second"]
    masking = apply_random_mask(model, targets, density=density, seed=1, structure=structure, backend=backend)
    for number, values in enumerate(masking.parameters()):
        values.data.normal_(generator=torch.Generator().manual_seed(number))
    x = torch.randn(6, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(5), requires_grad=True)
    with masking.dense_form() if dense_form else contextlib.nullcontext():
        model(x).square().sum().backward()
    return [x.grad, *(values.grad for values in masking.parameters())]


@pytest.mark.parametrize("backend", ["auto", "torch", "dense"])
@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("density", [0.02, 0.2, 0.9])
def test_every_backend_equals_the_dense_reference(backend, structure, density):
    reference = gradients(density, structure, dense_form=True)
    for got, wanted in zip(gradients(density, structure, backend), reference, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("limit", [None, 7])
def test_dense_product_in_blocks_of_any_size(monkeypatch, limit):
    if limit:
        monkeypatch.setattr(product_torch, "ROWS_AT_ONCE", limit)
    torch.manual_seed(0)
    g, x = torch.randn(5, 40, dtype=torch.float64), torch.randn(5, 24, dtype=torch.float64)
    positions = torch.randperm(960)[:300].sort().values
    rows, columns = positions // 24, (positions % 24).int()
    starts = torch.searchsorted(positions, torch.arange(41) * 24).int()
    wanted = product_torch.sampled_product_reference(g, x, rows, columns)
    torch.testing.assert_close(product_torch.dense_product(g, x, starts, columns), wanted)


@pytest.mark.parametrize("structure", ["leading_columns", "random_columns"])
def test_masks_of_columns_take_a_product_with_those_columns_alone(structure):
    model = TwoLayers()
    masking = apply_random_mask(model, ["first"], density=0.125, structure=structure)
    layer = masking.layers["first"]
    assert layer.product_shape == (40, 3) and layer.mask.nnz == 120  # three whole columns of 24
    assert masking.explain()["way"]["first"].startswith("dense")


def test_auto_explains_its_choice():
    masking = apply_random_mask(TwoLayers(), ["first", "second"], density=0.01)
    table = masking.explain()
    assert list(table.index) == ["first", "second"] and set(table["backend"]) == {"torch"}
    assert table["because"]["first"] == "a device of type cpu: torch's own kernels"
    assert table["way"]["first"].startswith("gather: ") and "fewer than 32" in table["way"]["first"]
    many = apply_random_mask(torch.nn.Sequential(torch.nn.Linear(400, 400)), ["0"], density=0.1)
    assert many.explain()["way"]["0"].startswith("sparse: 16")
    full = apply_random_mask(torch.nn.Sequential(torch.nn.Linear(400, 400)), ["0"], density=0.9, backend="dense")
    assert list(full.explain().loc["0"]) == ["dense", "asked for", "dense: by blocks of rows, at every density"]


def test_the_way_depends_on_sizes_alone():
    shape = (1000, 1000)
    assert product_torch.cheapest_way(shape, 20_000, torch.float32, "cpu")[0] == "sparse"
    assert product_torch.cheapest_way(shape, 400, torch.float32, "cpu")[0] == "gather"
    assert product_torch.cheapest_way(shape, 300_000, torch.float32, "cpu")[0] == "dense"
    assert product_torch.cheapest_way(shape, 300_000, torch.bfloat16, "cpu")[0] == "dense"
    assert product_torch.cheapest_way(shape, 20_000, torch.float32, "mps")[0] == "dense"
    assert product_torch.cheapest_way((100, 100), 300, torch.float32, "cpu")[0] == "dense"  # a small matrix


@pytest.fixture
def capabilities(monkeypatch):
    """Sets what the processor is said to have."""

    def forget():
        product_torch._dense_dtype.cache_clear()
        product_torch.cheapest_way.cache_clear()

    def say(**has):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has)
        forget()

    yield say
    forget()


@pytest.mark.parametrize("dtype, instruction", [(torch.bfloat16, "amx_bf16"), (torch.float16, "avx512_fp16")])
def test_a_dense_product_in_16_bits_is_in_float32_where_the_processor_lacks_them(capabilities, dtype, instruction):
    mask = sample_mask((60, 50), 0.5, 0, "w")
    left, right = torch.randn(300, 60).to(dtype), torch.randn(300, 50).to(dtype)
    exact = (left.double().T @ right.double())[mask.rows.long(), mask.columns.long()]
    for has, low, high in (({}, 0, 1e-6), ({instruction: False}, 0, 1e-6), ({instruction: True}, 1e-5, 1e-2)):
        capabilities(**has)
        got = product_torch.dense_product(left, right, mask.row_starts, mask.columns)
        assert got.dtype == torch.float32 and low <= (got - exact).norm() / exact.norm() < high
        way = product_torch.cheapest_way((1000, 1000), 80_000, dtype, "cpu")[0]
        assert way == ("dense" if has.get(instruction) else "sparse")  # dense ones pay off later


@pytest.mark.parametrize("backend, error", [("tritron", ValueError), ("triton", ValueError), (None, ValueError)])
def test_a_backend_that_does_not_work_here_is_refused_and_the_model_untouched(backend, error):
    model = TwoLayers()
    before = state_bytes(model)
    with pytest.raises(error, match="backend"):
        apply_random_mask(model, ["first"], density=0.1, backend=backend)
    assert state_bytes(model) == before and type(model.first) is torch.nn.Linear and model.first.weight.requires_grad


def test_every_backend_is_known_to_the_chooser():
    assert set(BACKENDS) == {"auto", "torch", "triton", "spops", "dense"}
    # Settings are checked without torch, so they have a list of their own.
    assert settings.BACKENDS == BACKENDS and set(settings.STRUCTURES) == set(STRUCTURES)
    weight = torch.zeros(2, 2, device="meta")  # stands for any device that is neither a CPU nor a CUDA GPU
    assert choose_backend("auto", weight) == ("torch", "a device of type meta: torch's own kernels")
    assert backends.product("torch", "cpu") is product_torch.sampled_product


def test_a_weight_that_is_replaced_is_refused_and_one_that_is_loaded_is_not():
    model = TwoLayers()
    masking = apply_random_mask(model, ["first"], density=0.1)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.load_state_dict(state, assign=True)
    model(torch.randn(2, 24))
    model.first.weight = torch.nn.Parameter(torch.zeros(40, 24), requires_grad=False)
    with pytest.raises(RuntimeError, match="replaced by another"):
        model(torch.randn(2, 24))
    assert masking.trainable


@pytest.mark.parametrize("disk", [False, True])
def test_an_offloaded_weight_is_refused_by_name(tmp_path, disk):
    def offload(model):  # as device_map="auto" does with what does not fit
        disk_offload(model, tmp_path, execution_device="cpu") if disk else cpu_offload(model, execution_device="cpu")

    model = TwoLayers()
    offload(model)
    with pytest.raises(TargetError, match="offloads"):
        apply_random_mask(model, ["first"], density=0.1)
    model = TwoLayers()
    apply_random_mask(model, ["first"], density=0.1)
    offload(model)
    with pytest.raises(RuntimeError, match="offloading"):
        model(torch.randn(2, 24))


def test_a_dispatched_model_that_stays_on_its_devices_trains_as_a_plain_one():
    losses = []
    for dispatch in (False, True):
        model = TwoLayers()
        if dispatch:
            model = dispatch_model(model, {"": "cpu"}, force_hooks=True)
        masking = apply_random_mask(model, ["first", "second"], density=0.1)
        for _ in range(2):
            loss = model(torch.ones(2, 24)).square().mean()
            loss.backward()
            with torch.no_grad():
                for values in masking.parameters():
                    values -= values.grad
        losses.append(loss.item())
    assert losses[0] == losses[1]


@pytest.mark.parametrize("sample", [False, True])
def test_generation_of_a_masked_model_equals_that_of_the_merged_one(sample):
    config = transformers.LlamaConfig(
        vocab_size=60, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4
    )
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).eval()
    model.generation_config.pad_token_id = 0
    masking = apply_random_mask(model, ["q_proj", "v_proj"], density=0.2)
    for values in masking.parameters():
        values.data.normal_()
    prompt = torch.tensor([[3, 4, 5]])

    def generate():
        torch.manual_seed(1)
        return model.generate(prompt, min_new_tokens=12, max_new_tokens=12, do_sample=sample)

    masked = generate()
    masking.merge()
    assert torch.equal(generate(), masked) and masked.shape == (1, 15)


@pytest.mark.parametrize("backend", ["torch", "dense"])
@pytest.mark.parametrize("density", [0.02, 0.6])
def test_gradcheck_of_every_backend(backend, density):
    layer = torch.nn.Linear(9, 7, dtype=torch.float64)
    masked = MaskedLinear.attach(layer, sample_mask((7, 9), density, 0, "w"), backend)
    x = torch.randn(4, 9, dtype=torch.float64, requires_grad=True)

    def run(x, values):
        return torch.func.functional_call(masked, {"values": values}, (x,))

    values = torch.randn(masked.mask.nnz, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(run, (x, values))


@pytest.mark.parametrize("backend", ["torch", "dense"])
@pytest.mark.parametrize("density", [0.0005, 0.01, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_two_runs_give_identical_bytes(backend, density, dtype):
    """In one process, whose second run meets used memory, and whatever ran in between."""

    def run():
        torch.manual_seed(0)
        layer = torch.nn.Linear(300, 200).to(dtype)
        masked = MaskedLinear.attach(layer, sample_mask((200, 300), density, 0, "w"), backend)
        torch.nn.init.normal_(masked.values)
        x = torch.randn(700, 300).to(dtype)
        masked(x).float().square().sum().backward()
        return masked.values.grad.numpy().tobytes()

    first = run()
    gradients(0.2, "entries", backend)
    assert run() == first
