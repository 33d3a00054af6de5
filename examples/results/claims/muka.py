"""MUKA and MUKI, by test accuracy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean, median
from typing import Any

from examples.results.learned import Limit
from examples.results.muka import BASELINE, ENSEMBLE, heading
from examples.results.paired import Paired
from examples.results.verdicts import Claim

__all__ = ["claims"]

SETTINGS = {
    "two teachers": ("stackoverflow20_2", "google_snippets", "ag_news_7600"),
    "more teachers": ("stackoverflow20_4",),
    "teachers of unequal depth": ("heterogeneous",),
    "teachers of other data sets": ("cross_dataset",),
}
MUKA = ("MUKA, hard", "MUKA, soft")
MUKI = ("MUKI, hard", "MUKI, soft")
BASELINES = (BASELINE, "UHC", "DFA", "CFL")
CHOSEN = Limit(
    "budget",
    "the strongest of the baselines is the one with the best mean over these seeds, which is against the method: other "
    "seeds to choose it by",
)
SUPERVISED = "supervised"

BEHIND = 5.0
"""Points by which models that have learned may stay behind: a student by vanilla KD behind the ensemble that it copies,
and a teacher, on its own classes, behind one model that is supervised on all of them."""
STRAY = 10.0
"""Points below the median of its seeds from which a student or a teacher counts as one that has not converged."""


def claims(contents: list[dict[str, Any]]) -> list[Claim]:
    """MUKA in each kind of setting against the strongest baseline of each, and MUKI against MUKA in all of them.

    To beat the baselines is to beat the best of them, the one with the highest mean accuracy over the seeds.
    Where students of a setting were also trained until they converged, these are the ones that count. A table without
    the rows of all claims has none, and a setting whose teachers have not learned counts only where no other does.
    """
    supervised = {
        content["setting"]: runs[SUPERVISED] for content in contents if SUPERVISED in (runs := _runs(content))
    }
    complete = [content for content in contents if {*MUKA, *MUKI, BASELINE} <= _runs(content).keys()]
    of = {content["setting"]: content for content in sorted(complete, key=_until_converged)}
    chosen = {kind: [of[name] for name in names if name in of] for kind, names in SETTINGS.items()}
    parts = [
        _claim("MUKA", f"{kind}: beats the baselines (abstract)", those, MUKA, _strongest, supervised)
        for kind, those in chosen.items()
        if those
    ]
    every = [content for those in chosen.values() for content in those]
    says = "weights by the margin help (the abstract describes them)"
    return [*parts, _claim("MUKI", says, every, MUKI, lambda _: MUKA, supervised)] if every else []


def _claim(
    method: str,
    says: str,
    asked: list[dict[str, Any]],
    own: Sequence[str],
    against: Callable[[dict[str, Any]], Sequence[str]],
    supervised: dict[str, dict[str, float]],
) -> Claim:
    """The pairs are the seeds: of each the mean over settings, and over hard and soft targets.

    What a setting is compared ``against`` are rows of its own.
    """
    behind = {content["setting"]: _behind(content, supervised.get(content["setting"], {})) for content in asked}
    untaught = {
        name: "not kept" if points is None else f"{points:.1f} behind"
        for name, points in behind.items()
        if points is None or points > BEHIND
    }
    contents = [content for content in asked if content["setting"] not in untaught] or asked
    seeds: dict[str, list[float]] = {}
    for content in contents:
        runs, others = _runs(content), against(content)
        for seed in runs[own[0]]:
            gain = fmean(100 * runs[row][seed] for row in own) - fmean(100 * runs[row][seed] for row in others)
            seeds.setdefault(seed, []).append(gain)
    gains = [gain for of_seed in seeds.values() for gain in of_seed]
    beats = against is _strongest
    where = [f"{content['setting']}{f' (over {against(content)[0]})' if beats else ''}" for content in contents]
    return Claim(
        method,
        says,
        ", ".join(where) if len(contents) < len(SETTINGS) else f"{len(contents)} settings",
        heading(contents[0]),
        Paired.of([fmean(of_seed) for of_seed in seeds.values()]),
        f"points over {'the strongest baseline' if beats else 'MUKA'}",
        better=(sum(gain > 0 for gain in gains), len(gains)),
        limits=(
            *_untaught(untaught, decisive=contents == asked),
            *(limit for content in contents for limit in _taught(content, supervised.get(content["setting"], {}))),
            *_limits(contents, own, against),
            *([CHOSEN] if beats else []),
        ),
    )


def _strongest(content: dict[str, Any]) -> Sequence[str]:
    """The baseline of a setting with the highest mean over the seeds."""
    runs = _runs(content)
    return (max((row for row in BASELINES if row in runs), key=lambda row: _mean(runs[row])),)


def _own_accuracies(content: dict[str, Any]) -> list[list[float]]:
    """Of each teacher its accuracy (%) on its own classes, by seed."""
    kept = [each["teacher_accuracy"] for each in content.get("diagnostics", ())]
    return [[100 * accuracy for accuracy in of_seeds] for of_seeds in zip(*kept, strict=True)]


def _stray_teachers(content: dict[str, Any]) -> list[Limit]:
    """Teachers of a single seed that have not learned, where those of the others have."""
    stray = ((number, own) for number, own in enumerate(_own_accuracies(content), 1) if median(own) - min(own) > STRAY)
    return [
        Limit(
            "budget",
            f"teacher {number} on {content['setting']} has {min(own):.1f} on its own classes with a seed, "
            f"{median(own):.1f} in the median: train that one until it learns",
        )
        for number, own in stray
    ]


def _behind(content: dict[str, Any], supervised: dict[str, float]) -> float | None:
    """Points by which the weakest teacher on its own classes is behind a supervised model; None where it is not kept.

    That no teacher knows the others' classes, by which the ensemble falls behind, is the problem to be solved.
    """
    teachers = _own_accuracies(content)
    return _mean(supervised) - min(map(fmean, teachers)) if teachers and supervised else None


def _taught(content: dict[str, Any], supervised: dict[str, float]) -> list[Limit]:
    """By how much teachers that have learned, by our margin, are behind."""
    behind = round(_behind(content, supervised) or 0.0, 1)
    what = f"a teacher on {content['setting']} is {behind:.1f} points behind a supervised model"
    return (
        [Limit("budget", f"{what}, up to {BEHIND:g} being let pass: train it longer")] if 0 < behind <= BEHIND else []
    )


def _untaught(why: dict[str, str], decisive: bool) -> list[Limit]:
    """Of settings, what says that their teachers have not learned: left out, or all there is."""
    if not why:
        return []
    those = ", ".join(f"{name} ({reason})" for name, reason in why.items())
    what = f"teachers on their own classes and a supervised model, {those}{'' if decisive else ', left out'}"
    return [Limit("budget", f"{what}: train them until none is more than {BEHIND:g} points behind", decisive)]


def _until_converged(content: dict[str, Any]) -> bool:
    return bool(content["settings"].get("until_converged"))


def _runs(content: dict[str, Any]) -> dict[str, dict[str, float]]:
    return {row["system"]: row["runs"] for row in content["rows"]}


def _mean(runs: dict[str, float]) -> float:
    return 100 * fmean(runs.values())


def _limits(
    contents: list[dict[str, Any]], own: Sequence[str], against: Callable[[dict[str, Any]], Sequence[str]]
) -> list[Limit]:
    limits = []
    for content in contents:
        runs, name = _runs(content), content["setting"]
        behind = _mean(runs[ENSEMBLE]) - _mean(runs[BASELINE])
        if behind > BEHIND:
            what = f"on {name} vanilla KD is {behind:.1f} points behind the ensemble"
            limits.append(Limit("budget", f"{what}: a student within {BEHIND:g} is needed", True))
        reached = fmean(_mean(runs[row]) for row in own)
        (best,) = _strongest(content)
        if against is _strongest and _mean(runs[best]) > reached:
            limits.append(Limit("method", f"on {name} {best} has {_mean(runs[best]):.1f}, it {reached:.1f}"))
        limits += _stray_teachers(content)
        if _until_converged(content):
            limits += _unconverged(content, (*own, *against(content)))
        else:
            limits += [_stray(name, row, runs[row]) for row in own if _strays(runs[row])]
    epochs = sorted({str(content["settings"]["epochs"]) for content in contents if not _until_converged(content)})
    passes = f"{' or '.join(epochs)} epoch(s) of a few" if epochs else "a few"
    return [*limits, Limit("budget", f"{passes} layers of MiniLM: the papers' encoders and schedule")]


def _unconverged(content: dict[str, Any], systems: Sequence[str]) -> list[Limit]:
    """Where the trainings themselves say that they were cut short."""
    flags = [flag for row in content["rows"] if row["system"] in systems for flag in row["converged"].values()]
    if all(flags):
        return []
    most = content["settings"]["until_converged"]
    what = f"on {content['setting']} {len(flags) - flags.count(True)} of {len(flags)} students had not converged"
    return [Limit("budget", f"{what} after {most} epochs: train them until they do")]


def _strays(runs: dict[str, float]) -> bool:
    return 100 * (median(runs.values()) - min(runs.values())) > STRAY


def _stray(setting: str, row: str, runs: dict[str, float]) -> Limit:
    seed, lowest = min(runs.items(), key=lambda item: item[1])
    what = f"{row} on {setting}: {seed} ends at {100 * lowest:.1f}, the median at {100 * median(runs.values()):.1f}"
    return Limit("budget", f"{what}: train that student until it converges")
