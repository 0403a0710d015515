"""The book's own Sphinx extension: chapters as they ran here, and no scripts that would need the network."""

import hashlib
import os
import re
from pathlib import Path


def executed(app, docname: str) -> Path:
    """Return the file of a chapter's run, which book/execute.py wrote, or else the notebook with its stored outputs."""
    ran = Path(app.confdir, os.environ.get("RMBOOK_EXECUTED", "nowhere"), Path(docname).name + ".ipynb")
    return ran if ran.is_file() else Path(app.env.doc2path(docname))


def read_executed(app, docname, source):
    """Give Sphinx the chapter with the outputs that this machine made (`make book` sets RMBOOK_EXECUTED)."""
    path = executed(app, docname)
    if path != Path(app.env.doc2path(docname)):
        app.env.note_dependency(str(path))
        source[0] = path.read_text("utf-8")


def drop_scripts(app, pagename, templatename, context, doctree):
    """Leave out what only costs: sphinx-thebe, which points at a CDN, and widgets' state, which no manager reads."""
    for script in list(context.get("script_files", [])):
        body = script.attributes.get("body") or ""
        if "thebe" in str(script.filename) or "THEBE_JS_URL" in body or "widget-state" in str(script.attributes):
            context["script_files"].remove(script)


def plain_bibliography(app, pagename, templatename, context, doctree):
    """Take the roles off the entries: a list's items must be list items, and `doc-biblioentry` is not one any more."""
    if context.get("body"):
        context["body"] = re.sub(r' role="(?:list|doc-biblioentry|doc-backlink)"', "", context["body"])


def write_alike(app):
    """Give the page of the whole book (`make pdf`) what writes single pages, unless it has its own.

    Sphinx looks for no other once any extension has registered a node for the builder "singlehtml".
    """
    handlers = app.registry.translation_handlers
    handlers["singlehtml"] = handlers.get("html", {}) | handlers.get("singlehtml", {})


def setup(app):
    """Register the hooks. All pages are built again when an extension of the book changes."""
    sources = b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
    app.add_config_value("rmbook_extensions", hashlib.sha256(sources).hexdigest(), "env")
    app.connect("builder-inited", write_alike)
    app.connect("source-read", read_executed)
    app.connect("html-page-context", drop_scripts, priority=900)  # after the extensions that add scripts
    app.connect("html-page-context", plain_bibliography)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
