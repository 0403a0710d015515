"""Adding what two tasks learned: laws of the sum, and of the angles and counts that describe it."""

import json

import pytest
import torch
from conftest import state_bytes
from hypothesis import given, settings
from hypothesis import strategies as st

from rmbook import AdapterBank, apply_random_mask, save_adapter
from rmbook.evidence.backbones import load_backbone
from rmbook.evidence.changes import combine, cosine, flip_signs, norm, shared_entries, weight_changes
from rmbook.evidence.experiment import accuracy
from rmbook.evidence.grids import read_recorded_grid
from rmbook.evidence.interference import (
    STRENGTHS,
    TASKS,
    Cell,
    base_accuracies,
    interference_tables,
    learn_task,
    measure_pair,
    measure_task,
    run_cell,
    view_accuracy,
)
from rmbook.evidence.record import interference_content
from rmbook.evidence.recording import load_recorded
from rmbook.offline.digits import MLP_TARGETS, Digits, new_vit
from rmbook.sweeps.grid import combinations

strengths = st.floats(-2, 2, width=32)


@pytest.fixture(scope="module")
def base():
    return new_vit().eval()


def masked(seed, density=0.05):
    """A model under a mask whose values are noise, as if trained."""
    model = new_vit()
    masking = apply_random_mask(model, MLP_TARGETS, density=density, seed=seed)
    torch.manual_seed(seed)
    for values in masking.parameters():
        values.data.normal_(std=0.1)
    return masking


@pytest.fixture(scope="module")
def learned(base):
    return [weight_changes(base, masked(seed).model) for seed in (0, 1, 2)]


def test_zero_strength_is_the_base_and_the_base_is_left_alone(base, learned):
    before = state_bytes(base)
    assert state_bytes(combine(base, (learned[0], 0.0), (learned[1], 0.0))) == before
    assert state_bytes(combine(base)) == before
    assert state_bytes(combine(base, (learned[0], 1.0))) != before
    assert state_bytes(base) == before


@given(strengths, strengths)
@settings(max_examples=20, deadline=None)
def test_the_order_of_two_does_not_matter(base, learned, a, b):
    one = combine(base, (learned[0], a), (learned[1], b))
    assert state_bytes(one) == state_bytes(combine(base, (learned[1], b), (learned[0], a)))


@given(strengths, strengths)
@settings(max_examples=20, deadline=None)
def test_a_merged_pair_equals_the_banks_bit_for_bit(base, learned, tmp_path_factory, a, b):
    folder = tmp_path_factory.mktemp("bank")
    bank = AdapterBank(new_vit())
    for seed, name in enumerate("ab"):
        save_adapter(masked(seed), folder / name)
        bank.add(name, folder / name)
    bank.activate("a", "b", strengths={"a": a, "b": b})
    assert state_bytes(bank.model) == state_bytes(combine(base, (learned[0], a), (learned[1], b)))


def test_disjoint_masks_touch_each_entry_once(base, learned):
    first, second = learned[0], {n: c * (learned[0][n] == 0) for n, c in learned[1].items()}
    assert shared_entries(first, second) == 0 and cosine(first, second) == 0
    merged = weight_changes(base, combine(base, (first, 1.0), (second, 1.0)))
    for name, change in merged.items():
        own = torch.where(first[name] != 0, first[name], second[name])
        torch.testing.assert_close(change, own, rtol=0, atol=1e-6)  # float32 weights below 1 in size
        assert int((change != 0).sum()) == int((first[name] != 0).sum()) + int((second[name] != 0).sum())
    assert norm(merged) ** 2 == pytest.approx(norm(first) ** 2 + norm(second) ** 2, rel=1e-5)


def test_independent_masks_share_about_density_squared(learned):
    total = sum(change.numel() for change in learned[0].values())
    expected = total * 0.05**2
    assert abs(shared_entries(learned[0], learned[1]) - expected) < 5 * expected**0.5
    assert shared_entries(learned[0], learned[0]) == sum(int((c != 0).sum()) for c in learned[0].values())


def test_cosine_against_the_long_vectors(base, learned):
    second = learned[1] | {"classifier.bias": torch.ones(10)}  # a parameter that the first has not changed
    flat = [
        torch.cat([(changes.get(name, torch.zeros_like(p))).flatten() for name, p in base.named_parameters()]).double()
        for changes in (learned[0], second)
    ]
    assert cosine(learned[0], second) == pytest.approx(float(torch.cosine_similarity(*flat, dim=0)), rel=1e-12)
    assert cosine(second, {n: -2 * c for n, c in second.items()}) == pytest.approx(-1)
    assert cosine(learned[0], {}) != cosine(learned[0], {})  # not a number


def test_random_signs_keep_sizes_and_lose_the_direction(learned):
    flipped = flip_signs(learned[0], seed=3)
    assert all(torch.equal(flipped[name].abs(), change.abs()) for name, change in learned[0].items())
    count = shared_entries(learned[0], learned[0])
    assert abs(cosine(learned[0], flipped)) < 5 * 3**0.5 / count**0.5  # kurtosis of normal values: 3
    assert all(torch.equal(c, flipped[name]) for name, c in flip_signs(learned[0], seed=3).items())


@pytest.mark.parametrize("view", TASKS)
def test_accuracy_is_the_experiments(view):
    backbone = load_backbone(f"vit:{view}")
    expected = accuracy(backbone.model(), backbone.objective, backbone.data["test"])
    assert view_accuracy(backbone.model(), view) == pytest.approx(expected)


def test_views_are_applied_in_their_order(base):
    seen = []
    base.register_forward_pre_hook(lambda _, arguments, named: seen.append(named["pixel_values"]), with_kwargs=True)
    images = Digits("test", "upright").images
    view_accuracy(base, "mirrored", "turned")
    assert torch.equal(seen[0], images.flip(-1).rot90(1, (-2, -1)))
    view_accuracy(base)
    assert torch.equal(seen[1], images)


def test_what_was_learned_gives_the_recorded_accuracy():
    changes, record = learn_task("negative", "mask", 0.05, 1e-2, seed=1, mask_seed=5)
    backbone = load_backbone("vit:negative")
    assert view_accuracy(combine(backbone.model(), (changes, 1.0)), "negative") == record["test_accuracy"]
    assert record["seed"] == 31 and record["mask_seed"] == 5
    masks = apply_random_mask(backbone.model(), MLP_TARGETS, density=0.05, seed=5).layers
    for name, change in changes.items():
        inside = torch.zeros(change.numel(), dtype=torch.bool)
        inside[masks[name.removesuffix(".weight")].mask.positions.long()] = True
        assert not change.flatten()[~inside].any()


def test_each_network_is_measured_on_its_own_division():
    changes, record = learn_task("mirrored", "mask", 0.1, 1e-2, seed=0, base=2)
    model = combine(load_backbone("vit", 2).model(), (changes, 1.0))
    assert record["base"] == 2 and view_accuracy(model, "mirrored", base=2) == record["test_accuracy"]
    task = measure_task(load_backbone("vit", 2).model(), "mirrored", changes, seed=0, base=2)
    assert task["views"]["mirrored"] == record["test_accuracy"]
    pair = measure_pair(load_backbone("vit", 2).model(), ("mirrored", "turned"), [changes, {}], seed=0, base=2)
    assert pair["test"][-1][0] == record["test_accuracy"] != view_accuracy(model, "mirrored")
    before = base_accuracies(2)
    assert before["upright"] == view_accuracy(load_backbone("vit", 2).model(), base=2) != base_accuracies()["upright"]


def test_measures_of_a_pair_and_a_task(base, learned):
    pair = measure_pair(base, ("mirrored", "negative"), learned[:2], seed=0)
    for place, strength in enumerate(STRENGTHS):
        merged = combine(base, (learned[0], strength), (learned[1], strength))
        assert pair["test"][place] == [view_accuracy(merged, "mirrored"), view_accuracy(merged, "negative")]
        assert pair["dev"][place][1] == view_accuracy(merged, "negative", split="dev")
        assert pair["both"][place] == view_accuracy(merged, "mirrored", "negative")
    noisy = combine(base, (flip_signs(learned[0], 0), 1.0), (learned[1], 1.0))
    assert pair["noise"][1] == view_accuracy(noisy, "negative")
    task = measure_task(base, "turned", learned[0], seed=0)
    without = combine(base, (learned[0], -0.5))
    assert task["negated"]["0.5"] == [view_accuracy(without, "turned"), view_accuracy(without)]
    assert len(task["both"]) == 3 and all("turned" in seen.split() for seen in task["both"])
    assert task["views"]["upright"] == view_accuracy(combine(base, (learned[0], 1.0)))


def test_a_grid_holds_every_task_and_pair(learned):
    calls = []

    def learn(view, method, density, learning_rate, seed, base):
        calls.append((method, density, view, seed, base))
        return learned[seed], {"trainable": 1, "status": "completed", "dev_accuracy": 50.0}

    cells = [Cell("lora", None, 1e-3, [0]), Cell("mask", 0.05, 1e-2, [0, 1], base=1), Cell("mask", 1.0, 1e-3, [0])]
    results = [run_cell(cell, learn, TASKS[:2]) | {"status": "completed", "config": {}} for cell in cells]
    content = json.loads(json.dumps(interference_content({"description": "Made."}, [], results)))
    tasks, pairs, rest = interference_tables(content | {"stamp": {}})
    assert len(set(calls)) == len(calls) == len(tasks) == 2 + 4 + 2
    assert tasks["base"].tolist() == [call[-1] for call in calls] == [0] * 2 + [1] * 4 + [0] * 2
    assert pairs.groupby(["method", "masks"]).size().to_dict() == {
        ("lora", "none"): 1,
        ("mask", "none"): 1,  # all entries
        ("mask", "independent"): 2,
        ("mask", "same"): 2,
    }
    same = pairs.query("masks == 'same'")
    own = [sum(int((c != 0).sum()) for c in changes.values()) for changes in learned]
    assert (same["shared"] == same["seed"].map(dict(enumerate(own)))).all() and (same["cosine"] > 0.999).all()
    assert (pairs.query("masks == 'independent'")["shared"] < min(own) / 10).all()
    assert rest.keys() == {"stamp", "about", "strengths", "before"}
    assert [row["base"] for row in rest["before"]] == [0, 1] and all(row["upright"] > 85 for row in rest["before"])
    recorded = load_recorded("science/interference")
    assert list(recorded) == ["stamp", *content] and recorded["cells"][0].keys() == content["cells"][0].keys()


def test_the_record_has_the_cells_of_the_grid():
    cells = list(combinations(read_recorded_grid("interference")))
    names = ("method", "density", "learning_rate", "base")
    recorded = load_recorded("science/interference")["cells"]
    assert [{name: cell[name] for name in names} for cell in recorded] == [{n: c[n] for n in names} for c in cells]
