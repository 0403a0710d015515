"""A grid as plain commands: one `rmbook train` a run, and a batch script that performs them as a Slurm array.

The commands write to the sweep's own folder, so `rmbook sweep status` and `export` see their results. After a kill, the
same array resumes the runs. Do not start `rmbook sweep run` on the folder while the array works: it would take over the
folders of runs under way, and their jobs would fail.
"""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from rmbook.errors import ConfigError
from rmbook.files import replacing, write_json
from rmbook.runs.fingerprints import PlannedRun
from rmbook.sweeps.folder import SweepFolder

SCRIPT = """\
#!/bin/bash
#SBATCH --job-name=rmbook
#SBATCH --array=1-{tasks}
#SBATCH --output=/dev/null
#SBATCH --requeue
# Add what your cluster asks for here, such as --partition, --gpus=1 and --time, or give it to sbatch.

exec >> {logs}/"$SLURM_ARRAY_TASK_ID".log 2>&1
# Task number N performs lines N, N + {tasks}, N + 2 * {tasks} ... of the list, one after the other.
awk -v first="$SLURM_ARRAY_TASK_ID" -v tasks={tasks} 'NR % tasks == first % tasks' {commands} |
while IFS= read -r line; do
    bash -c "$line" < /dev/null
done
"""


def emit_slurm_array(runs: Sequence[PlannedRun], place: SweepFolder, tasks: int = 1000) -> tuple[Path, int]:
    """Write SWEEP/slurm/array.sbatch, commands.txt, and a settings file for each run that is not done.

    Args:
        runs: from `rmbook.sweeps.grid.plan`.
        place: the sweep's folder.
        tasks: most tasks in the array; Slurm's own limit (MaxArraySize) is 1,001 unless a cluster has another.

    Returns:
        The script and the number of runs in it.

    Raises:
        ConfigError: the folder's name has a line break.
    """
    folder = place.path / "slurm"
    if "\n" in str(folder):
        raise ConfigError(f"a list of commands cannot have folders with a line break in their name: {str(folder)!r}.")
    for path in (folder, folder / "configs", folder / "logs"):
        path.mkdir(exist_ok=True)
    waiting = [run for run in runs if not place.result(run.key)]
    for run in waiting:
        write_json(folder / "configs" / f"{run.key}.json", run.config)
    lines = [_command(folder / "configs" / f"{run.key}.json", place.runs / run.key) for run in waiting]
    paths = {"logs": folder / "logs", "commands": folder / "commands.txt"}
    quoted = {name: shlex.quote(str(path)) for name, path in paths.items()}
    script = SCRIPT.format(tasks=max(1, min(tasks, len(lines))), **quoted)
    for path, text in ((paths["commands"], "".join(lines)), (folder / "array.sbatch", script)):
        with replacing(path) as temporary:
            temporary.write_text(text)
    return folder / "array.sbatch", len(lines)


def _command(config: Path, output: Path) -> str:
    """Return one line that starts the run, or resumes it if it was begun."""
    train = f"{shlex.quote(sys.executable)} -m rmbook train"
    folder = shlex.quote(str(output))
    resume = f"{train} --resume {folder} --quiet"
    start = f"{train} --config {shlex.quote(str(config))} --output {folder} --quiet"
    return f"if [ -e {shlex.quote(str(output / 'config.json'))} ]; then {resume}; else {start}; fi\n"
