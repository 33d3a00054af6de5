"""Long tails, and MNIST with a smaller network: tables and picture."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

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

__all__ = ["TABLES", "pictures"]

L_SOFTMAX = """### MNIST, the L-Softmax network

The paper's recipe in full: 64 channels, 60,000 images, 100 epochs of batches of 256, SGD 0.1 with momentum 0.9, x 0.1
from epoch 51 and 65, smoothing 0.1, LE 1. *published*: of the best epoch on the test set, over five runs.
{environment}. {seconds}{missing}

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
    "mnist_r10": {"title": "Long-tailed MNIST, factor 10", "recipe": DIGITS},
    "cifar10_r100": {"title": "Long-tailed CIFAR-10 (JPEG), factor 100", "recipe": PHOTOGRAPHS},
    "cifar10_r10": {"title": "Long-tailed CIFAR-10 (JPEG), factor 10", "recipe": PHOTOGRAPHS},
}

CLEAN = """### MNIST, smaller stand-in for the L-Softmax network

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
    return CLEAN.format(seconds=seconds(content), rows="\n".join(rows(content, PLAIN)), reading=reading(content))


def _l_softmax(content: Content) -> str:
    missing = content.get("missing")
    lines = zip(rows(content, PLAIN), runs_of(content), strict=True)
    return L_SOFTMAX.format(
        environment=environments(content),
        seconds=seconds(content),
        missing=f" Not measured yet: {'; '.join(missing)}." if missing else "",
        rows="\n".join(f"{line} {PUBLISHED[name]} |" for line, name in lines),
        reading=reading(content),
    )


TABLES = {"clean": _clean, "l_softmax": _l_softmax, **dict.fromkeys(TAIL_TEXTS, _tail)}
"""The text of each experiment."""


def pictures(contents: dict[str, Content], folder: Path) -> None:
    """Accuracy from head to tail, a panel for each set."""
    if tails := [contents[name] for name in TAIL_TEXTS if name in contents]:
        _draw(tails, folder / "images_tails.png")


def _draw(contents: list[Content], file: Path) -> None:
    figure, panels = plt.subplots(
        1, len(contents), figsize=(4.6 * len(contents), 4), layout="constrained", squeeze=False
    )
    shown = (BASELINE, "encouraging, LE 0.5", "encouraging, LE 1", "class-weighted bonus", "DRW", "DRW + bonus")
    for axes, content in zip(panels[0], contents, strict=True):
        for name, runs in runs_of(content).items():
            if name not in shown:
                continue
            counts = next(iter(runs.values()))["train_counts"]
            columns = zip(*(run["test_class_accuracy"] for run in runs.values()), strict=True)
            means = [statistics.fmean(column) for column in columns]
            axes.plot(counts, means, "o-", color=f"C{shown.index(name)}", markersize=3, label=name)
        axes.set(title=TAIL_TEXTS[content["experiment"]]["title"], xlabel="training images of the class", xscale="log")
        axes.invert_xaxis()
        axes.grid(alpha=0.3)
    panels[0][0].set_ylabel("test accuracy")
    panels[0][0].legend(fontsize=8)
    figure.savefig(file, dpi=130)
    plt.close(figure)
