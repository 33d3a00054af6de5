"""MNIST under attack and against images of another kind: tables and figure."""

from __future__ import annotations

import statistics
from pathlib import Path

from examples.plotting import colour_of
from examples.results.image_classification.figures import (
    BASELINE,
    Content,
    Figure,
    Runs,
    cell,
    difference,
    key,
    runs_of,
    seconds,
    shown,
)
from examples.results.paired import Paired
from examples.results.report import of_seeds
from fairseq_ext.training.plotting import mean_and_range, name_lines, saved_figure
from vision_language.image_classification.evaluate import RADII

__all__ = ["TABLES", "draw"]

BONUS = "encouraging"
OBJECTIVES = ("cross-entropy", "log-odds")

COLUMNS = [f"{radius:g}" for radius in RADII]
PUBLISHED = {
    "fgsm": {
        BASELINE: dict(zip(COLUMNS, (98.69, 94.43, 84.21, 64.80, 44.22, 31.15, 21.72), strict=True)),
        BONUS: dict(zip(COLUMNS, (99.04, 96.34, 91.09, 79.68, 63.00, 46.50, 34.80), strict=True)),
    },
    "pgd": {
        BASELINE: dict(zip(COLUMNS, (98.69, 93.69, 76.52, 39.69, 13.34, 2.92, 0.53), strict=True)),
        BONUS: dict(zip(COLUMNS, (99.04, 95.07, 81.32, 54.18, 30.25, 18.12, 11.21), strict=True)),
    },
}
"""Of the readme of the released code: one hand-picked run each, attacked through the cross-entropy."""

SCORES = {
    "msp": "largest probability, as log-odds",
    "msp-float32": "largest probability, float32",
    "energy": "energy",
    "max-logit": "largest logit",
    "margin": "margin",
}

ATTACKS = """### {title}

Test accuracy (%) by the radius of the attack in pixels from 0 to 1. {recipe} FGSM on {images:,} test images; PGD, 40
steps of 2/255 from a random start, on the first {pgd_images:,}. *raised*: what the attack raises. {published}{seconds}

{table}

| loss | test accuracy | negative log-likelihood | mean margin | largest p = 1 in float32 | no gradient at all |
|---|---|---|---|---|---|
{models}

{reading}
"""

ATTACK_TEXTS = {
    "attacks": {
        "title": "MNIST under attack",
        "recipe": "The paper's recipe: three convolutions, pixels/255, Adam 1e-3, 5 epochs of 128 in file order, LE 1.",
        "published": "*published*: one hand-picked run each, from the readme of the released code. ",
    },
    "adversarial_training": {
        "title": "MNIST, trained on attacked images",
        "recipe": "The same recipe with FGSM of radius 0.3 on the cross-entropy in every step.",
        "published": "",
    },
}

OTHERS_HEADING = "MNIST against images of another kind"

OTHERS = """### {heading}

The models of the attacked runs. AUROC and FPR at 95 % TPR in %, MNIST's test images being the positive class, ties
counted as one group. notMNIST: letters; Omniglot: characters of other alphabets, inverted, 28x28; USPS: the same digits
by another scanner, so a shift and no new class. The paper's other set, Fashion-MNIST, is not at hand.

| others | ranked by | AUROC, cross-entropy | encouraging | difference | FPR95, same | encouraging | difference |
|---|---|---|---|---|---|---|---|
{rows}

{reading}
"""


def _under(attack: str, objective: str, radius: str) -> Figure:
    return lambda run: run[attack]["accuracy"][objective].get(radius)


def _attacks(content: Content) -> str:
    runs = runs_of(content)
    one = next(iter(runs[BASELINE].values()))
    radii = list(one["fgsm"]["accuracy"][OBJECTIVES[0]])
    lines = [f"| attack | raised | loss | {' | '.join(radii)} |", "|---" * (3 + len(radii)) + "|"]
    for attack in ("fgsm", "pgd"):
        for objective in OBJECTIVES:
            figures = [_under(attack, objective, radius) for radius in radii]
            rows = {name: [cell(own, figure) for figure in figures] for name, own in runs.items()}
            rows["difference"] = [shown(difference(runs[BONUS], runs[BASELINE], figure)) for figure in figures]
            if content["experiment"] == "attacks" and objective == OBJECTIVES[0]:
                for name, published in PUBLISHED[attack].items():
                    rows[f"{name}, *published*"] = [str(published.get(radius, "")) for radius in radii]
            start = f"| {attack.upper()} | {objective}"
            lines += [f"{start} | {name} | {' | '.join(cells)} |" for name, cells in rows.items()]
    models = []
    for name, own in runs.items():
        figures = [cell(own, key("test_accuracy"), 2), cell(own, key("test_nll"), 3, 1)]
        figures += [cell(own, key("test_margin"), 1, 1)]
        figures += [cell(own, lambda run, key=key: run["fgsm"][key], 2) for key in ROUNDED]
        models.append(f"| {name} | {' | '.join(figures)} |")
    return ATTACKS.format(
        **ATTACK_TEXTS[content["experiment"]],
        images=one["fgsm"]["images"],
        pgd_images=one["pgd"]["images"],
        seconds=seconds(content),
        table="\n".join(lines),
        models="\n".join(models),
        reading=_attacks_reading(runs),
    ) + ("\n![Accuracy under attack](results/images_attacks.png)\n" if content["experiment"] == "attacks" else "")


def share_lost(published: Paired, honest: Paired) -> float:
    """Which part of a gain above 0 is gone under the attack that does not vanish, in [0, 1]."""
    return max(0.0, 1 - max(0.0, honest.mean) / published.mean)


ROUNDED = ("probability_is_one", "zero_gradient")


def _attacks_reading(runs: dict[str, Runs]) -> str:
    """What is left of the gain when the attack raises what does not vanish."""

    def gain(attack: str, objective: str) -> Paired | None:
        return difference(runs[BONUS], runs[BASELINE], _under(attack, objective, "0.2"))

    lines = []
    for attack in ("fgsm", "pgd"):
        published, honest = (gain(attack, objective) for objective in OBJECTIVES)
        if not published or not honest:
            continue
        line = (
            f"At radius 0.2 the encouraging loss keeps {published.text(1)} points more than cross-entropy where "
            f"{attack.upper()} raises the cross-entropy, as published, and {honest.text(1)} where it raises log-odds"
        )
        if published.mean > 0:
            line += f": {100 * share_lost(published, honest):.0f} % of that gain is not the model's"
        lines.append(line + ".")
    lines.append(
        "In exact arithmetic the two attacks are one, as their gradients differ by the factor 1 - p; what separates "
        "them is rounding of p in float32. Models are to be compared by the lower of the two accuracies."
    )
    return " ".join(lines)


# --- images of another kind ------------------------------------------------------------------------------------------


def _detection(other: str, score: str, metric: str) -> Figure:
    return lambda run: run[other][score][metric]


def _others(content: Content) -> str:
    runs = runs_of(content)
    one = next(iter(runs[BASELINE].values()))
    others = [name for name, value in one.items() if isinstance(value, dict) and "msp" in value]
    lines, gained, lost = [], 0, 0
    for other in others:
        for score, title in SCORES.items():
            cells = [f"{other} ({one[other]['images']:,})", title]
            for metric in ("auroc", "fpr95"):
                figure = _detection(other, score, metric)
                gain = difference(runs[BONUS], runs[BASELINE], figure)
                cells += [cell(runs[name], figure, 2 if metric == "auroc" else 1) for name in (BASELINE, BONUS)]
                cells.append(shown(gain, 2 if metric == "auroc" else 1))
                if metric == "auroc" and gain:
                    gained, lost = gained + gain.gains, lost + gain.loses
            lines.append(f"| {' | '.join(cells)} |")
    ties = {
        name: statistics.fmean(
            100 * (run[other]["msp"]["auroc"] - run[other]["msp-float32"]["auroc"])
            for run in own.values()
            for other in others
        )
        for name, own in runs.items()
    }
    cost = ", ".join(f"{value:.1f} ({name})" for name, value in ties.items())
    reading = (
        f"By AUROC the encouraging loss gains in {gained} and loses in {lost} of {len(lines)} rows. Ranked by the "
        f"largest probability in float32 instead of its log-odds, AUROC falls by {cost} points on average: ties of "
        "rounded probabilities, which a comparison by that score would take for the model's."
    )
    return OTHERS.format(heading=OTHERS_HEADING, rows="\n".join(lines), reading=reading)


TABLES = {"attacks": _attacks, "adversarial_training": _attacks, "others": _others}
"""The text of each experiment."""


def draw(contents: dict[str, Content], folder: Path) -> None:
    """The attacked accuracies, one panel for each thing that an attack may raise."""
    if "attacks" in contents:
        _draw(contents["attacks"], folder / "images_attacks.png")


def _draw(content: Content, file: Path) -> None:
    title = f"MNIST under attack: mean and range over {of_seeds(runs_of(content))}"
    with saved_figure(file, (9, 3.6), title) as figure:
        panels = figure.subplots(1, 2, sharey=True)
        for axes, objective in zip(panels, OBJECTIVES, strict=True):
            for name, runs in runs_of(content).items():
                for attack, style in (("fgsm", "o-"), ("pgd", "s--")):
                    accuracies = [run[attack]["accuracy"][objective].items() for run in runs.values()]
                    curves = [[(float(radius), 100 * accuracy) for radius, accuracy in each] for each in accuracies]
                    label = f"{name}, {attack.upper()}"
                    mean_and_range(axes, curves, label, linestyle=style[1:], marker=style[0], color=colour_of(name))
            axes.set(title=f"attack raises the {objective}", xlabel=r"radius $\varepsilon$ (pixels are 0 to 1)")
            axes.set_ylim(-2, 102)
        panels[0].set_ylabel("test accuracy (%)")
        for axes in panels:
            name_lines(axes)
