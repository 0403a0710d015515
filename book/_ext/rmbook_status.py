"""The directive `chapter-status`: a table of when, where and for how long each chapter ran, from the notebooks."""

import json

from docutils import nodes
from rmbook_book import executed
from sphinx import addnodes
from sphinx.util.docutils import SphinxDirective

COLUMNS = ("Chapter", "Hardware it asks for", "Last run", "Seconds", "On", "Versions")
UNKNOWN = "not noted"


def hardware(notebook: dict) -> str:
    """Return the hardware that a chapter's own table asks for: the first column of its rows."""
    for cell in notebook["cells"]:
        lines = "".join(cell["source"]).splitlines()
        for number, line in enumerate(lines):
            if cell["cell_type"] == "markdown" and line.startswith("| Hardware"):
                rows = [row for row in lines[number + 2 :] if row.startswith("|")]
                return "; ".join(row.split("|")[1].strip() for row in rows)
    return "any"


def row(notebook: dict) -> list[str]:
    """Return what the table says of a chapter after its name."""
    stamp = notebook["metadata"].get("rmbook")
    if stamp is None:
        return [hardware(notebook), *[UNKNOWN] * 4]
    machine, versions = stamp["hardware"], stamp["versions"]
    where = machine["gpu"] or f"{machine['cpu']}, {machine['threads']} threads"
    shown = ", ".join(f"{name} {versions[name]}" for name in ("python", "torch", "transformers") if versions.get(name))
    return [hardware(notebook), stamp["date"], str(stamp["seconds"]), where, shown]


class ChapterStatus(SphinxDirective):
    """A row for each notebook of the table of contents."""

    def run(self):
        """Return the table; the page depends on all the notebooks."""
        chapters = [name for name in sorted(self.env.found_docs) if self.env.doc2path(name).endswith(".ipynb")]
        table = nodes.table(classes=["status"])
        group = nodes.tgroup(cols=len(COLUMNS))
        group += [nodes.colspec(colwidth=1) for _ in COLUMNS]
        head, body = nodes.thead(), nodes.tbody()
        head += self.make_row([nodes.paragraph(text=name) for name in COLUMNS])
        for name in chapters:
            path = executed(self.env.app, name)
            self.env.note_dependency(str(path))
            link = addnodes.pending_xref(
                refdomain="std", reftype="doc", reftarget=f"/{name}", refexplicit=False, refdoc=self.env.docname
            )
            link += nodes.inline(text=name)
            first = nodes.paragraph()
            first += link
            body += self.make_row([first, *(nodes.paragraph(text=text) for text in row(json.loads(path.read_text())))])
        group += [head, body]
        table += group
        return [table]

    def make_row(self, cells):
        """Return a table's row with these nodes in it."""
        line = nodes.row()
        for cell in cells:
            entry = nodes.entry()
            entry += cell
            line += entry
        return line


def setup(app):
    """Register the directive."""
    app.add_directive("chapter-status", ChapterStatus)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
