"""Captions as a user makes them: prepare, train, kill, resume, average, generate, score."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from fairseq_ext.captions.__main__ import main
from fairseq_ext.captions.generate import GenerateOptions, captions, load
from fairseq_ext.captions.networks import LITE0
from fairseq_ext.captions.store import Preparation, Split
from fairseq_ext.captions.tokenizer import tokenize
from fairseq_ext.cli import main as fairseq_ext_command
from fairseq_ext.tasks.caption_scores import SCORES, ReferenceScores
from fairseq_ext.training.errors import CheckpointError, DataError, OptionError
from tests.captions.images import COLUMNS, ROWS, SIZE, write_captioned
from tests.fairseq_commands import FairseqCommands
from tests.helpers import ROOT
from tests.test_end_to_end import assert_same_bits, updates

USER_DIR = ROOT / "fairseq_ext"
MODEL = [
    *("--arch", "captioning_transformer_ext", "--encoder-layers", "1", "--decoder-layers", "1"),
    *("--encoder-embed-dim", "32", "--encoder-ffn-embed-dim", "32", "--encoder-attention-heads", "2"),
    *("--decoder-attention-heads", "2", "--attention-topk", "2", "--dropout", "0.1"),
]
TRAINING = [
    *("--criterion", "label_smoothed_encouraging_loss", "--optimizer", "adam", "--lr", "0.005", "--batch-size", "8"),
    *("--cpu", "--num-workers", "0", "--seed", "3", "--log-format", "json", "--save-interval-updates", "42"),
    *("--no-epoch-checkpoints", "--validate-interval", "1000", "--validate-interval-updates", "42"),
    *("--eval-captions", "--eval-captions-args", '{"beam": 2, "max_len_b": 12}', "--eval-captions-print-samples"),
    *("--best-checkpoint-metric", "cider", "--maximize-best-checkpoint-metric"),
]
LAST = 168  # epochs have 5 updates: checkpoints are within the 9th, 17th, 26th and 34th


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """20 images to train on, in ``data``."""
    folder = tmp_path_factory.mktemp("captions")
    source = write_captioned(folder / "source", "regions", images=20)
    main(["prepare", str(source), str(folder / "data"), "--min-count", "1"])
    return folder


@pytest.fixture(scope="module")
def fairseq(folder, fairseq_server) -> FairseqCommands:
    return FairseqCommands(folder, fairseq_server)


def training(data: Path, save_dir: Path, *more: object) -> list[object]:
    words = [data, "--user-dir", USER_DIR, "--task", "captioning", "--save-dir", save_dir]
    return [*words, *MODEL, *TRAINING, *more]


@pytest.fixture(scope="module")
def trained(fairseq, folder) -> Path:
    """168 updates, with the log beside the checkpoints."""
    outcome = fairseq.must("fairseq_cli.train", *training(folder / "data", folder / "trained", "--max-update", LAST))
    (folder / "trained" / "log.txt").write_text(outcome.output)
    return folder / "trained"


@pytest.fixture(scope="module")
def generated(fairseq, folder, trained) -> Path:
    """What fairseq-generate prints, with nothing of the model on its command line."""
    common = ["--user-dir", USER_DIR, "--task", "captioning", "--cpu", "--batch-size", "7"]
    outcome = fairseq.must(
        "fairseq_cli.generate", folder / "data", *common, "--path", trained / "checkpoint_best.pt", "--beam", "2"
    )
    assert re.search(r"^Generate test with beam=2: 6 captions, not scored: score the output with", outcome.stdout, re.M)
    (folder / "generated.txt").write_text(outcome.stdout)
    return folder / "generated.txt"


def images_and_captions(*words: object, capsys) -> list[tuple[str, str]]:
    main(["generate", *map(str, words), "--device", "cpu"])
    return [tuple(line.split("\t")) for line in capsys.readouterr().out.splitlines()]


def validations(log: str) -> list[dict[str, str]]:
    return [json.loads(entry) for entry in re.findall(r"valid\W+({.*})", log)]


def test_validation_scores_captions_and_chooses_by_them(trained, folder, tmp_path):
    log = (trained / "log.txt").read_text()
    scores = validations(log)
    assert len(scores) == LAST / 42
    best = max(scores, key=lambda entry: float(entry["valid_cider"]))
    assert updates(trained / "checkpoint_best.pt") == int(best["valid_num_updates"])
    assert "example hypothesis: " in log and "example references: There is " in log


def test_the_score_of_a_training_is_that_of_its_captions(trained, folder, tmp_path, capsys):
    best = max(float(entry["valid_cider"]) for entry in validations((trained / "log.txt").read_text()))
    rows = images_and_captions(
        trained / "checkpoint_best.pt", folder / "data", *"--split valid --beam 2 --max-len-b 12".split(), capsys=capsys
    )
    results = tmp_path / "captions.json"
    results.write_text(json.dumps([{"image_id": image, "caption": caption} for image, caption in rows]))
    words = ["--generated", results, "--split", "valid", "--out", tmp_path / "scores.json"]
    main(["score", str(folder / "data"), *map(str, words)])
    metrics = json.loads((tmp_path / "scores.json").read_text())["metrics"]
    assert 100 * metrics["cider_d"] == pytest.approx(best, abs=0.006)


def test_generated_captions_are_scored(generated, folder, tmp_path, capsys):
    main(["score", str(folder / "data"), "--generated", str(generated), "--out", str(tmp_path / "scores.json")])
    assert len(json.loads((tmp_path / "scores.json").read_text())["images"]) == 6


def test_both_programs_write_the_same_at_any_batch_size(generated, folder, trained, capsys):
    lines = re.findall(r"^D-(\d+)\t\S+\t(.*)$", generated.read_text(), re.M)
    split = Split(folder / "data", "test", Preparation.load(folder / "data"))
    expected = [
        (str(split.image_ids[int(number)]), caption) for number, caption in sorted(lines, key=lambda line: int(line[0]))
    ]
    assert len(expected) == len(split)
    for batch_size in (1, 7, 64):
        words = [trained / "checkpoint_best.pt", folder / "data", "--beam", "2", "--batch-size", batch_size]
        assert images_and_captions(*words, capsys=capsys) == expected


def test_training_images_are_learned_by_heart(trained, folder, capsys):
    rows = images_and_captions(trained / "checkpoint_last.pt", folder / "data", "--split", "train", capsys=capsys)
    split = Split(folder / "data", "train", Preparation.load(folder / "data"))
    references = [[tokenize(caption) for caption in captions] for captions in split.references]
    right = sum(caption in own for (_, caption), own in zip(rows, references, strict=True))
    assert right >= 18, rows


def test_another_image_is_worse(trained, folder):
    """A model that ignores its images passes every other test."""
    task, (model,) = load([str(trained / "checkpoint_last.pt")], str(folder / "data"))
    task.load_dataset("train", task_cfg=task.cfg)
    dataset = task.datasets["train"]
    batch = dataset.collater([dataset[number] for number in range(len(dataset))])
    images = {name: value for name, value in batch["net_input"].items() if name != "prev_output_tokens"}

    def loss(shift: int) -> float:
        rolled = {name: value.roll(shift, dims=0) for name, value in images.items()}
        with torch.no_grad():
            logits, _ = model(**rolled, prev_output_tokens=batch["net_input"]["prev_output_tokens"])
        return float(torch.nn.functional.cross_entropy(logits.transpose(1, 2), batch["target"], ignore_index=1))

    assert loss(1) > loss(0) + 1


def test_json_has_tokens_attention_and_score(trained, folder, tmp_path, capsys):
    words = [trained / "checkpoint_best.pt", folder / "data", "--json", "--nbest", "2", "--device", "cpu"]
    main(["generate", *map(str, words)])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    split = Split(folder / "data", "test", Preparation.load(folder / "data"))
    assert [row["image_id"] for row in rows] == [image_id for image_id in split.image_ids for _ in range(2)]
    assert all(first["score"] >= second["score"] for first, second in zip(rows[::2], rows[1::2], strict=True))
    for row, image in zip(rows[::2], range(len(split)), strict=True):
        weights = torch.tensor(row["attention"])
        regions = split.rows(image)
        assert weights.shape == (len(row["tokens"]), regions.stop - regions.start)
        torch.testing.assert_close(weights.sum(dim=1), torch.ones(len(weights)), atol=1e-4, rtol=0)
        assert row["caption"] == " ".join(row["tokens"])
    attention = tmp_path / "attention.jsonl"
    attention.write_text("".join(f"{json.dumps(row)}\n" for row in rows[::2]))
    results = tmp_path / "captions.json"
    results.write_text(json.dumps([{"image_id": row["image_id"], "caption": row["caption"]} for row in rows[::2]]))
    page = tmp_path / "page.html"
    words = ["--generated", results, "--attention", attention, "--out", page]
    main(["page", str(folder / "data"), *map(str, words)])
    assert page.read_text().count("<article") == len(split)


def test_average_and_ensemble(trained, folder, tmp_path, capsys):
    average = tmp_path / "average.pt"
    words = ["average", "--inputs", trained, "--last", "2", "--by", "update", "--output", average]
    assert fairseq_ext_command([str(word) for word in words]) == 0
    ensemble = f"{average}:{trained / 'checkpoint_last.pt'}"
    assert len(images_and_captions(ensemble, folder / "data", capsys=capsys)) == 6


def test_a_killed_run_resumes_to_the_same_bits(trained, folder, fairseq, tmp_path):
    command = training(folder / "data", tmp_path / "save")
    last, deadline = tmp_path / "save" / "checkpoint_last.pt", time.monotonic() + 200
    (victim,) = fairseq.start([("fairseq_cli.train", *command, "--max-update", "100000")])
    while not last.exists() and time.monotonic() < deadline:
        time.sleep(0.001)
    os.kill(victim, signal.SIGKILL)
    (outcome,) = fairseq.finish()
    assert outcome.code == -signal.SIGKILL, outcome.stderr[-4000:]
    assert updates(last) < LAST
    fairseq.must("fairseq_cli.train", *command, "--max-update", LAST)
    assert updates(last) == LAST
    assert_same_bits(last, trained / "checkpoint_last.pt")


def test_a_training_resumes_on_its_own_words_alone(trained, folder, fairseq, tmp_path):
    """Another preparation has a dictionary of the same size, whose words have other places: every parameter fits."""
    source, data = write_captioned(tmp_path / "source", "regions", images=20, seed=1), tmp_path / "data"
    main(["prepare", str(source), str(data), "--min-count", "1"])
    words, others = ((place / "dict.txt").read_text().split()[::2] for place in (folder / "data", data))
    assert sorted(words) == sorted(others) and words != others
    save = shutil.copytree(trained, tmp_path / "save")
    outcome = fairseq.run("fairseq_cli.train", *training(data, save, "--max-update", LAST + 1))
    assert outcome.code == 2
    assert not outcome.traceback
    assert re.fullmatch(rf"{data}: words .*, but {save}/checkpoint_last.pt was trained on .*", outcome.last_line)
    with pytest.raises(CheckpointError, match=f"{data}: words .*, but the checkpoint was trained on"):
        load([str(trained / "checkpoint_best.pt")], str(data))


def test_two_processes_score_all_images(trained, folder, fairseq, tmp_path, capsys):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    # 6 images in batches of 4: the second process has one batch fewer
    command = training(folder / "data", tmp_path / "save", "--restore-file", trained / "checkpoint_last.pt")
    command += ["--reset-dataloader", "--max-update", LAST + 1, "--batch-size-valid", "4"]
    command += ["--distributed-world-size", "2", "--distributed-no-spawn", "--distributed-init-method", address]
    command += ["--distributed-backend", "gloo", "--ddp-backend", "legacy_ddp"]
    first, _ = fairseq.must_together(
        [("fairseq_cli.train", *command, "--distributed-rank", str(rank)) for rank in (0, 1)]
    )
    (scores,) = validations(first.output)
    words = ["--split", "valid", "--beam", "2", "--max-len-b", "12"]
    rows = images_and_captions(tmp_path / "save" / "checkpoint_last.pt", folder / "data", *words, capsys=capsys)
    split = Split(folder / "data", "valid", Preparation.load(folder / "data"))
    sums = ReferenceScores(split.references).sums(range(len(split)), [caption for _, caption in rows])
    assert float(scores["valid_cider"]) == pytest.approx(SCORES["cider"](sums), abs=0.006)


@pytest.mark.parametrize(
    ("model", "data", "words", "error", "message"),
    [
        ("absent.pt", "data", [], CheckpointError, "absent.pt: no such file"),
        ("source/train.jsonl", "data", [], CheckpointError, "train.jsonl: .* damaged, or no checkpoint"),
        ("trained/checkpoint_best.pt", "absent", [], OptionError, "DATA: .*absent is not a folder"),
        ("trained/checkpoint_best.pt", "data", ["--size", "64"], OptionError, "--size 64: has no effect with prepared"),
        (
            "trained/checkpoint_best.pt",
            "source",
            ["--split", "valid"],
            OptionError,
            "--split valid: has no effect with",
        ),
        (
            "trained/checkpoint_best.pt",
            "source",
            [],
            DataError,
            "source: images give a grid .* the model reads regions",
        ),
        (
            *("trained/checkpoint_best.pt", "data", ["--max-len-b", "64"], OptionError),
            "--max-len-b 64: the model writes at most 63 tokens",
        ),
    ],
)
def test_bad_input_to_generate(trained, folder, model, data, words, error, message):
    with pytest.raises(error, match=message):
        main(["generate", str(folder / model), str(folder / data), *words])


def test_images_are_captioned_without_the_training_data(fairseq, tmp_path, monkeypatch, capsys):
    """Their vectors come from the extractor; that which the model reads of a grid is in the checkpoint."""
    source = write_captioned(tmp_path / "source", "grid")
    with np.load(source / "grid_features.npz") as arrays:
        np.savez(source / "grid_features.npz", **{**arrays, "extractor": "network 1"})
    main(["prepare", str(source), str(tmp_path / "data"), "--min-count", "1", "--grid", str(ROWS), str(COLUMNS)])
    words = ["--user-dir", USER_DIR, "--task", "captioning", "--save-dir", tmp_path / "save", *MODEL]
    words += "--optimizer adam --batch-size 8 --cpu --num-workers 0 --max-update 1 --disable-validation".split()
    fairseq.must("fairseq_cli.train", tmp_path / "data", *words)
    (tmp_path / "data").rename(tmp_path / "elsewhere")
    (tmp_path / "images").mkdir()
    with np.load(source / "grid_features.npz") as arrays:
        grids = {
            name: array.reshape(ROWS, COLUMNS, SIZE)
            for name, array in zip(arrays["names"].tolist(), arrays["features"], strict=True)
        }
    for name in list(grids)[-4:]:
        (tmp_path / "images" / name).touch()
    asked = []

    class Extractor:
        name, dim = "copy 1", SIZE

        def __init__(self, *made) -> None:
            self.made = made

        def __call__(self, files):
            asked.append((*self.made, [file.name for file in files]))
            return np.stack([grids[file.name][..., : self.dim] for file in files]), None

    monkeypatch.setattr("fairseq_ext.captions.extract.Extractor", Extractor)
    model = tmp_path / "save" / "checkpoint_last.pt"
    capsys.readouterr()
    rows = images_and_captions(model, tmp_path / "images", "--size", "64", capsys=capsys)
    assert rows == images_and_captions(model, tmp_path / "elsewhere", capsys=capsys)
    assert asked == [(LITE0, 64, torch.device("cpu"), None, list(grids)[-4:])]
    place = {"model": str(model), "data": str(tmp_path / "images"), "device": "cpu"}
    lines = captions(GenerateOptions(**place, batch_size=1))
    for number, row in enumerate(rows, 1):
        assert next(lines) == "\t".join(row) and len(asked) == 1 + number
    Extractor.dim -= 1
    with pytest.raises(
        DataError, match=r"--network, --size and --pca-file give \(2, 3, 5\) .*, the model reads \(2, 3, 6\)"
    ):
        images_and_captions(model, tmp_path / "images", capsys=capsys)
    Extractor.name = "copy 2"
    with pytest.raises(DataError, match=r"reads features of network 1, but --network, .* give those of copy 2"):
        images_and_captions(model, tmp_path / "images", capsys=capsys)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--nbest", "4"], "--nbest 4: a beam of 3 has no more captions"),
        (["--min-len", "21"], "--min-len 21: more than --max-len-b 20"),
    ],
)
def test_options_that_exclude_each_other(words, message):
    with pytest.raises(OptionError, match=message):
        main(["generate", "model.pt", "absent", *words])
