"""The judge of the book's open exercises: `check` says whether an answer is right, and if not, what is off.

The right answers are computed in `rmbook.widgets.answers`; a chapter shows the question and the call.
"""

from typing import Any

import numpy as np
import torch

from rmbook.widgets.answers import ANSWERS


def check(label: str, answer: Any) -> None:
    """Print whether an answer to an open exercise is right, and if not, what is off.

    Args:
        label: of the exercise.
        answer: a number or an array, or a function where the exercise asks for one; `...` if there is none yet.

    Raises:
        ValueError: for a label that no open exercise has.
    """
    if label not in ANSWERS:
        raise ValueError(f"no open exercise has the label {label!r}; there are {', '.join(ANSWERS)}.")
    print(f"{label}: {verdict(label, answer)}")


def verdict(label: str, answer: Any) -> str:
    """Return one sentence or two about an answer."""
    exercise = ANSWERS[label]
    if answer is ...:
        return "not answered yet. Put your answer in place of the three dots, and run the cell again."
    if not exercise.inputs:
        off = compare(answer, exercise.right(), exercise.tolerance)
        return f"not yet: {off}" if off else "right."
    if not callable(answer):
        return f"the exercise asks for a function, got {type(answer).__name__}."
    for inputs in exercise.inputs():
        try:
            given = answer(*inputs)
        except Exception as error:  # the reader's own: say where it came from
            return f"your function raised {type(error).__name__}: {error}"
        if given is ... or given is None:
            return "not answered yet: your function returns nothing. Put your formula in place of the three dots."
        if off := compare(given, exercise.right(*inputs), exercise.tolerance):
            return f"not yet. For {exercise.words.format(*inputs)}, {off}"
    return "right, for every input that was tried."


def compare(given: Any, right: Any, tolerance: float) -> str | None:
    """Return what is off between an answer and the right one, or None if it is within the tolerance."""
    try:
        given, right = (np.asarray(_plain(value), dtype=np.float64) for value in (given, right))
    except (TypeError, ValueError):
        return f"a number or an array of numbers was expected, got {type(given).__name__}."
    if given.shape != right.shape:
        return f"the shape is {given.shape}, where {right.shape} was expected."
    if not np.isfinite(given).all():
        return "it holds a number that is infinite or not a number."
    scale = np.abs(right).max()
    if np.abs(given - right).max() <= tolerance * scale:
        return None
    if np.abs(given + right).max() <= tolerance * scale:
        return "the size is right and the sign is wrong."
    if right.size == 1:
        if abs(given * right - 1) <= tolerance:
            return "your answer is one over the right one."
        return f"your answer, {given.item():.4g}, is too {'small' if given < right else 'large'}."
    if (right != 0).all() and np.ptp(given / right) <= tolerance * np.abs(given / right).max():
        return f"your answer is {(given / right).flat[0]:.4g} times the right one."
    wrong = np.abs(given - right) > tolerance * scale
    return f"{wrong.sum()} of {right.size} entries are wrong."


def _plain(value: Any) -> Any:
    return value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else value
