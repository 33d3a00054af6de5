"""The command line from end to end: results, resume after a kill, prediction, figures, one line for bad input."""

from __future__ import annotations

import dataclasses
import errno
import gzip
import io
import json
import math
import shutil
import struct
import subprocess
import sys

import pytest
import torch

from fairseq_ext.training.checkpoint import Checkpoint
from fairseq_ext.training.errors import CheckpointError, InputError, OptionError
from fairseq_ext.training.files import load_safely
from graph.label_graph import multilabel_metrics
from graph.label_graph import train as training
from graph.label_graph.__main__ import main
from graph.label_graph.classifier import Classifier
from graph.label_graph.corpus import prepare
from graph.label_graph.data import label_matrix, read_file
from graph.label_graph.options import Options
from graph.label_graph.plot import draw_label_graph, format_pairs, strongest_pairs
from tests.helpers import ROOT

TOPICS = {"food": "soup bread tasty meal", "staff": "waiter friendly rude served", "place": "cosy room music garden"}
SMALL = ["--hidden-size", "8", "--attention-size", "8", "--embedding-dim", "8", "--batch-size", "8", "--lr", "0.02"]
SMALL += ["--embedding", "learned", "--start-eval", "1", "--epochs", "6", "--device", "cpu"]


def write_topics(folder):
    """Sentences of two topics, whose words tell them."""
    generator = torch.Generator().manual_seed(0)
    names = sorted(TOPICS)
    for split, size in (("train", 60), ("valid", 12), ("test", 12)):
        lines = []
        for _ in range(size):
            first, second = (names[i] for i in torch.randperm(3, generator=generator)[:2])
            words = [
                TOPICS[topic].split()[i]
                for topic in (first, second)
                for i in torch.randperm(4, generator=generator)[:2]
            ]
            lines.append(f"{first}|{second}\tThe {words[0]}, {words[1]}. And {words[2]} {words[3]}!")
        (folder / f"{split}.tsv").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_topics(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    main(
        [
            "train",
            "--data",
            str(data),
            "--out",
            str(out),
            "--pieces",
            "clauses",
            "--runs",
            "2",
            "--threshold",
            "tuned",
            *SMALL,
        ]
    )
    return out


def without_time(run):
    return {key: value for key, value in run.items() if key != "seconds_per_epoch"}


def results(out):
    return json.loads((out / "results.json").read_text())


def test_results(trained, data):
    content = results(trained)
    assert list(content["runs"]) == ["seed1", "seed2"]
    assert content["settings"]["pieces"] == "clauses" and content["summary"]["micro_f1"]["runs"] == 2
    assert content["summary"]["micro_f1"]["mean"] > 0.9
    run = content["runs"]["seed1"]
    assert run["threshold_source"] == "tuned on validation" and [entry["epoch"] for entry in run["history"]] == [
        *range(1, 7)
    ]
    best = max(run["history"], key=lambda entry: entry["micro_f1"])
    assert run["best_epoch"] == best["epoch"] and run["valid_micro_f1"] == best["micro_f1"]
    # the model that is kept is the best epoch's, and gives the published numbers
    classifier = Classifier.load(trained / "seed1" / "model.pt")
    assert classifier.threshold == run["threshold"]
    for split, wanted in (("valid", best), ("test", run)):
        samples = read_file(data / f"{split}.tsv")
        gold = label_matrix(samples, classifier.labels)
        metrics = multilabel_metrics(classifier.probabilities(classifier.encode(samples)), gold, classifier.threshold)
        assert metrics == {key: wanted[key] for key in metrics}


def test_finished_runs_are_kept(trained, data, monkeypatch):
    before = (trained / "results.json").read_bytes()
    monkeypatch.setattr(training, "train", lambda *_: pytest.fail("trained again"))
    main(
        [
            "train",
            "--data",
            str(data),
            "--out",
            str(trained),
            "--pieces",
            "clauses",
            "--runs",
            "2",
            "--threshold",
            "tuned",
            *SMALL,
        ]
    )
    assert (trained / "results.json").read_bytes() == before
    with pytest.raises(OptionError, match=r"--out: .* holds runs with .*threshold = tuned, now threshold = 0.2"):
        main(["train", "--data", str(data), "--out", str(trained), "--pieces", "clauses", *SMALL])


@pytest.mark.parametrize(
    ("killed_after", "embedding"),
    [("model", "word2vec-tuned"), ("checkpoint", "word2vec-tuned"), ("checkpoint", "word2vec"), ("model", "learned")],
)
def test_killed_run_ends_where_a_straight_one_ends(data, tmp_path, monkeypatch, killed_after, embedding):
    arguments = ["train", "--data", str(data), *SMALL, "--embedding", embedding, "--dropout", "0.2"]
    main([*arguments, "--out", str(tmp_path / "straight")])

    def killed(save, at):
        calls = []

        def saving(*arguments):
            save(*arguments)
            calls.append(arguments)
            if len(calls) == at:
                raise KeyboardInterrupt

        return saving

    with monkeypatch.context() as patch:
        if killed_after == "model":  # the best model is written, its epoch's checkpoint is not
            patch.setattr(Classifier, "save", killed(Classifier.save, 2))
        else:
            patch.setattr(Checkpoint, "save", killed(Checkpoint.save, 3))
        with pytest.raises(KeyboardInterrupt):
            main([*arguments, "--out", str(tmp_path / "killed")])
    assert not (tmp_path / "killed" / "results.json").exists()
    settings = results(tmp_path / "straight")["settings"]
    same = Options(**{name: value for name, value in settings.items() if name != "inputs"})
    corpus = prepare(same)
    changed = dataclasses.replace(corpus, digest="other")
    for options, data_now, other in (
        (dataclasses.replace(same, lr=0.5), corpus, "lr"),
        (same, changed, r"inputs\.data"),
    ):
        with pytest.raises(OptionError, match=rf"--out: .*checkpoint\.pt was trained with other {other}: choose"):
            training.train(options, data_now, 1, tmp_path / "killed" / "seed1")
    main([*arguments, "--out", str(tmp_path / "killed")])

    straight, resumed = (results(tmp_path / name)["runs"]["seed1"] for name in ("straight", "killed"))
    assert without_time(straight) == without_time(resumed)
    a, b = (load_safely(tmp_path / name / "seed1" / "model.pt")["network"] for name in ("straight", "killed"))
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_what_cannot_be_saved_is_not_trained(data, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    monkeypatch.setattr(training, "train_epoch", lambda *_: pytest.fail("a step was taken"))
    with pytest.raises(CheckpointError, match=r"cannot write .*checkpoint.pt.tmp: No space left on device"):
        main(["train", "--data", str(data), "--out", str(tmp_path / "out"), *SMALL])
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize(("select", "best"), [("micro_f1", 2), ("hamming_loss", 3)])
def test_the_first_best_epoch_is_kept(data, tmp_path, monkeypatch, select, best):
    values = iter(
        [{"micro_f1": f1, "hamming_loss": loss} for f1, loss in ((0.1, 0.4), (0.3, 0.5), (0.3, 0.2), (0.2, 0.2))]
    )
    monkeypatch.setattr(training, "validate", lambda *_, **__: next(values))
    options = Options(data=str(data), embedding="learned", hidden_size=4, epochs=4, start_eval=1, select=select)
    result = training.train(options, prepare(options), 1, tmp_path)
    assert result["best_epoch"] == best
    assert result[f"valid_{select}"] == {"micro_f1": 0.3, "hamming_loss": 0.2}[select]


def test_validation_starts_late_but_never_after_the_end(data, tmp_path):
    options = Options(data=str(data), embedding="learned", hidden_size=4, epochs=3, start_eval=2)
    corpus = prepare(options)
    for number, (start, epochs) in enumerate(((2, 3), (20, 3))):
        options = Options(**options.as_dict() | {"start_eval": start, "epochs": epochs})
        history = training.train(options, corpus, 1, tmp_path / str(number))["history"]
        assert ["micro_f1" in entry for entry in history] == [epoch >= min(start, epochs) for epoch in (1, 2, 3)]


def test_evaluate_repeats_the_test_metrics(trained, capsys):
    data = results(trained)["settings"]["data"]
    main(["evaluate", "--model", str(trained / "seed2" / "model.pt"), "--data", data])
    printed = json.loads(capsys.readouterr().out)
    run = results(trained)["runs"]["seed2"]
    assert {key: printed[key] for key in ("micro_f1", "one_error", "threshold")} == {
        key: run[key] for key in ("micro_f1", "one_error", "threshold")
    }
    assert printed["samples"] == 12 and printed["data"] == data


def test_evaluate_leaves_out_labels_that_the_model_lacks_and_says_so(trained, tmp_path, capsys):
    model = ["--model", str(trained / "seed1" / "model.pt")]
    for split in ("train", "valid", "test"):
        (tmp_path / f"{split}.tsv").write_text("food|staff\tsoup, waiter\nfood|wine\tsoup\nwine\tred\n\tthe\n")
    main(["evaluate", *model, "--data", str(tmp_path)])
    printed = json.loads(capsys.readouterr().out)
    assert (printed["samples"], printed["unknown_labels"]) == (4, {"wine": 2})
    assert list(printed["f1_by_label"]) == ["food", "place", "staff"] and printed["f1_by_label"]["food"] > 0.6
    (tmp_path / "test.tsv").write_text("wine\tred\n")
    (tmp_path / "train.tsv").write_text("wine\tred\n")
    (tmp_path / "valid.tsv").write_text("wine\tred\n")
    with pytest.raises(InputError, match=r"--data: no sample of test has a label that .*model.pt knows"):
        main(["evaluate", *model, "--data", str(tmp_path)])


TEXTS = "tasty soup, friendly waiter\n\n...\n{'tags': 1} cosy\n  \nrude\tmusic"


@pytest.mark.parametrize("name", ["new.txt", "new.txt.gz", "-"])
def test_predict_gives_a_line_for_every_line(trained, tmp_path, capsys, monkeypatch, name):
    file, text = tmp_path / name, TEXTS.encode()
    file.write_bytes(gzip.compress(text) if name.endswith("gz") else text)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(text))))
    main(["predict", "--model", str(trained / "seed1" / "model.pt"), name if name == "-" else str(file)])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["number"] for row in rows] == [*range(1, 7)]
    assert [row["text"] for row in rows] == TEXTS.split("\n")
    assert set(rows[0]["labels"]) == {"food", "staff"} and set(rows[5]["labels"]) == {"place", "staff"}
    # without a word the bias speaks
    assert rows[1]["probabilities"] == rows[2]["probabilities"] == rows[4]["probabilities"] != rows[3]["probabilities"]


def test_predict_reads_albums_and_lines_with_labels(trained, tmp_path, capsys):
    album = {"all_short_comments": [{"comment": "cosy garden"}, {"comment": "rude waiter"}]}
    (tmp_path / "album.json").write_text(json.dumps([album, {**album, "all_short_comments": []}]))
    (tmp_path / "a.tsv").write_text("food\ttasty soup\n")
    model = str(trained / "seed1" / "model.pt")
    main(["predict", "--model", model, str(tmp_path / "album.json")])
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert set(first["labels"]) == {"place", "staff"} and first["text"] == "cosy garden\nrude waiter"
    assert (second["number"], second["text"]) == (2, "")
    main(["predict", "--model", model, str(tmp_path / "a.tsv")])
    assert json.loads(capsys.readouterr().out)["text"] == "tasty soup"


def test_a_reader_that_closes_the_pipe_gets_no_traceback(trained, tmp_path):
    (tmp_path / "a.txt").write_text("tasty soup\n" * 2000)
    model = ["--model", str(trained / "seed1" / "model.pt")]
    command = [sys.executable, "-m", "graph.label_graph", "predict", *model, str(tmp_path / "a.txt")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert json.loads(process.stdout.readline())["number"] == 1
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


def test_the_threshold_of_predict_and_evaluate(trained, data, tmp_path, capsys):
    (tmp_path / "a.txt").write_text("tasty soup\n")
    model = ["--model", str(trained / "seed1" / "model.pt")]
    labels = {}
    for threshold in ("0", "0.999999"):
        main(["predict", *model, str(tmp_path / "a.txt"), "--threshold", threshold])
        labels[threshold] = json.loads(capsys.readouterr().out)["labels"]
        main(["evaluate", *model, "--data", str(data), "--threshold", threshold])
        assert json.loads(capsys.readouterr().out)["threshold"] == float(threshold)
    assert len(labels["0"]) == 3 and not labels["0.999999"]
    with pytest.raises(OptionError, match=r"^--encoder x: has no effect with .*model\.pt, which reads words$"):
        main(["predict", *model, str(tmp_path / "a.txt"), "--encoder", "x"])
    for threshold in ("1", "nan", "tuned"):
        with pytest.raises(OptionError, match=rf"--threshold must be a number in \[0, 1\), got '{threshold}'"):
            main(["predict", *model, str(tmp_path / "a.txt"), "--threshold", threshold])


def test_plot(trained, tmp_path, capsys):
    main(["plot", "--model", str(trained / "seed1" / "model.pt"), "--out", str(tmp_path / "new"), "--pairs", "2"])
    pairs = json.loads((tmp_path / "new" / "label_pairs.json").read_text())
    assert len(pairs) == 2 and set(pairs[0]) == {"labels", "weight", "forward", "backward"}
    assert capsys.readouterr().out.startswith(format_pairs(pairs))
    assert (tmp_path / "new" / "label_graph.png").read_bytes()[:4] == b"\x89PNG"


def test_strongest_pairs():
    graph = torch.tensor([[1.0, 0.5, 0.0], [0.1, 1.0, -0.8], [0.0, -0.6, 1.0]])
    pairs = strongest_pairs(graph, ["a", "b", "c"], 2)
    assert [pair["labels"] for pair in pairs] == [["b", "c"], ["a", "b"]]
    assert [pairs[1][key] for key in ("weight", "forward", "backward")] == pytest.approx([0.3, 0.5, 0.1])


@pytest.mark.parametrize(
    "labels", [["摇滚", "流行"], ["$a", "b$\\frac$"], ["only"], [f"label {n}" for n in range(300)]]
)
def test_every_name_of_a_label_is_drawn_and_no_figure_is_huge(tmp_path, capsys, labels):
    draw_label_graph(torch.eye(len(labels)), labels, tmp_path / "graph.png")
    width, height = struct.unpack(">II", (tmp_path / "graph.png").read_bytes()[16:24])
    assert 500 < height < width < 4000
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) <= 1 and all("no installed font has" in line for line in lines)
    if labels[0].isascii():
        assert not lines


def test_no_graph_no_figure(data, tmp_path):
    main(["train", "--data", str(data), "--out", str(tmp_path), *SMALL, "--arm", "han", "--epochs", "1"])
    with pytest.raises(OptionError, match=r"--model .* has no label graph"):
        main(["plot", "--model", str(tmp_path / "seed1" / "model.pt")])


@pytest.mark.parametrize(
    "options",
    [
        ["--arm", "graph", "--graph-position", "probabilities", "--graph-noise", "0.01"],
        ["--temperature", "2", "--no-stop-gradient", "--cell", "gru", "--unmasked-attention"],
        ["--no-soft-target-clip", "--ratio1", "0.5", "--ratio2", "0.001", "--loss", "encouraging", "--log-end", "0.5"],
        ["--loss", "halted-focal", "--select", "one_error", "--embedding", "word2vec", "--transductive"],
    ],
    ids=lambda options: options[0].strip("-"),
)
def test_every_switch_trains(data, tmp_path, options):
    main(["train", "--data", str(data), "--out", str(tmp_path), *SMALL, "--epochs", "2", *options])
    assert results(tmp_path)["runs"]["seed1"]["threshold_source"] == "fixed"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--arm", "hann"], "--arm: 'hann' is not one of soft, graph, han; did you mean 'han'?"),
        (["--threshold", "1.5"], "--threshold must be 'tuned' or a number in [0, 1), got '1.5'"),
        (["--threshold", "best"], "--threshold must be 'tuned' or a number in [0, 1), got 'best'"),
        (["--epochs", "0"], "--epochs must be at least 1, got 0"),
        (["--temperature", "-1"], "--temperature must be at least 0, got -1.0"),
        (["--ratio1", "0"], "--ratio1 must be greater than 0, got 0.0"),
        (["--lr", "0"], "--lr must be greater than 0, got 0.0"),
        (["--lr", "nan"], "--lr must be finite, got nan"),
        (["--dropout", "1.5"], "--dropout must be at least 0 and less than 1, got 1.5"),
        (["--runs", "0"], "--runs must be at least 1, got 0"),
        (["--device", "gpu"], "--device gpu: "),
        (["--data", "/no/such/folder"], "--data: /no/such/folder is not a folder"),
        (["--lr", "1e30", "--epochs", "3", "--start-eval", "3"], "the loss is"),
    ],
)
def test_bad_options_end_with_one_line(data, tmp_path, options, message):
    out = tmp_path / "out"
    with pytest.raises(InputError) as error:
        main(["train", "--data", str(data), "--out", str(out), *SMALL, *options])
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not (out / "results.json").exists() or not results(out)["runs"]


def test_scores_that_are_not_finite_after_the_last_step(data, tmp_path, monkeypatch):
    """What a step leaves is set here: whether a huge one makes scores infinite depends on the processor."""

    def step(self, closure=None):
        for group in self.param_groups:
            for weight in group["params"]:
                weight.data.fill_(math.nan)

    monkeypatch.setattr(torch.optim.Adam, "step", step)
    command = ["train", "--data", str(data), "--out", str(tmp_path / "out"), *SMALL, "--epochs", "1"]
    with pytest.raises(InputError, match=r"^the training has diverged, as .* scores are not finite; lower --lr or"):
        main([*command, "--batch-size", "99"])
    assert not (tmp_path / "out" / "results.json").exists()


def test_transductive_words_are_those_of_all_splits(tmp_path):
    for split in ("train", "valid", "test"):
        (tmp_path / f"{split}.tsv").write_text(f"food\tsoup {split}\n")
    words = {
        chosen: set(prepare(Options(data=str(tmp_path), transductive=chosen)).reader.words) for chosen in (False, True)
    }
    assert words[True] - words[False] == {"valid", "test"} and words[False] < words[True]


def test_changed_data_is_not_the_same_experiment(data, tmp_path):
    shutil.copytree(data, tmp_path / "data")
    command = ["train", "--data", str(tmp_path / "data"), "--out", str(tmp_path / "out"), *SMALL, "--epochs", "1"]
    main(command)
    with open(tmp_path / "data" / "train.tsv", "a") as file:
        file.write("\nfood\ttasty soup")
    with pytest.raises(OptionError, match=r"--out: .* holds runs with inputs"):
        main(command)


def test_text_without_words(tmp_path):
    for split in ("train", "valid", "test"):
        (tmp_path / f"{split}.tsv").write_text("food\t!!!\n")
    with pytest.raises(InputError, match="--tokenizer words finds no word in"):
        main(["train", "--data", str(tmp_path), "--out", str(tmp_path / "out")])


@pytest.mark.parametrize("embedding", ["word2vec", "learned"])
def test_no_word_that_is_frequent_enough(tmp_path, embedding):
    for split in ("train", "valid", "test"):
        (tmp_path / f"{split}.tsv").write_text("food\ttasty soup\nstaff\ttasty tasty\n")
    words = ["train", "--data", str(tmp_path), "--out", str(tmp_path / "out"), "--embedding", embedding]
    with pytest.raises(OptionError, match=r"^--min-count 4: no word of .* is left; the most frequent occurs 3 times$"):
        main([*words, "--min-count", "4"])
    assert not (tmp_path / "out").exists()


def test_models_that_are_none(tmp_path):
    for content in ({"network": {}}, [1, 2], torch.ones(3)):
        torch.save(content, tmp_path / "other.pt")
        with pytest.raises(InputError, match=r"other.pt: not a model of graph.label_graph"):
            Classifier.load(tmp_path / "other.pt")


@pytest.mark.parametrize(
    "change",
    [
        {"options": {"data": "x", "arm": "nobody"}},
        {"options": {"data": "x", "older": 1}},
        {"options": {"data": "x", "encoder": "e", "unmasked_attention": True}},
        {"options": None},
        {"words": 3},
        {"words": ["one"]},
        {"labels": ["one"]},
        {"threshold": "high"},
        {"network": {}},
        {"network": None},
    ],
    ids=str,
)
@pytest.mark.parametrize("command", ["evaluate", "predict", "plot"])
def test_a_model_that_is_damaged_is_named(trained, data, tmp_path, command, change):
    state = load_safely(trained / "seed1" / "model.pt")
    torch.save({**state, **change}, tmp_path / "model.pt")
    (tmp_path / "a.txt").write_text("soup\n")
    words = {"predict": [str(tmp_path / "a.txt")], "evaluate": ["--data", str(data)]}.get(command, [])
    with pytest.raises(CheckpointError, match=r"model.pt: not a model of graph.label_graph") as refusal:
        main([command, "--model", str(tmp_path / "model.pt"), *words])
    assert "\n" not in str(refusal.value) and {path.name for path in tmp_path.iterdir()} == {"model.pt", "a.txt"}


@pytest.mark.parametrize("command", ["evaluate", "predict", "plot"])
def test_a_model_that_is_not_finite_is_named(trained, data, tmp_path, capsys, command):
    state = load_safely(trained / "seed1" / "model.pt")
    state["network"]["output.bias"][0] = torch.nan
    torch.save(state, tmp_path / "model.pt")
    (tmp_path / "a.txt").write_text("soup\n")
    words = {"predict": [str(tmp_path / "a.txt")], "evaluate": ["--data", str(data)]}.get(command, [])
    with pytest.raises(CheckpointError, match=r"model.pt: its weights are not finite in output.bias"):
        main([command, "--model", str(tmp_path / "model.pt"), *words])
    assert not capsys.readouterr().out


def test_a_truncated_model_is_named(trained, tmp_path):
    content = (trained / "seed1" / "model.pt").read_bytes()
    for name, part in {"empty": b"", "half": content[: len(content) // 2], "text": b"soup"}.items():
        (tmp_path / name).write_bytes(part)
        with pytest.raises(CheckpointError, match=f"{name}: "):
            Classifier.load(tmp_path / name)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("plot --pairs 0", "--pairs must be at least 1, got 0"),
        ("synthesize --reviews 0", "--reviews must be at least 1, got 0"),
        ("synthesize --out FILE", "--out: cannot write to"),
        ("train --data DATA --seed -1", "--seed must be at least 0 and at most 4294967295, got -1"),
    ],
)
def test_small_numbers_and_files_for_folders(data, tmp_path, command, message):
    (tmp_path / "file").write_text("")
    words = [{"FILE": str(tmp_path / "file"), "DATA": str(data)}.get(word, word) for word in command.split()]
    with pytest.raises(OptionError, match=message):
        main(words)


@pytest.mark.parametrize("content", [{"a": 1}, [1, 2]])
def test_foreign_checkpoint(data, tmp_path, content):
    (tmp_path / "seed1").mkdir()
    torch.save(content, tmp_path / "seed1" / "checkpoint.pt")
    with pytest.raises(CheckpointError, match=r"checkpoint\.pt: not a checkpoint of this training; delete it"):
        main(["train", "--data", str(data), "--out", str(tmp_path), *SMALL])


def test_absent_model(tmp_path):
    with pytest.raises(InputError, match=r"absent.pt: No such file"):
        main(["predict", "--model", str(tmp_path / "absent.pt"), "x.txt"])


def test_too_few_albums(tmp_path):
    with pytest.raises(InputError, match=r"^--albums must be at least 50, got 9$"):
        main(["synthesize", "--out", str(tmp_path), "--albums", "9"])
