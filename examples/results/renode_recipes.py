"""How node classification is trained: the released recipe, one of a constant rate, and its choice."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from examples.results.report import asked, mean_spread
from fairseq_ext.training.options import flag
from graph.renode.options import TrainOptions, TrainRuns
from graph.renode.recipe import Recipe
from graph.renode.train import run

__all__ = [
    "RECIPES",
    "appendix",
    "best_so_far",
    "choose_on_validation",
    "described",
    "recipe_of",
    "superseded",
    "typed",
]

KEPT: dict[str, Any] = {"lr_decay": 1.0, "epochs": 300, "patience": 100}
RECIPES: dict[str, dict[str, Any]] = {
    "released": {},
    "constant": KEPT | {"normalize_features": True, "lr": 0.1},
}
CHOICES: tuple[dict[str, Any], ...] = (
    {},
    {"lr_decay": 0.99, "patience": 60},
    KEPT,
    KEPT | {"normalize_features": True},
    *(KEPT | {"normalize_features": True, "lr": lr} for lr in (0.02, 0.05, 0.1, 0.2)),
    *(RECIPES["constant"] | other for other in ({"dropout": 0.8}, {"weight_decay": 5e-4}, {"hidden_size": 64})),
)
"""What the recipe was chosen from, by validation: one step at a time from the released one."""
CHOICE_SPLITS = 2

APPENDIX_HEADING = "ReNode: why the released recipe stops before Amazon's graphs are learned"

APPENDIX = """## {heading}

It was made for small citation graphs. Its rate is multiplied by {decay} at every epoch after number {start}, so that
all {epochs} epochs together move the weights as far as {full:.0f} at the full rate, whatever has been learned by
then. And a third of Amazon's raw features are ones, most of them the same for most nodes: they learn slowly at a
small rate and not at all at a large one, where features that sum to 1 take one ten times as large. Below: F1 (x 100)
on the **validation** nodes, mean ± spread over {splits} splits (GCN, cross-entropy, balanced labels, without ReNode),
from the released recipe one step at a time; **bold**: the best. The tables above are trained with `{chosen}`, in the
choice of which no test node had a part.

| options beside the released ones | {datasets} |
|---|{rules}|
{rows}
"""


def described(content: dict[str, Any]) -> str:
    """The recipe of a table in a sentence."""
    changes, own = RECIPES[content["recipe"]], recipe_of(content["recipe"])
    chosen = "on validation" if content.get("choices") else "made on the validation nodes of other data sets"
    kind = f"The released recipe, but for `{typed(changes)}` (our choice, {chosen})"
    ends = f"at most {own.epochs} epochs, ended by {own.patience} without a better validation F1."
    return f"{kind if changes else 'The released recipe'}: {ends}"


def recipe_of(name: str) -> Recipe:
    """The released one with the changes of the name."""
    changes = RECIPES[name]
    return Recipe(**{field.name: changes[field.name] for field in fields(Recipe) if field.name in changes})


def typed(options: dict[str, Any]) -> str:
    """Options as they are typed."""
    return " ".join(flag(name) if value is True else f"{flag(name)} {value:g}" for name, value in options.items())


def best_so_far(history: Sequence[dict[str, Any]], points: int = 15) -> list[list[float]]:
    """The best validation F1 up to an epoch, at about so many epochs of a training: pairs (epoch, F1)."""
    validated = [entry for entry in history if "f1" in entry]
    best = itertools.accumulate((entry["f1"] for entry in validated), max)
    curve = [[entry["epoch"], round(f1, 4)] for entry, f1 in zip(validated, best, strict=True)]
    return curve[:: -max(1, len(curve) // points)][::-1]  # from its end, which always stays


def choose_on_validation(source: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    """The validation F1 of the baseline with each of ``CHOICES``, by split."""
    choices = []
    for changes in CHOICES:
        chosen = TrainOptions(backbone="gcn", loss="ce", renode="off", **source, **changes)
        slug = typed(changes).replace("--", "").replace(" ", "_") or "released"
        asked_for = TrainRuns(out=str(folder / slug), splits=CHOICE_SPLITS, inits=1)
        runs = asked(run(chosen, asked_for).runs, asked_for.seeds)
        choices.append({"options": typed(changes), "valid_f1": [own["valid_f1"] for own in runs.values()]})
        print(choices[-1], flush=True)
    return choices


def superseded(contents: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those by the released recipe of data sets that have a better one."""
    better = {content["rows"][0]["dataset"] for content in contents if content["recipe"] != "released"}
    return [
        content for content in contents if content["recipe"] == "released" and content["rows"][0]["dataset"] in better
    ]


def appendix(contents: Sequence[dict[str, Any]]) -> list[str]:
    """Why the superseded tables are, with what was tried instead."""
    tried = {content["rows"][0]["dataset"]: content["choices"] for content in contents if content.get("choices")}
    if not tried:
        return []
    released, splits = Recipe(), len(next(iter(tried.values()))[0]["valid_f1"])
    best = {dataset: max(map(_mean, choices)) for dataset, choices in tried.items()}
    rows = []
    for each in zip(*tried.values(), strict=True):
        cells = []
        for choice, top in zip(each, best.values(), strict=True):
            cell = mean_spread([100 * value for value in choice["valid_f1"]], 1)
            cells.append(f"**{cell}**" if _mean(choice) == top else cell)
        options = f"`{each[0]['options']}`" if each[0]["options"] else "none"
        rows.append(f"| {options} | {' | '.join(cells)} |")
    text = APPENDIX.format(
        heading=APPENDIX_HEADING,
        decay=released.lr_decay,
        start=released.lr_decay_epoch,
        epochs=released.epochs,
        full=sum(map(released.lr_factor, range(released.epochs))),
        splits=splits,
        chosen=typed(RECIPES["constant"]),
        datasets=" | ".join(tried),
        rules="|".join("---" for _ in tried),
        rows="\n".join(rows),
    )
    return [text]


def _mean(choice: dict[str, Any]) -> float:
    return statistics.fmean(choice["valid_f1"])
