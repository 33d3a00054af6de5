"""Encouraging loss on images: accuracy, attacks, images of another kind, long tails."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from statistics import fmean
from typing import Any

from examples.results.image_classification.attacks import (
    ATTACK_TEXTS,
    BONUS,
    OBJECTIVES,
    OTHERS_HEADING,
    PUBLISHED,
    SCORES,
    share_lost,
)
from examples.results.image_classification.experiments import HALF_RATE
from examples.results.image_classification.figures import BASELINE, Content, Figure, differences, key, runs_of
from examples.results.image_classification.tails import HEADINGS, TAIL_TEXTS
from examples.results.paired import Paired
from examples.results.verdicts import Claim, Limit

__all__ = ["claims"]

METHOD = "Encouraging loss, images"
RADIUS = "0.2"
"""Of the attacks, where the published gain is largest."""
CLEAN = 98.0
"""Test accuracy (%) on MNIST of a network that has learned; published: 98.69."""
HEAD = 70.0
"""Accuracy (%) on the classes with many images of a network that has learned."""
OTHERS = ("notMNIST", "Omniglot")
"""Images of other classes; USPS has the same."""
TAIL_CLAIMS = (
    ("encouraging, LE 0.5", BASELINE, "LE 0.5: +1.0", 1.0),
    ("encouraging, LE 1", BASELINE, "LE 1: +1.5", 1.5),
    (HALF_RATE, BASELINE, "LE 1: +1.5", 1.5),
    ("DRW + bonus", "DRW", "over DRW: +2.2", 2.2),
)


def claims(contents: list[dict[str, Any]]) -> list[Claim]:
    """Those of every experiment that is measured."""
    by_name = {content["experiment"]: content for content in contents}
    return [claim for name, of in CLAIMS.items() if name in by_name for claim in of(by_name[name])]


def _claim(content: Content, own: str, other: str, figure: Figure, **about: Any) -> Claim:
    """The pairs are the seeds."""
    runs = runs_of(content)
    gains = differences(runs.get(own, {}), runs.get(other, {}), figure)
    return Claim.of_runs(**{"method": METHOD, "unit": "points", **about}, gains=gains)


def _floor(content: Content, figure: Figure, floor: float, what: str) -> list[Limit]:
    """A decisive limit where the baseline stays below the floor."""
    values = [value for run in runs_of(content).get(BASELINE, {}).values() if (value := figure(run)) is not None]
    reached = 100 * fmean(values) if values else 0.0
    text = f"cross-entropy reaches {reached:.1f} % {what}: {floor:g} are needed"
    return [Limit("recipe", text, True)] if reached < floor else []


def _accuracy(content: Content) -> list[Claim]:
    stand_in = content["experiment"] == "clean"
    cut = "16 of 64 channels, 6,000 of 60,000 images, 4 of 100 epochs: the network in full, `l_softmax` on a GPU"
    return [
        _claim(
            content,
            BONUS,
            BASELINE,
            key("test_accuracy"),
            says="+0.14 accuracy (MNIST, poster)",
            here="MNIST, smaller stand-in" if stand_in else "MNIST, the paper's recipe",
            heading=HEADINGS[content["experiment"]],
            published=0.14,
            limits=(
                *_floor(content, key("test_accuracy"), CLEAN, "on MNIST"),
                *([Limit("budget", cut)] if stand_in else []),
            ),
        )
    ]


def _attacked(objective: str) -> Figure:
    return lambda run: _mean(run[attack]["accuracy"][objective].get(RADIUS) for attack in PUBLISHED)


def _mean(values: Iterable[float | None]) -> float | None:
    each = list(values)
    return None if None in each else fmean(value for value in each if value is not None)


def _attacks(content: Content) -> list[Claim]:
    honest, published = OBJECTIVES[1], OBJECTIVES[0]
    shared: dict[str, Any] = {
        "heading": ATTACK_TEXTS["attacks"]["title"],
        "published": round(fmean(of[BONUS][RADIUS] - of[BASELINE][RADIUS] for of in PUBLISHED.values()), 1),
        "digits": 1,
    }
    floor = _floor(content, key("test_accuracy"), CLEAN, "unattacked")
    artefact = Limit("method", "an artefact of the attack, as the row below shows: attack through the log-odds")
    first = _claim(
        content, BONUS, BASELINE, _attacked(published),
        says=f"{shared['published']:+g} under attack (MNIST, readme of the code)",
        here=f"MNIST, raising the cross-entropy, radius {RADIUS}",
        limits=(*floor, artefact), **shared,
    )  # fmt: skip
    second = _claim(
        content, BONUS, BASELINE, _attacked(honest),
        says="that robustness is the model's", here=f"MNIST, raising log-odds, radius {RADIUS}",
        **shared | {"method": f"{METHOD}: attack artefact"}, ours=True,
    )  # fmt: skip
    return [first, second._replace(limits=(*floor, *_lost(first.paired, second.paired)))]


def _lost(published: Paired | None, honest: Paired | None) -> list[Limit]:
    """What is left of the published gain."""
    if published is None or honest is None or published.mean <= 0:
        return []
    lost = 100 * share_lost(published, honest)
    return [Limit("method", f"{lost:.0f} % of the gain as published is rounding of p in float32, not the model's")]


def _others(content: Content) -> list[Claim]:
    score = next(iter(SCORES))

    def auroc(run: dict[str, Any]) -> float | None:
        return _mean(run[other][score]["auroc"] if other in run else None for other in OTHERS)

    return [
        _claim(
            content, BONUS, BASELINE, auroc,
            says="+2.36 AUROC against other images (Fashion-MNIST, poster)",
            here=f"MNIST, {', '.join(OTHERS)}", heading=OTHERS_HEADING, published=2.36,
            unit="points of AUROC",
            limits=(
                *_floor(content, key("test_accuracy"), CLEAN, "on MNIST"),
                Limit("data", "Fashion-MNIST is not at hand; the paper's network is another, of 100 epochs"),
            ),
        )
    ]  # fmt: skip


def _tails(content: Content) -> list[Claim]:
    title = TAIL_TEXTS[content["experiment"]]["title"]
    limits = (
        *_floor(content, key("test_many"), HEAD, "on the classes with many images"),
        Limit("data", "ten classes and a short training: iNaturalist has 8,142"),
    )
    return [
        _claim(
            content, own, other, key("test_accuracy"),
            says=f"{says} on a long tail (iNaturalist, slides)", heading=title,
            here=f"{title}, half the rate" if own == HALF_RATE else title, published=published, limits=limits,
        )
        for own, other, says, published in TAIL_CLAIMS
        if own in runs_of(content)
    ]  # fmt: skip


CLAIMS: dict[str, Callable[[Content], list[Claim]]] = {
    **dict.fromkeys(HEADINGS, _accuracy),
    "attacks": _attacks,
    "others": _others,
    **dict.fromkeys(TAIL_TEXTS, _tails),
}
