"""Rows of the translation table: what each runs, what is kept of it, and what its translations say."""

from __future__ import annotations

import argparse
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sacrebleu.metrics import BLEU, CHRF

from examples.results import __main__ as command
from examples.results import fairseq_programs, inference_dtype, language_model, report, translation
from examples.results.captioning import experiments as captioning
from examples.results.claims import claims_of
from examples.results.translation import experiments, figures, outputs
from fairseq_ext.training.errors import DataError
from fairseq_ext.training.files import read_json, read_lines, write_json
from tests.examples.test_results import linked
from tests.examples.test_results import row as scored

PLAIN = {
    # not given, so at their defaults
    **dict.fromkeys(("block", "init", "attention_topk", "norm", "cross_view", "cross_view_fusion", "log_end")),
    "criterion": "label_smoothed_cross_entropy", "label_smoothing": 0.1, "arch": "transformer_ext",
    "max_update": 300, "warmup_updates": 60, "seed": 7, "max_tokens": 2048, "dropout": 0.1, "lr": [2e-3],
    "encoder_layers": 3, "decoder_layers": 3, "encoder_embed_dim": 128, "decoder_embed_dim": 128,
    "encoder_normalize_before": True, "decoder_normalize_before": True, "share_all_embeddings": True,
    "best_checkpoint_metric": "nll_loss", "optimizer": "adam",
}  # fmt: skip
MUSE = {"block": "muse", "init": "km"}
ENCOURAGING = {"criterion": "label_smoothed_encouraging_loss"}
CHANGES: dict[str, dict[str, Any]] = {
    "Transformer": {},
    "Transformer, km": {"init": "km"},
    "top-k (k = 8)": {"attention_topk": 8},
    "AdaNorm": {"norm": "adanorm"},
    "LayerNorm-simple": {"norm": "layernorm-simple"},
    "MUSE-simple": {**MUSE, "block": "muse-simple"},
    "MUSE": MUSE,
    "GCA, mean": {"cross_view": "gca"},
    "GCA, gate": {"cross_view": "gca", "cross_view_fusion": "gate"},
    "GCA, concat": {"cross_view": "gca", "cross_view_fusion": "concat"},
    "GCA, sequential": {"cross_view": "gca", "cross_view_fusion": "sequential"},
    "encouraging loss, log_end 0.5": {**ENCOURAGING, "log_end": 0.5},
    "encouraging loss, log_end 0.75": {**ENCOURAGING, "log_end": 0.75},
    "all combined": {
        **MUSE, "attention_topk": 8, "norm": "adanorm", "cross_view": "gca", **ENCOURAGING, "log_end": 0.75,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", experiments.SYSTEMS)
def test_each_translation_row_trains_what_it_says(name: str) -> None:
    from fairseq import options

    import fairseq_ext.criterions
    import fairseq_ext.models  # noqa: F401

    parser = options.get_training_parser()
    arguments = options.parse_args_and_arch(
        parser, ["data", *experiments.training(experiments.SYSTEMS[name], "small", 7, 300)]
    )
    expected = PLAIN | CHANGES[name]
    parsed = {option: getattr(arguments, option, None) for option in expected}
    assert parsed == expected


SENTENCES = 12


def test_a_machine_of_several_cards_trains_the_same_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    """On one of them: on all, an update would have as many times the sentences."""
    monkeypatch.setattr(fairseq_programs.torch.cuda, "is_available", lambda: True)
    captions = captioning.EXPERIMENTS[next(iter(captioning.EXPERIMENTS))]
    for options in (
        experiments.training([], "converged", 1, 5),
        language_model.training(next(iter(language_model.SYSTEMS)), next(iter(language_model.SIZES.values())), 1),
        captioning.training(captions, next(iter(captioning.ARMS)), 1),
    ):
        assert options[options.index("--distributed-world-size") + 1] == "1" and "--fp16" in options


@pytest.fixture
def data(tmp_path):
    """A folder of data sets, and the prepared text of every one of them."""
    text = tmp_path / "data-bin" / "text"
    text.mkdir(parents=True)
    for language in ("de", "en"):
        lines = [" ".join(f"{language}{n}" for n in range(length)) + "\n" for length in range(4, 4 + SENTENCES)]
        (text / f"test.{language}").write_text("".join(lines))
    return tmp_path


@pytest.fixture
def programs(monkeypatch, data):
    """fairseq's programs, replaced by what they leave behind; the list of the commands."""
    calls: list[list[str]] = []

    def run(words: list[str], log: Path) -> None:
        calls.append(words)
        given = dict(pairwise(words))
        if words[0] == "fairseq_cli.train":
            folder = Path(given["--save-dir"])
            (folder / "checkpoint_best.pt").touch()
            bleu = 20 + float(given["--dropout"]) - 1000 * float(given["--lr"])
            nll = f"{4.5 + (18.1 - bleu) / 10:.3f}"  # less where BLEU is more
            valid = json.dumps({"epoch": 1, "valid_nll_loss": nll, "valid_bleu": str(bleu), "valid_num_updates": "9"})
            log.write_text(f"num. shared model params: 1,234 (num.\n{valid}\n")
        if words[0] == "fairseq_cli.generate":
            Path(log).write_text("".join(f"D-{n}\t-0.5\t{'en0 en1 en2 en3 ' * n}.\n" for n in range(SENTENCES)))
        if words[0] == "examples.translation.score":
            score = float(len(calls))
            scores = {"sacrebleu": score, "chrf": score, "signature": "nrefs:1", "sentences": SENTENCES}
            write_json(given["--json"], scores)

    monkeypatch.setattr(fairseq_programs, "run", run)
    monkeypatch.setattr(translation, "prepare", lambda *arguments: data / "data-bin")
    return calls


def options(data: Path, *words: str) -> Any:
    parser, _ = command._parsers()
    places = ["--data", str(data), "--out", str(data / "runs"), "--docs", str(data / "docs")]
    return parser.parse_args(["translation", *places, *words])


def test_a_measurement_that_is_stopped_leaves_whole_seeds(programs, data):
    """What is finished is stored after each training, seed by seed, and the others are named."""
    contents = translation.measure(options(data, *"--size cpu --seeds 1 2 --systems Transformer AdaNorm".split()))
    assert next(contents)["missing"] == ["AdaNorm, seed 1", "Transformer, seed 2", "AdaNorm, seed 2"]
    *_, last = contents
    assert [(row["seed"], row["system"]) for row in last["rows"]] == [
        *[(1, "Transformer"), (1, "AdaNorm"), (2, "Transformer"), (2, "AdaNorm")]
    ]
    assert last["missing"] == [] and all(row["bleu_curve"] == [[9, 18.1]] for row in last["rows"])
    assert last["bootstrap"]["AdaNorm"]["seeds"] == 2 and last["bootstrap"].keys() == {"AdaNorm"}


def test_a_table_grows_on_another_machine(programs, data, monkeypatch, capsys):
    """Stored rows and their translations are enough: only what is new is trained, and the bootstrap is that of all."""
    monkeypatch.setattr(command, "write_report", lambda docs: None)
    places = ["--data", str(data), "--docs", str(data / "docs")]
    first, all_of_them = ["Transformer", "MUSE"], ["Transformer", "MUSE", "AdaNorm"]

    def measure(out: str, systems: list[str], *words: str) -> tuple[Any, int]:
        before = sum(words[0] == "fairseq_cli.train" for words in programs)
        command.main(["translation", "--systems", *systems, "--out", str(data / out), *places, *words])
        content = read_json(data / "docs" / "results" / "multi30k_small.json")
        return content, sum(words[0] == "fairseq_cli.train" for words in programs) - before

    small, trained = measure("here", first)
    (result,) = data.glob("here/small-seed1/MUSE-*/result.json")
    write_json(result, {key: value for key, value in read_json(result).items() if key != "run"})  # an earlier version's
    assert measure("here", first) == (small, 0)
    assert trained == 2 and "not measured anew" not in capsys.readouterr().err
    grown, trained = measure("there", all_of_them, "--replace")
    assert trained == 1 and grown["rows"][:2] == small["rows"]
    assert grown["bootstrap"]["MUSE"] == small["bootstrap"]["MUSE"]
    assert "2 rows of" in capsys.readouterr().err
    file = data / "docs" / "results" / grown["rows"][1]["translations"]
    assert file.name == "MUSE.1.en" and file.read_text().splitlines()[1] == "en0 en1 en2 en3 ."
    file.unlink()
    lost, trained = measure("elsewhere", all_of_them)
    assert trained == 0 and lost["bootstrap"].keys() == {"AdaNorm"}, "no p without translations"
    assert ["translations" in row for row in lost["rows"]] == [True, False, True]


RESULTS = report.DOCS / "results"
STORED = [
    (row, content["dataset"], RESULTS / row["translations"])
    for content in map(read_json, sorted(RESULTS.glob("*.json")))
    if content["part"] == "translation"
    for row in content["rows"]
    if "translations" in row
]


def test_published_translations_are_those_of_the_tables():
    """Each is there, of a row that another machine can take over, and none that no table names."""
    assert all("run" in row for row, *_ in STORED)
    folders = [folder for folder in RESULTS.iterdir() if folder.is_dir()]
    assert sorted(path for *_, path in STORED) == sorted(path for folder in folders for path in folder.iterdir())


@pytest.mark.parametrize(("row", "dataset", "file"), STORED, ids=[path.name for *_, path in STORED])
def test_published_translations_score_what_the_table_says(row, dataset, file):
    text = experiments.DATA[dataset]
    references = report.ROOT.parent / "shared" / "data" / text.folder / f"{text.splits[2]}.{text.target}.gz"
    if not references.exists():
        pytest.skip(f"{references} is not there")
    lines, wanted = ([line for line, _ in read_lines(path, keep_blank=True)] for path in (file, references))
    assert BLEU().corpus_score(lines, [wanted]).score == pytest.approx(row["sacrebleu"], abs=1e-9)
    assert CHRF().corpus_score(lines, [wanted]).score == pytest.approx(row["chrf"], abs=1e-9)


def test_of_a_row_the_translations_stay_and_the_checkpoints_go(programs, data):
    kept = []
    for _ in range(2):
        where = ("multi30k", "MUSE", 1, "small", data / "data-bin", data)
        row, translations = experiments.train_and_score(*where)
        (folder,) = data.glob("small-seed1/MUSE-*")
        kept.append((json.loads(json.dumps(row)), translations, sorted(path.name for path in folder.iterdir())))
    assert kept[0] == kept[1] and len(programs) == 3, "nothing is measured twice"
    row, translations, files = kept[0]
    assert files == ["result.json", "score.json", "train.log", "translations.txt.gz"]
    assert translations[2] == "en0 en1 en2 en3 en0 en1 en2 en3 ." and len(translations) == SENTENCES
    assert [group[1] for group in row["bleu_by_length"]] == [3, 3, 2, 2, 2]
    (folder / "translations.txt.gz").unlink()
    assert experiments.train_and_score(*where) == (row, [])


def test_a_size_chooses_its_checkpoint_by_validation(programs, tmp_path):
    for size, metric in (("small", "nll_loss"), ("cpu", "bleu"), ("converged", "bleu")):
        words = experiments.training([], size, 1, 100)
        assert words[words.index("--best-checkpoint-metric") + 1] == metric
        assert ("--validate-interval" in words) == (size == "converged")
        assert ("--eval-bleu" in words) == ("--maximize-best-checkpoint-metric" in words) == (metric == "bleu")


def test_a_translation_row_is_that_of_its_settings(programs, monkeypatch, data):
    (data / "other-bin").symlink_to("data-bin")

    def row(name: str = "MUSE", size: str = "small", seed: int = 1, bin: str = "data-bin", **changes: Any):
        before = len(programs)
        result, _ = experiments.train_and_score("multi30k", name, seed, size, data / bin, data, **changes)
        return result, programs[before:]

    first, (train, generate, score) = row()
    assert first["updates"] == 1800 and first["parameters"] == 1234 and first["curve"] == [[9, 4.5]]
    assert first["environment"]["torch"] == torch.__version__
    folder = Path(train[train.index("--save-dir") + 1])
    following = dict(pairwise(generate))
    wanted = {"--path": str(folder / "checkpoint_best.pt"), "--gen-subset": "test", "--beam": "5", "--lenpen": "1"}
    assert wanted.items() <= following.items() and generate[1] == str(data / "data-bin")
    assert score[1] == str(folder / "generate.txt")
    assert score[score.index("--reference") + 1] == str(data / "data-bin" / "text" / "test.en")

    again, calls = row()
    assert calls == [] and again["sacrebleu"] == first["sacrebleu"]
    for change in (
        {"name": "AdaNorm"},
        {"size": "iwslt"},
        {"seed": 2},
        {"bin": "other-bin"},
        {"updates": 300},
        {"settings": experiments.Settings(1e-3, 0.1)},
    ):
        result, calls = row(**change)
        assert len(calls) == 3 and result["sacrebleu"] != first["sacrebleu"], change
    assert row(updates=300)[0]["updates"] == 300
    monkeypatch.setitem(experiments.SYSTEMS, "MUSE", ["--block", "muse-simple"])
    assert len(row()[1]) == 3, "another recipe under the same name"
    monkeypatch.undo()


def test_each_inference_dtype_decodes_one_training(monkeypatch, tmp_path):
    """Speeds, and equal translations, are those of the decoding that the row names; what is finished stays."""
    commands: list[list[str]] = []
    texts = {None: ["a", "b", "c", "d"], "float32": ["a", "b", "c", "d"], "bfloat16": ["a", "b", "c", "x"]}

    def run(words: list[str], log: Path) -> None:
        commands.append(words)
        given = dict(pairwise(words))
        if words[0] == "fairseq_cli.generate":
            lines = texts.get(given.get("--inference-dtype"), ["a", "b", "y", "x"])
            hypotheses = [f"H-{number}\t-0.5\t{line}" for number, line in enumerate(lines)]
            batch = words[len(words) - 1 - words[::-1].index("--batch-size") + 1]
            speed = f"Translated 4 sentences (9 tokens) in 2.0s (2.00 sentences/s, {1000 + int(batch)}.5 tokens/s)"
            log.write_text("\n".join([*hypotheses, speed, "Generate test"]) + "\n")
        if words[0] == "examples.translation.score":
            write_json(words[words.index("--json") + 1], {"sacrebleu": 30.0 + len(commands)})

    data_bin = tmp_path / "data-bin"
    (data_bin / "text").mkdir(parents=True)
    (data_bin / "text" / "test.en").write_text("a\nb\nc\nd\n")
    monkeypatch.setattr(fairseq_programs, "run", run)
    monkeypatch.setattr(inference_dtype, "prepare", lambda name, data, out: data_bin)
    options = argparse.Namespace(
        size="small", systems=["Transformer"], seed=1, updates=None, data=tmp_path, out=tmp_path / "runs"
    )
    (content,) = inference_dtype.measure(options)
    assert [words[0] for words in commands].count("fairseq_cli.train") == 1
    assert all("--cpu" in words for words in commands if words[0] == "fairseq_cli.generate")
    rows = {(row["dtype"], row["batch"]): row for row in content["rows"]}
    assert [rows[dtype, 100]["equal"] for dtype in inference_dtype.DTYPES] == [1.0, 1.0, 0.75, 0.5]
    assert {row["tokens_per_second"] for row in content["rows"] if row["batch"] == 1} == {1001.5}
    text = inference_dtype.section([{**content, "command": "inference_dtype"}])
    assert "| Transformer | int8 | 39.00 | +6.00 | 50.0 % | 1,100 | 1,002 |" in text
    commands.clear()
    (again,) = inference_dtype.measure(options)
    assert commands == [] and again == content


@pytest.mark.parametrize(("name", "first", "pair"), [("multi30k", "train", "de en"), ("libreoffice", "train", "en de")])
def test_other_text_is_prepared_anew(programs, tmp_path, name, first, pair):
    folder = tmp_path / experiments.DATA[name].folder
    with pytest.raises(DataError, match=f"--data: {folder} is not a folder with {{train,val"):
        experiments.prepare(name, tmp_path, tmp_path)
    folder.mkdir()
    (folder / "train.de").write_text("eins")
    prepared = experiments.prepare(name, tmp_path, tmp_path)
    given = dict(pairwise(programs[0]))
    assert f"{given['--source']} {given['--target']}" == pair and given["--train"] == str(folder / first)
    prepared.mkdir()
    assert experiments.prepare(name, tmp_path, tmp_path) == prepared and len(programs) == 1
    (folder / "train.de").write_text("zwei")
    assert experiments.prepare(name, tmp_path, tmp_path) != prepared and len(programs) == 2


def test_every_system_is_tuned_on_the_same_grid_and_never_on_test(programs, data):
    words = "--size cpu --tune --seeds 5 6 --systems Transformer MUSE --updates 50".split()
    chosen = options(data, *words)
    *_, content = translation.measure(chosen)
    tried = [dict(pairwise(words)) for words in programs if words[0] == "fairseq_cli.train"]
    points = [
        (given.get("--block"), given["--seed"], float(given["--lr"]), float(given["--dropout"])) for given in tried
    ]
    for block in (None, "muse"):
        seen = [point[1:] for point in points if point[0] == block]
        assert seen[:6] == [("5", *settings) for settings in experiments.GRID]
        assert len(seen) == 8 and set(seen[6:]) == {("5", 1e-3, 0.3), ("6", 1e-3, 0.3)}, (
            "the best on valid, with every seed"
        )
    translated = [words for words in programs if words[0] == "fairseq_cli.generate"]
    assert len(translated) == 4, "no translation of test chooses anything"
    assert {(row["lr"], row["dropout"]) for row in content["rows"]} == {(1e-3, 0.3)}
    assert not list(data.rglob("checkpoint*.pt"))
    assert content["name"] == "multi30k_cpu_tuned"
    typed = command._command("translation", chosen, command._parsers()[1]["translation"])
    assert typed == "translation --size cpu --seeds 5 6 --systems Transformer MUSE --updates 50 --tune"
    text = translation.section([{**content, "command": typed}])
    assert "| MUSE (0.001, 0.3) | 1,234 |" in text and "best validation of (0.001, 0.1), (0.001, 0.2)," in text
    assert "size cpu, tuned" in text and "not tuned" not in text
    programs.clear()
    *_, again = translation.measure(chosen)
    assert programs == [] and again["rows"] == content["rows"]


@pytest.mark.parametrize("size", ["small", "cpu"])
def test_tuning_takes_the_best_by_the_metric_of_the_size(programs, data, size):
    """The likelihood, of which less is better, or BLEU."""
    best = experiments.Settings(lr=1e-3, dropout=0.3)
    assert experiments.tune("MUSE", 5, size, data / "data-bin", data) == best != experiments.GRID[0]


# --- what translations say -------------------------------------------------------------------------------------------


def test_the_bootstrap_is_sacrebleus_of_the_drawn_sentences(tmp_path):
    """Against BLEU of the drawn lines themselves, the seeds of a sentence drawn together."""
    draw = np.random.default_rng(0)
    references = [" ".join(draw.choice(list("abcdef"), 8)) for _ in range(30)]
    (tmp_path / "reference").write_text("".join(f"{line}\n" for line in references))

    def damaged(share: float) -> list[str]:
        return [" ".join(word if draw.random() > share else "x" for word in line.split()) for line in references]

    sides = [{seed: damaged(share) for seed in (1, 2)} for share in (0.3, 0.25)]
    statistics = [
        {seed: outputs.sentence_statistics(lines, tmp_path / "reference") for seed, lines in side.items()}
        for side in sides
    ]
    test = outputs.bootstrap(*statistics, samples=60)
    draws = np.random.default_rng(1).multinomial(30, np.full(30, 1 / 30), size=60)
    order = [np.repeat(np.arange(30), counts) for counts in [np.ones(30, int), *draws]]

    def bleu(side: dict[int, list[str]], drawn: np.ndarray) -> float:
        lines = [side[seed][n] for seed in (1, 2) for n in drawn]
        return BLEU().corpus_score(lines, [[references[n] for _ in (1, 2) for n in drawn]]).score

    whole, *drawn = [bleu(sides[1], drawn) - bleu(sides[0], drawn) for drawn in order]
    assert test.mean == pytest.approx(whole) and test.seeds == 2
    assert (test.low, test.high) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])))
    extreme = sum(abs(value - np.mean(drawn)) >= abs(whole) for value in drawn)
    assert test.p == pytest.approx((1 + extreme) / 61) and 0 < extreme < 60


def test_the_bootstrap_tells_equal_systems_from_others(tmp_path):
    lines = [f"a{n} b c d e" for n in range(40)]
    (tmp_path / "reference").write_text("".join(f"{line}\n" for line in lines))
    best, worse = (
        {1: outputs.sentence_statistics([line.replace("c", word) for line in lines], tmp_path / "reference")}
        for word in ("c", "x")
    )
    assert outputs.bootstrap(best, best).p == 1.0 and outputs.bootstrap(best, worse).p < 0.01
    assert outputs.bootstrap(best, {2: worse[1]}) is None
    assert outputs.sampled({"Transformer": best, "MUSE": worse, "GCA, mean": {}}, "Transformer").keys() == {"MUSE"}


def test_bleu_by_length_counts_words_of_the_source(tmp_path):
    """The short half is translated perfectly."""
    lengths = [5, 40, 6, 30, 7, 50, 8, 60, 9, 70]
    lines = [" ".join(f"w{n}" for n in range(length)) for length in lengths]
    for name in ("reference", "source"):
        (tmp_path / name).write_text("".join(f"{line}\n" for line in lines))
    groups = outputs.bleu_by_length(
        [line if len(line.split()) < 10 else "x" for line in lines], tmp_path / "reference", tmp_path / "source"
    )
    assert [(words, count) for words, count, _ in groups] == [(5.5, 2), (7.5, 2), (19.5, 2), (45, 2), (65, 2)]
    assert [round(bleu) for _, _, bleu in groups[:2]] == [100, 100] and groups[-1][2] == 0


def content(dataset: str, **changes: Any) -> dict[str, Any]:
    groups = {"bleu_by_length": [[5, 200, 40.0], [9, 200, 38.0], [20, 200, 30.0]]}
    rows = [
        {**scored(system, seed, 30 + seed / 10 + gain, 3.0), **groups, "updates": 6000}
        for seed in (1, 2, 3)
        for system, gain in (("Transformer", 0.0), ("MUSE", 1 + seed / 10))
    ]
    shared = {"part": "translation", "size": "cpu", "command": "translation --size cpu", "tuned": False, "rows": rows}
    tests = {"MUSE": {"mean": 1.2, "low": 0.5, "high": 2.0, "p": 0.004, "seeds": 3}}
    environment = {"processor": "P", "cores": 2, "threads": 1, "python": "3", "torch": "2"}
    return {
        **shared,
        "name": f"{dataset}_cpu",
        "dataset": dataset,
        "environments": [environment],
        "bootstrap": tests,
    } | changes


def test_a_single_fusion_says_how_it_was_chosen():
    """By the table of the same data that has more of them; and rows that the command measures now are named."""
    shared = {"updates": 6000, "bleu_by_length": []}
    fusions = [
        {**scored(f"GCA, {name}", 1, bleu, bits), **shared}
        for name, bleu, bits in (("mean", 30.0, 2.8), ("gate", 31.0, 2.9))
    ]
    small = content("multi30k", size="small", name="multi30k_small", rows=fusions, bootstrap={})
    for row, choice in zip(fusions, ("it is a choice on validation", "it is no choice on validation"), strict=True):
        one = content("multi30k", rows=[row], command="translation --systems GCA", bootstrap={})
        text = " ".join(translation.section([one, small]).split())
        assert f"the table has only {row['system']}: in the table of size small, GCA, mean has the best" in text
        assert f"GCA, gate the most BLEU on test, so that {choice}." in text
        assert text.count("Of GCA's fusions") == 1, "the other has several"
        assert "Not measured yet: Transformer; Transformer, km;" in text and text.count("Not measured yet") == 1
    assert "fusions" not in translation.section([one])


def test_each_data_set_has_a_table_and_a_verdict(tmp_path):
    folder = tmp_path / "results"
    folder.mkdir()
    for name in experiments.DATA:
        write_json(folder / f"{name}_cpu.json", content(name))
    report.write_report(tmp_path)
    text = (tmp_path / "RESULTS.md").read_text()
    assert "| MUSE | 1,234 | 31.40 ± 0.16 | +1.20 [+0.95, +1.45] | 0.004 | 51.40 ± 0.16 | 3.000 ± 0.000 |" in text
    fewer = content("multi30k", bootstrap={"MUSE": {"p": 0.004, "seeds": 2}})
    assert "| +1.20 [+0.95, +1.45] | 51.40 ± 0.16 |" in translation.section([fewer]), "p is of all seeds"
    assert "## LibreOffice help, English to German, size cpu" in text and "## Multi30k German to English" in text
    assert linked(text) == {f"{name}_cpu{end}.png" for name in experiments.DATA for end in ("", "_curves", "_lengths")}
    assert all((folder / figure).exists() for figure in linked(text))
    muse = claims_of("translation", [content(name) for name in experiments.DATA])
    assert [claim.here for claim in muse] == ["Multi30k, 6,000 updates", "LibreOffice help, 6,000 updates"]
    assert [claim.paired.pairs for claim in muse] == [3, 3]
    tuned = content("multi30k", tuned=True, name="multi30k_cpu_tuned")
    assert [claim.heading[-5:] for claim in claims_of("translation", [content("multi30k"), tuned])] == ["tuned"]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        *(((1, 1), "one seed, no interval"), ((3, 3), "mean and 95 % interval, 3 seeds")),
        ((3, 2), "mean and 95 % interval, 3 seeds (1: 2)"),
    ],
)
def test_a_figure_says_of_how_many_seeds_its_rows_are(rows, said):
    by_system = {str(number): [{"seed": seed} for seed in range(count)] for number, count in enumerate(rows)}
    assert figures._seeds(by_system) == said
