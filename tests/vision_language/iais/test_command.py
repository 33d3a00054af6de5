"""The command line from end to end: train, evaluate, search, plot, several processes, one line for bad input."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import debug_launcher
from accelerate.state import AcceleratorState

from fairseq_ext.regions.synthetic import THINGS, SceneOptions, synthesize
from fairseq_ext.training.errors import InputError
from fairseq_ext.training.files import read_json
from fairseq_ext.training.pretrained import read_weights
from tests.helpers import ROOT
from tests.vision_language.iais.regions import write_regions
from vision_language.iais.__main__ import main
from vision_language.iais.data import read_splits

SMALL = ["--hidden-size", "16", "--num-heads", "2", "--intermediate-size", "32", "--num-steps", "4", "--device", "cpu"]
SMALL += ["--negative-size", "7", "--hard-negatives", "3", "--batch-size", "4", "--lr", "0.01", "--warmup-steps", "1"]
SMALL += ["--validate-every", "2", "--save-every", "2"]
# accelerate's own --cpu would start one process only; ours keeps the two of --multi_gpu on the CPU.
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
LAUNCH += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
UNSIZED = ["--hidden-size", "128", "--num-heads", "4", "--intermediate-size", "512"]
"""Takes back the sizes of SMALL, which an encoder's folder decides."""


@pytest.fixture(autouse=True)
def fresh_accelerate():
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_regions(tmp_path_factory.mktemp("regions"))


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory) -> Path:
    AcceleratorState._reset_state(reset_partial_state=True)
    out = tmp_path_factory.mktemp("out")
    main(["train", "--data", str(data), "--out", str(out), "--runs", "2", *SMALL])
    return out


def test_results(trained):
    content = read_json(trained / "results.json")
    assert list(content["runs"]) == ["seed1", "seed2"]
    assert content["settings"]["iais"] == "singular" and content["summary"]["rsum"]["runs"] == 2
    assert [entry["step"] for entry in content["runs"]["seed1"]["history"]] == [2, 4]
    assert content["runs"]["seed1"]["history"] != content["runs"]["seed2"]["history"]
    names = {"model", "initial"}
    assert {path.name for path in (trained / "seed1").iterdir()} == names


def test_results_are_options_too(trained, tmp_path):
    main(["train", "--config", str(trained / "results.json"), "--device", "cpu", "--seed", "2", "--out", str(tmp_path)])
    again, run = (read_json(out / "results.json")["runs"]["seed2"] for out in (tmp_path, trained))
    for name in ("seconds_per_step", "environment"):
        again.pop(name), run.pop(name)
    assert again == run


def test_evaluate_repeats_the_test_metrics(trained, data, capsys):
    model = ["--model", str(trained / "seed2" / "model"), "--device", "cpu"]
    main(["evaluate", *model, "--data", str(data), "--released"])
    printed = json.loads(capsys.readouterr().out)
    run = read_json(trained / "results.json")["runs"]["seed2"]
    for name in ("ir_r1", "ir_r10", "tr_r5", "tr_mean_rank", "rsum", "isd"):
        assert printed[name] == pytest.approx(run[name], rel=1e-4)
    assert (printed["captions"], printed["images"]) == (24, 12)
    assert printed["released_ir_r1"] >= printed["ir_r1"]
    main(["evaluate", *model, "--data", str(data / "valid.jsonl"), "--limit", "5"])
    assert json.loads(capsys.readouterr().out)["images"] == 5


def test_search(trained, data, tmp_path, capsys):
    common = ["search", "--model", str(trained / "seed1" / "model"), "--query", "two dogs on a sofa", "--device", "cpu"]
    main([*common, "--data", str(data), "--top", "4"])
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in lines] == ["1", "2", "3", "4"]
    assert [float(line[1]) for line in lines] == sorted((float(line[1]) for line in lines), reverse=True)
    assert lines[0][3].startswith("a photo of")
    # images alone, without captions
    shutil.copy(data / "categories.txt", tmp_path)
    images = [json.loads(line) for line in (data / "test.jsonl").read_text().splitlines()]
    bare = "".join(
        json.dumps({key: image[key] for key in ("image_id", "width", "height", "boxes")}) + "\n" for image in images
    )
    (tmp_path / "images.jsonl").write_text(bare)
    main([*common, "--data", str(tmp_path / "images.jsonl"), "--top", "4"])
    again = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [line[:3] for line in again] == [line[:3] for line in lines]
    assert set(again[0][3].split(", ")) <= set((data / "categories.txt").read_text().split())


def test_plot(trained, data, tmp_path, capsys):
    image = str(read_splits(data)["test"].images[3].image_id)
    common = ["plot", "--model", str(trained / "seed1" / "model"), "--data", str(data), "--device", "cpu"]
    main([*common, "--out", str(tmp_path / "new"), "--image", image, "--mirror", "distributed"])
    names = ["alignment.png", "words.png", "regions.png", "history.png"]
    assert capsys.readouterr().out.split() == [str(tmp_path / "new" / name) for name in names]
    assert all((tmp_path / "new" / name).read_bytes()[:4] == b"\x89PNG" for name in names)
    with pytest.raises(InputError, match="--image: none of the 12 images has the id 9999"):
        main([*common, "--image", "9999"])


def test_synthesize(tmp_path, capsys):
    main(["synthesize", "--out", str(tmp_path / "a"), "--images", "50"])
    synthesize(SceneOptions(out=str(tmp_path / "b"), images=50))
    for split, size in (("train", 40), ("valid", 5), ("test", 5)):
        assert (tmp_path / "a" / f"{split}.jsonl").read_bytes() == (tmp_path / "b" / f"{split}.jsonl").read_bytes()
        assert len(read_splits(tmp_path / "a")[split].images) == size
    for image in read_splits(tmp_path / "a")["train"].images:
        present = {THINGS[label] for label in image.labels.tolist()}
        for caption in image.captions:
            named = set(caption.lower().rstrip(".").split()) & set(THINGS)
            assert 2 <= len(named) <= 3 and named <= present
    with pytest.raises(InputError, match="--images must be at least 30, got 3"):
        main(["synthesize", "--out", str(tmp_path), "--images", "3"])
    with pytest.raises(InputError, match="--captions-per-image must be at least 1, got 0"):
        main(["synthesize", "--out", str(tmp_path), "--captions-per-image", "0"])
    with pytest.raises(InputError, match="--seed must be at least 0 and at most 4294967295, got -1"):
        SceneOptions(seed=-1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--iais", "singulr"],
            "--iais: 'singulr' is not one of singular, distributed, none; did you mean 'singular'?",
        ),
        (["--num-steps", "0"], "--num-steps must be at least 1, got 0"),
        (["--num-steps", "20", "--warmup-steps", "21"], "--warmup-steps must be at most --num-steps = 20, got 21: the"),
        (["--lr", "nan"], "--lr must be finite, got nan"),
        (["--margin", "1.5"], "--margin must be at least 0 and at most 1, got 1.5"),
        (["--hard-negatives", "8"], "--hard-negatives must be at most --negative-size = 7, got 8"),
        (
            ["--negatives", "in-batch", "--hard-negatives", "4", "--negative-size", "399"],
            "--hard-negatives must be at most --batch-size less one",
        ),
        (["--num-heads", "3"], "--hidden-size must be a multiple of --num-heads = 3, got 16"),
        (["--negative-size", "40"], "--negative-size must be at most 39, which the 40 training images and 80 captions"),
        (
            ["--negatives", "in-batch", "--batch-size", "41", "--negative-size", "399"],
            "--batch-size must be at most the 40 training images",
        ),
        (["--runs", "0"], "--runs must be at least 1, got 0"),
        (["--data", "/no/such/folder"], "--data: /no/such/folder is not a folder"),
        (["--encoder", "/no/such/folder", *UNSIZED], "--encoder: /no/such/folder is neither 'scratch' nor a folder"),
        (["--encoder", str(ROOT), *UNSIZED], "no config.json in it, so it is no model"),
        (["--encoder", "/a"], "--hidden-size 16: has no effect with --encoder /a"),
        (["--encoder", "/a", *UNSIZED, "--vocab-size", "9"], "--vocab-size 9: has no effect with --encoder /a"),
        (["--iais", "distributed", "--pseudo-norm", "renorm"], "--pseudo-norm renorm: has no effect with --iais dist"),
        (["--iais", "none", "--pseudo-norm", "renorm"], "--pseudo-norm renorm: has no effect with --iais none"),
        (["--iais", "none", "--iais-weight", "2"], "--iais-weight 2.0: has no effect with --iais none"),
        (["--iais", "none", "--iais-scale", "sum"], "--iais-scale sum: has no effect with --iais none"),
        (["--iais", "none", "--iais-schedule", "log"], "--iais-schedule log: has no effect with --iais none"),
        (["--negatives", "in-batch"], "--negative-size 7: has no effect with --negatives in-batch"),
        (["--lr", "1e30"], "_loss is nan; lower --lr or --iais-weight"),
    ],
)
def test_bad_options_end_with_one_line(data, tmp_path, options, message):
    out = tmp_path / "out"
    with pytest.raises(InputError) as error:
        main(["train", "--data", str(data), "--out", str(out), *SMALL, *options])
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not (out / "results.json").exists() or not read_json(out / "results.json")["runs"]


def test_paths_that_are_files_and_counts_below_zero(trained, data, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "seed1").write_text("")
    model, places = trained / "seed1" / "model", ["--data", str(data), "--device", "cpu"]
    copy = tmp_path / "copy" / "seed1"
    shutil.copytree(trained / "seed1", copy)
    plot = ["plot", "--model", str(copy / "model"), *places]
    file, seed = str(tmp_path / "file"), tmp_path / "seed1"
    results = tmp_path / "copy" / "results.json"
    refusal = f"{results}: not the results of a training"
    for content, arguments, message in (
        ("", ["synthesize", "--out", file], f"--out: cannot write to {file}: "),
        ("", ["synthesize", "--seed", "-1"], "--seed must be at least 0 and at most 4294967295, got -1"),
        ("", ["train", *places, *SMALL, "--out", str(tmp_path)], f"--out: cannot write to {seed}: "),
        ("", ["train", *places, *SMALL, "--seed", "-1"], "--seed must be at least 0 and at most 4294967295, got -1"),
        ("", ["evaluate", "--model", str(model), *places, "--limit", "-3"], "--limit must be at least 0, got -3"),
        ("[]", plot, refusal),
        ('{"runs": {"seed1": {"history": []}}}', plot, refusal),
        ('{"runs": {"seed1": {"history": [{"step": 1', plot, refusal),
        ('{"runs": {"seed1": {"history": [{"step": 1, "isd": "x", "rsum": 1}]}}}', plot, refusal),
        ('{"runs": {}}', [*plot, "--out", file], f"--out: cannot write to {file}: "),
        ("", [*plot, "--query", "..."], "--query: no word in '...'"),
    ):
        results.write_text(content)
        with pytest.raises(InputError) as error:
            main(arguments)
        assert str(error.value).startswith(message) and "\n" not in str(error.value)


def broken(folder: Path, **changes) -> Path:
    """A data folder whose second training image is changed."""
    write_regions(folder)
    lines = (folder / "train.jsonl").read_text().splitlines()
    image = json.loads(lines[1]) | changes
    (folder / "train.jsonl").write_text("\n".join([lines[0], json.dumps(image), *lines[2:]]))
    return folder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"boxes": [[0, 0, 400, 20, 1]]}, "is not inside its image of 300 x 200"),
        ({"boxes": [[5, 5, 5, 20, 1]]}, "has no size"),
        ({"boxes": []}, "image without regions"),
        ({"captions": ["..."]}, "a caption without words"),
        ({"image_id": 1}, "image_id 1 is also at"),
    ],
)
def test_bad_data_ends_with_one_line(tmp_path, changes, message):
    folder = broken(tmp_path / "data", **changes)
    with pytest.raises(InputError) as error:
        main(["train", "--data", str(folder), "--out", str(tmp_path / "out"), *SMALL])
    assert str(error.value).startswith(f"{folder / 'train.jsonl'}:2: ") and message in str(error.value)
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_models_and_queries_that_are_none(trained, data, tmp_path):
    common = ["search", "--data", str(data), "--device", "cpu"]
    model = ["--model", str(trained / "seed1" / "model")]
    for arguments, message in (
        (["--query", "dog", "--model", str(tmp_path)], "no config.json in it, so it is no model"),
        (["--query", "...", *model], "--query: no word in '...'"),
        (["--query", "dog", *model, "--top", "0"], "--top must be at least 1, got 0"),
        (["--query", "dog", *model, "--data", str(tmp_path / "x")], "is not a folder"),
    ):
        with pytest.raises(InputError) as error:
            main([*common, *arguments])
        assert message in str(error.value) and "\n" not in str(error.value)
    folder = tmp_path / "pickled"
    shutil.copytree(trained / "seed1" / "model", folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"pytorch_model.bin could run code when loaded"):
        main([*common, "--query", "dog", "--model", str(folder)])
    other = write_regions(tmp_path / "other")
    (other / "categories.txt").write_text("\n".join(THINGS[: len((data / "categories.txt").read_text().split())]))
    with pytest.raises(InputError, match=r"categories.txt: not the 8 of the model"):
        main(["evaluate", *model, "--data", str(other), "--device", "cpu"])


def test_two_processes_evaluate_one_image(trained, data, capfd):
    """The second process has no caption to score."""
    command = ["evaluate", "--model", str(trained / "seed1" / "model"), "--data", str(data)]
    debug_launcher(main, ([*command, "--device", "cpu", "--limit", "1"],), num_processes=2)
    printed = json.loads(capfd.readouterr().out)
    assert (printed["captions"], printed["images"], printed["ir_r1"]) == (2, 1, 1.0)


def test_two_processes_train_as_one(data, tmp_path):
    command = ["train", "--data", str(data), *SMALL, "--dropout", "0"]
    result = subprocess.run(
        [*LAUNCH, "-m", "vision_language.iais", *command, "--out", str(tmp_path / "two")],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=ONE_THREAD,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("1 runs: ") == 1
    main([*command, "--out", str(tmp_path / "one")])
    one, two = (read_weights(tmp_path / name / "seed1" / "model" / "model.safetensors") for name in ("one", "two"))
    for name, value in one.items():
        if not name.endswith("key.bias"):  # its gradient is 0 but for rounding, which Adam makes steps of
            torch.testing.assert_close(two[name], value, rtol=0, atol=1e-5)
    one, two = (read_json(tmp_path / name / "results.json")["runs"]["seed1"] for name in ("one", "two"))
    assert (one["processes"], two["processes"]) == (1, 2)
    for name in ("ir_r1", "tr_r10", "isd", "valid_rsum", "best_step"):
        assert one[name] == pytest.approx(two[name], rel=1e-3)
