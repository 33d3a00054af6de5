"""Long tails, and MNIST with a smaller network: tables and figure."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from matplotlib.ticker import LogLocator, NullFormatter

from examples.plotting import small_multiples
from examples.results.image_classification.experiments import LONG
from examples.results.image_classification.figures import (
    BASELINE,
    Content,
    Figure,
    key,
    reading,
    rows,
    runs_of,
    seconds,
)
from examples.results.report import environments
from fairseq_ext.training.plotting import saved_figure

__all__ = ["TABLES", "draw"]

HEADINGS = {
    "clean": "MNIST, smaller stand-in for the L-Softmax network",
    "l_softmax": "MNIST, the L-Softmax network",
}

L_SOFTMAX = """### {heading}

The paper's recipe in full: 64 channels, 60,000 images, 100 epochs of batches of 256, SGD 0.1 with momentum 0.9, x 0.1
from epoch 51 and 65, smoothing 0.1, LE 1. *published*: of the best epoch on the test set, over five runs.
{environment}. {seconds}

| loss | accuracy | difference | negative log-likelihood | mean margin | calibration error | *published* |
|---|---|---|---|---|---|---|
{rows}

{reading}
"""

PUBLISHED = {
    "cross-entropy": "99.42 ± 0.06",
    "cross-entropy, smoothed": "99.54 ± 0.04",
    "encouraging": "99.56 ± 0.05",
    "encouraging, smoothed": "99.63 ± 0.04",
}

TAIL = """### {title}

Test accuracy (%) on the whole, balanced test set; *many*, *medium* and *few*: means over the classes with more than
100, 20 to 100 and less than 20 training images; *three smallest*: over those classes. {counts}. {recipe} {seconds}

| loss | accuracy | difference | many | medium | few | three smallest | negative log-likelihood | calibration error |
|---|---|---|---|---|---|---|---|---|
{rows}

{reading}
"""

DIGITS = (
    "Three convolutions, pixels/255, Adam 1e-3, 10 epochs of batches of 128. Re-weighting by the effective number "
    "(0.9999); deferred (DRW): in the last two epochs."
)
PHOTOGRAPHS = (
    "CIFAR-10 as lossy JPEG, so paired comparisons only: nothing here may stand beside published CIFAR-10 figures. The "
    "same network at 28x28 (the usual ResNet-32 takes nine times as long an image), at most 1,000 images a class, Adam "
    "1e-3, 10 epochs of batches of 32, no augmentation; re-weighting as above."
)
TAIL_TEXTS = {
    "mnist_r100": {"title": "Long-tailed MNIST, factor 100", "recipe": DIGITS},
    "mnist_r100_long": {
        "title": "Long-tailed MNIST, factor 100, four times as long",
        "recipe": f"As above with {LONG} epochs; deferred: in the last four.",
    },
    "mnist_r10": {"title": "Long-tailed MNIST, factor 10", "recipe": DIGITS},
    "cifar10_r100": {"title": "Long-tailed CIFAR-10 (JPEG), factor 100", "recipe": PHOTOGRAPHS},
    "cifar10_r10": {"title": "Long-tailed CIFAR-10 (JPEG), factor 10", "recipe": PHOTOGRAPHS},
}

CLEAN = """### {heading}

The paper's network with 16 channels instead of 64, on 6,000 of the training images, 4 epochs instead of 100 (SGD 0.1,
momentum 0.9, batches of 256, step size x 0.1 from the third and again in the fourth): in full it takes 1,250 s an epoch
on one core. Smoothing is 0.1, LE 1. {seconds}

| loss | accuracy | difference | negative log-likelihood | mean margin | calibration error |
|---|---|---|---|---|---|
{rows}

{reading}
"""


def _of_smallest(run: dict[str, Any]) -> float:
    """Mean accuracy of the three classes with the least images."""
    order = sorted(range(len(run["train_counts"])), key=lambda label: run["train_counts"][label])
    return statistics.fmean(run["test_class_accuracy"][label] for label in order[:3])


def _tail(content: Content) -> str:
    one = next(iter(content["rows"][0]["runs"].values()))
    figures: dict[str, tuple[Figure, int, float]] = {
        **{name: (key(f"test_{name}"), 1, 100.0) for name in ("many", "medium", "few")},
        "smallest": (_of_smallest, 1, 100.0),
        "nll": (key("test_nll"), 3, 1.0),
        "ece": (key("test_ece"), 3, 1.0),
    }
    return TAIL.format(
        **TAIL_TEXTS[content["experiment"]],
        counts=f"Training images: {', '.join(f'{count:,}' for count in one['train_counts'])}",
        seconds=seconds(content),
        rows="\n".join(rows(content, figures)),
        reading=reading(content),
    )


PLAIN: dict[str, tuple[Figure, int, float]] = {
    "nll": (key("test_nll"), 3, 1.0),
    "margin": (key("test_margin"), 1, 1.0),
    "ece": (key("test_ece"), 3, 1.0),
}


def _clean(content: Content) -> str:
    return CLEAN.format(
        heading=HEADINGS["clean"],
        seconds=seconds(content),
        rows="\n".join(rows(content, PLAIN)),
        reading=reading(content),
    )


def _l_softmax(content: Content) -> str:
    lines = zip(rows(content, PLAIN), runs_of(content), strict=True)
    return L_SOFTMAX.format(
        heading=HEADINGS["l_softmax"],
        environment=environments(content),
        seconds=seconds(content),
        rows="\n".join(f"{line} {PUBLISHED[name]} |" for line, name in lines),
        reading=reading(content),
    )


TABLES = {"clean": _clean, "l_softmax": _l_softmax, **dict.fromkeys(TAIL_TEXTS, _tail)}
"""The text of each experiment."""


def draw(contents: dict[str, Content], folder: Path) -> None:
    """Accuracy from head to tail, a panel for each set."""
    if tails := [contents[name] for name in TAIL_TEXTS if name in contents]:
        _draw(tails, folder / "images_tails.png")


SHOWN = (BASELINE, "encouraging, LE 0.5", "encouraging, LE 1", "class-weighted bonus", "DRW", "DRW + bonus")


def _draw(contents: list[Content], file: Path) -> None:
    title = f"Test accuracy from the head to the tail: mean and range over the seeds, beside {BASELINE} (grey)"
    with saved_figure(file, (9.5, 0.6 + 2.6 * len(contents)), title) as figure:
        parts = figure.subfigures(len(contents), 1, squeeze=False)[:, 0]
        for part, content in zip(parts, contents, strict=True):
            part.suptitle(TAIL_TEXTS[content["experiment"]]["title"], x=0.01, ha="left", fontsize=12)
            curves = {name: list(map(_by_images, runs.values())) for name, runs in runs_of(content).items()}
            shown = {name: curves[name] for name in SHOWN if name in curves}
            panels = small_multiples(part, shown, BASELINE, columns=5, limits=(-2, 102), marker="o", markersize=3)
            first = next(iter(panels.values()))
            first.set(xscale="log", ylabel="accuracy (%)")
            first.xaxis.set_major_locator(LogLocator(subs=(1, 3)))  # of a single decade there are several names, too
            first.xaxis.set_major_formatter("{x:g}")
            first.xaxis.set_minor_formatter(NullFormatter())
            first.invert_xaxis()
            part.supxlabel("training images of the class")


def _by_images(run: dict[str, Any]) -> list[tuple[float, float]]:
    """Accuracy (%) of each class by the number of its training images."""
    pairs = zip(run["train_counts"], run["test_class_accuracy"], strict=True)
    return [(count, 100 * accuracy) for count, accuracy in pairs]
