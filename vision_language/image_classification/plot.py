"""The command that draws what the bonus did."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from fairseq_ext.training.errors import OptionError
from fairseq_ext.training.files import write_json, writing_to
from fairseq_ext.training.options import OptionSet, option
from fairseq_ext.training.plotting import saved_figure
from vision_language.image_classification.loss_plots import (
    gradient_training,
    gradients,
    loss_gradients,
    losses,
    sweep,
)
from vision_language.image_classification.plots import (
    class_energies,
    energies,
    group_probabilities,
    margins,
    probabilities,
    reliability,
    robustness,
    tail,
    training,
)
from vision_language.image_classification.results import COLOURS, Experiments, Results

__all__ = ["PlotOptions", "plot"]


@dataclass(frozen=True, kw_only=True)
class PlotOptions(OptionSet):
    """What is drawn."""

    experiments: tuple[str, ...] = option(
        help="folders that train wrote; what evaluate, ood and attack wrote below them is drawn too", positional=True
    )
    out: str = option("runs/images_figures", "folder of the figures, and of their numbers as JSON")


def plot(options: PlotOptions) -> str:
    """Draw every figure that the folders have the results for.

    Raises:
        OptionError: more experiments than colours, two of one name, or one without results.
        DataError: damaged results.
    """
    if len(options.experiments) > len(COLOURS):
        raise OptionError(f"plot: at most {len(COLOURS)} experiments can be told apart, got {len(options.experiments)}")
    names = [Path(folder).name for folder in options.experiments]
    if len(set(names)) < len(names):
        raise OptionError(f"plot: two experiments are called {next(n for n in names if names.count(n) > 1)}")
    experiments = {name: Results(Path(folder)) for name, folder in zip(names, options.experiments, strict=True)}
    drawn = []
    with writing_to(options.out) as out:
        for name, draw in FIGURES.items():
            with saved_figure(out / f"{name}.png", (8.5, 4.4)) as figure:
                numbers = draw(figure.subplots(), experiments)
                if not numbers:
                    figure.clear()
            if numbers:
                write_json(out / f"{name}.json", numbers)
                drawn.append(name)
    return f"{', '.join(drawn)}: {options.out}"


FIGURES: dict[str, Callable[[Axes, Experiments], dict[str, Any]]] = {
    function.__name__: function
    for function in (
        *(probabilities, group_probabilities, margins, training, energies, class_energies, robustness, tail),
        reliability,
        *(losses, loss_gradients, gradients, gradient_training, sweep),
    )
}
"""The functions that draw the figures, by the names of the figures' files."""
