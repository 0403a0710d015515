"""The book's own Sphinx extension: execution on request, and no scripts that would need the network."""

import os


def execute_on_request(app, config):
    """Run every notebook if RMBOOK_EXECUTE=1 (set by `make book`); otherwise pages show the stored outputs."""
    if os.environ.get("RMBOOK_EXECUTE") == "1":
        config.nb_execution_mode = "force"  # myst-nb reads its configuration later, at builder-inited
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # for the kernels, as in book/conftest.py


def drop_scripts(app, pagename, templatename, context, doctree):
    """Leave out what only costs: sphinx-thebe, which points at a CDN, and widgets' state, which no manager reads."""
    for script in list(context.get("script_files", [])):
        body = script.attributes.get("body") or ""
        if "thebe" in str(script.filename) or "THEBE_JS_URL" in body or "widget-state" in str(script.attributes):
            context["script_files"].remove(script)


def setup(app):
    """Register the two hooks."""
    app.connect("config-inited", execute_on_request)
    app.connect("html-page-context", drop_scripts, priority=900)  # after the extensions that add scripts
    return {"parallel_read_safe": True, "parallel_write_safe": True}
