"""Running out of memory, as an error that says which setting of a run to change."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rmbook.errors import RmbookError, is_memory_shortage
from rmbook.runs.config import RunConfig
from rmbook.tasks.catalog import find_task


class MemoryShortage(RmbookError):
    """The memory was too small; says which settings to change."""

    exit_code = 1


@contextmanager
def explaining_memory(config: RunConfig, folder: Path | None = None) -> Iterator[None]:
    """Turn running out of memory into `MemoryShortage`.

    Args:
        config: of the run.
        folder: where it can be resumed, if it has begun.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_memory_shortage(error):
            raise
        size = config.micro_batch_size or config.batch_size
        advice = [f"--micro-batch-size {size // 2} (now {size}; the step stays the same)"] if size > 1 else []
        advice += [] if config.gradient_checkpointing else ["--gradient-checkpointing"]
        onward = f" `rmbook train --resume {folder}` resumes it, with either of these." if folder and advice else ""
        advice += [] if config.dtype in ("bfloat16", "float16") else ["a new run with --dtype bfloat16"]
        advice += ["a new run with a smaller --max-length"] if find_task(config.task).has_prompts else []
        raise MemoryShortage(f"out of memory: use {', or '.join(advice)}.{onward}") from None
