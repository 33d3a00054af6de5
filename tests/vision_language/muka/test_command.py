"""The command line from end to end, with one and with two processes, killed and resumed; one line for bad input."""

from __future__ import annotations

import io
import json
import multiprocessing
import shutil
import signal
import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import debug_launcher
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from fairseq_ext.training.errors import InputError
from fairseq_ext.training.files import load_safely
from tests.vision_language.muka.test_architectures import write
from vision_language.muka.__main__ import main
from vision_language.muka.baselines import ensemble_probabilities
from vision_language.muka.cache import single_pass_scores
from vision_language.muka.data import read_splits
from vision_language.muka.models import load_classifier
from vision_language.muka.synthetic import WORDS, SyntheticTexts, synthesize
from vision_language.muka.targets import amalgamation_targets, union_of_labels
from vision_language.muka.text_files import read_file

QUICK = ["--batch-size", "10", "--lr", "0.01", "--max-length", "16", "--device", "cpu"]
TWO = ["--teachers", "ONE", "ONE"]
FORK = multiprocessing.get_context("fork")


@pytest.fixture(scope="module")
def command(world):
    """Arguments of a short amalgamation."""
    folders = ["--data", str(world.data), "--student", str(world.encoder)]
    return ["amalgamate", *folders, "--teachers", str(world.first), str(world.second), *QUICK, "--epochs", "1"]


@pytest.fixture(scope="module")
def diagnose(world):
    """Arguments of a diagnosis of both teachers."""
    teachers = ["--teachers", str(world.first), str(world.second)]
    return ["diagnose", *teachers, "--data", str(world.data), "--device", "cpu"]


@pytest.fixture(scope="module")
def student(command, tmp_path_factory):
    folder = tmp_path_factory.mktemp("student")
    main([*command, "--no-margin", "--epochs", "12", "--out", str(folder / "model"), "--cache", str(folder / "cache")])
    return folder / "model"


def results(folder):
    return json.loads((folder / "results.json").read_text())


def test_synthesize(tmp_path, capsys):
    main(["synthesize", "--out", str(tmp_path / "a"), "--texts", "60"])
    assert capsys.readouterr().out == f"60 texts in {tmp_path / 'a'}\n"
    synthesize(SyntheticTexts(out=str(tmp_path / "b"), texts=60))
    synthesize(SyntheticTexts(out=str(tmp_path / "c"), texts=60, seed=1))
    for split, size in (("train", 48), ("valid", 6), ("test", 6)):
        content = (tmp_path / "a" / f"{split}.tsv").read_bytes()
        assert content == (tmp_path / "b" / f"{split}.tsv").read_bytes()
        assert content != (tmp_path / "c" / f"{split}.tsv").read_bytes()
        texts = read_splits(tmp_path / "a")[split]
        assert len(texts) == size and set(texts.gold()) == set(WORDS)
        for text, label in zip(texts.texts, texts.gold(), strict=True):
            assert set(text.split()) <= set(WORDS[label]) and 3 <= len(text.split()) <= 6
    with pytest.raises(InputError, match="--texts must be at least 40, got 39"):
        main(["synthesize", "--out", str(tmp_path), "--texts", "39"])
    with pytest.raises(InputError, match=r"--out: cannot write .*train\.tsv: "):
        main(["synthesize", "--out", str(tmp_path / "a" / "train.tsv")])


def test_train_teacher(world, tmp_path, capsys):
    arguments = ["--data", str(world.data), "--model", str(world.encoder), "--out", str(tmp_path / "out"), *QUICK]
    main(["train-teacher", *arguments, "--classes", "sport", "music", "--loss", "encouraging", "--epochs", "1"])
    said = capsys.readouterr().out
    assert said.startswith("test_accuracy ") and said.endswith(f"1 runs: {tmp_path / 'out' / 'results.json'}\n")
    assert load_classifier(tmp_path / "out").labels == ("sport", "music")
    assert results(tmp_path / "out")["settings"]["loss"] == "encouraging"
    before = (tmp_path / "out" / "results.json").read_bytes()
    given = ["--config", str(tmp_path / "out" / "results.json"), "--out", str(tmp_path / "out"), "--device", "cpu"]
    main(["train-teacher", *given])  # its results are a file of its options
    assert capsys.readouterr().out == said and (tmp_path / "out" / "results.json").read_bytes() == before


def test_evaluate_repeats_the_test_accuracy(student, world, capsys):
    record = results(student)["runs"]["seed1"]
    assert record["seconds_teachers"] > 0
    main(["evaluate", "--model", str(student), "--data", str(world.data), "--device", "cpu", "--max-length", "16"])
    report = json.loads(capsys.readouterr().out)
    assert report["accuracy"] == pytest.approx(record["test_accuracy"]) and report["texts"] == 25
    by_class = report["accuracy_by_class"]
    assert sum(by_class.values()) / 5 == pytest.approx(report["accuracy"])  # five texts of each class
    first, second = record["test_accuracy_by_teacher"]
    assert [first, second] == pytest.approx(
        [np.mean(list(by_class.values())[:2]), np.mean(list(by_class.values())[2:])]
    )


def test_evaluate_an_ensemble(world, capsys):
    teachers = [str(world.first), str(world.second)]
    main(["evaluate", "--ensemble", *teachers, "--data", str(world.data / "test.tsv"), "--device", "cpu"])
    report = json.loads(capsys.readouterr().out)
    assert [teacher["model"] for teacher in report["teachers"]] == teachers
    for teacher, folder in zip(report["teachers"], (world.first, world.second), strict=True):
        record = results(folder)["runs"]["seed1"]
        assert teacher["accuracy_on_its_classes"] == pytest.approx(record["test_accuracy"], abs=0.11)  # more tokens
    texts = read_file(world.data / "test.tsv")
    right = []
    for text, label in zip(texts.texts, texts.labels, strict=True):
        classifiers = [load_classifier(folder) for folder in teachers]
        logits = torch.cat([c.model(**c.tokenizer(text, return_tensors="pt")).logits[0] for c in classifiers])
        right.append((*classifiers[0].labels, *classifiers[1].labels)[logits.argmax()] == label)
    assert report["accuracy"] == pytest.approx(np.mean(right))


def test_diagnose(diagnose, student, world, tmp_path, capsys):
    out = tmp_path / "out"
    main([*diagnose, "--student", str(student), "--supervised", str(student), "--out", str(out)])
    report = json.loads((out / "diagnostics.json").read_text())
    assert 0 < report["selection_accuracy"] <= 1 and report["chance_selection_accuracy"] == 0.5
    assert set(report["kl_to_supervised"]) == {"soft", "hard", "ensemble"} and report["calibration_error"] >= 0
    assert report["supervised_accuracy"] == report["accuracy"]
    assert (out / "scores.png").read_bytes()[:4] == b"\x89PNG" and len(list((out / "cache").iterdir())) == 4
    capsys.readouterr()
    main([*diagnose, "--no-mc", "--score", "margin", "--out", str(tmp_path / "other")])
    assert json.loads((tmp_path / "other" / "diagnostics.json").read_text())["score"] == "margin"
    with pytest.raises(InputError, match="its classes are not those of the teachers together"):
        main([*diagnose, "--student", str(world.first), "--out", str(tmp_path / "third")])


def test_diagnosed_targets_are_those_of_the_temperatures(diagnose, student, world, tmp_path):
    command = [*diagnose, "--no-mc", "--supervised", str(student)]
    temperatures = {"temperature": 3.0, "score_temperature": 0.7}
    given = ["--temperature", "3", "--score-temperature", "0.7"]
    main([*command, *given, "--out", str(tmp_path)])
    report = json.loads((tmp_path / "diagnostics.json").read_text())
    texts = read_splits(world.data)["test"]
    models = [load_classifier(folder) for folder in (world.first, world.second, student)]
    batches = [m.tokenizer(list(texts.texts), padding=True, return_tensors="pt") for m in models]
    with torch.no_grad():
        *logits, truth = (m.model(**batch).logits for m, batch in zip(models, batches, strict=True))
    union = union_of_labels([model.labels for model in models[:2]])
    scores = single_pass_scores(logits, temperature=3.0)
    for kind in ("soft", "hard"):
        target = amalgamation_targets(logits, scores, union, hard=kind == "hard", **temperatures)
        expected = F.kl_div((truth / 3).log_softmax(-1), target, reduction="batchmean")
        assert report["kl_to_supervised"][kind] == pytest.approx(float(expected), rel=1e-4)
    expected = F.kl_div((truth / 3).log_softmax(-1), ensemble_probabilities(logits, union, 3.0), reduction="batchmean")
    assert report["kl_to_supervised"]["ensemble"] == pytest.approx(float(expected), rel=1e-4)


def test_predict(student, world, tmp_path, capsys):
    (tmp_path / "new.txt").write_text("the goal of the race team\nsome rain and a rose\n")
    main(["predict", str(tmp_path / "new.txt"), "--model", str(student), "--top", "9", "--device", "cpu"])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["text"] for row in rows] == ["the goal of the race team", "some rain and a rose"]
    for row in rows:
        assert sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-3) and len(row["probabilities"]) == 5
        assert row["label"] == next(iter(row["probabilities"]))
    main(["predict", str(world.data / "test.tsv"), "--model", str(student), "--top", "2", "--device", "cpu"])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    right = [row["label"] == label for row, label in zip(rows, read_file(world.data / "test.tsv").gold(), strict=True)]
    assert np.mean(right) == pytest.approx(results(student)["runs"]["seed1"]["test_accuracy"], abs=0.1)
    assert {len(row["probabilities"]) for row in rows} == {2}


def test_predict_gives_a_row_for_each_line(student, capsys, monkeypatch, tmp_path):
    """Blank lines too, so that the n-th row is that of the n-th line; from stdin as well."""
    content = b"the goal of the race team\n\nsome rain and a rose\n \n"
    (tmp_path / "new.txt").write_bytes(content)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(content))))
    said = []
    for file in (str(tmp_path / "new.txt"), "-"):
        main(["predict", file, "--model", str(student), "--device", "cpu"])
        said.append(capsys.readouterr().out)
    rows = [json.loads(line) for line in said[0].splitlines()]
    assert [row["text"] for row in rows] == ["the goal of the race team", "", "some rain and a rose", ""]
    assert [row["label"] is None for row in rows] == [False, True, False, True] and rows[1]["probabilities"] == {}
    assert said[0] == said[1]


def test_splits_of_a_folder(student, world, tmp_path, capsys):
    """A split is all of its file, and there is none where it has no file: nothing is held out."""
    (tmp_path / "data").mkdir()
    shutil.copy(world.data / "train.tsv", tmp_path / "data")
    command = ["evaluate", "--model", str(student), "--device", "cpu", "--max-length", "16"]
    main([*command, "--data", str(tmp_path / "data"), "--split", "train"])
    assert json.loads(capsys.readouterr().out)["texts"] == 120
    for data, split, message in (
        (tmp_path / "data", "valid", "--split valid: .*data has only train"),
        (world.data / "test.tsv", "train", "--split train: has no effect with a file, .*test.tsv"),
    ):
        with pytest.raises(InputError, match=message):
            main([*command, "--data", str(data), "--split", split])


def test_models_that_cannot_read_the_texts(tmp_path, world, monkeypatch):
    """One line in every command, before anything is computed of many texts."""
    monkeypatch.setattr("vision_language.muka.cache.predict_logits", lambda *_, **__: pytest.fail("too late"))
    monkeypatch.setattr("vision_language.muka.logits.predict_logits", lambda *_, **__: pytest.fail("too late"))
    model = str(write(tmp_path / "model", "canine", num_hash_buckets=16))
    (tmp_path / "texts.tsv").write_text("x\ta\ny\tsoup\nz\tthe goal of the race team\n")
    data = ["--data", str(tmp_path / "texts.tsv"), "--device", "cpu"]
    for arguments in (
        ["evaluate", "--model", model, *data],
        ["diagnose", "--teachers", model, model, *data, "--out", str(tmp_path / "out")],
        ["predict", str(tmp_path / "texts.tsv"), "--model", model, "--device", "cpu"],
    ):
        with pytest.raises(InputError, match=r"model: cannot read the texts: max_pool1d\(\)") as error:
            main(arguments)
        assert "\n" not in str(error.value)


def test_an_output_folder_that_is_a_file(diagnose, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError) as error:
        main([*diagnose, "--out", str(tmp_path / "file"), "--cache", str(tmp_path / "cache")])
    assert str(error.value) == f"--out: cannot write to {tmp_path / 'file'}: File exists"
    assert not (tmp_path / "cache").exists()


def test_a_killed_command_goes_on(command, tmp_path):
    """SIGKILL within training, then the same command; the weights are those of a straight run, bit for bit."""
    cache = ["--cache", str(tmp_path / "cache")]
    command = [*command, "--epochs", "8", "--save-every", "1", *cache]
    main([*command, "--out", str(tmp_path / "straight")])
    out = tmp_path / "killed"
    process = FORK.Process(target=main, args=([*command, "--out", str(out)],))
    process.start()
    while not (out / "checkpoint.pt").exists() and process.is_alive():
        time.sleep(0.01)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert load_safely(out / "checkpoint.pt")["progress"]["step"] < 96 and not (out / "results.json").exists()
    main([*command, "--out", str(out)])
    straight, resumed = (load_file(tmp_path / name / "model.safetensors") for name in ("straight", "killed"))
    assert all(torch.equal(value, resumed[name]) for name, value in straight.items())
    records = [results(tmp_path / name)["runs"]["seed1"] for name in ("straight", "killed")]
    assert records[0]["history"] == records[1]["history"]


def test_two_processes_equal_one(command, tmp_path):
    """Equal scores, whose dropout masks do not depend on the processes, and equal weights of a student without.

    Some weights of a RoFormer are read by none of its outputs.
    """
    dropout = dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), 0.0)
    encoder = write(tmp_path / "encoder", "roformer", **dropout)
    # Shares of 2 texts and 1. Some gradients are clipped, so that their size matters to Adam too.
    data = ["--data", str(tmp_path / "data")]
    (tmp_path / "data").mkdir()
    source = command[command.index("--data") + 1]
    for split, size in (("train", 113), ("valid", 25), ("test", 25)):
        lines = open(f"{source}/{split}.tsv", encoding="utf-8").readlines()[:size]
        (tmp_path / "data" / f"{split}.tsv").write_text("".join(lines))
    command = [*command, *data, "--student", str(encoder), "--passes", "4", "--no-margin"]
    command += ["--batch-size", "3", "--clip-norm", "2"]
    main([*command, "--out", str(tmp_path / "one")])
    AcceleratorState._reset_state(reset_partial_state=True)
    debug_launcher(main, ([*command, "--out", str(tmp_path / "two")],), num_processes=2)
    for path in sorted((tmp_path / "one" / "cache").iterdir()):
        with np.load(path) as one, np.load(tmp_path / "two" / "cache" / path.name) as two:
            assert all(np.allclose(one[name], two[name], atol=1e-6) for name in one.files if name != "key")
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    for name, value in one.items():
        if not name.endswith("key.bias"):  # its gradient is 0 but for rounding, which Adam makes steps of
            torch.testing.assert_close(value, two[name], atol=1e-5, rtol=1e-4)
    records = [results(tmp_path / name)["runs"]["seed1"] for name in ("one", "two")]
    assert [record["processes"] for record in records] == [1, 2]
    assert records[0]["test_accuracy"] == records[1]["test_accuracy"]
    for figure in ("train_loss", "loss"):
        assert records[0]["history"][0][figure] == pytest.approx(records[1]["history"][0][figure], abs=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--method", "muka"], "--method: 'muka' is not one of muka-soft, muka-hard, vkd"),
        (["--passes", "0"], "--passes must be at least 1, got 0"),
        (["--score", "entropie"], "did you mean 'entropy'?"),
        (["--lr", "0"], "--lr must be greater than 0, got 0.0"),
        (["--lr", "nan"], "--lr must be finite, got nan"),
        (["--temperature", "inf"], "--temperature must be finite, got inf"),
        (["--warmup", "2"], "--warmup must be at least 0 and at most 1, got 2.0"),
        (["--max-length", "33"], "reads at most 32 tokens, got 33"),
        (["--num-layers", "3"], "has 2 layers, got 3"),
        (["--student", "/no/model"], "/no/model is not a folder; a model is a folder with config.json"),
        (["--data", "/no/data"], "--data: /no/data does not exist"),
        (["--method", "vkd", "--no-margin"], "--no-margin: has no effect with --method vkd"),
        (["--method", "uhc", "--score", "margin"], "--score margin: has no effect with --method uhc"),
        (["--method", "muka-hard", "--score-temperature", "1"], "--score-temperature 1.0: has no effect with"),
        (["--no-mc", "--passes", "4"], "--passes 4: has no effect with --no-mc"),
        (["--no-mc", "--score", "variance"], "--score variance: needs several passes, not --no-mc"),
        (["--passes", "1", "--score", "variance"], "--score variance: needs several passes, not --passes 1"),
        (["--passes", "1", "--score", "mutual_info"], "--score mutual_info: needs several passes, not --passes 1"),
        (["--no-mc", "--teacher-dropout", "0.2"], "--teacher-dropout 0.2: has no effect with --no-mc"),
        (["--teacher-dropout", "1"], "--teacher-dropout must be at least 0 and less than 1, got 1.0"),
        (["--method", "vkd", "--teacher-dropout", "0.2"], "--teacher-dropout 0.2: has no effect with --method vkd"),
        (["--rename", "golf=x"], "--rename golf=x: no such class; there are cooking, garden, music, sport, travel"),
        (["--valid-fraction", "0.2"], "--valid-fraction 0.2: has no effect where there are validation texts"),
        (["--amalgam-lr", "1"], "--amalgam-lr 1.0: has no effect with --method muka-soft"),
        (["--method", "vkd", "--no-mc"], "--no-mc: has no effect with --method vkd"),
        (["--method", "supervised"], "has no effect with --method supervised"),
        (["--mixed-precision", "fp8"], "--mixed-precision: 'fp8' is not one of no, fp16, bf16"),
        (["--select", "f1"], "--select: 'f1' is not one of loss, accuracy"),
    ],
)
def test_bad_options_end_with_one_line(command, tmp_path, options, message):
    with pytest.raises(InputError) as error:
        main([*command, *options, "--out", str(tmp_path / "out")])
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["amalgamate", "--teachers", "ONE"], "--teachers: at least two are needed, got 1"),
        (["amalgamate", "--teachers", "ONE", "ENCODER"], "encoder: a BertModel does not tell the class of a text"),
        (["amalgamate", "--teachers", "ONE", "EMPTY"], "no config.json in it, so it is no model"),
        (["train-teacher", "--model", "EMPTY"], "no config.json in it, so it is no model"),
        (["train-teacher", "--model", "ENCODER", "--part", "2"], "--part must be I/T with 1 <= I <= T"),
        (["train-teacher", "--model", "ENCODER", "--part", "3/2"], "such as 1/2, got '3/2'"),
        (["train-teacher", "--model", "ENCODER", "--part", "1/2", "--classes", "a"], "not together with --classes"),
        (["train-teacher", "--model", "ENCODER", "--log-end", "0.5"], "--log-end 0.5: has no effect with --loss cross"),
        (["evaluate", "--model", "ONE"], "the label 'music' is not among the 2 known: cooking, garden"),
        (["evaluate", "--model", "ONE", "--eval-batch-size", "0"], "--eval-batch-size must be at least 1, got 0"),
        (["evaluate", "--model", "ONE", "--max-length", "1"], "--max-length must be 0, or at least 2, got 1"),
        (["evaluate"], "--model or --ensemble: one of them is needed, and not both"),
        (["evaluate", "--model", "ONE", "--ensemble", "ONE", "ONE"], "one of them is needed, and not both"),
        (["evaluate", "--model", "ONE", "--split", "tset"], "did you mean 'test'?"),
        (["diagnose", *TWO, "--score", "entropie"], "did you mean 'entropy'?"),
        (["diagnose", "--teachers", "ONE"], "--teachers: at least two are needed, got 1"),
        (["diagnose", *TWO, "--no-mc", "--score", "variance"], "--score variance: needs several passes, not --no-mc"),
        (["diagnose", *TWO, "--no-mc", "--passes", "3"], "--passes 3: has no effect with --no-mc"),
        (["diagnose", *TWO, "--score-temperature", "1"], "--score-temperature 1.0: has no effect without --supervised"),
        (["diagnose", *TWO, "--temperature", "2"], "--temperature 2.0: has no effect without --supervised or --no-mc"),
        (["diagnose", *TWO, "--temperature", "0"], "--temperature must be greater than 0, got 0.0"),
        (["evaluate", "--model", "ONE", "--split", "train"], "the label 'music' is not among the 2 known"),
        (["diagnose", *TWO, "--no-mc", "--seed", "3"], "--seed 3: has no effect with --no-mc"),
        (["amalgamate", "--method", "supervised", "--cache", "EMPTY"], "empty: has no effect with --method supervised"),
        (["amalgamate", "--method", "supervised", "--rename", "a=b"], "--rename a=b: has no effect with --method"),
        (["predict", "EMPTY.txt", "--model", "ONE"], "empty.txt: no text in it"),
    ],
)
def test_bad_input_ends_with_one_line(world, tmp_path, arguments, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.txt").write_text("\n")
    places = {
        "ONE": world.first,
        "ENCODER": world.encoder,
        "EMPTY": tmp_path / "empty",
        "EMPTY.txt": tmp_path / "empty.txt",
    }
    arguments = [str(places.get(argument, argument)) for argument in arguments]
    if arguments[0] != "predict":
        arguments += ["--data", str(world.data)]
    if arguments[0] == "amalgamate":
        arguments += ["--student", str(world.encoder)]
    if arguments[0] in ("amalgamate", "train-teacher"):
        arguments += ["--out", str(tmp_path / "out"), "--max-length", "16"]
    with pytest.raises(InputError) as error:
        main([*arguments, "--device", "cpu"])
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()
