"""HTML of this room's figures for pages without a kernel: one piece, complete in itself.

It shows a table until its script runs, and the figure from then on.
"""

import hashlib
import html
from collections.abc import Iterable
from pathlib import Path

HERE = Path(__file__).parent


def standalone_html(name: str, state: str, table: str, style: str, code: str, draw: str) -> str:
    """Return a figure as HTML: the same text for the same arguments.

    Args:
        name: of the figure's kind, short; its elements on the page have the attribute `data-NAME`.
        state: JSON, what the figure shows; the script finds it in `state`.
        table: HTML for readers without JavaScript.
        style: CSS.
        code: JavaScript, run once.
        draw: JavaScript, run for each element `el` on the page, which is empty then.
    """
    state = state.replace("<", "\\u003c")  # nothing in it can end the script
    key = hashlib.sha256(state.encode()).hexdigest()[:10]
    return (
        f'<div data-{name}="{key}">{table}</div><style>{_unindented(style)}</style>'
        f"<script>(()=>{{{_unindented(code)}const state={state};"
        f"for(const el of document.querySelectorAll('[data-{name}=\"{key}\"]')){{el.removeAttribute('data-{name}');"
        f"el.textContent='';{draw}}}}})()</script>"
    )


def table_html(caption: str, rows: Iterable[Iterable[str]]) -> str:
    """Return a plain table."""
    body = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><caption>{html.escape(caption)}</caption>{body}</table>"


def _unindented(text: str) -> str:
    return "\n".join(line.strip() for line in text.split("\n"))
