"""The reference of the package's functions and classes, from their docstrings, linked with the chapters both ways.

The directive `room` writes one room of the package. In the docstrings, `label` in chapter becomes a link to that place;
in the chapters, the first `rmbook.room.module.name` of each name becomes a link to the reference.
"""

import ast
import copy
import re
from functools import cache
from pathlib import Path

from docutils import nodes
from docutils.parsers.rst import Parser
from docutils.utils import new_document
from sphinx import addnodes
from sphinx.ext.napoleon import Config, GoogleDocstring
from sphinx.transforms import SphinxTransform
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).resolve().parents[2]
NAPOLEON = Config(napoleon_use_param=True, napoleon_use_rtype=False, napoleon_use_ivar=True)


@cache
def public_names() -> dict[str, tuple[Path, ast.AST]]:
    """Return every public function and class of the rooms by its full name, read without importing anything."""
    found = {}
    for path in sorted((ROOT / "rmbook").rglob("[!_]*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for node in ast.parse(path.read_text("utf-8")).body:
            documented = isinstance(node, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node)
            if documented and not node.name.startswith("_"):
                found[f"{module}.{node.name}"] = path, node
    return found


@cache
def short_names() -> dict[str, str]:
    """Return the names of the short surface, `rmbook.train`, with the full names of what they stand for."""
    tree = ast.parse((ROOT / "rmbook/__init__.py").read_text("utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    names = {f"rmbook.{alias.name}": f"{node.module}.{alias.name}" for node in imports for alias in node.names}
    return {short: full for short, full in names.items() if full in public_names()}


def signature(node: ast.AST) -> str:
    """Return the arguments of a function, or of a class: of its `__init__`, or its fields if it is a data class."""
    if isinstance(node, ast.FunctionDef):
        return without_types(node.args)
    for part in node.body:
        if isinstance(part, ast.FunctionDef) and part.name == "__init__":
            return re.sub(r"^\(self(, )?", "(", without_types(part.args))
    fields = [part for part in node.body if isinstance(part, ast.AnnAssign)]
    plain = {field.target.id: isinstance(field.value, ast.Constant | ast.UnaryOp) for field in fields}
    values = {f.target.id: f"={ast.unparse(f.value)}" if plain[f.target.id] else "=..." for f in fields if f.value}
    return f"({', '.join(name + values.get(name, '') for name in plain)})"


def without_types(arguments: ast.arguments) -> str:
    """Return arguments as in a call; the docstring says what they are."""
    bare = copy.deepcopy(arguments)
    for argument in (*bare.posonlyargs, *bare.args, *bare.kwonlyargs, bare.vararg, bare.kwarg):
        if argument is not None:
            argument.annotation = None
    return f"({ast.unparse(bare)})"


def escaped(text: str) -> str:
    """Return a docstring as reStructuredText in which only code, in single backticks, is markup."""
    parts = re.split(r"(`[^`\n]+`)", text.replace("\\", "\\\\"))
    return "".join(f"`{part}`" if part.startswith("`") else re.sub(r"([*|_])", r"\\\1", part) for part in parts)


def linked(text: str) -> str:
    """Return a docstring whose `label` in chapter, after "In the book:", are links."""

    def sentence(match: re.Match) -> str:
        return re.sub(r"``([\w-]+)`` in (\w+)", r":doc:`\2 </book/\2>` (\1)", match[0].replace("\\_", "_"))

    return re.sub(r"In the book:.*?(?:\.(?=\s|$))", sentence, text, flags=re.S)


class Room(SphinxDirective):
    """`.. room:: masks`: the modules of a room, in the order of their names, with all that is public in them."""

    required_arguments = 1

    def run(self):
        """Return the nodes of the room's functions and classes."""
        prefix, lines, last = f"rmbook.{self.arguments[0]}.", [], None
        shorts = {full: short for short, full in short_names().items()}
        for full, (path, node) in public_names().items():
            if not full.startswith(prefix):
                continue
            self.env.note_dependency(str(path))
            module = full.rpartition(".")[0]
            if module != last:
                lines += [f".. rubric:: {module}", ""]
                last = module
            kind = "class" if isinstance(node, ast.ClassDef) else "function"
            text = linked(str(GoogleDocstring(escaped(ast.get_docstring(node)), NAPOLEON)))
            if full in shorts:
                text = f"Also ``{shorts[full]}``. {text}"
            lines += [f".. py:{kind}:: {full}{signature(node)}", ""]
            lines += ["   " + line if line else "" for line in text.splitlines()] + [""]
        document = new_document(self.env.docname, self.state.document.settings)
        document.reporter = self.state.document.reporter
        Parser().parse("\n".join(lines), document)
        return document.children


class LinkNames(SphinxTransform):
    """Make the first mention of each documented name in a chapter a link to its reference."""

    default_priority = 211

    def apply(self, **kwargs):
        """Walk over the code in the text of a chapter once."""
        if not self.env.doc2path(self.env.docname).endswith(".ipynb"):
            return
        seen = set()
        for node in list(self.document.findall(nodes.literal)):
            name = short_names().get(node.astext(), node.astext())
            if name in seen or name not in public_names() or not isinstance(node.parent, nodes.TextElement):
                continue
            if isinstance(node.parent, nodes.reference | addnodes.pending_xref | nodes.title):
                continue
            seen.add(name)
            link = addnodes.pending_xref(
                refdomain="py", reftype="obj", reftarget=name, refexplicit=True, refdoc=self.env.docname, refwarn=True
            )
            node.parent.replace(node, link)
            link += node


def setup(app):
    """Register the directive and the transform."""
    app.add_directive("room", Room)
    app.add_transform(LinkNames)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
