"""The text about measured translations."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from examples.results.paired import p_value
from examples.results.planned import not_measured
from examples.results.report import agree, commands, common, environments, mean_spread, of_seeds
from examples.results.translation.experiments import (
    BASELINE,
    DATA,
    GRID,
    LEARNING_RATE,
    SIZES,
    SYSTEMS,
    DataSet,
    settings_of,
    warmup,
)
from examples.results.translation.figures import best_bits, draw_table, gains, links

__all__ = ["dataset", "draw", "heading", "section"]

TEXT = """## {heading}

All systems, beside the options of their rows: the same data ({pieces:,} joint SentencePiece pieces), size (width
{width}, FFN {ffn}, {heads} heads, {layers} + {layers} pre-norm layers, shared embeddings), {updates:,} updates of at
most {tokens:,} tokens, Adam (0.9, 0.98) with an inverse_sqrt schedule, {warmup} warm-up updates, label smoothing 0.1;
the checkpoint with the best validation {selection}; beam 5, length penalty 1. {tuning} BLEU, chrF and bits (the best of
a training): mean ± spread over {seeds}; {environment}.

{command}

{columns}
{rows}

sacreBLEU signature: `{signature}`, {scored}. {notes}

Options of the rows: {options}.

{figures}
"""

UNTUNED = """Learning rate
{lr:g} and dropout {dropout} are our choice and were not tuned for any row."""
TUNED = """Learning rate and
dropout of each row, in brackets, are those with the best validation of {grid}, with one seed."""
FAR = """The budget is far from
convergence, so the table says how fast a method learns, not how good it can get."""
FUSIONS = """Of GCA's fusions the table has only
{here}: in the table of size {size}, {likely} has the best validation likelihood and {bleu} the most BLEU on test, so
that {choice}."""
ONE_SEED = "One seed: the table cannot tell a difference between methods from one between seeds."
BOOTSTRAP = """*p* is that of a
paired bootstrap over the test sentences, each drawn with its translations by all seeds; the interval is over seeds."""

TRANSLATIONS = "The translations of {kept} of {runs} runs are in `docs/results/{name}`."


def dataset(content: dict[str, Any]) -> DataSet:
    """The data set of a content."""
    return DATA[content.get("dataset", "multi30k")]


def heading(content: dict[str, Any]) -> str:
    """Of the section with the table."""
    return f"{dataset(content).title}, size {content['size']}{', tuned' if content.get('tuned') else ''}"


def section(contents: list[dict[str, Any]]) -> str:
    """A table for each data set and size."""
    return "\n".join(_table(content, contents) for content in contents)


def draw(contents: list[dict[str, Any]], folder: Path) -> None:
    """Differences to the Transformer, learning curves and BLEU by length of each table."""
    for content in contents:
        draw_table(by_system(content), content["name"], dataset(content).title, folder)


def by_system(content: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The rows of each system, in the order of the systems."""
    rows = {name: [row for row in content["rows"] if row["system"] == name] for name in SYSTEMS}
    return {name: own for name, own in rows.items() if own}


def _table(content: dict[str, Any], contents: list[dict[str, Any]]) -> str:
    """The table of one data set and size, beside the other ones."""
    rows, systems, size = content["rows"], by_system(content), SIZES[content["size"]]
    _refuse_other_settings(content)
    updates = common(rows, "updates")
    columns = [*_columns(content, systems).items()]
    lines = [f"| {' | '.join(cells[name] for _, cells in columns)} |" for name in systems]
    header = f"| {' | '.join(title for title, _ in columns)} |\n|{'---|' * len(columns)}"
    return TEXT.format(
        **size._asdict() | {"updates": updates, "warmup": warmup(content["size"], updates)},
        heading=heading(content),
        selection={"nll_loss": "likelihood", "bleu": "BLEU (greedy)"}[size.select],
        tuning=_tuning(content),
        seeds=of_seeds({name: [row["seed"] for row in own] for name, own in systems.items()}, listed=True),
        environment=environments(content),
        command=commands([content]),
        columns=header,
        rows="\n".join(lines),
        signature=common(rows, "signature"),
        scored=f"{common(rows, 'sentences'):,} sentences",
        notes=" ".join([*_notes(content), *_fusions(content, contents)]),
        options=_options(systems),
        figures=links(systems, content["name"]),
    )


def _refuse_other_settings(content: dict[str, Any]) -> None:
    """All that the text says of all rows; of tuned ones each system has its own learning rate and dropout."""
    file, size = f"{content['name']}.json", content["size"]
    agree(file, content.get("settings", {}), settings_of(size))
    told = {"size": size} | ({} if content.get("tuned") else {"lr": LEARNING_RATE, "dropout": SIZES[size].dropout})
    for row in content["rows"]:
        agree(f"{file}: {row['system']}, seed {row['seed']},", {key: row[key] for key in told if key in row}, told)


def _options(systems: dict[str, list[dict[str, Any]]]) -> str:
    """What each row adds to the Transformer."""
    return "; ".join(f"{name} `{' '.join(SYSTEMS[name])}`" for name in systems)


def _columns(content: dict[str, Any], systems: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, str]]:
    """The cells of each column, by system; a column that no row has the numbers for is left out."""
    tests = _tests(content, systems)
    columns = {
        "system": {name: name + _settings(content, own) for name, own in systems.items()},
        "parameters": {name: f"{common(own, 'parameters'):,}" for name, own in systems.items()},
        "BLEU": _means(systems, lambda row: row["sacrebleu"], 2),
        f"difference to the {BASELINE}": _differences(systems, lambda row: row["sacrebleu"], 2),
        "p": {name: p_value(tests.get(name)) for name in systems} if tests else {},
        "chrF": _means(systems, lambda row: row["chrf"], 2) if "chrf" in content["rows"][0] else {},
        "validation bits per token": _means(systems, best_bits, 3),
        "difference in bits": _differences(systems, best_bits, 3),
    }
    return {title: cells for title, cells in columns.items() if cells}


def _tests(content: dict[str, Any], systems: dict[str, list[dict[str, Any]]]) -> dict[str, float]:
    """The p of the systems whose translations are there by every seed, as they are not of rows that were restored."""
    tests = content.get("bootstrap", {})
    return {name: test["p"] for name, test in tests.items() if test["seeds"] == len(systems[name])}


def _means(systems: dict[str, list[dict[str, Any]]], metric: Any, digits: int) -> dict[str, str]:
    return {name: mean_spread([metric(row) for row in own], digits) for name, own in systems.items()}


def _differences(systems: dict[str, list[dict[str, Any]]], metric: Any, digits: int) -> dict[str, str]:
    differences = gains(systems, metric)
    return {name: differences[name].text(digits) if name in differences else "" for name in systems}


def _settings(content: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    return f" ({common(rows, 'lr'):g}, {common(rows, 'dropout')})" if content.get("tuned") else ""


def _tuning(content: dict[str, Any]) -> str:
    if not content.get("tuned"):
        return UNTUNED.format(lr=LEARNING_RATE, dropout=SIZES[content["size"]].dropout)
    return TUNED.format(grid=", ".join(f"({lr:g}, {dropout})" for lr, dropout in GRID))


def _curves_without(systems: dict[str, list[dict[str, Any]]]) -> str:
    """The validations that curves of other rows have, and those of some rows lack: their logs began anew."""
    every = sorted({update for own in systems.values() for row in own for update, _ in row["curve"]})
    lacking: dict[str, list[str]] = {}
    for name, own in systems.items():
        if absent := [update for update in every if any(update not in dict(row["curve"]) for row in own)]:
            lacking.setdefault(", ".join(map(str, absent)), []).append(name)
    said = "; ".join(f"{updates} of {', '.join(names)}" for updates, names in lacking.items())
    return f"Curves without the validation at update {said}." if said else ""


def _notes(content: dict[str, Any]) -> list[str]:
    """What limits the reading of a table."""
    notes = [ONE_SEED] if len({row["seed"] for row in content["rows"]}) == 1 else []
    notes += [BOOTSTRAP] if _tests(content, by_system(content)) else []
    kept, runs = sum("translations" in row for row in content["rows"]), len(content["rows"])
    notes += [TRANSLATIONS.format(kept=kept, runs=runs, name=content["name"])] if kept else []
    chosen = "--systems" in content.get("command", "--systems")
    notes += [sentence] if (sentence := not_measured(content, () if chosen else SYSTEMS)) else []
    notes += [sentence] if (sentence := _curves_without(by_system(content))) else []
    return notes + ([FAR] if content["size"] == "small" else [])


def _fusions(content: dict[str, Any], contents: list[dict[str, Any]]) -> list[str]:
    """Which of GCA's fusions the table has, and how it was chosen, where a table of the same data has more of them."""
    own = _of_gca(content)
    for other in contents:
        fusions = _of_gca(other)
        if len(own) == 1 < len(fusions) and dataset(other) is dataset(content):
            (here,) = own
            likely = min(fusions, key=lambda name: statistics.fmean(map(best_bits, fusions[name])))
            bleu = max(fusions, key=lambda name: statistics.fmean(row["sacrebleu"] for row in fusions[name]))
            choice = "it is a choice on validation" if here == likely else "it is no choice on validation"
            return [FUSIONS.format(here=here, size=other["size"], likely=likely, bleu=bleu, choice=choice)]
    return []


def _of_gca(content: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    return {name: rows for name, rows in by_system(content).items() if name.startswith("GCA")}
