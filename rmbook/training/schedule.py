"""How the learning rate goes over a run: a function of the step alone, so that a run that is taken up needs no more."""

import math

SCHEDULES = ("constant", "cosine")


def schedule_share(step: int, steps: int, schedule: str = "constant", warmup_steps: int = 0) -> float:
    """The share of the learning rate with which a step is taken, 0 to 1.

    The same as transformers' `get_constant_schedule_with_warmup` and `get_cosine_schedule_with_warmup`: in the warm-up
    step / warmup_steps, so that the first step changes nothing; then half a cosine, down to 0 after the last step.

    Args:
        step: number of steps taken before, from 0.
        steps: of the whole run.
        schedule: "constant" or "cosine".
        warmup_steps: first steps, over which the share rises in a line.
    """
    if step < warmup_steps:
        return step / warmup_steps
    if schedule == "constant":
        return 1.0
    progress = (step - warmup_steps) / max(1, steps - warmup_steps)
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))
