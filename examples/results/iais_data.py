"""The data sets of the retrieval tables, and what each is compared with that has no network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import RidgeCV

from fairseq_ext.regions.boxes import grid_cells
from fairseq_ext.training.errors import DataError
from fairseq_ext.training.files import read_json_lines, replacing
from fairseq_ext.training.options import SPLITS
from fairseq_ext.training.settings import digest, file_digest
from vision_language.iais.data import RegionData
from vision_language.iais.evaluate import recall_at_k
from vision_language.iais.search import region_names

__all__ = ["DATASETS", "Dataset", "class_names", "pooled_vectors", "region_folder"]

GRID = 7
STAMPS = "captioning/tuxpaint_stamps"
PIXELS = """Regions are the 7 x 7 cells of EfficientNet-Lite0's last map, 128 principal components each, of images of
single things on white ground, with one caption each in {language}. The 100 test captions are 84 different ones, which
bounds the recall of all rows."""


class Dataset(NamedTuple):
    """Where its files are, what its regions are, and how it is trained beside what all have in common."""

    source: str
    regions: str
    settings: dict[str, Any]
    language: str = ""


DATASETS = {
    "coco_val2017_regions": Dataset(
        "coco_val2017_regions",
        "Regions are boxes drawn and labelled by people, without pixels: their features are the class and the box.",
        {
            **{"max_regions": 20, "batch_size": 16, "negative_size": 47, "random_steps": 100},
            **{"num_steps": 1000, "validate_every": 500},
        },
    ),
    **{
        f"tuxpaint_stamps_{language}": Dataset(
            STAMPS,
            PIXELS.format(language=name),
            {"batch_size": 8, "negative_size": 7, "random_steps": 400, "num_steps": 800, "validate_every": 100},
            language,
        )
        for language, name in (("en", "English"), ("de", "German"))
    },
}


def region_folder(name: str, data: Path, out: Path) -> Path:
    """The folder of a data set in the region format; of grids it is written once, into ``out``.

    Raises:
        DataError: the data set is not there.
    """
    dataset = DATASETS[name]
    source = data / dataset.source
    if not source.is_dir():
        raise DataError(f"--data: {source} is not a folder with {{train,valid,test}}.jsonl.gz")
    return _grids(source, dataset.language, out / name) if dataset.language else source


def _grids(source: Path, language: str, target: Path) -> Path:
    files = {split: source / f"{split}.jsonl.gz" for split in SPLITS}
    archive = source / "grid_features.npz"
    key = digest(*map(file_digest, (*files.values(), archive)), language)
    target = target.with_name(f"{target.name}-{key[:8]}")
    if target.is_dir():
        return target
    with np.load(archive, allow_pickle=False) as stored:
        features = dict(zip(stored["names"].tolist(), stored["features"], strict=True))
    with replacing(target) as partial:
        partial.mkdir(parents=True, exist_ok=True)
        kept = {}
        for split, path in files.items():
            lines = []
            for image, _ in read_json_lines(path):
                number, size = Path(image["image"]).name, (image["width"], image["height"])
                kept[number] = features[number]
                boxes = grid_cells(GRID, GRID, *size).tolist()
                record = {"image_id": number, "width": size[0], "height": size[1], "boxes": boxes}
                lines.append(json.dumps({**record, "captions": [image["captions"][language]]}, ensure_ascii=False))
            (partial / f"{split}.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        np.savez(partial / "features.npz", **kept)
    return target


def class_names(train: RegionData, test: RegionData) -> dict[str, float]:
    """Recalls without learning: TF-IDF of letter n-grams, of captions and of the different classes of an image."""

    def names(data: RegionData) -> list[str]:
        return [" ".join(sorted(set(region_names(data, image)))) for image in data.images]

    vectorizer = _letters().fit(names(train))
    return _recalls(vectorizer.transform(test.captions), vectorizer.transform(names(test)).toarray(), test)


def pooled_vectors(train: RegionData, test: RegionData) -> dict[str, float]:
    """Recalls of a linear map from the mean vector of an image to TF-IDF of letter n-grams of its caption."""

    def means(data: RegionData) -> np.ndarray:
        return np.stack([image.features().mean(0).numpy() for image in data.images])

    vectorizer = _letters().fit(train.captions)
    targets = np.zeros((len(train.images), len(vectorizer.vocabulary_)))
    np.add.at(targets, train.text_to_image.numpy(), vectorizer.transform(train.captions).toarray())
    ridge = RidgeCV(alphas=np.logspace(-1, 4, 11)).fit(means(train), targets)
    guessed = ridge.predict(means(test))
    guessed /= np.linalg.norm(guessed, axis=1, keepdims=True)
    return _recalls(vectorizer.transform(test.captions), guessed, test)


def _letters() -> TfidfVectorizer:
    return TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5))


def _recalls(captions: Any, images: np.ndarray, test: RegionData) -> dict[str, float]:
    return recall_at_k(torch.from_numpy(np.asarray(captions @ images.T)), test.text_to_image)
