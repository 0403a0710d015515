"""How this room's figures reach a reader: one front end for a live kernel and for pages without one.

A figure KIND has a script `KIND.js` in the form of anywidget, which exports `render({ model, el })`, and a style sheet
`KIND.css`; both stand behind what all share, `common.js` and `common.css`. A page without a kernel gets one piece of
HTML, complete in itself: a table until its script runs, and the figure from then on.
"""

import base64
import hashlib
import html
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
HERE = Path(__file__).parent
NAMES = {  # of each kind's elements on a page, which have the attribute `data-NAME`
    "explorer": "rmx",
    "bounds_explorer": "rmb",
    "table_comparison": "rmt",
    "curve_explorer": "rmc",
    "trainer": "rmd",
    "method_explorer": "rmm",
    "collapse_explorer": "rmo",
}


def front_end(kind: str, *before: str) -> tuple[str, str]:
    """Return the script and the style sheet of a kind of figure; the scripts `before` stand in front of its own."""
    script = "\n".join((HERE / f"{part}.js").read_text("utf8").rstrip() for part in ("common", *before, kind))
    return script, "\n".join((HERE / f"{part}.css").read_text("utf8").rstrip() for part in ("common", kind))


def standalone_html(kind: str, state: Mapping[str, Any], table: str, *before: str) -> str:
    """Return a figure as HTML: the same text for the same arguments.

    Args:
        kind: of figure, one of `NAMES`.
        state: what the figure shows: the traits that its script asks its model for. No number may be infinite or NaN.
        table: HTML for readers without JavaScript.
        before: scripts that stand in front of the figure's own.
    """
    script, style = front_end(kind, *before)
    text = json.dumps(state, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    text = text.replace("<", "\\u003c")  # nothing in it can end the script
    name, key = NAMES[kind], hashlib.sha256(text.encode()).hexdigest()[:10]
    return (
        f'<div data-{name}="{key}">{table}</div><style>{_unindented(style)}</style><script>(()=>{{'
        f"const front=(()=>{{{_unindented(script.replace('export default', 'return'))}\n}})();const state={text};"
        f"for(const el of document.querySelectorAll('[data-{name}=\"{key}\"]')){{el.removeAttribute('data-{name}');"
        "el.textContent='';front.render({el,model:{get:(name)=>state[name],set(){},save_changes(){},on(){},off(){}}})"
        "}})()</script>"
    )


def table_html(caption: str, rows: Iterable[Iterable[str]]) -> str:
    """Return a plain table; the first row names its columns."""
    first, *rest = ([html.escape(cell) for cell in row] for row in rows)
    head = "".join(f'<th scope="col">{cell}</th>' for cell in first)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rest)
    return f"<table><caption>{html.escape(caption)}</caption><tr>{head}</tr>{body}</table>"


def with_html(bundle, plain: str, page: str):
    """Return a widget's MIME bundle with its text, and with its page for where no widget is shown."""
    data, metadata = bundle if isinstance(bundle, tuple) else (bundle, {})  # Colab's has the address of its manager
    widget = {WIDGET_VIEW: data[WIDGET_VIEW]} if data and WIDGET_VIEW in data else {}
    return {"text/plain": plain, "text/html": page} | widget, metadata


def rounded(number: float, digits: int = 6) -> float | None:
    """Return a number with the digits that a page holds; None if it is not finite, for which JSON has no word."""
    return float(f"{number:.{digits}g}") if np.isfinite(number) else None


def encoded(numbers: np.ndarray) -> str:
    """Return the bytes of an array as text, for a page."""
    return base64.b64encode(np.ascontiguousarray(numbers).tobytes()).decode()


class Figure:
    """A figure of plain HTML with a script, complete in itself: it needs no kernel and no network.

    A subclass sets KIND, one of `NAMES`, and defines `_data`, what the script reads, and `_table`, what a reader
    without JavaScript gets.
    """

    KIND: str
    _data: Callable[[], dict[str, Any]]
    _table: Callable[[], str]

    def to_html(self) -> str:
        """Return the figure for any page, with or without a kernel; the same text on each call."""
        return standalone_html(self.KIND, {"data": self._data()}, self._table())

    _repr_html_ = to_html


def _unindented(text: str) -> str:
    return "\n".join(line.strip() for line in text.split("\n") if not line.strip().startswith("//"))
