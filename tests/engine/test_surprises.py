"""Situations from public bug threads: in-place operations, layers without a gradient, wrappers, batch norms, hooks."""

import copy
import gc
import warnings
import weakref

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from rmbook import AdapterBank, TargetError, apply_random_mask, load_adapter, save_adapter
from rmbook.adapters.base import base_fingerprint
from rmbook.engine.layer import MaskedLinear

CHANGES = {
    "relu": nn.ReLU(inplace=True),
    "times": lambda y: y.mul_(2),
    "plus": lambda y: y.add_(1),
    "clamp": lambda y: y.clamp_(-0.1, 0.1),
    "view": lambda y: y.view(-1, 2, 2).mul_(2).view(y.shape),
}


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 4)])
@pytest.mark.parametrize("compiled", [False, True])
def test_an_output_may_be_changed_in_place(name, shape, compiled):
    """The gradients are those of the dense form, which is a plain linear layer."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).double()
    masking = apply_random_mask(model, ["0", "1"], density=0.5)
    x = torch.randn(*shape, dtype=torch.float64)

    def run(x):
        return model[1](CHANGES[name](model[0](x)))

    torch._dynamo.reset()
    (torch.compile(run, backend="aot_eager", fullgraph=True) if compiled else run)(x).square().sum().backward()
    found = [values.grad.clone() for values in masking.parameters()]
    with masking.dense_form():
        wanted = torch.autograd.grad(run(x).square().sum(), list(masking.parameters()))
    torch.testing.assert_close(found, list(wanted))


class Branches(nn.Module):
    """A used layer, one whose output the result ignores, and one whose weight is read without calling the layer."""

    def __init__(self):
        super().__init__()
        self.used, self.ignored, self.read = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x, ignored=False):
        hidden = self.used(x)
        other = self.ignored(hidden)
        return hidden @ self.read.weight.T + (other if ignored else 0)


def test_a_layer_without_a_gradient_is_an_error_that_names_it():
    model, x = Branches(), torch.randn(3, 4)
    apply_random_mask(model, ["used", "ignored", "read"], density=0.5)
    model(x), model(x)  # forward passes alone tell nothing
    model(x).sum().backward()
    for _ in range(2):
        with pytest.raises(TargetError, match="reached the masked layers ignored, read in the first backward"):
            model(x)


def test_a_flag_makes_it_one_warning():
    model, x = Branches(), torch.randn(3, 4)
    apply_random_mask(model, ["used", "ignored"], density=0.5, unused="warn")
    model(x).sum().backward()
    with pytest.warns(UserWarning, match="ignored"):
        model(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(x)
    with pytest.raises(ValueError, match="unused must be one of error, warn, got 'no'"):
        apply_random_mask(Branches(), ["used"], density=0.5, unused="no")


@pytest.mark.parametrize("compiled", [False, True])
def test_a_loop_of_one_step_hears_of_it_at_the_step(compiled):
    model, x = Branches(), torch.randn(3, 4)
    masking = apply_random_mask(model, ["used", "ignored"], density=0.5)
    if compiled:  # then the model's own call looks at nothing
        torch._dynamo.reset()
        model.compile(backend="aot_eager")
    optimizer = torch.optim.AdamW(masking.parameters())
    model(x).sum().backward()
    values = [v.detach().clone() for v in masking.parameters()]
    for _ in range(2):
        with pytest.raises(TargetError, match="reached the masked layers ignored in the first backward"):
            optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(values, masking.parameters(), strict=True))
    masking.remove()
    optimizer.step()  # nothing is left that looks


def test_the_check_keeps_no_model_alive():
    model = Branches()
    apply_random_mask(model, ["used"], density=0.5)
    known = weakref.ref(model)
    del model
    gc.collect()
    assert known() is None


@pytest.mark.parametrize("reentrant", [True, False])
def test_layers_that_all_get_gradients_pass_also_when_checkpointed(reentrant):
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

        def forward(self, x):
            for block in self.blocks:
                x = checkpoint(block, x, use_reentrant=reentrant)
            return x

    model, x = Checkpointed(), torch.randn(3, 4, requires_grad=True)
    masking = apply_random_mask(model, ["0", "1", "2"], density=0.5)
    for _ in range(2):  # twice before a step, as gradients accumulate
        checkpoint(model, x, use_reentrant=reentrant).sum().backward()
    model(x)
    assert all(values.grad is not None for values in masking.parameters())


def test_layers_that_are_frozen_or_empty_are_not_waited_for():
    model, x = Branches(), torch.randn(3, 4)
    masking = apply_random_mask(model, ["used", "ignored"], density=0.5)
    masking.layers["ignored"].values.requires_grad_(False)
    model(x).sum().backward()
    model(x)
    empty = Branches()
    apply_random_mask(empty, ["ignored"], density=0.0)
    empty(x, ignored=True).sum().backward()
    empty(x)


class Wrapper(nn.Module):
    """It names its module as DistributedDataParallel does."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x):
        return self.module(x)


def checkpoint_wrapped(model):
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    model[0] = checkpoint_wrapper(model[0])
    return model


WRAPS = {
    "compile": torch.compile,
    "module": Wrapper,
    "checkpoint": checkpoint_wrapped,
    "both": lambda model: torch.compile(Wrapper(checkpoint_wrapped(model))),
}


@pytest.mark.parametrize("name", WRAPS)
def test_a_wrapper_changes_neither_masks_nor_adapters(name, tmp_path):
    base = nn.Sequential(nn.Linear(40, 8), nn.ReLU(), nn.Linear(8, 2))
    plain = apply_random_mask(copy.deepcopy(base), ["0", "2"], density=0.1)
    wrapped = WRAPS[name](copy.deepcopy(base))
    assert base_fingerprint(wrapped) == base_fingerprint(base)
    masking = apply_random_mask(wrapped, ["0", "2"], density=0.1)
    assert list(masking.layers) == ["0", "2"]
    for ours, theirs in zip(plain.layers.values(), masking.layers.values(), strict=True):
        assert ours.mask.digest() == theirs.mask.digest()
    with torch.no_grad():
        for values in masking.parameters():
            values.normal_()
    save_adapter(masking, tmp_path / "a.safetensors")
    again, other = copy.deepcopy(base), WRAPS[name](copy.deepcopy(base))
    for model in (again, other):
        load_adapter(model, tmp_path / "a.safetensors")
    bank = AdapterBank(WRAPS[name](copy.deepcopy(base)))
    bank.add("a", tmp_path / "a.safetensors")
    x = torch.randn(3, 40)
    torch.testing.assert_close(again(x), masking.model(x) if name == "module" else again(x))
    assert [v.tolist() for v in masking.parameters()] == [
        m.values.tolist() for m in other.modules() if isinstance(m, MaskedLinear)
    ]


class Norms(nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(4, 8), norm, nn.Linear(8, 2)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))  # a buffer of the model's own that changes

    def forward(self, x):
        if self.training:
            self.steps += 1
        return self.b(self.norm(self.a(x).transpose(1, 2)).relu().transpose(1, 2))  # channels second


def norm_layers():
    return [nn.BatchNorm1d(8), nn.BatchNorm1d(8, momentum=None), nn.InstanceNorm1d(8, track_running_stats=True)]


@pytest.mark.parametrize("norm", norm_layers(), ids=["batch", "average", "instance"])
def test_running_statistics_travel_with_the_adapter_and_go_with_the_mask(norm, tmp_path):
    torch.manual_seed(0)
    model = Norms(norm)
    model.norm.running_mean.normal_()  # a pretrained model's
    base, x = copy.deepcopy(model), torch.randn(5, 6, 4) + 3
    fingerprint = base_fingerprint(base)
    masking = apply_random_mask(model, ["a", "b"], density=0.5)
    with torch.no_grad():
        for values in masking.parameters():
            values.normal_()
        for _ in range(3):
            model(x)
    assert not torch.equal(model.norm.running_mean, base.norm.running_mean)
    save_adapter(masking, tmp_path / "a.safetensors")
    wanted = model.eval()(x)
    for fresh in (base, Norms(copy.deepcopy(base.norm))):
        if fresh is not base:
            fresh.load_state_dict(base.state_dict())
            fresh.norm.reset_running_stats()  # other statistics are no other base
        loaded = copy.deepcopy(fresh).eval()
        mask = load_adapter(loaded, tmp_path / "a.safetensors")
        assert torch.equal(loaded(x), wanted) and loaded.steps == 3
        before = fresh.state_dict()
        mask.remove()
        assert all(torch.equal(before[name], value) for name, value in loaded.state_dict().items())
    other = copy.deepcopy(base).eval()
    bank, plain = AdapterBank(other), other(x)
    for name in ("one", "two"):
        bank.add(name, tmp_path / "a.safetensors")
    bank.activate("one")
    torch.testing.assert_close(other(x), wanted)
    with pytest.raises(ValueError, match="'one', 'two' each bring running statistics"):
        bank.activate("one", "two")
    assert bank.active == {"one": 1.0}
    bank.activate()
    assert torch.equal(other(x), plain)
    masking.remove()
    state = model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in base.state_dict().items())
    assert base_fingerprint(model) == fingerprint


def test_merge_keeps_the_running_statistics():
    model = Norms(nn.BatchNorm1d(8))
    masking = apply_random_mask(model, ["a"], density=0.5)
    model(torch.randn(5, 6, 4) + 3)
    mean = model.norm.running_mean.clone()
    masking.merge()
    assert torch.equal(model.norm.running_mean, mean) and mean.any()


def test_a_device_map_runs_the_masked_layer_and_remove_the_plain_one():
    accelerate = pytest.importorskip("accelerate")
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    model = accelerate.dispatch_model(copy.deepcopy(plain), {"": "cpu"}, force_hooks=True)
    x = torch.randn(5, 8)
    twin = apply_random_mask(copy.deepcopy(plain), ["0", "2"], density=0.5)
    masking = apply_random_mask(model, ["0", "2"], density=0.5)
    for mask in (twin, masking):
        mask.model(x).square().sum().backward()
    for ours, theirs in zip(masking.parameters(), twin.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)
    masking.remove()
    assert torch.equal(model(x), plain(x)) and not any("values" in name for name in model.state_dict())
    accelerate.hooks.remove_hook_from_module(model, recurse=True)
    assert torch.equal(model(x), plain(x))


def test_another_forward_of_one_instance_is_refused():
    model = nn.Sequential(nn.Linear(4, 4))
    model[0].forward = lambda x: x
    with pytest.raises(TargetError, match="'0': its forward was replaced"):
        apply_random_mask(model, ["0"], density=0.5)
    assert type(model[0]) is nn.Linear
