"""What the rows of captions run, and what their table says."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from examples.results import captioning, fairseq_programs
from examples.results.captioning import experiments, table
from examples.results.captioning.baselines import consensus, human, most_frequent, nearest
from examples.results.captioning.experiments import ARMS, EXPERIMENTS, train_and_score, training
from fairseq_ext.captions.store import Preparation, Split
from fairseq_ext.training.errors import DataError
from tests.captions.splits import write_generated, write_split
from tests.examples.test_results_rows import defaults

TRAIN = {
    "1": ["a dog", "a dog runs", "the dog"],
    "2": ["two cats sit", "some cats", "two cats sit there"],
    "3": ["a red car", "a dog", "a car"],
}
TEST = {"4": ["a dog runs", "one dog"], "5": ["two cats", "cats sit"], "6": ["a car", "one red car"]}
DENSE = {
    **dict.fromkeys(("block", "attention_topk", "attention_normalizer", "norm", "log_end", "visual_position")),
    "criterion": "label_smoothed_cross_entropy", "label_smoothing": 0.1, "arch": "captioning_transformer_ext",
    "encoder_layers": 2, "decoder_layers": 2, "encoder_embed_dim": 128, "decoder_ffn_embed_dim": 512,
    "share_decoder_input_output_embed": True, "optimizer": "adam", "lr": [1e-3], "batch_size": 64, "dropout": 0.2,
    "warmup_updates": 600, "max_epoch": 7, "seed": 3, "eval_captions": True, "best_checkpoint_metric": "cider",
    "maximize_best_checkpoint_metric": True,
}  # fmt: skip
ENCOURAGING = {"criterion": "label_smoothed_encouraging_loss", "log_end": 0.75}
CHANGES: dict[str, dict[str, Any]] = {
    "dense": {},
    "top-k 4": {"attention_topk": 4},
    "top-k 8": {"attention_topk": 8},
    "sparsemax": {"attention_normalizer": "sparsemax"},
    "top-k 4, AdaNorm, encouraging loss": {"attention_topk": 4, "norm": "adanorm", **ENCOURAGING},
}


@pytest.mark.parametrize("arm", ARMS)
def test_each_row_trains_what_it_says(arm):
    from fairseq import options

    import fairseq_ext.criterions
    import fairseq_ext.models
    import fairseq_ext.tasks  # noqa: F401

    parser = options.get_training_parser()
    arguments = options.parse_args_and_arch(
        parser, ["data", *training(EXPERIMENTS["coco_val2017_regions"], arm, seed=3)]
    )
    expected = DENSE | CHANGES[arm]
    assert {option: getattr(arguments, option, None) for option in expected} == expected


@pytest.fixture
def splits(tmp_path):
    def read(features: bool = False) -> tuple[Split, Split]:
        kind = {"kind": "regions", "feature_dim": 2} if features else {}
        for name, references in (("train", TRAIN), ("test", TEST)):
            folder = write_split(tmp_path / "data", references, name, **kind)
            offsets = np.load(folder / f"{name}.images.npz")["offsets"]
            if features:
                vectors = np.repeat(np.float32([[1, 0], [0, 1], [1, 1]]), np.diff(offsets), axis=0)
                np.save(folder / f"{name}.features.npy", vectors)
        preparation = Preparation.load(folder)
        return Split(folder, "train", preparation), Split(folder, "test", preparation)

    return read


@pytest.mark.parametrize("features", [False, True])
def test_captions_without_training(splits, features):
    train, test = splits(features)
    assert most_frequent(train, test) == ["a dog"] * 3
    if features:
        assert nearest(train, test) == ["a dog", "two cats sit", "a red car"]
    else:
        # Image i has one region of each of the first i classes more than the one before.
        assert nearest(train, test) == [captions[0] for captions in TRAIN.values()]
    assert consensus(train, test, 1)[0] == "a dog", "shares most with the two others"
    assert consensus(train, test, 1)[1] == "two cats sit"


def test_people_are_scored_against_other_people(splits):
    _, test = splits()
    evaluation = human(test)
    assert evaluation.captions == ["one dog", "cats sit", "one red car"]
    assert evaluation.references == [["a dog runs"], ["two cats"], ["a car"]]
    test.references = [["one"], *test.references[1:]]
    assert human(test) is None


@pytest.fixture
def programs(monkeypatch):
    """fairseq's programs, replaced by what they leave behind; the list of the commands."""
    calls: list[list[str]] = []

    def run(words: list[str], log: Path) -> None:
        calls.append(words)
        given = dict(pairwise(words))
        if words[1] == "prepare":
            for name, references in (("train", TRAIN), ("test", TEST)):
                write_split(Path(words[3]), references, name)
        elif words[1] == "extract":
            Path(words[3]).touch()
        elif words[0] == "fairseq_cli.train":
            Path(given["--save-dir"], "checkpoint_best.pt").touch()
            valid = {"epoch": 1, "valid_nll_loss": "4.5", "valid_cider": "81.5", "valid_num_updates": "9"}
            log.write_text(f"num. shared model params: 1,234 (num.\n{json.dumps(valid)}\n")
        else:
            last = "a tree" if "/dense-" in given["--path"] else "a car"
            write_generated(log, ["a dog runs", "two cats", last])

    monkeypatch.setattr(fairseq_programs, "run", run)
    return calls


def measured(tmp_path, **options):
    folder = tmp_path / "coco_val2017_regions"
    folder.mkdir(exist_ok=True)
    chosen = {"datasets": ["coco_val2017_regions"], "arms": ["dense", "top-k 4"], "seeds": 2} | options
    return list(captioning.measure(defaults("captioning", data=tmp_path, out=tmp_path / "out", **chosen)))


def test_what_is_complete_is_told_after_every_training(programs, tmp_path):
    contents = measured(tmp_path)
    assert [len(content["missing"]) for content in contents] == [3, 2, 1, 0]
    assert [call[0] for call in programs[:3]] == ["fairseq_ext.captions", "fairseq_cli.train", "fairseq_cli.generate"]
    rows = {row["system"]: row["runs"] for row in contents[-1]["rows"]}
    assert list(rows)[3:] == ["dense", "top-k 4"] and list(rows["top-k 4"]) == ["seed1", "seed2"]
    run = rows["top-k 4"]["seed1"]
    assert run["bleu4"] == 0 and run["bleu1"] == 1.0 and run["equal_to_dense"] == pytest.approx(2 / 3)
    assert run["minus_dense"]["cider_d"]["difference"] == pytest.approx(
        run["cider_d"] - rows["dense"]["seed1"]["cider_d"]
    )
    assert "minus_dense" not in rows["dense"]["seed1"] and contents[-1]["human"]["counts"]["images"] == 3
    assert not list((tmp_path / "out").rglob("*.pt"))

    before = len(programs)
    assert measured(tmp_path, jobs=2) == contents and len(programs) == before + 1, "only prepares, a no-op"
    other = train_and_score(
        "coco_val2017_regions", "dense", 1, tmp_path / "out" / "captioning" / "data" / "coco_val2017_regions",
        tmp_path / "out" / "captioning", epochs=3,
    )  # fmt: skip
    assert len(programs) == before + 3 and other[0]["bleu1"] < 1, "another recipe is trained anew"

    last = {**contents[-1], "command": "captioning"}
    text = captioning.section([last])
    assert "| dense | 85.7 ± 0.0 |" in text and "2 seeds" in text and "Not measured yet" not in text
    assert "- top-k 4: seed1 +" in text and "67 % equal" in text
    assert "most frequent caption" in text and "{" not in text
    assert "Not measured yet: top-k 4, seed 1; dense, seed 2" in captioning.section([{**contents[0], "command": ""}])
    assert "The chosen epoch" not in text
    rows["dense"]["seed2"]["counts"] |= {"images": 40, "distinct": 3}
    assert "fewer than 10 % of the images differently: dense, seed2." in captioning.section([last])
    captioning.draw([last], tmp_path)
    assert (tmp_path / "captioning_coco_val2017_regions.png").stat().st_size > 5_000


def test_stamps_start_from_their_pixels(programs, tmp_path):
    images = tmp_path / "captioning" / "tuxpaint_stamps" / "images"
    images.mkdir(parents=True)
    (images / "1.jpg").write_bytes(b"1")

    def commands(language):
        before = len(programs)
        experiments.prepared(f"tuxpaint_stamps_{language}", tmp_path, tmp_path / "out")
        return programs[before:]

    extract, prepare = commands("en")
    given = dict(pairwise(extract))
    assert extract[1:3] == ["extract", str(images)] and given["--pca"] == "128"
    assert given["--pca-images"] == str(images.parent / "train.jsonl.gz")
    assert {"--language": "en", "--features": extract[3], "--min-count": "1"}.items() <= dict(pairwise(prepare)).items()
    (prepare,) = commands("de")
    assert {"--language": "de", "--features": extract[3]}.items() <= dict(pairwise(prepare)).items()
    (images / "1.jpg").write_bytes(b"11")
    assert len(commands("de")) == 2, "other images"


def test_without_the_data_it_is_named(programs, tmp_path):
    with pytest.raises(DataError, match="tuxpaint_stamps is not a folder"):
        measured(tmp_path, datasets=["tuxpaint_stamps_de"])
    assert programs == []


def test_a_lead_on_valid_stands_beside_the_figure():
    """It is no result: the images chose the epoch."""
    rows = [
        {
            "system": name,
            "runs": {f"seed{n}": {"curves": {"cider": [[1, 10 + n], [2, best], [3, 5]]}} for n in range(2)},
        }
        for name, best in (("dense", 80.0), ("top-k 4", 81.5))
    ]
    said = table._valid({"rows": [{"system": "nearest", "runs": {"": {}}}, *rows]})
    assert "minus dense: top-k 4 +1.5 [+1.5, +1.5]. Each" in said
    assert table._valid in table.READING and not table._valid({"rows": rows[1:]})
