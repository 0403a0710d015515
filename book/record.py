"""Run chapters in place and store their outputs: `make record`, or `make record NB=book/x.ipynb` for one.

Each notebook gets the Colab cell that belongs to the repository's address in _config.yml, is executed from top to
bottom in a fresh kernel, and is replaced only if that succeeded. What would differ between two runs without meaning
anything (stderr, timestamps, widget ids, the kernel's version) is not stored. What the status page says of the run
(how long it took, when, on what and with which versions) is, in the notebook's metadata.
"""

import asyncio
import os
import re
import sys
import time
from pathlib import Path

import nbformat
import yaml
from kernels import use_forked_kernels
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from rmbook import __version__
from rmbook.files import replacing
from rmbook.offline.mnist import INSTALL as IMAGES
from rmbook.stamps import stamp
from rmbook.widgets.page import WIDGET_VIEW

ROOT = Path(__file__).resolve().parent.parent
# For the kernels, as in conftest.py. The models here are so small that a second thread costs more than it brings.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")
use_forked_kernels()
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"file_extension": ".py", "name": "python", "pygments_lexer": "ipython3"},
}
TEXTS = {"alt": "image", "caption": "figure"}  # what has numbers filled in, and where MyST-NB looks for it
# A number of the prose that belongs to a variable: 0.83<!--{slope:.2f}-->. Readers do not see the comment.
NUMBER = re.compile(r"(?<!\w)[-+\u2212]?\w+(?:[.,]\w+)*(?:(?<=e)[-+]\d+)?<!--(?P<value>\{.+?\})-->")
COLAB_TAGS = ["colab-header", "remove-cell"]  # of use on Colab only, so the pages leave it out


def notebooks() -> list[Path]:
    """All notebooks of the book, without editors' checkpoints."""
    return sorted(path for path in (ROOT / "book").rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts)


def colab_header(notebook: nbformat.NotebookNode) -> str:
    """The source of the cell that installs rmbook where it is missing, which is on Colab.

    It takes the release that the chapter belongs to and, as long as there is none, the newest code; and MNIST's images
    for a chapter that shows them.
    """
    place = "git+" + yaml.safe_load((ROOT / "_config.yml").read_text())["repository"]["url"]
    code = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    return (
        "import importlib.util\n\n"
        'if importlib.util.find_spec("rmbook") is None:  # on Colab: install the code of the book\n'
        f"    !pip install -q {place}@v{__version__} \\\n        || pip install -q {place}"
    ) + (f"\n    !{IMAGES}" if re.search(r"offline\.mnist|made:mnist", code) else "")


def set_colab_header(notebook: nbformat.NotebookNode) -> None:
    """Rewrite the cell tagged colab-header, or add it before the first code cell; a page without code needs none."""
    code = [i for i, cell in enumerate(notebook.cells) if cell.cell_type == "code"]
    if not code:
        return
    tagged = [i for i in code if "colab-header" in notebook.cells[i].metadata.get("tags", [])]
    if not tagged:
        tagged = code[:1]
        notebook.cells.insert(code[0], nbformat.v4.new_code_cell(id="colab-header"))
    header = notebook.cells[tagged[0]]
    header.source = colab_header(notebook)
    header.metadata["tags"] = COLAB_TAGS


class Client(NotebookClient):
    """Runs a notebook, and fills numbers into its prose, and into the alt texts and captions of its figures.

    A cell's metadata may have rmbook.alt and rmbook.caption, each the inside of an f-string. It is filled in once the
    cell has run, so its numbers are those of the figure. In prose a number may be followed by a comment with what it
    is, 0.83<!--{slope:.2f}-->: it is replaced by the value that the cells before have given it.
    """

    async def async_execute_cell(self, cell, cell_index, **arguments):
        """Run a cell as nbclient does, and fill in its prose or the texts of its figure."""
        await super().async_execute_cell(cell, cell_index, **arguments)
        if cell.cell_type == "markdown" and (marks := list(NUMBER.finditer(cell.source))):
            values = iter((await self.fill_in("\n".join(mark["value"] for mark in marks), cell_index)).splitlines())
            cell.source = NUMBER.sub(lambda mark: f"{next(values)}<!--{mark['value']}-->", cell.source)
        for kind, place in TEXTS.items():
            if text := cell.metadata.get("rmbook", {}).get(kind):
                filled = cell.metadata.setdefault("mystnb", {}).setdefault(place, {})
                filled[kind] = await self.fill_in(text, cell_index)
        return cell

    async def fill_in(self, text: str, cell_index: int) -> str:
        """Return the inside of an f-string with its values, as the kernel has them now."""
        cell, question = self.nb.cells[cell_index], nbformat.v4.new_code_cell(f'print(f"""{text}""")')
        await super().async_execute_cell(question, cell_index, store_history=False)
        self.nb.cells[cell_index] = cell
        self.code_cells_executed -= 1  # the question is no cell of the notebook
        return question.outputs[0].text.strip()


async def execute(notebook: nbformat.NotebookNode, folder: Path, command: str) -> None:
    """Run all cells in a fresh python3 kernel that is started in `folder`; keep what is worth storing, and a stamp."""
    notebook.metadata = nbformat.from_dict(METADATA)
    client = Client(
        notebook,
        timeout=600,
        startup_timeout=300,  # seconds; a busy machine takes more than the usual 60
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
        record_timing=False,
        store_widget_state=False,
        coalesce_streams=True,
        extra_arguments=["--log-level=ERROR"],
    )
    start = time.perf_counter()
    await client.async_execute()
    seconds = round(time.perf_counter() - start)
    # The kernel has added its version: begin anew.
    notebook.metadata = nbformat.from_dict(METADATA | {"rmbook": {"seconds": seconds} | stamp(command)})
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.metadata.pop("execution", None)
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
            for output in cell.outputs:
                output.get("data", {}).pop(WIDGET_VIEW, None)  # useless without the kernel: keep its static form


def write(notebook: nbformat.NotebookNode, path: Path) -> None:
    """Replace the file at once, so that it is never half written."""
    nbformat.validate(notebook)
    with replacing(path) as temporary:
        nbformat.write(notebook, temporary)


def record(path: Path) -> None:
    """Execute one notebook and replace its file."""
    notebook = nbformat.read(path, as_version=4)
    set_colab_header(notebook)
    cells = sum(cell.cell_type == "code" for cell in notebook.cells)
    print(f"{path.relative_to(ROOT)}: running {cells} code cells ... ", end="", flush=True)
    asyncio.run(execute(notebook, path.parent, f"make record NB={path.relative_to(ROOT)}"))
    write(notebook, path)
    print(f"{notebook.metadata.rmbook.seconds} s")


def main(arguments: list[str]) -> int:
    """Record the notebooks named on the command line, or all."""
    for path in [Path(argument).resolve() for argument in arguments] or notebooks():
        try:
            record(path)
        except CellExecutionError as error:
            print(f"failed, the file is unchanged\n{error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
