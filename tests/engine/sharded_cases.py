"""Training on a base that FSDP2 shards, against training in one process with the same global batch.

`python tests/engine/sharded_cases.py WORLD [FILTER]` runs the whole table on gloo processes of this machine;
test_sharded.py runs some rows of it. Each row says by how much losses and values differ.
"""

import copy
import gc
import multiprocessing
import os
import sys
import tempfile
import time
import weakref
from datetime import timedelta
from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist
import torch.multiprocessing
import torch.nn.functional as F
from peft import get_peft_model
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import Shard
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from rmbook import (
    RandomMaskConfig,
    apply_random_mask,
    load_adapter,
    load_from_peft,
    load_from_shira,
    save_adapter,
    save_as_peft,
    save_as_shira,
)
from rmbook.adapters.base import base_fingerprint
from rmbook.engine.shards import local, whole

STEPS, BATCH, TARGETS = 4, 12, ["inner", "outer", "head"]
WAIT = timedelta(minutes=4)  # for the other process: it may have died
LIMITS = {torch.float64: 1e-9, torch.float32: 1e-5}


class Block(nn.Module):
    """Two targets; it ends in one, whose output is returned as it is."""

    checkpointed = False

    def __init__(self, width, out):
        super().__init__()
        self.inner, self.outer = nn.Linear(width, out), nn.Linear(out, out, bias=False)

    def forward(self, x):
        run = lambda x: self.outer(torch.tanh(self.inner(x)))  # noqa: E731
        return checkpoint(run, x, use_reentrant=False) if self.checkpointed else run(x)


class Toy(nn.Module):
    """Rows of 7, 13 and 2: they divide by neither 2 nor 3, and on 3 processes one shard of 2 rows is empty."""

    def __init__(self, dtype=torch.float64):
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList([Block(9, 7), Block(7, 13), Block(13, 2)])
        self.head, self.skip_head = nn.Linear(2, 5), False
        self.to(dtype)

    def forward(self, x, labels):
        for block in self.blocks:
            x = block(x)
        if self.skip_head:
            return x.square().mean()
        return F.cross_entropy(self.head(x), labels)


class Llama(nn.Module):
    """A tiny Llama, its norms and its loss in the model's own dtype, which transformers computes in float32."""

    def __init__(self, dtype=torch.float64):
        super().__init__()
        import transformers

        torch.manual_seed(0)
        sizes = {"vocab_size": 61, "hidden_size": 40, "intermediate_size": 54, "num_hidden_layers": 3}
        heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 32}
        self.model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, **heads)).to(dtype)
        self.__dict__["blocks"] = self.model.model.layers  # not a second name of its parameters
        for name, norm in self.model.named_modules():
            if "norm" in name:
                norm.forward = lambda h, norm=norm: norm.weight * h * h.pow(2).mean(-1, keepdim=True).add(1e-6).rsqrt()

    def forward(self, x, labels):
        logits = self.model(input_ids=x, use_cache=False).logits
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


MODELS = {"toy": (Toy, TARGETS), "llama": (Llama, ["q_proj", "v_proj", "down_proj"])}


def batches(kind, dtype):
    generator = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        if kind == "toy":
            x = torch.randn(BATCH, 9, generator=generator, dtype=torch.float64).to(dtype)
            yield x, torch.randint(0, 5, (BATCH,), generator=generator)
        else:
            x = torch.randint(3, 61, (BATCH, 11), generator=generator)
            yield x, x


def mask_of(model, kind, density, scale=1.0, unused="warn"):
    return apply_random_mask(model, MODELS[kind][1], density=density, seed=3, scale=scale, unused=unused)


class PeftMask:
    """The same mask in peft, seen as a `RandomMask`."""

    def __init__(self, model, kind, density, scale):
        config = RandomMaskConfig(target_modules=MODELS[kind][1], density=density, seed=3, scale=scale)
        self.model = get_peft_model(model, config)

    def named_parameters(self):
        for name, parameter in self.model.named_parameters():
            if ".rmbook_values." in name:
                yield name.removeprefix("base_model.model.").partition(".rmbook")[0] + ".values", parameter

    def parameters(self):
        return (values for _, values in self.named_parameters())


def steps_of(model, masking, kind, dtype, take, accumulate=1, evaluate=False, resume=None):
    """Train; `take(batch, number)` is this process's part number of a batch. Returns losses."""
    optimizer, losses = torch.optim.AdamW(list(masking.parameters()), lr=2e-2), []
    for step, batch in enumerate(batches(kind, dtype)):
        optimizer.zero_grad()
        if evaluate:
            model.eval()
            with torch.no_grad():
                model(*take(batch, 0))
            model.train()
        total = 0.0
        for number in range(accumulate):
            if accumulate > 1:
                model.set_requires_gradient_sync(number == accumulate - 1)
            loss = model(*take(batch, number)) / accumulate
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(masking.parameters(), 1.0)
        optimizer.step()
        losses.append(total)
        if resume is not None and step == 1:  # everything put away and taken up again by a fresh optimiser
            state = copy.deepcopy(optimizer.state_dict())
            optimizer = torch.optim.AdamW(list(masking.parameters()), lr=2e-2)
            optimizer.load_state_dict(state)
    return losses


def one_process(kind, dtype, density, scale, parts=1):
    """Losses and values; `parts` of each batch one after the other, their gradients added up."""
    model, size = MODELS[kind][0](dtype), BATCH // parts
    model.set_requires_gradient_sync = lambda wanted: None
    masking = mask_of(model, kind, density, scale)

    def take(batch, number):
        return tuple(tensor[number * size : (number + 1) * size] for tensor in batch)

    losses = steps_of(model, masking, kind, dtype, take, parts)
    return losses, {name: values.detach().clone() for name, values in masking.named_parameters()}


def shard(model, mesh, ignored, reshard=True, flat=False, offload=False, placement=False, policy=None):
    world = mesh.size()
    extra = {"mesh": mesh, "ignored_params": ignored}
    if offload:
        extra["offload_policy"] = CPUOffloadPolicy(pin_memory=False)
    if policy:
        extra["mp_policy"] = policy
    if placement:
        extra["shard_placement_fn"] = lambda p: Shard(1) if p.dim() == 2 and p.shape[1] % world == 0 else None
    for block in [] if flat else model.blocks:
        fully_shard(block, reshard_after_forward=reshard, **extra)
    fully_shard(model, **extra)


def sharded(kind="toy", dtype=torch.float64, density=0.2, scale=1.0, owner="nobody", hsdp=False, checkpointing=False,
            accumulate=1, evaluate=False, policy=None, unused="warn", skip_head=False, compiled=False,
            peft=False, apart=False, **how):  # fmt: skip
    """Train on shards; owner of the values: "nobody" (ignored), "fsdp", "later" (masked after sharding)."""
    rank, world = dist.get_rank(), dist.get_world_size()
    names = ("replicate", "shard")
    mesh = init_device_mesh("cpu", (world // 2, 2), mesh_dim_names=names) if hsdp else init_device_mesh("cpu", (world,))
    model = MODELS[kind][0](dtype)
    model.skip_head = skip_head
    if checkpointing and kind == "toy":
        Block.checkpointed = True
    elif checkpointing:
        model.train()
        model.model.gradient_checkpointing_enable({"use_reentrant": False})
    if owner == "later":
        shard(model, mesh, set(), policy=policy, **how)
    masking = PeftMask(model, kind, density, scale) if peft else mask_of(model, kind, density, scale, unused)
    model = masking.model
    if owner != "later":
        ignored = {*masking.parameters(), *(model.head.parameters() if apart else ())} if owner == "nobody" else set()
        shard(model, mesh, ignored, policy=policy, **how)

    def take(batch, number):
        size = BATCH // (world * accumulate)
        start = (number * world + rank) * size
        return tuple(tensor[start : start + size] for tensor in batch)

    if compiled:
        torch._dynamo.reset()  # which counts what it has compiled, and then stops
    try:
        called = torch.compile(model, backend=compiled) if compiled else model
        losses = steps_of(called, masking, kind, dtype, take, accumulate, evaluate)
    finally:
        Block.checkpointed = False
    mean = torch.tensor(losses, dtype=torch.float64)
    dist.all_reduce(mean)
    values = {name: whole(values.detach()).clone() for name, values in masking.named_parameters()}
    for name, own in values.items():  # all processes hold the same bits
        first = own.clone()
        dist.broadcast(first, 0)
        assert torch.equal(first, own), name
    return (mean / world).tolist(), values, model, masking


def difference(result, reference):
    losses, values = result[:2]
    loss = max(abs(a - b) for a, b in zip(losses, reference[0], strict=True))
    gaps = [(values[n].double() - v.double()).abs().max().item() for n, v in reference[1].items() if v.numel()]
    return loss, max(gaps, default=0.0)


ROWS = {
    "float64": {},
    "float32": {"dtype": torch.float32},
    "values are FSDP's": {"owner": "fsdp"},
    "values are FSDP's, float32": {"owner": "fsdp", "dtype": torch.float32},
    "masked after fully_shard": {"owner": "later"},
    "reshard_after_forward=False": {"reshard": False},
    "reshard_after_forward=False, values are FSDP's": {"reshard": False, "owner": "fsdp"},
    "one group": {"flat": True},
    "one group, evaluation between": {"flat": True, "evaluate": True},
    "evaluation between": {"evaluate": True},
    "evaluation between, no reshard": {"evaluate": True, "reshard": False},
    "empty masks": {"density": 0.01},
    "empty masks, values are FSDP's": {"density": 0.01, "owner": "fsdp"},
    "dense masks": {"density": 0.7},
    "scale": {"scale": 5.0},
    "checkpointing": {"checkpointing": True},
    "checkpointing, values are FSDP's": {"checkpointing": True, "owner": "fsdp"},
    "accumulation": {"accumulate": 2},
    "accumulation, values are FSDP's": {"accumulate": 2, "owner": "fsdp"},
    "CPU offload": {"offload": True},
    "CPU offload, values are FSDP's": {"offload": True, "owner": "fsdp"},
    "columns sharded": {"placement": True},
    "one layer apart": {"apart": True},
}
ROWS |= {
    f"peft, {name}": {"peft": True} | ROWS[name]
    for name in (
        *("float64", "float32", "values are FSDP's", "masked after fully_shard", "reshard_after_forward=False"),
        *("one group, evaluation between", "empty masks", "empty masks, values are FSDP's", "checkpointing"),
        *("accumulation", "accumulation, values are FSDP's", "CPU offload", "CPU offload, values are FSDP's"),
        *("columns sharded", "scale", "one layer apart"),
    )
}
UNEVEN = ("float64", "float32", "values are FSDP's", "empty masks", "accumulation", "CPU offload", "columns sharded")
UNEVEN += ("peft, float64", "peft, empty masks, values are FSDP's")
EVEN = {"HSDP 2 x 2": {"hsdp": True}, "HSDP 2 x 2, values are FSDP's": {"hsdp": True, "owner": "fsdp"}}
EVEN |= {f"peft, {name}": {"peft": True} | row for name, row in EVEN.items()}
REPLICAS = ("HSDP 2 x 2, values are FSDP's", "peft, HSDP 2 x 2")
SLOW = {  # "inductor" takes a C++ compiler
    f"torch.compile, {backend}{more}": {"compiled": backend, "owner": owner}
    for backend in ("aot_eager", "inductor")
    for more, owner in (("", "nobody"), (", values are FSDP's", "fsdp"))
}
SLOW |= {f"peft, {name}": {"peft": True} | row for name, row in SLOW.items()}


def check_row(name, kind="toy", report=lambda *_: None):
    """Run one row; raises where it is further from one process than its limit."""
    row = {"kind": kind} | (ROWS | EVEN | SLOW)[name]
    dtype, world = row.get("dtype", torch.float64), dist.get_world_size()
    settings = row.get("density", 0.2), row.get("scale", 1.0)
    result, reference, limit = sharded(**row), one_process(kind, dtype, *settings), LIMITS[dtype]
    loss, values = difference(result, reference)
    together, wanted = (torch.cat([v.double() for v in run[1].values()]) for run in (result, reference))
    norm = float((together - wanted).norm() / wanted.norm())
    report(f"{kind:6} {name:50} losses differ by {loss:.1e}, values by {values:.1e}, in norm by {norm:.1e}")
    if dtype == torch.float32:
        # Splitting a batch rounds otherwise, as gradient accumulation does, and Adam's quotient makes much of it where
        # a gradient is nearly zero. Adding up in float64 does not help: each part's own gradient is rounded.
        exact, added = (one_process(kind, t, *settings, parts=n) for t, n in ((torch.float64, 1), (dtype, world)))
        limit = max(limit, 2 * max(difference(own, exact)[1] for own in (reference, added)))
        assert world != 2 or difference(result, added) == (0.0, 0.0), name  # the same sums: bit for bit
    assert max(loss, norm) < LIMITS[dtype] and values < limit, (name, loss, values, norm)


def check_files(folder):
    """The base's fingerprint, the adapter file, and the way back, of shards and in one process."""
    folder = Path(folder)
    for owner in ("nobody", "fsdp"):
        _, values, model, masking = sharded(owner=owner, dtype=torch.float32)
        assert base_fingerprint(model) == base_fingerprint(Toy(torch.float32))
        save_adapter(masking, folder / f"{owner}.safetensors")
        sparser = sharded(owner=owner, dtype=torch.float32, density=0.1)  # SHiRA's least r holds no more
        forms = {"peft": (save_as_peft, load_from_peft, values, masking)}
        forms["shira"] = save_as_shira, load_from_shira, sparser[1], sparser[3]
        for form, (save, load, expected, trained) in forms.items():
            save(trained, folder / f"{owner}-{form}")
            for name, own in load(Toy(torch.float32), folder / f"{owner}-{form}").named_parameters():
                assert torch.equal(own, expected[name]), (form, name)
        plain = Toy(torch.float32)
        loaded = load_adapter(plain, folder / f"{owner}.safetensors")
        for name, own in loaded.named_parameters():
            assert torch.equal(own, values[name])
        batch = next(iter(batches("toy", torch.float32)))
        with torch.no_grad():
            assert torch.equal(plain(*batch), model(*batch))
        state = {name: whole(tensor) for name, tensor in model.state_dict().items()}
        collected = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
        if dist.get_rank() == 0:  # as accelerate's get_state_dict and save_model have it
            assert collected.keys() == state.keys() and all(torch.equal(collected[name], state[name]) for name in state)
        fresh = Toy(torch.float32)
        fresh.load_state_dict(state, strict=False)  # a plain model finds W + S in it
        with torch.no_grad():
            assert torch.equal(fresh(*batch), plain(*batch))
        model.load_state_dict(model.state_dict())
        assert base_fingerprint(model) == base_fingerprint(Toy(torch.float32))
        if owner == "nobody":  # take it off; keep it
            masking.remove()
            with torch.no_grad():
                assert torch.equal(model(*batch), Toy(torch.float32)(*batch))
            again = load_adapter(model, folder / "nobody.safetensors")
            again.merge()
            with torch.no_grad():
                assert torch.equal(model(*batch), plain(*batch))


def check_mixed_precision():
    """W + S is rounded to bfloat16 once, as in one process whose layers compute in bfloat16."""
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16)
    losses, values, model, masking = sharded(dtype=torch.float32, policy=policy)
    reference = one_process("toy", torch.float32, 0.2, 1.0)
    for name, own in reference[1].items():
        assert (values[name] - own).abs().mean() < 0.15 * own.abs().mean() + 1e-3, name
    model.unshard()
    layer = masking.layers["head"]
    with torch.no_grad():
        layer(torch.randn(3, 2).bfloat16())
    plain = Toy(torch.float32).head.weight.detach()
    expected = plain.bfloat16()
    entries = (plain.view(-1)[layer.mask.positions.long()] + layer.values.detach()).bfloat16()
    expected.view(-1)[layer.mask.positions.long()] = entries
    assert torch.equal(layer.weight.data, expected)


def resident_bytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def check_memory(width=64, blocks=4, report=lambda *_: None):
    """Nothing keeps the whole weights alive, in whatever order a model is masked and sharded; each has its part."""
    world = dist.get_world_size()
    mesh = init_device_mesh("cpu", (world,))
    for owner in ("nobody", "fsdp"):
        before = resident_bytes()
        model = nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(blocks)))
        masking = apply_random_mask(model, [str(n) for n in range(blocks)], density=1e-3, unused="warn")
        weights = [weakref.ref(layer.weight) for layer in model]
        whole_bytes = sum(layer.weight.nbytes for layer in model)
        ignored = set(masking.parameters()) if owner == "nobody" else set()
        for block in model:
            fully_shard(block, mesh=mesh, ignored_params=ignored)
        fully_shard(model, mesh=mesh, ignored_params=ignored)
        gc.collect()
        after = resident_bytes() - before
        for _ in range(2):
            model(torch.randn(4, width)).square().mean().backward()
        gc.collect()
        later = resident_bytes() - before
        assert not any(weight() is not None for weight in weights)
        own = sum(local(layer.weight).untyped_storage().nbytes() for layer in model)
        assert own <= 1.15 / world * whole_bytes, (own, whole_bytes)
        shares = [f"{part / whole_bytes:.3f}" for part in (own, after, later)]
        report(f"{whole_bytes / 2**20:.0f} MB, values of {owner}: tensors, process, process in training {shares}")


def check_refusals():
    """What would go wrong silently is refused by name."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    def refuses(function, *words):
        try:
            function()
        except (RuntimeError, ValueError) as error:
            assert all(word in str(error) for word in words), error
        else:
            raise AssertionError(f"nothing was refused; expected {words}")

    batch = next(iter(batches("toy", torch.float32)))
    model = Toy(torch.float32)
    mask_of(model, "toy", 0.2)
    old = FullyShardedDataParallel(model, use_orig_params=True, device_id=torch.device("cpu"))
    refuses(lambda: old(*batch), "FSDP1", "fully_shard")
    old = FullyShardedDataParallel(Toy(torch.float32), use_orig_params=True, device_id=torch.device("cpu"))
    refuses(lambda: mask_of(old, "toy", 0.2), "FSDP1", "fully_shard")
    inner = ["blocks.0.inner"]
    peft = RandomMaskConfig(target_modules=inner, density=0.2)
    for model in (old, old.module):  # the module that FSDP1 wraps has flat parameters
        refuses(lambda model=model: get_peft_model(model, peft), "FSDP1", "fully_shard")
    wrapped = get_peft_model(Toy(torch.float32), peft)
    old = FullyShardedDataParallel(wrapped, use_orig_params=True, device_id=torch.device("cpu"))
    refuses(lambda: old(*batch), "FSDP1", "fully_shard")
    mesh, plan = init_device_mesh("cpu", (dist.get_world_size(),)), {inner[0]: ColwiseParallel()}
    ways = (lambda m: apply_random_mask(m, inner, density=0.2), lambda m: get_peft_model(m, peft))
    for put in ways:  # before anything has changed; a layer that was masked before says so when it is called
        model = parallelize_module(Toy(torch.float32), mesh, plan)
        refuses(lambda put=put, model=model: put(model), "tensor parallelism", inner[0])
        assert type(model.blocks[0].inner) is nn.Linear and all(p.requires_grad for p in model.parameters())
        model = Toy(torch.float32)
        fully_shard(model.blocks[0].inner, mesh=mesh)
        refuses(lambda put=put, model=model: put(model), "fully_shard itself", "block around")
    model = Toy(torch.float32)
    apply_random_mask(model, inner, density=0.2)
    refuses(lambda: parallelize_module(model, mesh, plan)(*batch), "Tensor parallelism")
    model = get_peft_model(Toy(torch.float32), peft)
    parallelize_module(model.get_base_model(), mesh, {inner[0] + ".base_layer": ColwiseParallel()})
    refuses(lambda: model(*batch), "Tensor parallelism")
    for owner in ("nobody", "fsdp"):
        refuses(lambda owner=owner: sharded(owner=owner, unused="error", skip_head=True), "no gradient reached", "head")
    _, _, model, masking = sharded(owner="fsdp", dtype=torch.float32)
    refuses(masking.remove, "FSDP holds the values or the layer")
    refuses(lambda: masking.layers["head"].set_dense_form(True), "dense form")
    refuses(lambda: masking.layers["blocks.0.inner"](torch.ones(2, 9)), "not gathered")


def _worker(rank, world, init, function, arguments):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=init, rank=rank, world_size=world, timeout=WAIT)
    try:
        function(*arguments)
        dist.barrier()
    finally:
        dist.destroy_process_group()


def run_processes(world, function, *arguments):
    """Call a function of this module in `world` processes; raises what one of them raises."""
    # A server that has this module loaded, and forks: loading torch takes longer than all the rows.
    places = dict.fromkeys((str(Path(__file__).parent), *filter(None, sys.path)))
    multiprocessing.set_forkserver_preload(["sharded_cases"])
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, PYTHONPATH=os.pathsep.join(places)):
        given = (world, f"file://{folder}/init", function, arguments)
        torch.multiprocessing.start_processes(_worker, given, nprocs=world, start_method="forkserver")


def trained_by_sgd(rank=None, wrap=lambda model: model):
    """Values of a small masked net after five steps, on the whole batch or on every second example."""
    torch.manual_seed(0)
    net = [nn.Linear(24, 40), nn.Tanh(), nn.Linear(40, 16), nn.Tanh(), nn.Linear(16, 3)]
    model = nn.Sequential(*net).double()
    masking = apply_random_mask(model, ["0", "2"], density=0.1)
    wrapped, optimizer = wrap(model), torch.optim.SGD(masking.parameters(), lr=0.1)
    x = torch.randn(8, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    x = x if rank is None else x[rank::2]
    for _ in range(5):
        optimizer.zero_grad()
        wrapped(x).square().mean().backward()
        optimizer.step()
    if rank is not None:  # torch joins gloo's thread with Python's lock, for which this thread may still wait
        time.sleep(0.5)
    return [values.detach().clone() for values in masking.parameters()]


def save_values_of_ddp(folder):
    """Save what this process has trained in a group under DDP."""
    rank = dist.get_rank()
    torch.save(trained_by_sgd(rank, DistributedDataParallel), folder / f"{rank}.pt")


def check_all(folder):
    """Every row and every check on the toy; on three processes, those that are about uneven shards, on four HSDP."""
    world = dist.get_world_size()
    for name in {2: ROWS, 3: UNEVEN, 4: REPLICAS}[world]:
        check_row(name)
    if world == 2:
        check_mixed_precision()
        check_memory()
        check_refusals()
    elif world == 3:
        check_files(folder)


def run_table(wanted, kinds):
    rank, world = dist.get_rank(), dist.get_world_size()
    check_memory(1024, 24, print if rank == 0 else lambda *_: None)
    failed = []
    for kind in kinds:
        for name in ROWS | SLOW | (EVEN if world % 2 == 0 and world > 2 else {}):
            if wanted in name:
                try:
                    check_row(name, kind, print if rank == 0 else lambda *_: None)
                except AssertionError:
                    failed.append(name)
    if rank == 0:
        print("too far:", failed)


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    started = time.perf_counter()
    wanted = sys.argv[2] if len(sys.argv) > 2 else ""
    import sharded_cases  # by the name that its processes know it by

    sharded_cases.run_processes(int(sys.argv[1]), sharded_cases.run_table, wanted, ("toy", "llama"))
    print(f"{time.perf_counter() - started:.0f} s")
