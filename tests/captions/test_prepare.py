"""What is prepared is what the source holds."""

from __future__ import annotations

import json

import numpy as np
import pytest

from fairseq_ext.captions.store import KINDS, Preparation, Split
from tests.captions.pictures import COLUMNS, ROWS, SIZE, THINGS, prepared


@pytest.mark.parametrize("kind", KINDS)
def test_a_prepared_split_is_its_source(tmp_path, kind):
    from fairseq.data import Dictionary
    from fairseq.data.indexed_dataset import MMapIndexedDataset

    data = prepared(tmp_path, kind)
    preparation = Preparation.load(data)
    assert (preparation.kind, preparation.feature_dim) == (kind, 0 if kind == "classes" else SIZE)
    assert preparation.num_classes == (len(THINGS) if kind == "classes" else 0)
    assert preparation.grid == ((ROWS, COLUMNS) if kind == "grid" else ())
    dictionary = Dictionary.load(str(data / "dict.txt"))
    for name in ("train", "valid", "test"):
        lines = [json.loads(line) for line in (tmp_path / "source" / f"{name}.jsonl").read_text().splitlines()]
        split = Split(data, name, preparation)
        assert split.image_ids.tolist() == [str(line["image_id"]) for line in lines]
        assert split.references == [line["captions"] for line in lines]
        assert split.sizes.tolist() == [[120, 80]] * len(lines)
        targets = MMapIndexedDataset(str(data / f"{name}.captions"))
        assert len(targets) == split.caption_offsets[-1] == len(lines) * (2 if name == "train" else 1)
        for image, line in enumerate(lines):
            rows = split.rows(image)
            if kind == "grid":
                assert split.boxes[rows][[0, -1]].tolist() == [[0, 0, 40, 40], [80, 40, 120, 80]]
            else:
                assert split.boxes[rows].tolist() == [box[:4] for box in line["boxes"]]
            if kind == "classes":
                assert split.labels[rows].tolist() == [box[4] for box in line["boxes"]]
            if kind == "regions":
                features = np.load(tmp_path / "source" / "features" / f"{line['image_id']}.npy")
                assert (split.features[rows] == features.astype(np.float16)).all()
            words = dictionary.string(targets[int(split.caption_offsets[image])])
            assert words == line["captions"][0].rstrip(".").lower()
