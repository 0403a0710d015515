"""Links from the first use of each of the book's own words in a chapter to the glossary."""

import re
from pathlib import Path

from docutils import nodes
from sphinx import addnodes
from sphinx.transforms import SphinxTransform

GLOSSARY = "book/glossary"
NO_LINKS_IN = (
    *(nodes.title, nodes.literal, nodes.literal_block, nodes.reference, nodes.math, nodes.caption, nodes.term),
    *(nodes.Admonition, nodes.table, nodes.raw, nodes.comment, addnodes.pending_xref, addnodes.desc),
)


def read_words(path: Path) -> list[str]:
    """Return the words of the glossary: the lines of its directive that are not indented."""
    block = re.search(r"^```\{glossary\}\n(.*?)^```", path.read_text("utf-8"), re.M | re.S)[1]
    return [line.strip() for line in block.splitlines() if line.strip() and not line.startswith(" ")]


class LinkWords(SphinxTransform):
    """Replace the first plain use of a word in a chapter by a link."""

    default_priority = 210  # after the parser's own, before references are looked up

    def apply(self, **kwargs):
        """Walk over the text of a chapter once."""
        docname, path = self.env.docname, Path(self.env.doc2path(GLOSSARY))
        if not self.env.doc2path(docname).endswith(".ipynb") or not path.is_file():
            return
        self.env.note_dependency(str(path))
        waiting = read_words(path)
        for text in list(self.document.findall(nodes.Text)):
            if not waiting:
                return
            if not self.may_have_links(text):
                continue
            pattern = "|".join(sorted(map(re.escape, waiting), key=len, reverse=True))  # dev loss before loss
            match = re.search(rf"(?<![\w-])({pattern})(?:e?s)?(?![\w-])", str(text), re.I)
            if match:
                word = next(word for word in waiting if word.lower() == match[1].lower())
                waiting.remove(word)
                text.parent.replace(text, self.linked(str(text), match, word))

    @staticmethod
    def may_have_links(text: nodes.Text) -> bool:
        """Whether the text stands in a paragraph of prose."""
        node, inside = text.parent, False
        while node is not None:
            if isinstance(node, NO_LINKS_IN):
                return False
            inside, node = inside or isinstance(node, nodes.paragraph), node.parent
        return inside

    def linked(self, text: str, match: re.Match, word: str) -> list[nodes.Node]:
        """Return the text in three parts, the word as a reference to its term."""
        link = addnodes.pending_xref(
            refdomain="std", reftype="term", reftarget=word, refexplicit=True, refdoc=self.env.docname, refwarn=True
        )
        link += nodes.inline(text=match[0], classes=["xref", "std", "std-term", "book-word"])
        parts = [nodes.Text(text[: match.start()]), link, nodes.Text(text[match.end() :])]
        return [part for part in parts if part is link or str(part)]


def setup(app):
    """Register the transform."""
    app.add_transform(LinkWords)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
