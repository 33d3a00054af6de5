"""Bad input to the fairseq commands: one clear line, exit code 2, and nothing left half-written."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import pytest
import torch

from tests.fairseq_commands import FairseqCommands, FairseqServer, Outcome
from tests.test_end_to_end import COMBINED, SCHEDULE, TINY, USER_DIR, make_data_bin, updates


class Workshop(FairseqCommands):
    """A folder with a data-bin and a trained model."""

    def __init__(self, folder: Path, server: FairseqServer):
        super().__init__(folder, server)
        self.data_bin = make_data_bin(self)
        outcome = self.train("--save-dir", self.good, "--max-update", "3")
        assert outcome.code == 0, outcome.stderr[-6000:]

    @property
    def good(self) -> Path:
        return self.folder / "good"

    def training(self, *arguments: object, data: Path | None = None) -> list[object]:
        """Train the combination of every method; ``arguments`` come last and win."""
        standard = [data or self.data_bin, "--user-dir", USER_DIR, *COMBINED, *TINY, *SCHEDULE]
        standard += ["--disable-validation", "--no-epoch-checkpoints", "--max-update", "1"]
        return ["fairseq_cli.train", *standard, *arguments]

    def train(self, *arguments: object, data: Path | None = None, largest_file: int = 0) -> Outcome:
        return self.run(*self.training(*arguments, data=data), largest_file=largest_file)


@pytest.fixture(scope="module")
def workshop(tmp_path_factory, fairseq_server):
    return Workshop(tmp_path_factory.mktemp("workshop"), fairseq_server)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--norm", "adanrom"], ["--norm:", "'adanrom'", "did you mean 'adanorm'"]),
        (["--block", "muze"], ["--block:", "'muze'", "did you mean 'muse'"]),
        (["--cross-view", "gcaa"], ["--cross-view:", "'gcaa'", "did you mean 'gca'"]),
        (["--cross-view-fusion", "meen"], ["--cross-view-fusion:", "'meen'", "did you mean 'mean'"]),
        (["--attention-topk", "-1"], ["--attention-topk", "at least 0", "-1"]),
        (["--attention-topk", "many"], ["--attention-topk:", "'many'"]),
        (["--attention-topk", "0", "--attention-topk-ratio", "0.5"], ["--attention-topk-ratio:", "0.5"]),
        (["--muse-kernels", "4"], ["--muse-kernels:", "odd", "4"]),
        (["--muse-kernels", "0"], ["--muse-kernels", "0"]),
        (["--muse-kernels", "3;x"], ["--muse-kernels", "3;x"]),
        (
            ["--load-alignments"],
            ["--load-alignments", "--attention-topk 3", "--attention-topk-in encoder-self,decoder-self"],
        ),
        (["--encoder-attention-heads", "3"], ["--encoder-embed-dim: 16", "--encoder-attention-heads 3"]),
        (["--encoder-layerdrop", "0.2"], ["--cross-view gca", "--encoder-layerdrop"]),
        (["--log-end", "1.5"], ["--log-end", "at most 1", "1.5"]),
    ],
    ids=" ".join,
)
def test_an_option_out_of_range_is_named(workshop, tmp_path, options, words):
    outcome = workshop.train("--save-dir", tmp_path / "save", *options)
    assert outcome.code == 2
    assert all(word in outcome.last_line for word in words), outcome.last_line
    assert not outcome.traceback, outcome.stderr
    assert not list(tmp_path.rglob("*.pt*"))


def refused(outcome: Outcome, *words: object) -> None:
    assert outcome.code == 2 and not outcome.traceback, outcome.stderr[-3000:]
    assert all(str(word) in outcome.last_line for word in words), outcome.last_line


MISTAKES = {
    "train nowhere": "data nowhere: No such file",
    "train empty": "--source-lang, --target-lang",
    "train empty -s de -t en": "data empty: empty/dict.de.txt: No such file",
    "train damaged": "damaged/dict.en.txt: Incorrect dictionary format",
    "train cut": "cut/train.de-en.en.bin: truncated",
    "train data --train-subset trian": "--train-subset trian: Dataset not found",
    "train data --restore-file absent.pt": "--restore-file absent.pt: no such file",
    "train data --finetune-from-model absent.pt": "--finetune-from-model absent.pt",
    "train data --restore-file good.pt --optimizer sgd": "--reset-optimizer",
    "train data --batch-size 1 --max-tokens 2": "--max-tokens",
    "train data --fp16": "--fp16: trains on a GPU",
    "train data --dropout 1.5": "--dropout must be at least 0 and at most 1, got 1.5",
    "train data --lr-scheduler polynomial_decay": "--total-num-update: is required",
    "train data --log-file file/log": "--log-file file/log",
    "train data --arch transformer_exd": "--arch/-a: invalid choice: 'transformer_exd'; did you mean transformer_ext",
    "generate data --path None": "--path: must name a trained model",
    "generate data --path absent.pt": "--path absent.pt: Model file not found",
    "generate data --sampling --beam 2": "--sampling requires --nbest",
    "generate data --replace-unk": "--replace-unk requires a raw text dataset",
    "generate data --gen-subset tset": "--gen-subset tset: Dataset not found",
    "generate data --max-tokens 2": "--max-tokens: Sentences lengths should not exceed",
    "generate swapped": "--path (trained with other dictionaries or another architecture)",
    "generate data --results-path file/x": "--results-path file/x: Not a directory",
    "generate data --bpe sentencepiece": "--sentencepiece-model: ",
    "interactive data --batch-size 4": "--batch-size cannot be larger than --buffer-size",
    "interactive data --constraints --print-alignment": "--constraints: not with --print-alignment",
    "interactive data --constraints --replace-unk": "--constraints: not with --replace-unk",
    "interactive data --input absent.txt": "--input absent.txt: No such file",
    "eval_lm data": "data data: data/dict.txt: No such file",
    "validate data --valid-subset vallid": "--valid-subset vallid: Dataset not found",
    "validate data --task None": "--task: must be that of the model",
}


def test_fairseq_refuses_in_one_line(workshop):
    """What fairseq itself notices, before the first step, of the mistakes that are made most."""
    folder, model = workshop.folder, ("--path", "good/checkpoint_last.pt")
    (folder / "empty").mkdir()
    (folder / "file").write_text("in the way")
    for name in ("data", "damaged", "cut", "swapped"):
        shutil.copytree(workshop.data_bin, folder / name)
    shutil.copy(workshop.good / "checkpoint_last.pt", folder / "good.pt")
    (folder / "damaged" / "dict.en.txt").write_text("word\n")
    os.truncate(folder / "cut" / "train.de-en.en.bin", 20)
    shutil.copy(folder / "data" / "dict.de.txt", folder / "swapped" / "dict.en.txt")
    batch = ("--batch-size", "4")
    given = {
        "train": [*COMBINED, *TINY, *SCHEDULE, "--disable-validation", "--max-update", "1"],
        "generate": [*model, *batch, "--max-len-b", "3"],
        "interactive": [*model, "-s", "de", "-t", "en"],
        "eval_lm": model,
        "validate": [*model, *batch, "--task", "translation"],
    }

    def command(line: str) -> list[object]:
        name, data, *options = line.split()
        words = [*given[name], *options]
        if options[1:] == ["None"]:  # an option that is left out
            place = words.index(options[0])
            words = words[:place] + words[place + 2 : -2]
        common = ["--cpu", "--num-workers", "0"]
        if name == "train":  # each proves in a folder of its own that it can save
            common = ["--save-dir", f"refused/{lines.index(line)}"]
        return [f"fairseq_cli.{name}", data, "--user-dir", USER_DIR, *common, *words]

    lines, wrong = list(MISTAKES), {}
    for start in range(0, len(lines), 4):
        some = lines[start : start + 4]
        for line, outcome in zip(some, workshop.run_together([command(line) for line in some]), strict=True):
            if outcome.code != 2 or outcome.traceback or MISTAKES[line] not in outcome.last_line:
                wrong[line] = outcome.code, outcome.last_line
    assert not wrong
    assert not [path for path in (folder / "refused").rglob("*") if path.is_file()]


def test_source_and_target_of_different_length(workshop, tmp_path):
    shutil.copytree(workshop.data_bin, tmp_path / "uneven")
    for kind in ("bin", "idx"):
        shutil.copy(workshop.data_bin / f"valid.de-en.en.{kind}", tmp_path / "uneven" / f"train.de-en.en.{kind}")
    outcome = workshop.train("--save-dir", tmp_path / "save", data=tmp_path / "uneven")
    refused(outcome, "Source and target must contain the same number of examples")
    assert not list(tmp_path.rglob("*.pt*"))


def test_a_truncated_checkpoint(workshop, tmp_path):
    broken = tmp_path / "truncated.pt"
    broken.write_bytes((workshop.good / "checkpoint_last.pt").read_bytes()[:20_000])
    for outcome in (
        workshop.train("--save-dir", tmp_path / "save", "--restore-file", broken),
        workshop.run("fairseq_cli.generate", workshop.data_bin, "--user-dir", USER_DIR, "--cpu", "--path", broken),
    ):
        refused(outcome, broken, "truncated, or no checkpoint")
    assert sorted(tmp_path.rglob("*.pt*")) == [broken]


def test_a_folder_keeps_its_model_and_a_finished_training_its_files(workshop, tmp_path):
    """The same line again, and one with another option of the model; each way out that the refusal names."""
    folders = [tmp_path / name for name in ("again", "other", "reset", "new")]
    for folder in folders[:3]:
        shutil.copytree(workshop.good, folder)
    last, other = workshop.good / "checkpoint_last.pt", ("--attention-topk", "2", "--max-update", "5")
    lines = [("--max-update", "3"), other, (*other, "--reset-optimizer"), (*other, "--finetune-from-model", last)]
    again, refusal, *ways_out = workshop.run_together(
        [workshop.training("--save-dir", folder, *line) for folder, line in zip(folders, lines, strict=True)]
    )
    assert again.code == 0 and "nothing left to train: 3 updates are made, --max-update is 3" in again.output
    refused(
        refusal, "--attention-topk: 2 here, but 3 in", folders[1], "--save-dir", "--finetune-from-model", "--reset-"
    )
    assert [outcome.code for outcome in ways_out] == [0, 0], [outcome.stderr[-3000:] for outcome in ways_out]
    before, *after = [
        {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}
        for folder in (workshop.good, *folders)
    ]
    assert [files == before for files in after] == [True, True, False, False]


def test_a_checkpoint_of_another_architecture(workshop, tmp_path):
    last = workshop.good / "checkpoint_last.pt"
    outcome = workshop.train("--save-dir", tmp_path / "save", "--restore-file", last, "--muse-no-gate")
    refused(outcome, last, "ensure that the architectures match")
    assert not list(tmp_path.rglob("*.pt*"))


class Hostile:
    """Makes a folder when unpickled without torch's safe loader."""

    def __init__(self, folder: Path):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def test_a_hostile_checkpoint_runs_no_code(workshop, tmp_path):
    payload, hostile = tmp_path / "payload", tmp_path / "hostile.pt"
    torch.save({"model": {}, "cfg": Hostile(payload)}, hostile)
    for outcome in (
        workshop.train("--save-dir", tmp_path / "save", "--restore-file", hostile),
        workshop.run("fairseq_cli.generate", workshop.data_bin, "--user-dir", USER_DIR, "--cpu", "--path", hostile),
    ):
        refused(outcome, hostile, "refused by torch's safe loader", "mkdir")
        assert not payload.exists()
    torch.load(hostile, weights_only=False)
    assert payload.exists(), "the payload works, so it was the safe loader that stopped it"


def test_a_save_dir_that_cannot_be_written(workshop, tmp_path):
    (tmp_path / "file").write_text("in the way")
    refused(workshop.train("--save-dir", tmp_path / "file" / "save"), tmp_path / "file")
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_full_disk_spares_the_previous_checkpoint(workshop, tmp_path):
    """No file may grow beyond half of a checkpoint, as if the disk were full then."""
    save = tmp_path / "save"
    shutil.copytree(workshop.good, save)
    before = {path.name: path.read_bytes() for path in save.iterdir()}
    half = len(before["checkpoint_last.pt"]) // 2
    outcome = workshop.train("--save-dir", save, "--max-update", "6", largest_file=half)
    assert outcome.code != 0
    assert "@ 3 updates" in outcome.stderr
    assert {path.name: path.read_bytes() for path in save.iterdir()} == before

    outcome = workshop.train("--save-dir", save, "--max-update", "6")
    assert outcome.code == 0, outcome.stderr[-3000:]
    assert updates(save / "checkpoint_last.pt") == 6
