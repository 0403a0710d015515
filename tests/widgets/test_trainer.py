"""The network that trains in the page: its Python against torch, and its script against its Python."""

import json
import re

import numpy as np
import pytest
import torch
from browser import needs_browser, open_page
from safetensors import safe_open

from rmbook.offline.digits import Digits
from rmbook.offline.digits_mlp import (
    BATCH,
    EVERY,
    STEPS,
    TEST,
    TRAIN,
    WEIGHTS,
    draw_masks,
    fine_tune,
    load_mlp,
    logits,
    mirrored_digits,
    record_weights,
    uniform,
)
from rmbook.widgets.trainer import Trainer


def accuracy(parameters, digits):
    images = digits.images.reshape(len(digits), -1).double().numpy()
    return (logits(parameters, images)[-1].argmax(1) == digits.labels.numpy()).mean()


def test_the_packaged_weights_read_upright_digits_and_can_be_made_again(tmp_path):
    assert accuracy(load_mlp(), Digits("test", "upright")) > 0.93
    assert accuracy(load_mlp(), Digits("test", "mirrored")) < 0.5
    record_weights("a test", tmp_path / "weights.safetensors")
    with safe_open(tmp_path / "weights.safetensors", "np") as made, safe_open(WEIGHTS, "np") as packaged:
        assert json.loads(packaged.metadata()["stamp"])["command"] == "rmbook record weights"
        distances = [abs(made.get_tensor(n).astype(float) - packaged.get_tensor(n)).mean() for n in made.keys()]
    assert max(distances) < 1  # of 127: another machine rounds otherwise


def test_masks_are_nested_and_as_dense_as_asked():
    sparse, dense = draw_masks(0.03, 7), draw_masks(0.3, 7)
    assert all((mask <= other).all() for mask, other in zip(sparse, dense, strict=True))
    drawn = np.concatenate(dense).mean()
    assert abs(drawn - 0.3) < 4 * (0.3 * 0.7 / 12_288) ** 0.5
    assert all(mask.all() for mask in draw_masks(1, 7)) and not any(mask.any() for mask in draw_masks(0, 7))
    numbers = uniform(3, 100_000)
    assert abs(np.histogram(numbers, 10, (0, 1))[0] / 1e4 - 1).max() < 0.05
    assert (draw_masks(0.3, 8)[0] != dense[0]).any() and (dense[0] != dense[1]).any()


@pytest.mark.parametrize("density", [1.0, 0.05])
def test_fine_tuning_is_torchs_adam_on_the_masked_entries(density):
    parameters = [torch.tensor(array, requires_grad=k in (0, 2, 4)) for k, array in enumerate(load_mlp())]
    masks, (levels, labels) = draw_masks(density, 2), mirrored_digits()
    images, labels = torch.tensor(levels / 15), torch.tensor(labels).long()
    optimizer = torch.optim.Adam([parameters[0], parameters[2], parameters[4]], lr=0.02)
    chosen = np.floor(TRAIN * uniform(2500, 12 * BATCH)).astype(int).reshape(12, BATCH)
    losses = []
    for batch in chosen:
        hidden = images[batch]
        for layer in range(4):
            hidden = torch.nn.functional.linear(hidden, parameters[2 * layer], parameters[2 * layer + 1])
            hidden = hidden.relu() if layer < 3 else hidden
        loss = torch.nn.functional.cross_entropy(hidden, labels[batch])
        optimizer.zero_grad()
        loss.backward()
        for layer, mask in enumerate(masks):
            parameters[2 * layer].grad *= torch.tensor(mask)
        optimizer.step()
        losses.append(loss.item())
    np.testing.assert_allclose(fine_tune(density, 0.02, 2, 12).losses, losses, rtol=1e-9)


def test_a_run_is_measured_from_before_the_first_step_to_after_the_last():
    run = fine_tune(0.1, 0.01, 0, 20)
    assert len(run.losses) == 20 and len(run.accuracies) == 1 + 20 // EVERY
    assert run.accuracies[0] == fine_tune(0, 1.0, 0, 1).accuracies[0] and run.accuracies[-1] > run.accuracies[0]
    assert len(fine_tune(0.1, 0.01, 0, 4).accuracies) == 1
    for arguments in ((1.5, 0.1), (0.5, 0.1, -1), (0.5, 0.1, 0, 0)):
        with pytest.raises(ValueError, match="must"):
            fine_tune(*arguments)


def written(tmp_path, **arguments):
    path = tmp_path / "page.html"
    head = "<!doctype html><meta charset=utf-8><meta name=viewport content='width=device-width'>"
    path.write_text(f"{head}<body>{Trainer(**arguments).to_html()}</body>")
    return path.as_uri()


def finish(page, action):
    """Do something that ends in a run; return what the runs so far have measured."""
    page.evaluate(
        "() => { done = new Promise((go) => addEventListener('rmd-run', (e) => go(e.detail), { once: true })) }"
    )
    action()
    return page.evaluate("done")


@needs_browser
@pytest.mark.parametrize("density, learning_rate, seed", [(0.03, 0.1, 0), (0.2, 0.005, 3)])
def test_the_page_computes_what_python_computes(tmp_path, density, learning_rate, seed):
    url = written(tmp_path, density=density, learning_rate=learning_rate, seed=seed)
    with open_page(url, reduced_motion="reduce") as page:
        runs = finish(page, page.get_by_role("button", name="Train").click)
        text = page.locator(".rmd-status").inner_text()
    for run, dense in zip(runs, (1, density), strict=True):
        expected = fine_tune(dense, learning_rate, seed)
        assert (run["density"], len(run["losses"])) == (dense, STEPS)
        np.testing.assert_allclose(run["losses"][:100], expected.losses[:100], atol=1e-4)
        np.testing.assert_allclose(run["accuracies"][:21], expected.accuracies[:21], atol=1e-9)
        assert f"{100 * run['accuracies'][-1]:.0f} %" in text
    assert f"trains {expected.trained:,} of 12,288 weights" in text


@needs_browser
def test_a_reader_with_a_keyboard_and_a_phone_trains_it(tmp_path):
    with open_page(written(tmp_path), color_scheme="dark", viewport={"width": 360, "height": 740}) as page:
        assert "Press Train" in page.locator(".rmd-status[aria-live=polite]").inner_text()
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        digits = page.locator(".rmd-side1 canvas").nth(1)
        told = [digits.get_attribute("aria-label")]
        for _ in range(2):
            page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.dataset.name") == "learning_rate"

        def raise_the_rate():  # from 0.001 to 0.1: training starts by itself
            for _ in range(40):
                page.keyboard.press("ArrowRight")

        full, mask = finish(page, raise_the_rate)
        assert full["learning_rate"] == mask["learning_rate"] == 0.1
        assert page.evaluate("document.activeElement.getAttribute('aria-valuetext')") == "0.1"
        assert mask["accuracies"][-1] > mask["accuracies"][0] + 0.3
        told.append(digits.get_attribute("aria-label"))
        counts = [int(re.search(r", (\d+) of them misread", text)[1]) for text in told]
        assert counts[1] < counts[0] - 10
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        page.keyboard.press("Enter")
        assert page.get_by_role("button", name="Train").is_visible()  # paused
        page.get_by_role("button", name="Another mask").click()
        assert "Mask 2" in page.locator(".rmd-status").inner_text()


def test_the_page_is_small_complete_and_the_same_each_time():
    page = Trainer().to_html()
    assert page == Trainer().to_html() and len(page.encode()) < 60_000
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", page) and page.count("</script") == 1
    table = page.split("</table>")[0]
    shares = [int(share) for share in re.findall(r"<td>(\d+)%</td>", table)]
    assert len(shares) == 12
    full, mask = shares[:4], shares[8:]  # at learning rates 0.001 to 0.1
    assert full[0] > 80 > 50 > mask[0] and mask[-1] > 75  # the mask needs the larger rate ...
    assert full[-1] < max(full) - 10  # ... which is too large for all weights at once
    assert len(set(np.unique(mirrored_digits()[0]))) == 16 and len(mirrored_digits()[1]) == TRAIN + TEST
