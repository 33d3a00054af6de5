"""The page of each method: its parts, its figure, and that options, recipes and citations are those of the code."""

from __future__ import annotations

import dataclasses
import re
import shlex
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from mkdocs.exceptions import PluginError

from examples.method_figures import FIGURES, draw
from examples.method_figures.__main__ import main
from fairseq_ext.recipes import RECIPES
from fairseq_ext.training.files import read_json
from tests.helpers import ROOT
from tests.test_flags import option_sets, program_of
from tests.test_site import hook

FOLDER = ROOT / "docs" / "methods"
PAGES = {name: (FOLDER / f"{name}.md").read_text(encoding="utf-8") for name in FIGURES}
HEADINGS = [
    *("The idea", "Formula", "Use", "Options", "Presets and recipes"),
    *("Departures from the paper, and our choices", "Measured", "Cite"),
]
# Beginnings of the names that recipes have for the methods; the baselines stand on the first page.
RECIPES_OF = {
    "index": ("transformer",),
    "gca": ("gca",),
    "muse": ("muse",),
    "explicit_sparse_transformer": ("explicit-sparse",),
    "adanorm": ("adanorm", "layernorm-simple"),
    "encouraging_loss": ("encouraging",),
}
TRAINERS = {
    "renode": ("graph.renode", "train"),
    "label_graph": ("graph.label_graph", "train"),
    "iais": ("vision_language.iais", "train"),
    "muka": ("vision_language.muka", "amalgamate"),
}
LARGEST = 100 * 1024
"""Bytes of a figure."""


def part(page: str, heading: str) -> str:
    return re.split(r"^## ", page, flags=re.MULTILINE)[1 + HEADINGS.index(heading)].partition("\n")[2]


def table_rows(text: str) -> list[list[str]]:
    """Cells of the tables, without their heads."""
    tables = re.findall(r"^\|.*\|\n\|[-|]+\|\n((?:\|.*\n?)+)", text, flags=re.MULTILINE)
    return [line.strip("| ").split(" | ") for table in tables for line in table.splitlines()]


def documented_defaults(name: str) -> dict[str, str]:
    """Flags of the options' table and the value that stands first."""
    defaults: dict[str, str] = {}
    for flags, values, _ in table_rows(part(PAGES[name], "Options")):
        named, first = re.findall(r"`(--[\w-]+)`", flags), re.findall(r"`([^`]*)`|\b(on|off)\b", values)
        of_each = [quoted or word for quoted, word in first]
        defaults |= zip(named, of_each if len(named) > 1 else of_each[:1], strict=True)
    return defaults


def shown(default: Any) -> str:
    """A default as the tables have it."""
    if isinstance(default, bool):
        return "on" if default else "off"
    return f"{default:g}" if isinstance(default, float) else str(default)


@pytest.mark.parametrize("name", PAGES)
def test_the_parts_of_a_page(name):
    page = PAGES[name]
    assert re.findall(r"^## (.*)", page, flags=re.MULTILINE) == HEADINGS
    assert len(re.findall(r"[.?](?=\s|$)", part(page, "The idea"))) == 4, "the idea has four sentences"
    assert f"]({name}.png)" in part(page, "Formula")
    assert f"`python -m examples.method_figures {name}`" in " ".join(page.split())
    assert "```python" in part(page, "Use") and "```bash" in part(page, "Use")
    assert "](../RESULTS.md#verdicts)" in part(page, "Measured")
    assert (FOLDER / "index.md").read_text(encoding="utf-8").count(f"]({name}.md)") == 1


@pytest.mark.parametrize("name", PAGES)
def test_no_page_says_by_hand_whether_a_target_is_met(name):
    """The table of speed and memory does, from the pairs; it follows a new measurement, which prose does not."""
    assert not re.findall(r"\b(?:targets?|met|meets?|miss(?:es|ed)?)\b", part(PAGES[name], "Measured"))


def test_what_the_scores_of_muka_cost_is_what_was_measured():
    rows = {row["case"]: row for row in read_json(ROOT / "docs" / "results" / "benchmarks_muka.json")["rows"]}
    (epoch,) = (row for case, row in rows.items() if case.startswith("epoch of MUKA, soft with margin, on stored"))
    together = rows["16 dropout passes as one batch / one after another, 16 texts"]
    epochs = 2 * 32 / (epoch["reference"] / 1000) / max(together["ours"], together["reference"])
    said = " ".join(part(PAGES["muka"], "Measured").split())
    assert f"about {epochs:.0f} epochs of fine-tuning with 16 passes (the default), and about {epochs / 2:.0f}" in said


@pytest.mark.parametrize("name", RECIPES_OF)
def test_the_recipes_of_a_page_are_those_of_the_table(name):
    page = (FOLDER / f"{name}.md").read_text(encoding="utf-8")
    text = page.partition("| recipe |")[2].partition("\n\n")[0]
    expected = [recipe for recipe in RECIPES.values() if recipe.method.startswith(RECIPES_OF[name])]
    assert table_rows(f"| recipe |{text}") == [[f"`{recipe.name}`", recipe.summary] for recipe in expected]


VERDICTS = hook("verdicts")


def test_every_verdict_is_on_one_page():
    results = (ROOT / "docs" / "RESULTS.md").read_text(encoding="utf-8")
    methods = {row[0] for row in table_rows(results.partition("\n## Verdicts\n")[2].partition("\n## ")[0])}
    names = [name for page in PAGES.values() for name in VERDICTS.MARK.search(page)[1].split("; ")]
    assert methods and all(sum(VERDICTS.is_of(name, method) for name in names) == 1 for method in methods)
    assert not VERDICTS.is_of("MUSE", "MUSE-simple"), "another method, whose name only begins alike"


def test_a_page_shows_what_limits_its_verdicts(tmp_path, monkeypatch):
    head = "| method | claim | verdict | [limits](#limits) |\n|---|---|---|---|\n"
    rows = "| A, images | b | [reproduced](#c) | method 2; data 1, 3 |\n| A-simple | b | [d](#c) |  |\n"
    notes = "1. *data*, one\n2. *method*, an artefact: mend it\n3. *data*, three\n"
    (tmp_path / "RESULTS.md").write_text(f"# R\n\n## Verdicts\n\n{head}{rows}\n### L\n\n{notes}\n## Other\n")
    monkeypatch.setattr(VERDICTS, "RESULTS", tmp_path / "RESULTS.md")
    page = SimpleNamespace(file=SimpleNamespace(src_uri="methods/a.md"))

    def shown(names: str) -> list[str]:
        return VERDICTS.on_page_markdown(f"<!-- verdicts: {names} -->", page).splitlines()

    assert shown("A")[0] == "| claim | verdict | [limits](../RESULTS.md#limits) |"
    limits = "*method*, an artefact: mend it; *data*, one; *data*, three"
    assert shown("A")[2:] == [f"| b | [reproduced](../RESULTS.md#c) | {limits} |"]
    assert shown("A-simple; A")[3] == "| b | [d](../RESULTS.md#c) |  |"
    with pytest.raises(PluginError, match=r"methods/a\.md: the results have no verdict on B$"):
        shown("A; B")


def test_every_recipe_is_on_a_page():
    methods = {recipe.method for recipe in RECIPES.values()}
    pages = {method: [name for name, starts in RECIPES_OF.items() if method.startswith(starts)] for method in methods}
    assert all(len(names) == 1 for names in pages.values()), pages


@pytest.mark.parametrize("name", TRAINERS)
def test_the_options_of_a_trainer(name):
    module, command = TRAINERS[name]
    sets = option_sets(program_of(f"{module}.__main__").commands[command]).values()
    defaults = {option: shown(value) for kind in sets for option, value in kind.defaults().items()}
    for flag, value in documented_defaults(name).items():
        assert defaults[flag.removeprefix("--").replace("-", "_")] == value, flag


def test_the_options_of_the_architecture_are_all_on_pages():
    """Each on one page, and its default first."""
    from fairseq_ext.criterions import label_smoothed_encouraging_loss as criterion
    from fairseq_ext.models.ext_options import ExtOptions

    config = criterion.LabelSmoothedEncouragingLossCriterionConfig
    own = config.__annotations__.keys() - {"ignore_prefix_size"}
    fields = [*dataclasses.fields(ExtOptions)]
    fields += [item for item in dataclasses.fields(config) if item.name in own]
    defaults = {f"--{item.name.replace('_', '-')}": shown(item.default) for item in fields if item.name != "_name"}
    tables = [documented_defaults(name) for name in PAGES if name not in TRAINERS]
    assert sum(map(len, tables)) == len(defaults), "an option stands twice"
    assert {flag: value for table in tables for flag, value in table.items()} == defaults


def test_the_trainings_of_the_pages_are_understood():
    """By fairseq's parser, with the options of each page's architecture and criterion."""
    from fairseq import options

    import fairseq_ext

    fairseq_ext.register()
    lines = [line for page in PAGES.values() for line in re.findall(r"^fairseq-train (.*)", page, flags=re.MULTILINE)]
    assert lines
    for line in lines:
        parsed = options.parse_args_and_arch(options.get_training_parser(), shlex.split(line))
        assert parsed.arch == "transformer_ext" and parsed.max_update <= 20


@pytest.mark.parametrize("name", PAGES)
def test_the_citation_is_that_of_the_suite(name):
    entries = re.findall(r"@\w+\{.*?\n\}", part(PAGES[name], "Cite"), flags=re.DOTALL)
    cited = {re.search(r"\d{4}\.\d{5}", entry)[0]: entry for entry in entries}
    references = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["references"]
    own = [reference for reference in references if reference["url"].rpartition("/")[2] in cited]
    assert len(own) == 1
    entry = cited[own[0]["url"].rpartition("/")[2]]
    authors = re.search(r"author\s*= \{(.*)\}", entry)[1].split(" and ")
    names = [[one["family-names"], one.get("given-names")] for one in own[0]["authors"]]
    assert authors == [", ".join(filter(None, name)) for name in names]
    assert re.search(r"title\s*= \{(.*)\}", entry)[1].replace("{", "").replace("}", "") == own[0]["title"]
    assert f"{{{own[0]['year']}}}" in entry


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_what_its_code_draws(name, tmp_path):
    from PIL import Image

    drawn, committed = draw(name, tmp_path), FOLDER / f"{name}.png"
    assert committed.stat().st_size <= LARGEST
    with Image.open(drawn) as one, Image.open(committed) as other:
        assert one.size == other.size
        fresh, old = (np.asarray(image.convert("RGB"), dtype=float) for image in (one, other))
    assert np.abs(fresh - old).mean() < 0.3, f"python -m examples.method_figures {name}"
    assert fresh[0, 0].tolist() == [255, 255, 255], "the ground is white"


def test_an_unknown_figure_is_named(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["totoro"])
    assert stop.value.code == 2
    assert "'totoro'" in capsys.readouterr().err
