"""Every reader of files against damaged ones: it reads them, or says in one line which file is bad. Nothing is run."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fairseq_ext.regions.caption_files import read_captions
from fairseq_ext.regions.feature_files import Images, open_features, read_feature_tsv, read_npz
from fairseq_ext.regions.json_files import read_instances, read_karpathy
from fairseq_ext.training.errors import InputError
from fairseq_ext.training.pretrained import read_weights, save_folder
from tests.regions.files import detectron_folder, grids_archive, grids_folder, tsv, uniter_folder, vectors_folder
from tests.vision_language.iais.regions import tiny_model, tiny_tokenizer, write_regions
from vision_language.iais.data import read_regions
from vision_language.iais.encoder import load
from vision_language.iais.plot import read_history

BOM = b"\xef\xbb\xbf"


class Bomb:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def regions(folder: Path, part: str, feature_size: int = 0) -> tuple[Path, Callable[[], Any]]:
    """A file of a data folder, and what a training reads of the folder."""
    write_regions(folder, {"train": 2}, feature_size=feature_size)
    archives = {path: np.load(path) for path in (folder / "features").glob("*.npy")}
    if part.endswith(".npz"):
        for path, array in archives.items():
            np.savez(path.with_suffix(".npz"), features=array)
            path.unlink()
    if part == "features.npz":
        shutil.rmtree(folder / "features")
        np.savez(folder / part, **{path.stem: array for path, array in archives.items()})
    if part == "train.jsonl.gz":
        (folder / part).write_bytes(gzip.compress((folder / "train.jsonl").read_bytes()))
        (folder / "train.jsonl").unlink()
    split = folder / ("train.jsonl.gz" if part == "train.jsonl.gz" else "train.jsonl")
    return folder / part, lambda: read_regions(split).digest()


def model_folder(folder: Path, part: str) -> tuple[Path, Callable[[], Any]]:
    torch.manual_seed(0)
    save_folder(tiny_model(), tiny_tokenizer(), folder)
    return folder / part, lambda: [value.sum() for value in load(folder)[0].state_dict().values()]


COCO = {"images": [{"id": 1, "width": 9, "height": 9}], "categories": [{"id": 1, "name": "cat"}]}
COCO |= {"annotations": [{"image_id": 1, "bbox": [0, 0, 5, 5], "category_id": 1, "caption": "a cat"}]}
SENTENCE = {"filename": "1.jpg", "split": "val", "sentences": [{"raw": "A dog."}]}
TOKENS = "".join(f"{number}.jpg#0\ta dog\n" for number in range(40))
RESULTS = {"runs": {"seed1": {"history": [{"step": 1, "isd": 0.5, "rsum": 1.0}]}}}


def saved(path: Path, save: Callable[[dict[str, torch.Tensor], Path], None]) -> Path:
    save({"a": torch.zeros(3)}, path)
    return path


def one(path: Path, read: Callable[[Path], Any]) -> tuple[Path, Callable[[], Any]]:
    return path, lambda: read(path)


def features(path: Path) -> tuple[Path, Callable[[], Any]]:
    """A file of features, and the reader of the folder or archive that it belongs to."""
    place = path if path.parent.name not in ("a_att", "a_box", "grids") else path.parent
    place = place.with_name(place.name.replace("_box", "_att"))
    images = Images({"1": (100, 80)}, () if place.name == "a_att" else (1, 3))
    return path, lambda: list(open_features(place, images).read())


READERS: dict[str, Callable[[Path], tuple[Path, Callable[[], Any]]]] = {
    "regions": lambda folder: regions(folder, "train.jsonl"),
    "regions.gz": lambda folder: regions(folder, "train.jsonl.gz"),
    "categories": lambda folder: regions(folder, "categories.txt"),
    "features.npy": lambda folder: regions(folder, "features/2.npy", 6),
    "features of one.npz": lambda folder: regions(folder, "features/2.npz", 6),
    "features.npz": lambda folder: regions(folder, "features.npz", 6),
    "captions.json": lambda folder: one(written(folder / "a.json", json.dumps(COCO)), read_captions),
    "captions.token": lambda folder: one(written(folder / "a.token", TOKENS), read_captions),
    "captions.csv": lambda folder: one(written(folder / "a.csv", "image,caption\n1.jpg,a dog\n"), read_captions),
    "karpathy": lambda folder: one(written(folder / "a.json", json.dumps({"images": [SENTENCE]})), read_karpathy),
    "instances": lambda folder: one(written(folder / "a.json", json.dumps(COCO)), read_instances),
    "tsv": lambda folder: one(tsv(folder / "a.tsv"), lambda path: list(read_feature_tsv(path))),
    "uniter npz": lambda folder: one(next(uniter_folder(folder / "npz", [1]).iterdir()), read_npz),
    "detectron npz": lambda folder: one(next(detectron_folder(folder / "npz", [1]).iterdir()), read_npz),
    "vectors npz": lambda folder: features(vectors_folder(folder / "a", [1]) / "1.npz"),
    "boxes npy": lambda folder: features(vectors_folder(folder / "a", [1]).with_name("a_box") / "1.npy"),
    "grid npy": lambda folder: features(grids_folder(folder / "grids", [1]) / "1.npy"),
    "grids npz": lambda folder: features(grids_archive(folder / "grids", [1])),
    "history": lambda folder: one(
        written(folder / "results.json", json.dumps(RESULTS)), lambda path: read_history(path, "seed1")
    ),
    "config": lambda folder: model_folder(folder, "config.json"),
    "weights": lambda folder: model_folder(folder, "model.safetensors"),
    "tokenizer": lambda folder: model_folder(folder, "tokenizer.json"),
    "tokenizer config": lambda folder: model_folder(folder, "tokenizer_config.json"),
    "uniter.pt": lambda folder: one(saved(folder / "uniter.pt", torch.save), read_weights),
    "uniter.safetensors": lambda folder: one(saved(folder / "uniter.safetensors", save_file), read_weights),
}
TEXT = ("regions", "categories", "captions.json", "captions.token", "captions.csv", "karpathy", "instances", "tsv")


def in_memory(save: Callable[..., None], *args: Any, **kwargs: Any) -> bytes:
    buffer = io.BytesIO()
    save(buffer, *args, **kwargs)
    return buffer.getvalue()


def damages(content: bytes, mark: Path) -> dict[str, bytes]:
    """What may have become of a file."""
    size = len(content)
    array = np.array([Bomb(mark)], dtype=object)
    return {
        "empty": b"",
        **{f"cut at {share}": content[: int(size * share)] for share in (0.1, 0.35, 0.6, 0.9, 0.99)},
        "last byte lost": content[:-1],
        "head lost": content[10:],
        "one byte": content[: size // 2] + bytes([content[size // 2] ^ 0xFF]) + content[size // 2 + 1 :],
        "zeros": bytes(size),
        "other coding": content.decode("latin-1").encode("utf-16"),
        "latin-1": content + "é".encode("latin-1"),
        "line breaks": b"\n" * 9,
        "a number": b"3",
        "a list": b"[1, 2]",
        "not a number": content.replace(b"9", b"NaN", 1).replace(b"0", b"Infinity", 1),
        "deep": b"[" * 100_000,
        "pickle": pickle.dumps(Bomb(mark), protocol=2),
        "npy of objects": in_memory(np.save, array),
        "npz of objects": in_memory(np.savez, **dict.fromkeys(("features", "x", "1", "2"), array)),
        "huge npy": b"\x93NUMPY\x01\x00v\x00"
        + b"{'descr': '<f8', 'fortran_order': False, 'shape': (99999999999, 6), }".ljust(117)
        + b"\n",
    }


@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_is_named_in_one_line(tmp_path, name):
    (tmp_path / "good").mkdir()
    path, read = READERS[name](tmp_path / "good")
    read()
    content, mark = path.read_bytes(), tmp_path / "executed"
    for damage, bad in damages(content, mark).items():
        path.write_bytes(bad)
        try:
            read()
        except InputError as error:
            message = str(error)
            # an image names the line that it is missing for; a folder of a model is one thing
            assert path.name in message or str(path.parent) in message, (damage, message)
            assert "\n" not in message and len(message) < 2000, (damage, message)
        else:
            assert damage not in (
                "empty",
                "zeros",
                "pickle",
                "npy of objects",
                "npz of objects",
                "huge npy",
                "other coding",
            ), damage
        assert not mark.exists(), damage


@pytest.mark.parametrize("name", READERS)
def test_a_folder_or_nothing_in_the_place_of_a_file(tmp_path, name):
    path, read = READERS[name](tmp_path)
    path.unlink()
    for place in ("nothing", "folder"):
        if place == "folder":
            path.mkdir()
        elif name in ("features.npz", "tokenizer config"):  # which need not be there
            continue
        with pytest.raises(InputError) as error:
            read()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", TEXT)
def test_byte_order_marks_and_line_ends_of_windows_change_nothing(tmp_path, name):
    path, read = READERS[name](tmp_path)
    content, wanted = path.read_bytes(), str(read())
    path.write_bytes(BOM + content.replace(b"\n", b"\r\n"))
    assert str(read()) == wanted
