"""docs/RESULTS.md as a whole: it is what the measurements give, long tables are folded, links lead somewhere."""

from __future__ import annotations

import re

import pytest

from examples.results import __main__ as command
from examples.results import report
from examples.results.claims import PARTS, claims_of
from examples.results.encoder import PRETRAINED
from examples.results.verdicts import anchor
from fairseq_ext.training.files import read_json, write_json


@pytest.fixture(scope="module")
def stored():
    return report.measured(report.DOCS)


@pytest.fixture(scope="module")
def text(stored):
    return report.report_text(stored)


def test_the_report_is_what_the_measurements_give():
    """Fails after an edit by hand, and after a measurement without ``python -m examples.results report``."""
    command.main(["report", "--check"])


@pytest.fixture
def docs(tmp_path):
    """One measurement, and the report of it."""
    name = "label_graph_mams_acsa.json"
    (tmp_path / "results").mkdir()
    write_json(tmp_path / "results" / name, read_json(report.DOCS / "results" / name))
    report.write_report(tmp_path)
    return tmp_path


def test_a_report_that_differs_is_named_with_its_first_lines(docs, capsys):
    command.main(["report", "--check", "--docs", str(docs)])
    file = docs / "RESULTS.md"
    before = file.read_text()
    file.write_text(before.replace("0.865", "0.965"))
    with pytest.raises(SystemExit, match=r"^error: .*RESULTS\.md is not what results/\*\.json gives") as end:
        command.main(["report", "--check", "--docs", str(docs)])
    lines = capsys.readouterr().out.splitlines()
    assert end.value.code == str(end.value), "a text: Python prints it and ends with 1"
    assert any("0.965" in line for line in lines if line[0] == "-") and len(lines) <= report.SHOWN
    assert any("0.865" in line for line in lines if line[0] == "+")
    assert "0.965" in file.read_text(), "nothing is written"
    file.unlink()
    with pytest.raises(SystemExit, match="write it with"):
        command.main(["report", "--check", "--docs", str(docs)])
    assert not file.exists()


def table(rows: int) -> str:
    return "| a | b |\n|---|---|\n" + "".join(f"| {number} | x |\n" for number in range(rows))


def test_long_tables_are_folded():
    short, long = table(report.LONG), table(report.LONG + 1)
    text = report.folded(f"Before.\n\n{short}\nBetween.\n\n{long}\nAfter.\n")
    assert f"Before.\n\n{short}\nBetween.\n\n<details markdown>\n<summary>" in text
    assert f"{report.LONG + 1} rows</summary>\n\n{long}\n</details>\n\nAfter.\n" in text


def test_a_folded_table_is_a_table_on_the_site():
    markdown = pytest.importorskip("markdown")
    html = markdown.markdown(report.folded(table(20)), extensions=["tables", "md_in_html"])
    assert re.search(r"<details>\s*<summary>.*20 rows</summary>\s*<table>", html) and html.count("<tr>") == 21


def test_what_is_long_is_folded_and_what_is_read_is_not(text):
    outside = re.sub(r"<details markdown>.*?</details>", "", text, flags=re.DOTALL)
    tables = outside.partition("### Limits of the verdicts")[2]  # the verdicts are what is read
    assert max(len(rows.splitlines()) for rows in re.findall(r"(?:^\|.*\n)+", tables, flags=re.MULTILINE)) < 40
    assert "Weighted F1 is higher with ReNode" in outside and outside.count("\n## ") == text.count("\n## ")
    assert text.count("<details") == text.count("</details>") > 3


def test_every_system_has_a_verdict(stored):
    methods = {claim.method for part in PARTS for claim in claims_of(part, stored.get(part, []))}
    assert methods >= {
        *("GCA", "MUSE-simple", "MUSE", "Explicit Sparse Transformer", "AdaNorm", "ReNode", "Label graph (RMSC)"),
        *("Encouraging loss, text", "Encouraging loss, images", "Encouraging loss, images: attack artefact"),
        *("Encouraging loss, images: score artefact", "LayerNorm-simple"),
        *("Encouraging loss, graphs", "IAIS", "MUKA", "MUKI"),
    }
    without = {"inference_dtype", "cross_view", "muka_merging"}  # what no paper says
    assert set(stored) - without <= set(PARTS), "a part that is measured has claims"


def test_links_lead_to_tables(text):
    """On GitHub and on the site, whose rules for the names of headings differ."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    anchors = [anchor(heading) for heading in headings]
    assert len(set(anchors)) == len(anchors), "two headings of one name"
    links = re.findall(r"\]\(#([^)]*)\)", text)
    assert len(links) > 20 and not set(links) - set(anchors)
    pages = [report.ROOT / "README.md", *report.DOCS.rglob("*.md")]
    others = {page.name: re.findall(r"RESULTS\.md#([^)\s]*)", page.read_text(encoding="utf-8")) for page in pages}
    assert any(others.values()) and not {(page, to) for page, own in others.items() for to in own if to not in anchors}
    slugify = pytest.importorskip("markdown.extensions.toc").slugify
    assert [slugify(heading, "-") for heading in headings] == anchors


def test_every_table_with_the_encoder_says_what_it_has_read():
    """Texts of a test set may be among them."""
    _, *sections = re.split(r"^## ", (report.DOCS / "RESULTS.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    tables = {
        text.partition("\n")[0]: text for text in sections if "MiniLM" in text and not text.startswith("Verdicts")
    }
    assert len(tables) > 6 and not [name for name, text in tables.items() if PRETRAINED not in text]
