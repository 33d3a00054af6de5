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
    share_lost,
)
from examples.results.image_classification.experiments import HALF_RATE, HALF_RATE_BASELINE
from examples.results.image_classification.figures import BASELINE, Content, Figure, differences, key, runs_of
from examples.results.image_classification.tails import HEADINGS, TAIL_TEXTS
from examples.results.learned import Limit
from examples.results.paired import Paired
from examples.results.verdicts import Claim

__all__ = ["claims"]

METHOD = "Encouraging loss, images"
RADIUS = "0.2"
"""Of the attacks, where the published gain is largest."""
CLEAN, CLEAN_ON_ATTACKS = 98.0, 95.0
"""Test accuracies (%) on MNIST of networks that have learned, one of them on attacks; published: 98.69, 95.43."""
HEAD = 70.0
"""Accuracy (%) on the classes with many images of a network that has learned."""
STEPS = 1000
"""Least steps of both arms of a test: no image is held out, so no curve says whether one has learned. On the long tail
the encouraging loss is far from its end after 300."""
LONGER = {"mnist_r100_long": "mnist_r100"}
"""Of an experiment that is trained longer, the one whose claims it takes over."""
OTHERS = ("notMNIST", "Omniglot")
"""Images of other classes; USPS has the same."""
TAIL_CLAIMS = (
    ("encouraging, LE 0.5", BASELINE, "LE 0.5: +1.0", 1.0),
    ("encouraging, LE 1", BASELINE, "LE 1: +1.5", 1.5),
    (HALF_RATE, HALF_RATE_BASELINE, "LE 1: +1.5", 1.5),
    ("aggressive", BASELINE, "aggressive: +2.0", 2.0),
    ("DRW + bonus", "DRW", "over DRW: +2.2", 2.2),
    ("halted focal", "focal", "halted focal over focal: +0.7", 0.7),
)
TRAINED_ON_ATTACKS = {BASELINE: 89.30, BONUS: 95.33}
"""Of the readme of the released code: accuracy under FGSM of radius 0.2, after training on FGSM of radius 0.3."""


def claims(contents: list[dict[str, Any]]) -> list[Claim]:
    """Those of every experiment that is measured; a pair of rows counts in the longest training that has both, with
    seeds that have a spread."""
    by_name = {content["experiment"]: content for content in contents}
    for longer, shorter in LONGER.items():
        if longer in by_name and shorter in by_name:
            gains = {pair[:2]: _gains(by_name[longer], *pair[:2], key("test_accuracy")) for pair in TAIL_CLAIMS}
            taken = [pair for pair, each in gains.items() if len(each) > 1]
            by_name[shorter] = {**by_name[shorter], "taken": taken}
    return [claim for name, of in CLAIMS.items() if name in by_name for claim in of(by_name[name])]


def _claim(content: Content, own: str, other: str, figure: Figure, **about: Any) -> Claim:
    """The pairs are the seeds."""
    gains = _gains(content, own, other, figure)
    return Claim.of_runs(**{"method": METHOD, "unit": "points", **about}, gains=gains)


def _gains(content: Content, own: str, other: str, figure: Figure) -> list[float]:
    """Of every seed that both rows have."""
    runs = runs_of(content)
    return differences(runs.get(own, {}), runs.get(other, {}), figure)


def _floor(content: Content, figure: Figure, floor: float, what: str) -> list[Limit]:
    """Decisive limits where the baseline stays below the floor, and where the trainings are too short."""
    steps = min((run["steps"] for runs in runs_of(content).values() for run in runs.values()), default=0)
    short = [Limit("budget", f"{steps:,} steps, of both arms: {STEPS:,} are needed", True)] if steps < STEPS else []
    values = [value for run in runs_of(content).get(BASELINE, {}).values() if (value := figure(run)) is not None]
    reached = 100 * fmean(values) if values else 0.0
    text = f"cross-entropy reaches {reached:.1f} % {what}: {floor:g} are needed"
    return [*short, *([Limit("recipe", text, True)] if reached < floor else [])]


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
    published = fmean(of[BONUS][RADIUS] - of[BASELINE][RADIUS] for of in PUBLISHED.values())
    return _by_both_attacks(
        content,
        _attacked,
        says=f"{published:+.1f} under attack, the mean of FGSM and PGD (MNIST, readme of the code)",
        heading=ATTACK_TEXTS["attacks"]["title"],
        published=round(published, 1),
        under="MNIST",
        floor=CLEAN,
    )


def _trained_on_attacks(content: Content) -> list[Claim]:
    published = TRAINED_ON_ATTACKS[BONUS] - TRAINED_ON_ATTACKS[BASELINE]
    return _by_both_attacks(
        content,
        lambda objective: lambda run: run["fgsm"]["accuracy"][objective].get(RADIUS),
        says=f"{published:+.1f} under FGSM, trained on FGSM (MNIST, readme of the code)",
        heading=ATTACK_TEXTS["adversarial_training"]["title"],
        published=round(published, 1),
        under="MNIST, trained on FGSM",
        floor=CLEAN_ON_ATTACKS,
    )


def _by_both_attacks(
    content: Content,
    figure: Callable[[str], Figure],
    says: str,
    heading: str,
    published: float,
    under: str,
    floor: float,
) -> list[Claim]:
    """The published attack, and one whose gradient does not vanish where p is 1 in float32."""
    by_cross_entropy, by_log_odds = OBJECTIVES
    shared: dict[str, Any] = {"heading": heading, "digits": 1, "published": published}
    floors = _floor(content, key("test_accuracy"), floor, "unattacked")
    first = _claim(
        content, BONUS, BASELINE, figure(by_cross_entropy),
        says=says, here=f"{under}, raising the cross-entropy, radius {RADIUS}", **shared,
    )  # fmt: skip
    second = _claim(
        content, BONUS, BASELINE, figure(by_log_odds),
        says="that robustness is the model's", here=f"{under}, raising log-odds, radius {RADIUS}",
        **shared | {"method": f"{METHOD}: attack artefact"}, ours=True,
    )  # fmt: skip
    lost = _lost(first.paired, second.paired)
    artefact = f"{lost:.0f} % of it is an artefact of the attack, as the row below shows: attack through the log-odds"
    rounding = f"{lost:.0f} % of the gain above, which was measured here, is rounding of p in float32, not the model's"
    return [
        first._replace(limits=(*floors, *([Limit("method", artefact)] if lost else []))),
        second._replace(limits=(*floors, *([Limit("method", rounding)] if lost else []))),
    ]


def _lost(published: Paired | None, honest: Paired | None) -> float:
    """How many percent of the published gain are gone."""
    gone = published is not None and honest is not None and published.mean > 0
    return 100 * share_lost(published, honest) if gone else 0.0


def _others(content: Content) -> list[Claim]:
    """Ranked by the largest probability as it comes in float32, and by its log-odds, which have no ties."""
    shared: dict[str, Any] = {"heading": OTHERS_HEADING, "published": 2.36, "unit": "points of AUROC"}
    floor = _floor(content, key("test_accuracy"), CLEAN, "on MNIST")
    lacking = "the poster's score is not known, Fashion-MNIST not at hand, and its network another, of 100 epochs"
    data = Limit("data", lacking)

    def auroc(score: str) -> Figure:
        return lambda run: _mean(run[other][score]["auroc"] if other in run else None for other in OTHERS)

    first = _claim(
        content, BONUS, BASELINE, auroc("msp-float32"),
        says="+2.36 AUROC against other images (Fashion-MNIST, poster)",
        here=f"MNIST, {', '.join(OTHERS)}, by the largest probability in float32", **shared,
    )  # fmt: skip
    second = _claim(
        content, BONUS, BASELINE, auroc("msp"),
        says="the same without ties by rounding", here=f"MNIST, {', '.join(OTHERS)}, by its log-odds",
        **shared | {"method": f"{METHOD}: score artefact"}, ours=True,
    )  # fmt: skip
    moved = second.paired.mean - first.paired.mean if first.paired and second.paired else 0.0
    ties = (
        f"ties of rounded probabilities make {-moved:+.1f} points of it, as the row below shows: rank by the log-odds"
    )
    return [
        first._replace(limits=(*floor, Limit("method", ties), data)),
        second._replace(limits=(*floor, data)),
    ]


def _tails(content: Content) -> list[Claim]:
    title = TAIL_TEXTS[content["experiment"]]["title"]
    limits = (
        *_floor(content, key("test_many"), HEAD, "on the classes with many images"),
        Limit("data", "ten classes: iNaturalist has 8,142"),
    )
    return [
        _claim(
            content, own, other, key("test_accuracy"),
            says=f"{says} on a long tail (iNaturalist, slides)", heading=title,
            here=f"{title}, half the rate" if own == HALF_RATE else title, published=published, limits=limits,
        )
        for own, other, says, published in TAIL_CLAIMS
        if {own, other} <= runs_of(content).keys() and (own, other) not in content.get("taken", ())
    ]  # fmt: skip


CLAIMS: dict[str, Callable[[Content], list[Claim]]] = {
    **dict.fromkeys(HEADINGS, _accuracy),
    "attacks": _attacks,
    "adversarial_training": _trained_on_attacks,
    "others": _others,
    **dict.fromkeys(TAIL_TEXTS, _tails),
}
