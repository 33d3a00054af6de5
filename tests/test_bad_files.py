"""Every file that a command of ``fairseq-ext`` reads or writes, in each way that it can be bad: one line, code 2."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from fairseq_ext import cli
from fairseq_ext.captions.__main__ import main as captions
from fairseq_ext.training.errors import InputError
from tests.captions.images import write_captioned
from tests.captions.splits import REFERENCES, write_generated, write_split

READ = {
    "average --inputs BAD.pt --output new.pt": "",
    "average --inputs good.pt BAD.pt --output new.pt": "",
    "average --inputs BAD --last 2 --output new.pt": "",
    "translate BAD text.txt --out new.txt": "",
    "translate models BAD.txt --out new.txt": "an empty text has an empty translation",
    "translate models text.txt --checkpoints ../BAD.pt --out new.txt": "",
    "captions extract BAD new.npz": "",
    "captions extract images new.npz --network BAD": "",
    "captions extract images new.npz --pca 2 --pca-images BAD.jsonl": "",
    "captions extract images new.npz --pca-file BAD.npz": "",
    "captions prepare BAD new": "",
    "captions prepare BAD.jsonl new": "",
    "captions prepare BAD.json new --instances BAD.json": "",
    "captions prepare BAD.csv new --features source/features": "",
    "captions prepare source new --features BAD": "",
    "captions prepare source new --features BAD.npz": "",
    "captions prepare captions.json new --instances BAD.json": "",
    "captions prepare captions.json new --split-file BAD.json --features source/features": "",
    "captions generate BAD.pt data": "",
    "captions generate good.pt BAD": "",
    "captions score BAD --generated generated.txt": "",
    "captions score data --generated BAD.txt": "",
    "captions score data --generated BAD.json": "",
    "captions score data --generated BAD.jsonl": "",
    "captions score data --generated generated.txt --compare BAD.json --out new.json": "",
    "captions page BAD --generated generated.txt --out new.html": "",
    "captions page data --generated BAD.txt --out new.html": "",
    "captions page data --generated generated.txt --attention BAD.jsonl --out new.html": "",
    "captions page data --generated generated.txt --image-folder BAD --out new.html": "",
    **{f"captions {name} --config BAD.yaml": "" for name in captions.commands},
    **{f"captions {name} --config BAD.json": "" for name in captions.commands},
}
"""Commands with a bad file, and why an empty one is none."""

WRITTEN = (
    "average --inputs good.pt --output BAD.pt",
    "translate models text.txt --out BAD.txt",
    "captions synthesize --images 30 --out BAD.scenes",
    "captions extract images BAD.npz",
    "captions prepare source BAD",
    "captions score data --generated generated.txt --out BAD.json",
    "captions score data --generated generated.txt --results BAD.json",
    "captions page data --generated generated.txt --out BAD.html",
)
"""Where to write to."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """What is good of a command, and what is bad."""
    folder = tmp_path_factory.mktemp("files")
    torch.save({"model": {"weight": torch.ones(2)}, "cfg": None, "args": None}, folder / "good.pt")
    for name in ("models", "images"):
        (folder / name).mkdir()
    shutil.copy(folder / "good.pt", folder / "models")
    (folder / "images" / "11.png").write_bytes(b"no image")
    write_captioned(folder / "source", "regions")
    write_split(folder / "data")
    write_generated(folder / "generated.txt", [captions[0] for captions in REFERENCES.values()])
    (folder / "text.txt").write_text("ein satz\n")
    images = [{"id": 1, "file_name": "1.jpg", "width": 120, "height": 80}]
    notes = [{"id": 1, "image_id": 1, "caption": "a dog"}]
    (folder / "captions.json").write_text(json.dumps({"images": images, "annotations": notes}))
    return folder


def bad_ones(folder: Path, command: str) -> Iterator[str]:
    """The command with each bad file in the place of ``BAD``."""
    suffix = next(word for word in command.split() if "BAD" in word).partition("BAD")[2]
    (folder / f"folder{suffix}").mkdir(exist_ok=True)
    (folder / f"empty{suffix}").write_bytes(b"")
    (folder / f"binary{suffix}").write_bytes(bytes(range(256)) * 3)
    names = ["absent", "folder", "empty", "binary", "text.txt/beneath"]
    if suffix == ".pt":
        torch.save(
            {**torch.load(folder / "good.pt"), "model": {"weight": torch.tensor([1, torch.nan])}}, folder / "nan.pt"
        )
        names.append("nan")
    return (command.replace("BAD", name) for name in names)


def contents(folder: Path) -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


def refused(command: str) -> str:
    """What is wrong with how a command ends."""
    try:
        cli.main(command.split())
    except InputError as error:
        return "" if error.code == 2 and len(str(error).splitlines()) == 1 else f"{command}: {error}"
    except BaseException as error:
        return f"{command}: {error!r}"
    return f"{command}: not refused"


@pytest.mark.parametrize("command", READ)
def test_a_bad_file_is_one_line(folder, monkeypatch, command):
    monkeypatch.chdir(folder)
    commands = list(bad_ones(folder, command))
    before = contents(folder)
    judged = [line for line in commands if not (READ[command] and "empty" in line)]
    assert not [wrong for line in judged if (wrong := refused(line))]
    assert contents(folder) == before


@pytest.mark.parametrize("command", WRITTEN)
def test_a_place_that_cannot_be_written_is_one_line(folder, monkeypatch, command):
    """A file stands where the folder should be, and a folder with something in it where the file should be."""
    monkeypatch.chdir(folder)
    suffix = next(word for word in command.split() if "BAD" in word).partition("BAD")[2]
    (folder / f"full{suffix}").mkdir(exist_ok=True)
    (folder / f"full{suffix}" / "train.jsonl").write_text("to keep")
    before = contents(folder)
    assert not [wrong for name in ("text.txt/beneath", "full") if (wrong := refused(command.replace("BAD", name)))]
    assert contents(folder) == before
