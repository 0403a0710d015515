"""A small question before its answer: each option opens to a reply, without a script, on every page."""

import hashlib
import html
from collections.abc import Mapping

STYLE = (
    ".rm-predict{border-left:4px solid #b8860b;padding:.2rem 0 .2rem .9rem}.rm-predict p{margin:.3rem 0}"
    ".rm-predict summary{cursor:pointer;padding:.15rem 0}.rm-predict details p{margin:.1rem 0 .4rem 1.1rem}"
    "@media print{.rm-predict details p{display:none}}"
)


class Prediction:
    """A question with options; what an option says stays hidden until it is chosen. `predict` makes one.

    Args:
        question: plain text; what follows in the chapter answers it.
        replies: what each option says when it is chosen; two options at least.
        right: the option that is right.

    Raises:
        ValueError: if there are fewer than two options, or the right one is not among them.
    """

    def __init__(self, question: str, replies: Mapping[str, str], *, right: str):
        if len(replies) < 2 or right not in replies:
            raise ValueError(f"right must be one of at least two options, got {right!r} of {list(replies)}.")
        self.question, self.replies, self.right = question, dict(replies), right

    def __repr__(self) -> str:
        return f"Predict. {self.question} ({' / '.join(self.replies)})"

    def _repr_html_(self) -> str:
        name = hashlib.sha256(self.question.encode()).hexdigest()[:8]  # one option is open at a time
        options = "".join(
            f'<details name="{name}"><summary>{html.escape(option)}</summary><p>'
            f"<b>{'Yes.' if option == self.right else 'No.'}</b> {html.escape(reply)}</p></details>"
            for option, reply in self.replies.items()
        )
        heading = f"<style>{STYLE}</style><p><b>Predict.</b> {html.escape(self.question)}</p>"
        return f'<div class="rm-predict" role="group" aria-label="Predict">{heading}{options}</div>'


predict = Prediction
