"""Every assert of a chapter fails in a world where what it says is false.

First the recorded results are broken (`RECORDS`), for the asserts about these. For all others, and those that still
held, the chapters' statements run with a broken library: what trains, simulates or measures does not do so, and every
function of `rmbook` that a chapter calls gives an answer of the right form with wrong numbers (`WORLDS`). Models are
small and know nothing, all masks are equal. Each part of an assert that is joined by `and` counts for itself: it must
be found False, not only break off, in one world at least. That it holds in the real world is shown by `make book`.

What it cannot show: that an assert notices a *small* fault. And where a chapter computes something by itself, no
broken library reaches it. These cells are in `OWN`: there what an assert reads is broken instead.
"""

from functools import partial

import pytest
import torch
from broken_chapters import CHAPTERS, Chapter, changed, exchanged, halved, reworded
from broken_library import WORLDS, Library, answers, with_wrong
from broken_records import RECORDS, Records, lost, unbroken
from transformers import Trainer

# Cells, or parts of asserts, about what the chapter computes by itself, or from fixed data: no library reaches them.
OWN = {
    "a_step_measured": "cell-41; cell-43; cell-45; cell-49; cell-56; cell-62; file-sizes; layer-checks;"
    " kept['LoRA r8'] > 15; kept['mask 0.001'] < 1;"
    " peak.loc['nf4', 'mask 0.001'] < 0.9 * peak.loc['nf4', 'LoRA r8']",
    "a_step_on_a_gpu": "gpu-10; gpu-3; gpu-5; gpu-8",
    "benchmark_reread": "check-bfloat; check-confounds; check-family; check-law; check-loss; check-table;"
    " solution-1-code",
    "clip_at_the_papers_scale": "epochs-solution; head; logits; masks-checks; rate-checks; readings-checks;"
    " zero-checks",
    "does_randomness_matter": "cell-30",
    "eight_ways": "load-checks; memory-checks; methods-checks; solution-biases-code; where-checks",
    "fine_tuning_llama": "1c11410e; 2be8d751; a8451b54; a96a06ad; c009e786; cell-05; cell-10; cell-16; cell-22;"
    " far-checks; fc279a47; steep-checks",
    "from_example_to_score": "01d11d91; 4a3f711e; 4ac86cbe; cell-15; cell-28; cell-37; superglue-checks",
    "further_from_home": "cell-08; check-real",
    "how_much_data": "power-checks",
    "how_the_package_is_built": "50f3d0bd; built-10; built-17; built-20; built-26; built-29",
    "in_the_tools_you_already_use": "base; check-compare; check-trl; folder",
    "it_is_the_pretraining": "len(gaps) == 2; count['bits'].min() > 3 * labels",
    "masks_merged_and_mixed": "claim-bank-exact; claim-other-task-as-large; claim-signs-matter-when-dense",
    "one_learning_rate": "claim-clipping-is-the-difference",
    "proofs": "cell-03; cell-05; check-speed-limit; check-tails",
    "sparse_delta_layers": "1a994737; 62522344; 688c332c; af3dc7cb; f666e99a",
    "tables_reread": "535db50e; 60e7493a; b444783a; bc0e7c9f; c0ba09c6; cell-07; cell-32",
    "what_a_step_costs": "cell-05; cell-11; cell-16; cell-19; cell-22; cell-25; cell-27; cell-29; columns-code;"
    " cost-checks",
}
# Cells that stop in a broken world before they say anything: too few runs or valleys are left to be told apart.
BREAKS_OFF = {"check-branches", "check-walk", "claim-capacity", "claim-live-both-gain"}
# Cells, or parts of asserts, that no world reaches, and why.
A_CLASS = "it is about a layer's class, which is not replaced"
NOT_ASKED = {
    "clip_at_the_papers_scale": {"zero_shot > 80": "it is asked where there is a GPU, of the paper's model"},
    "fine_tuning_llama": dict.fromkeys(
        ["layer.values.dtype == torch.float32", "layer.weight.dtype == torch.bfloat16"], A_CLASS
    ),
    "from_example_to_score": {"cell-07": "it is about the tokens of texts, which the tokenizer gives, not the library"},
    "how_the_package_is_built": {
        "4456f55b": "a damaged file stops before it reaches the model, and no world lets it pass",
        "'theory' not in cycle": "it is about the package's sources, to which no world adds an import",
    },
    "runs_and_resuming": {
        "all((p.stat().st_mtime_ns == t for p, t in done.items()))": "no world performs a run of a sweep twice"
    },
    "sparse_delta_layers": {"layer.weight.grad is None": A_CLASS},
}


@pytest.fixture(autouse=True)
def two_steps(monkeypatch):
    """End each training of transformers early: what it learns is broken afterwards, whatever it is."""
    real = Trainer.train

    def train(trainer, *arguments, **options):
        trainer.args.max_steps = 2
        return real(trainer, *arguments, **options)

    monkeypatch.setattr(Trainer, "train", train)


@pytest.fixture(autouse=True)
def settings_of_torch():
    """Take back what a chapter set for all of torch."""
    kind, threads = torch.get_default_dtype(), torch.get_num_threads()
    yield
    torch.set_default_dtype(kind), torch.set_num_threads(threads)


Asked = set[tuple[str, str]]  # parts of asserts: the cell and the text


def own(name: str) -> list[str]:
    """Return the entries of a chapter in `OWN`."""
    return OWN[name].split("; ") if name in OWN else []


def left_of(asked: Asked, said: dict[tuple[str, str], bool]) -> Asked:
    """Return what was asked and not found False; in cells of `BREAKS_OFF`, nor was missing from what was said."""
    missed = {part for part in asked if part not in said and part[0] in BREAKS_OFF}
    return asked - missed - {part for part, right in said.items() if not right}


def held_by_itself(chapter: Chapter, asked: Asked, heard: dict) -> Asked:
    """Return the parts of asserts that were found False wherever what they read was computed wrongly."""
    wrongs = [partial(changed, number=make(), all_kinds=True) for make in WORLDS.values()]
    holds = partial(with_wrong, [*wrongs, halved, exchanged, reworded])
    return left_of(asked, answers(chapter.needed(asked), Library(lambda real: real, heard), holds))


def held_on_broken_records(chapter: Chapter, asked: Asked) -> Asked:
    """Return the parts of asserts that were found False in no world with broken results.

    Asked are those that hold on the real results and need them. What does not hold there is about a live run, too, for
    which there are but numbers from nowhere.
    """
    loaded, heard = {}, {}
    real, without = (answers(chapter.needed(asked), Records(world, loaded, heard)) for world in (unbroken, lost))
    left = {part for part in asked if real.get(part) and not without.get(part)}
    others = asked - left
    for world in RECORDS:
        if left:
            left = left_of(left, answers(chapter.needed(left), Records(world, loaded, heard)))
    return others | left


def held_in_broken_worlds(chapter: Chapter, asked: Asked, heard: dict) -> Asked:
    """Return the parts of asserts that were found False in no world with a broken library."""
    for make in WORLDS.values():
        if asked:
            asked = left_of(asked, answers(chapter.needed(asked), Library(make(), heard)))
    return asked


@pytest.mark.parametrize("name", CHAPTERS)
def test_asserts_can_fail(name):
    chapter, heard = Chapter(name), {}
    asked = {part for part in chapter.parts() if not {*part} & NOT_ASKED.get(name, {}).keys()}
    by_itself = {part for part in asked if {*part} & {*own(name)}}
    asked = asked - by_itself | held_by_itself(chapter, by_itself, heard)
    recorded = asked & chapter.parts(recorded=True)
    asked = asked - recorded | held_on_broken_records(chapter, recorded)
    held = held_in_broken_worlds(chapter, asked, heard)
    assert not held, "\n".join(f"{cell}: {text}" for cell, text in sorted(held))


@pytest.mark.parametrize("name", OWN | NOT_ASKED)
def test_lists_name_what_is_there(name):
    cells = {each for cell in Chapter(name).cells for each in (cell.name, *cell.parts)}
    assert cells >= {*own(name), *NOT_ASKED.get(name, {})}
