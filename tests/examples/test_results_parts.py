"""The parts beside the table of translations: language models, and the wirings and fusions of cross-view decoding."""

from __future__ import annotations

import gzip
import json
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from examples.results import cross_view, fairseq_programs, language_model, report
from examples.results.claims import claims_of
from examples.results.cross_view import BASELINE, CELLS
from fairseq_ext.modules.cross_view import FUSIONS, STRATEGIES
from fairseq_ext.training.errors import DataError
from fairseq_ext.training.files import read_json, write_json
from tests.examples.test_results import linked

WORDS = 57


@pytest.fixture
def programs(monkeypatch):
    """fairseq's programs, replaced by what they leave behind; the list of the commands."""
    calls: list[list[str]] = []

    def run(words: list[str], log: Path) -> None:
        calls.append(words)
        given = dict(pairwise(words))
        if words[0] == "fairseq_cli.train":
            Path(given["--save-dir"], "checkpoint_best.pt").touch()
            loss = 4 - 0.25 * float(given["--seed"]) - 0.5 * ("gca" in words) + 0.5 * ("fga" in words)
            metric = "valid_loss" if "adaptive_loss" in words else "valid_nll_loss"  # which the other does not log
            points = [(8, loss + 1), (9, loss)]
            valid = [{"epoch": 1, metric: str(value), "valid_num_updates": str(update)} for update, value in points]
            lines = ["num. shared model params: 1,234 (num.", *map(json.dumps, valid)]
            log.write_text("".join(f"{line}\n" for line in lines))
        if words[0] == "fairseq_cli.eval_lm":
            bits = 6 + 0.1 * len(calls)
            log.write_text(f"Evaluated {WORDS:,} tokens in 1s\nLoss (base 2): {bits:.4f}, Perplexity: 1\n")

    monkeypatch.setattr(fairseq_programs, "run", run)
    return calls


def parsed(words: list[str]) -> Any:
    from fairseq import options

    import fairseq_ext.criterions
    import fairseq_ext.models  # noqa: F401

    return options.parse_args_and_arch(options.get_training_parser(), ["data", *words])


# --- cross-view decoding ---------------------------------------------------------------------------------------------


def test_every_wiring_has_every_fusion_that_means_something():
    assert len(CELLS) == len(set(CELLS)) == 24 and CELLS[0] == BASELINE
    by_wiring = {wiring: [fusion for other, fusion in CELLS if other == wiring] for wiring in STRATEGIES}
    assert [len(by_wiring[wiring]) for wiring in ("gca", "gpa", "fga", "fma", "ama", "ama-static")] == [
        6,
        6,
        6,
        3,
        1,
        1,
    ]
    assert by_wiring["gca"] == list(FUSIONS)


def test_each_cell_trains_its_wiring_and_fusion(programs, monkeypatch, tmp_path):
    monkeypatch.setattr(cross_view, "prepare", lambda *arguments: tmp_path / "data-bin")
    options = SimpleNamespace(size="ablation", seeds=2, jobs=1, updates=None, data=tmp_path, out=tmp_path)
    contents = cross_view.measure(options)
    assert next(contents)["missing"][0] == "gca, mean, seed 1"
    *_, content = contents
    trained = [parsed(words[2:]) for words in programs[:24]]  # without the program and the data
    given = [(getattr(one, "cross_view", "none"), getattr(one, "cross_view_fusion", "mean")) for one in trained]
    assert given == list(CELLS) == [(row["wiring"], row["fusion"]) for row in content["rows"][:24]]
    assert {(one.seed, one.decoder_layers, one.max_update) for one in trained} == {(1, 4, 1200)}
    assert [row["seed"] for row in content["rows"]] == [1] * 24 + [2] * 24 and content["missing"] == []
    assert not list(tmp_path.rglob("*.pt"))

    text = cross_view.section([{**content, "command": "cross_view"}])
    assert "| gca | -0.500 [-0.500, -0.500] | -0.500" in text and "| fga | +0.500 [+0.500, +0.500] |" in text
    assert "| fma | +0.000 [+0.000, +0.000] | +0.000 [+0.000, +0.000] | +0.000 [+0.000, +0.000] | – | – | – |" in text
    assert "Fewest bits: `gca` with `mean`. Of 23 cells 6 have fewer bits than the Transformer and 6 more" in text
    assert "`mean`, over the wirings that have all fusions: `sum` +0.000 [+0.000, +0.000], `concat`" in text
    assert "Against `gca`: `gpa` +0.500 [+0.500, +0.500], `fga` +1.000 [+1.000, +1.000]." in text
    sizes = {"separate": 9, "gate": 6}
    rows = [{**row, "parameters": sizes.get(row["fusion"], 5)} for row in content["rows"]]
    text = cross_view.section([{**content, "command": "cross_view", "rows": rows}])
    assert text.endswith("`separate` has 9 to 9 parameters, all others 5 to 6.\n")
    of_one_seed = [row for row in rows if (row["seed"], row["fusion"]) != (2, "gate")]
    text = cross_view.section([{**content, "command": "cross_view", "rows": of_one_seed}])
    assert "`gate` +0.000, `sequential` +0.000 [+0.000, +0.000]" in text
    partial = {**content, "command": "cross_view", "rows": content["rows"][:2], "missing": ["gca, sum, seed 1"]}
    text = cross_view.section([partial])
    assert "| gca | -0.500 |  |  |" in text and "no interval. Not measured yet: gca, sum, seed 1." in text

    programs.clear()
    *_, again = cross_view.measure(options)
    assert programs == [] and again == content


# --- language models -------------------------------------------------------------------------------------------------

DENSE = {
    "arch": "transformer_lm_ext", "criterion": "adaptive_loss", "attention_topk": None, "norm": None,
    "attention_span": None, "adaptive_softmax_cutoff": "1000,4000", "decoder_output_dim": 64, "tokens_per_sample": 64,
    "no_token_positional_embeddings": None, "seed": 7, "max_epoch": 8, "dropout": 0.1,
}  # fmt: skip
CHANGES: dict[str, dict[str, Any]] = {
    "dense": {},
    "top-k 8": {"attention_topk": 8},
    "AdaNorm": {"norm": "adanorm"},
    "adaptive span": {
        "attention_span": 64,
        "criterion": "adaptive_loss_with_span",
        "no_token_positional_embeddings": True,
    },
}


@pytest.mark.parametrize("name", language_model.SYSTEMS)
def test_each_language_model_trains_what_it_says(name):
    options = parsed(language_model.training(name, language_model.SIZES["brown"], 7))
    expected = DENSE | CHANGES[name]
    assert {option: getattr(options, option, None) for option in expected} == expected


@pytest.fixture
def brown(tmp_path, monkeypatch):
    """A folder of data sets with a text of few words."""
    folder = tmp_path / "language_model" / "brown"
    with pytest.raises(DataError, match=r"brown/train\.txt\.gz is not there"):
        language_model.prepare(folder, tmp_path / "out", 2)
    folder.mkdir(parents=True)
    for split in language_model.SPLITS:
        (folder / f"{split}.txt.gz").write_bytes(
            gzip.compress(b"the cat sat\nthe mat\n" + b"a b \n" * (split == "test"))
        )

    def preprocess(arguments: list[str], destination: Path) -> None:
        assert arguments[-2:] == ["--thresholdsrc", "2"]
        (destination / "dict.txt").write_text("the 2\n")

    monkeypatch.setattr(language_model, "fairseq_preprocess", preprocess)
    return tmp_path


def test_words_are_counted_with_the_ends_of_lines(brown):
    data_bin = language_model.prepare(brown / "language_model" / "brown", brown / "out", 2)
    text = read_json(data_bin / "prepare.json")
    assert text == {"train": 7, "valid": 7, "test": 10, "vocabulary": 1, "unknown": 0.5}
    assert (data_bin / "text" / "valid").read_text() == "the cat sat\nthe mat\n"


def test_language_models_have_a_table_a_figure_and_a_verdict(programs, monkeypatch, tmp_path):
    data_bin = tmp_path / "data-bin"
    data_bin.mkdir()
    write_json(data_bin / "prepare.json", {"train": 1000, "valid": 50, "test": WORDS, "vocabulary": 9, "unknown": 0.07})
    monkeypatch.setattr(language_model, "prepare", lambda *arguments: data_bin)
    names = ["dense", "top-k 8"]
    options = SimpleNamespace(size="brown", seeds=3, jobs=1, epochs=None, systems=names, data=tmp_path, out=tmp_path)
    contents = language_model.measure(options)
    assert next(contents)["missing"][:2] == ["top-k 8, seed 1", "dense, seed 2"]
    *_, content = contents
    assert [(row["seed"], row["system"]) for row in content["rows"]] == [(s, n) for s in (1, 2, 3) for n in names]
    assert all(row["perplexity"] == 2 ** row["bits"] for row in content["rows"])
    (tmp_path / "results").mkdir()
    shared = {"part": "language_model", "command": "language_model"}
    write_json(tmp_path / "results" / "language_model_brown.json", {**shared, **content})
    report.write_report(tmp_path)
    text = (tmp_path / "RESULTS.md").read_text()
    # calls 2, 6 and 10 against calls 4, 8 and 12: two steps of 0.1 bits each
    assert "| top-k 8 | 1,234 | 114.3 ± 25.6 | 6.800 ± 0.327 | +0.200 [+0.200, +0.200] | 3.500 ± 0.204 |" in text
    assert "the 9 words that occur 5 times or more" in text and "(7.0 % of test)" in text
    assert linked(text) == {"language_model_brown.png"} and (tmp_path / "results" / "language_model_brown.png").exists()
    late = read_json(tmp_path / "results" / "language_model_brown.json")
    for row in late["rows"]:
        row["curve"].append([9999, 9.0])
    assert "| 3.500 ± 0.204 |" in language_model.section([late]), "of the epoch that is kept, not of the last"
    (claim,) = claims_of("language_model", [content])
    assert claim.paired.mean == pytest.approx(-0.2) and claim.paired.pairs == 3
    assert claim.limits[0].decisive, "the loss still falls"
    programs.clear()
    *_, again = language_model.measure(options)
    assert programs == [] and again == content
    with pytest.raises(DataError, match=r"eval\.log: the evaluation covered 57 of 58 symbols"):
        write_json(data_bin / "prepare.json", {**content["text"], "test": WORDS + 1})
        language_model.evaluate(tmp_path / "best.pt", language_model.SIZES["brown"], data_bin, tmp_path / "eval.log")
