"""A network that trains in the page: full fine-tuning and a random mask side by side, at the reader's learning rate.

The script trains the classifier of `rmbook.offline.digits_mlp`, with a kernel and without one; `fine_tune` there is the
same computation in Python. With a kernel, `runs` holds what the reader's runs have measured.
"""

import functools

import anywidget
import numpy as np
import traitlets

from rmbook.offline.digits_mlp import STEPS, TRAIN, fine_tune, mirrored_digits, quantized_weights
from rmbook.widgets.page import encoded, front_end, standalone_html, table_html, with_html

TABLE_DENSITIES, TABLE_RATES = (1.0, 0.1, 0.03), (0.001, 0.01, 0.03, 0.1)


class Trainer(anywidget.AnyWidget):
    """Sliders for density and learning rate; masks, misread digits, loss and accuracy of two networks as they train.

    Args:
        density: of the mask at first, from 0.01 to 1.
        learning_rate: of both networks at first, from 0.0001 to 1.
        seed: of the masks and of the batches.

    Attributes:
        runs: with a kernel, one dict for each finished run: density (1 for full fine-tuning), learning_rate, seed,
            losses and accuracies, as in `rmbook.offline.digits_mlp.FineTuned`.
    """

    _esm, _css = front_end("trainer", "digits_mlp")
    data = traitlets.Dict().tag(sync=True)
    density = traitlets.Float(min=0.01, max=1.0).tag(sync=True)
    learning_rate = traitlets.Float(min=1e-4, max=1.0).tag(sync=True)
    seed = traitlets.Int(min=0).tag(sync=True)
    runs = traitlets.List().tag(sync=True)

    def __init__(self, density: float = 0.03, learning_rate: float = 0.001, seed: int = 0):
        levels, labels = mirrored_digits()
        integers, scales = quantized_weights()
        flat = levels.reshape(-1, 2)
        data = {
            "title": "Full fine-tuning and a random mask, training in this page",
            "note": "boxed: a digit that is misread",
            "steps": STEPS,
            "train": TRAIN,
            "images": encoded(16 * flat[:, 0] + flat[:, 1]),  # two pixels a byte
            "labels": "".join(map(str, labels)),
            "weights": encoded(np.concatenate([array.ravel() for array in integers])),
            "scales": scales,
        }
        super().__init__(data=data, density=density, learning_rate=learning_rate, seed=seed)

    def to_html(self) -> str:
        """Return the figure for a page without a kernel: complete in itself, and the same text on each call."""
        state = {name: getattr(self, name) for name in ("data", "density", "learning_rate", "seed")}
        return standalone_html("trainer", state, _table(self.seed), "digits_mlp")

    def __repr__(self) -> str:
        return f"Trainer(density={self.density:g}, learning_rate={self.learning_rate:g}, seed={self.seed})"

    def _repr_mimebundle_(self, **kwargs):
        return with_html(super()._repr_mimebundle_(**kwargs), repr(self), self.to_html())


@functools.cache
def _table(seed: int) -> str:
    """Return what a reader without JavaScript gets: the same computation, made when the page was made."""
    rows = [["weights trained", *(f"learning rate {rate:g}" for rate in TABLE_RATES)]]
    for density in TABLE_DENSITIES:
        runs = [fine_tune(density, rate, seed) for rate in TABLE_RATES]
        rows.append([f"{density:g} of 12,288: {runs[0].trained:,}", *(f"{run.accuracies[-1]:.0%}" for run in runs)])
    caption = f"Mirrored digits read right after {STEPS} steps. With JavaScript, the network trains in this page."
    return table_html(caption, rows)
