"""What others publish of four images: captions, splits, boxes and features."""

from __future__ import annotations

import base64
import json

import numpy as np

IDS = (1, 22, 333, 4444)
SPLIT_OF = dict(zip(IDS, ("train", "restval", "val", "test"), strict=True))
BOXES = np.array([[7, 7, 7, 9], [0, 0, 50, 40], [10, 5, 120, 90]], dtype=np.float32)
"""The first has no size; the third reaches out of an image of 100 x 80."""
FEATURES = np.arange(12, dtype=np.float32).reshape(3, 4)


def dump(path, value):
    path.write_text(json.dumps(value))
    return path


def karpathy_file(folder, *captions):
    images = [
        {
            "cocoid": number,
            "filename": f"COCO_val2014_{number:012}.jpg",
            "split": split,
            "sentences": [{"raw": text} for text in captions or (f"A dog {number}.", " ... ")],
        }
        for number, split in SPLIT_OF.items()
    ]
    return dump(folder / "dataset_coco.json", {"images": images})


def coco_captions_file(folder):
    annotations = [{"image_id": n, "caption": f"{word} {n}\n"} for n in IDS for word in ("cat", "dog")]
    images = [{"id": n, "width": 100, "height": 80} for n in IDS]
    return dump(folder / "captions.json", {"annotations": annotations, "images": images})


def instances_file(folder):
    sides = BOXES.copy()
    sides[:, 2:] -= sides[:, :2]
    annotations = [
        {"image_id": n, "bbox": box, "category_id": category}
        for n in IDS
        for box, category in zip(sides.tolist(), (3, 90, 3), strict=True)
    ]
    annotations.append({"image_id": 1, "bbox": [0, 0, 9, 9], "category_id": 3, "iscrowd": 1})
    return dump(
        folder / "instances.json",
        {
            "images": [{"id": n, "width": 100, "height": 80} for n in (*IDS, 55555)],
            "annotations": annotations,
            "categories": [{"id": 90, "name": "toothbrush"}, {"id": 3, "name": "car"}],
        },
    )


def encoded(array):
    return base64.b64encode(np.asarray(array, dtype="<f4").tobytes()).decode()


def tsv(path, ids=IDS, confidence=None):
    rows = []
    for number in ids:
        row = [str(number), "100", "80", "3", encoded(BOXES), encoded(FEATURES + number)]
        if confidence is not None:
            objects = encoded(np.zeros(3))
            row = [row[0], "80", "100", objects, encoded(confidence), objects, objects, *row[3:]]
        rows.append("\t".join(row))
    path.write_text("\n".join(rows) + "\n")
    return path


def uniter_folder(folder, ids=IDS):
    folder.mkdir()
    fractions = np.concatenate([BOXES / [100, 80, 100, 80], np.zeros((3, 2))], 1).astype(np.float16)
    for number in ids:
        np.savez(
            folder / f"flickr30k_{number:012}.npz",
            features=(FEATURES + number).astype(np.float16),
            norm_bb=fractions,
            conf=np.array([[0.5], [0.3], [0.9]], dtype=np.float16),
        )
    return folder


def detectron_folder(folder, ids=IDS, turned=False):
    """What bottom-up-attention.pytorch writes, its pickled ``info`` too."""
    folder.mkdir()
    for number in ids:
        features = FEATURES + number
        np.savez(
            folder / f"COCO_val2014_{number:012}.jpg.npz",
            x=features.T if turned else features,
            bbox=BOXES,
            num_bbox=3,
            image_h=80,
            image_w=100,
            info=np.array({"objects_conf": [1]}, dtype=object),
        )
    return folder


def vectors_folder(folder, ids=IDS):
    """What ImageCaptioning.pytorch reads: vectors in one folder, boxes in another."""
    folder = folder.with_name(f"{folder.name}_att")
    boxes = folder.with_name(folder.name.replace("_att", "_box"))
    folder.mkdir()
    boxes.mkdir()
    for number in ids:
        np.savez(folder / f"{number}.npz", feat=FEATURES + number)
        np.save(boxes / f"{number}.npy", BOXES)
    return folder


def grids_folder(folder, ids=IDS):
    """An npy for each image, of a grid of 1 x 3."""
    folder.mkdir()
    for number in ids:
        np.save(folder / f"{number}.npy", (FEATURES + number)[None])
    return folder


def grids_archive(path, ids=IDS):
    """The same, in one npz."""
    path = path.with_suffix(".npz")
    names = np.array([f"COCO_val2014_{number:012}.jpg" for number in ids])
    np.savez(path, features=np.stack([FEATURES + number for number in ids]), names=names)
    return path
