"""The explorer: two sliders, density and learning rate, over a map of the final loss and a loss curve.

One object for the three kinds of reader. With a kernel it is a widget: Python recomputes any pair of values. On a page
without one it is a piece of HTML that needs no network: the same front end (`explorer.js`) over the precomputed grid.
Without JavaScript it is a small table. An `Explorer` is an anywidget, so everything of ipywidgets works on it:
`VBox([explorer])`, `jslink`, `explorer.observe(...)`.
"""

import base64
from collections.abc import Callable
from dataclasses import dataclass

import anywidget
import ipywidgets
import numpy as np
import traitlets
from numpy.typing import ArrayLike

from rmbook.widgets.page import encoded, front_end, rounded, standalone_html, table_html, with_html

DECADE, MISSING = 200, 65535  # levels of a stored curve in a decade of loss; the one that is no number (also in .js)
DECADES = 12  # of loss that the curve's frame shows, counted down from the start


@dataclass(frozen=True)
class Runs:
    """Runs that the explorer shows, at each of R learning rates, D densities and T steps; float64.

    Attributes:
        losses: (R, D, T); infinite where a run left all bounds, NaN where there is no run. A run whose last loss lies
            above its first is shown as diverged, or by the explorer's other word for it.
        distances: (R, D), from the start to the end of a run.
        borders: (D,) a learning rate that theory names for each density, or None.
    """

    losses: np.ndarray
    distances: np.ndarray
    borders: np.ndarray | None = None


class Explorer(anywidget.AnyWidget):
    """Two logarithmic sliders, a map of the final loss, a loss curve and the distance from the start.

    Args:
        runs: a function of densities (D,) and learning rates (R,) that returns their `Runs`, which makes a live
            explorer in a kernel; or the `Runs` of the grid, for recorded results that cannot be computed again here.
        densities: (D,) evenly spaced on a logarithmic axis, each to a tenth of a step (1, 3, 10, 30 will do), rising,
            in (0, 1]; D at least 2.
        learning_rates: (R,) likewise, positive.
        steps: (T,) rising integers: the steps at which losses are given; the first is the start.
        density, learning_rate: where the sliders stand at first; the nearest grid point is taken.
        title: what a screen reader calls the figure.
        loss_label, border_label: names of what is shown.
        lost_label: what a run is called whose last loss lies above its first.
        source: for static pages, where the numbers come from.
        floor: losses below it are shown as "below" it: there, rounding decides.

    Raises:
        ValueError: for grids that are not as described, or runs of another shape.
    """

    _esm, _css = front_end("explorer")
    data = traitlets.Dict().tag(sync=True)
    density = traitlets.Float().tag(sync=True)
    learning_rate = traitlets.Float().tag(sync=True)
    run = traitlets.Dict().tag(sync=True)

    def __init__(
        self,
        runs: Runs | Callable[[np.ndarray, np.ndarray], Runs],
        densities: ArrayLike,
        learning_rates: ArrayLike,
        steps: ArrayLike,
        *,
        density: float,
        learning_rate: float,
        title: str = "Density and learning rate",
        loss_label: str = "loss",
        border_label: str = "largest stable rate",
        lost_label: str = "diverged",
        source: str = "Computed when this page was made.",
        floor: float = 1e-12,
    ):
        densities = _check_grid(densities, "densities")
        rates = _check_grid(learning_rates, "learning_rates")
        if densities[-1] > 1:
            raise ValueError(f"densities must be at most 1, got {densities[-1]:g}.")
        steps = np.asarray(steps)
        if steps.ndim != 1 or len(steps) < 2 or steps.dtype.kind not in "iu" or (np.diff(steps) <= 0).any():
            raise ValueError(f"steps must be at least two rising integers, got {steps!r}.")
        simulate = runs if callable(runs) else None
        grid = _check_runs(runs(densities, rates) if callable(runs) else runs, len(rates), len(densities), len(steps))
        losses = np.maximum(grid.losses, floor)  # NaN stays NaN
        start = float(np.nanmax(losses[..., 0]))
        span = [float(np.floor(np.log10(max(start * 10.0**-DECADES, floor)))), float(np.log10(start) + 0.5)]
        self._simulate = simulate
        data = {
            "title": title,
            "live": simulate is not None,
            "density_label": "density",
            "rate_label": "learning rate",
            "loss_label": loss_label,
            "border_label": border_label,
            "lost_label": lost_label,
            "source": source,
            "densities": densities.tolist(),
            "rates": rates.tolist(),
            "steps": steps.tolist(),
            "start": start,
            "floor": floor,
            "span": span,
            "finals": _encode(losses[..., -1], "<f4"),
            "distances": _encode(grid.distances, "<f4"),
            "curves": _encode(_levels(losses, span[0]), "<u2"),
            "borders": None if grid.borders is None else [*map(rounded, grid.borders)],
        }
        density = float(densities[_nearest(densities, density)])
        learning_rate = float(rates[_nearest(rates, learning_rate)])
        super().__init__(data=data, density=density, learning_rate=learning_rate)
        self._recompute()
        self.observe(self._recompute, names=["density", "learning_rate"])

    @traitlets.validate("density", "learning_rate")
    def _positive(self, proposal):
        if not 0 < proposal["value"] < np.inf or (proposal["trait"].name == "density" and proposal["value"] > 1):
            raise traitlets.TraitError(
                f"{proposal['trait'].name} must be positive (a density at most 1), got {proposal}."
            )
        return proposal["value"]

    def _recompute(self, change=None) -> None:
        if self._simulate is None:
            return
        here = {"density": self.density, "learning_rate": self.learning_rate}
        if here.items() <= self.run.items():
            return  # the two sliders' values arrive together, but are observed one after the other
        try:
            runs = self._simulate(np.array([self.density]), np.array([self.learning_rate]))
            runs = _check_runs(runs, 1, 1, len(self.data["steps"]))
        except Exception as error:  # what went wrong belongs on the screen; a widget's log is seen by nobody
            self.run = here | {"error": f"{type(error).__name__}: {error}"}
            return
        losses = np.clip(runs.losses[0, 0], self.data["floor"], 1e300)  # JSON has no infinity
        self.run = here | {
            "losses": [None if np.isnan(loss) else float(loss) for loss in losses],
            "distance": float(np.nan_to_num(runs.distances[0, 0], posinf=1e300)),
            "border": None if runs.borders is None else rounded(runs.borders[0]),
        }

    def show(self, other: "Explorer") -> None:
        """Show what another explorer shows, in this one's place on the screen, with the sliders where they are."""
        self._simulate = other._simulate
        self.run = {}
        self.data = other.data
        self._recompute()

    def to_html(self) -> str:
        """Return the explorer for a page without a kernel: complete in itself, and the same text on each call."""
        state = {"data": self.data | {"live": False}, "density": self.density, "learning_rate": self.learning_rate}
        return standalone_html("explorer", state, self._table())

    def _table(self) -> str:
        """Table of the final losses at some grid points, for readers without JavaScript."""
        densities, rates = self.data["densities"], self.data["rates"]
        finals = np.frombuffer(base64.b64decode(self.data["finals"]), "<f4").reshape(len(rates), len(densities))
        columns = np.unique(np.linspace(0, len(densities) - 1, 5).round().astype(int))
        rows = np.unique(np.linspace(0, len(rates) - 1, 7).round().astype(int))
        cells = [["learning rate"] + [f"density {densities[j]:.3g}" for j in columns]]
        cells += [[f"{rates[i]:.3g}"] + [self._words(finals[i, j]) for j in columns] for i in rows[::-1]]
        caption = (
            f"{self.data['title']}: final {self.data['loss_label']}. With JavaScript, this is an interactive figure."
        )
        return table_html(caption, cells)

    def _words(self, loss: float) -> str:
        if np.isnan(loss):
            return "not recorded"
        return self.data["lost_label"] if loss > self.data["start"] else f"{loss:.3g}"

    def __repr__(self) -> str:
        kind = "live" if self._simulate else "recorded"
        return f"Explorer({len(self.data['rates'])} learning rates x {len(self.data['densities'])} densities, {kind})"

    def _repr_mimebundle_(self, **kwargs):
        return with_html(super()._repr_mimebundle_(**kwargs), repr(self), self.to_html())


class InteractiveExplorer(ipywidgets.VBox):
    """An explorer with further controls, as `ipywidgets.interactive` makes them; a change computes the grid anew.

    On a page without a kernel only the explorer is shown, with the controls' first values: no control is dead.

    Args:
        make: called with the controls' values; returns an `Explorer`.
        controls: as for `ipywidgets.interactive`: a widget, a range such as (100, 1000), a list of choices, ...
    """

    def __init__(self, make: Callable[..., Explorer], **controls):
        form = ipywidgets.interactive(lambda **values: None, **controls)
        self.explorer = make(**form.kwargs)
        form.f = lambda **values: self.explorer.show(make(**values))
        super().__init__([*form.kwargs_widgets, self.explorer, form.out])  # form.out: where errors are printed

    def _repr_mimebundle_(self, **kwargs):
        return with_html(super()._repr_mimebundle_(**kwargs), repr(self.explorer), self.explorer.to_html())


def _check_grid(values, name: str) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or len(values) < 2 or not (np.isfinite(values) & (values > 0)).all():
        raise ValueError(f"{name} must be at least two positive finite numbers, got {values!r}.")
    logs = np.log(values)
    even = np.linspace(logs[0], logs[-1], len(logs))  # the map draws equal cells and marks true values
    if not (even[1] > even[0] and np.abs(logs - even).max() <= 0.1 * (even[1] - even[0])):
        raise ValueError(
            f"{name} must rise evenly on a logarithmic axis, to a tenth of a step (numpy.geomspace, or 1, 3, 10, 30), "
            f"got {values!r}."
        )
    return np.array([float(f"{value:.6g}") for value in values])  # what the page holds is what is computed


def _check_runs(runs: Runs, rates: int, densities: int, steps: int) -> Runs:
    shapes = [np.shape(runs.losses), np.shape(runs.distances), np.shape(runs.borders)]
    if shapes[:2] != [(rates, densities, steps), (rates, densities)] or shapes[2] not in ((), (densities,)):
        raise ValueError(
            f"runs must have losses {(rates, densities, steps)}, distances {(rates, densities)} and borders "
            f"{(densities,)} or None, got the shapes {shapes}."
        )
    return runs


def _nearest(grid: np.ndarray, value: float) -> int:
    if not 0 < value < np.inf:
        raise ValueError(f"a slider must start at a positive finite number, got {value!r}.")
    return int(np.abs(np.log(grid / value)).argmin())


def _levels(losses: np.ndarray, low: float) -> np.ndarray:
    """Losses (..., T) as 16-bit levels for drawing: 0 for 10^low and less, up to 327 decades above."""
    levels = np.round(np.clip((np.log10(losses) - low) * DECADE, 0, MISSING - 1))
    return np.where(np.isnan(losses), MISSING, levels)


def _encode(values: np.ndarray, dtype: str) -> str:
    with np.errstate(over="ignore"):  # what float32 cannot hold has diverged: it is stored as infinite
        return encoded(np.asarray(values, dtype))
