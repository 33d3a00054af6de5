"""The text about measured captions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from examples.plotting import limits_after_first, small_multiples
from examples.results.paired import Paired, differences
from examples.results.planned import not_measured
from examples.results.report import commands, environments, mean_spread, of_seeds
from fairseq_ext.training.plotting import saved_figure

__all__ = ["draw", "heading", "same_for_all", "section"]

SHOWN = {"bleu1": "BLEU-1", "bleu4": "BLEU-4", "rouge_l": "ROUGE-L", "cider_d": "CIDEr-D"}
DENSE = "dense"
SAME = 0.1
"""Share of distinct captions below which they hardly depend on the image."""
CURVES = {"cider": "CIDEr-D", "nll_loss": "bits a token"}
STAMPS = (
    "Images to grids of 7 x 7 vectors by `fairseq-ext captions extract` (EfficientNet-Lite0; the first 128 principal "
    "components of the training images); {} captions, one an image."
)
INPUTS = {
    "coco_val2017_regions": "Images are boxes drawn by people, with their class and without pixels.",
    "tuxpaint_stamps_en": STAMPS.format("English"),
    "tuxpaint_stamps_de": STAMPS.format("German"),
}

HEAD = """## Explicit Sparse Transformer: captions of images

Scores times 100, by `fairseq-ext captions score` (its own tokeniser), of captions against all references; mean ± spread
over the seeds. Encoder and decoder: 2 + 2 layers, width 128, FFN 512, 4 heads, post-norm; Adam (0.9, 0.98), lr 1e-3
inverse_sqrt, label smoothing 0.1; the epoch with the highest CIDEr-D on valid; beam 3, at most 20 words. The settings
are our choice, sized for one core, and were not tuned for any row. The first rows are captions without training.
{environments}.

Other images, or another number of references, make other figures of the same captions: nothing here may stand beside
those of COCO. fairseq-generate's own BLEU is not among them.

{commands}
"""

TABLE = """
### {heading}

{input} {train_images:,} images to train on, {images} to test, {references:.1f} references each; {epochs} epochs of
batches of {batch}, dropout {dropout}, {warmup} warm-up updates; words rarer than {min_count} are unknown.

| system | {metrics} | CIDEr-D minus dense | words | distinct |
|---|{lines}---|---|---|
{rows}

{reading}

![CIDEr-D and loss on valid by update](results/{name}.png)
"""


def heading(content: dict[str, Any]) -> str:
    """Of the part with the table of a data set."""
    return content["dataset"]


def section(contents: list[dict[str, Any]]) -> str:
    """A table for each data set."""
    head = HEAD.format(
        environments="; and ".join(dict.fromkeys(map(environments, contents))), commands=commands(contents)
    )
    return "\n".join([head, *map(_table, contents)])


def _table(content: dict[str, Any]) -> str:
    settings = content["settings"]
    return TABLE.format(
        **{key: content[key] for key in ("name", "images", "train_images", "references")},
        **{key: settings[key] for key in ("epochs", "batch", "dropout", "warmup", "min_count")},
        heading=heading(content),
        input=INPUTS[content["dataset"]],
        metrics=" | ".join(SHOWN.values()),
        lines="---|" * len(SHOWN),
        rows="\n".join(_row(row) for row in content["rows"]),
        reading="\n\n".join(filter(None, [part(content) for part in READING])),
    )


def draw(contents: list[dict[str, Any]], folder: Path) -> None:
    """CIDEr-D and loss on valid over each training, a panel for each arm."""
    for content in contents:
        trained = {row["system"]: row["runs"] for row in content["rows"]}
        trained = {name: runs for name, runs in trained.items() if all("curves" in run for run in runs.values())}
        title = f"{content['dataset']}, valid: each arm beside {DENSE} (grey), mean and range over {of_seeds(trained)}"
        with saved_figure(folder / f"{content['name']}.png", (9, 5.6), title) as figure:
            for part, (metric, label) in zip(figure.subfigures(2, 1), CURVES.items(), strict=True):
                curves = {name: [run["curves"][metric] for run in runs.values()] for name, runs in trained.items()}
                panels = small_multiples(part, curves, DENSE, limits=limits_after_first(curves), marker=".")
                next(iter(panels.values())).set_ylabel(label)
                part.supxlabel("updates")


def _row(row: dict[str, Any]) -> str:
    runs = list(row["runs"].values())
    cells = [mean_spread([100 * run[metric] for run in runs], 1) for metric in SHOWN]
    gains = [100 * run["minus_dense"]["cider_d"]["difference"] for run in runs if "minus_dense" in run]
    cells.append(Paired.of(gains).text(1) if gains else "")
    cells += [
        mean_spread([run["counts"][name] for run in runs], digits) for name, digits in (("words", 1), ("distinct", 0))
    ]
    return f"| {row['system']} | {' | '.join(cells)} |"


def _people(content: dict[str, Any]) -> str:
    people = content["human"]
    if not people:
        return ""
    scores = ", ".join(f"{name} {100 * people[metric]:.1f}" for metric, name in SHOWN.items())
    return f"The last caption of people against the others: {scores}; with one reference less, so not comparable."


def _baselines(content: dict[str, Any]) -> str:
    """Whether every training beats every caption without training."""
    untrained = [row for row in content["rows"] if "" in row["runs"]]
    best = max(untrained, key=lambda row: row["runs"][""]["cider_d"])
    level = best["runs"][""]["cider_d"]
    parts = []
    for row in content["rows"]:
        if "" not in row["runs"]:
            above = sum(run["cider_d"] > level for run in row["runs"].values())
            parts.append(f"{row['system']} with {above} of {len(row['runs'])} seeds")
    return f"CIDEr-D above the best without training ({best['system']}, {100 * level:.1f}): {'; '.join(parts)}."


def _seeds(content: dict[str, Any]) -> str:
    """The bootstrap over the images, seed by seed: it does not see how trainings differ."""
    lines = []
    for row in content["rows"]:
        cells = []
        for name, run in row["runs"].items():
            if "minus_dense" in run:
                difference = run["minus_dense"]["cider_d"]
                low, high = (100 * bound for bound in difference["interval"])
                equal = f"{100 * run['equal_to_dense']:.0f} % equal"
                cells.append(f"{name} {100 * difference['difference']:+.1f} [{low:+.1f}, {high:+.1f}], {equal}")
        if cells:
            lines.append(f"- {row['system']}: {'; '.join(cells)}")
    if not lines:
        return ""
    head = "CIDEr-D minus dense of the same seed, its 95 % interval over the images (paired bootstrap), equal captions:"
    return "\n".join([head, "", *lines])


def same_for_all(runs: dict[str, dict[str, Any]]) -> list[str]:
    """The seeds whose chosen epoch has hardly more than one caption for all images."""
    counts = {name: run["counts"] for name, run in runs.items() if name}
    return [name for name, count in counts.items() if count["distinct"] < SAME * count["images"]]


def _same(content: dict[str, Any]) -> str:
    """Trainings whose selection went wrong."""
    seeds = {row["system"]: same_for_all(row["runs"]) for row in content["rows"]}
    parts = [f"{system}, {' and '.join(names)}" for system, names in seeds.items() if names]
    if not parts:
        return ""
    return (
        f"The chosen epoch captions fewer than {100 * SAME:.0f} % of the images differently: {'; '.join(parts)}. Their "
        "CIDEr-D on valid is that of an early epoch with nearly one caption for all images, which later epochs, with "
        "captions of their own for each, do not reach."
    )


def _valid(content: dict[str, Any]) -> str:
    """What the figure shows at the chosen epochs, which were chosen by it."""
    rows = {row["system"]: row["runs"] for row in content["rows"] if "" not in row["runs"]}
    best = {
        system: {seed: max(value for _, value in run["curves"]["cider"]) for seed, run in runs.items()}
        for system, runs in rows.items()
        if all("curves" in run for run in runs.values())
    }
    dense = best.pop(DENSE, {})
    gains = {system: differences(own, dense) for system, own in best.items()}
    parts = [f"{system} {Paired.of(own).text(1)}" for system, own in gains.items() if own]
    if not parts:
        return ""
    return (
        f"On valid, CIDEr-D of the epoch that it chooses, minus {DENSE}: {'; '.join(parts)}. Each is the best "
        "of its training by the images that chose it; the table has those of test."
    )


READING = (_people, _baselines, _same, _valid, _seeds, not_measured)
"""The sentences below a table."""
