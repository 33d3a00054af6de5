"""Features of images: what is computed again, what is not, and what is refused."""

from __future__ import annotations

import gzip
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel, ResNetConfig, ResNetModel, ViTConfig, ViTModel

from fairseq_ext.captions import extract as extraction
from fairseq_ext.captions.extract import ExtractOptions, extract
from fairseq_ext.captions.generate import GenerateOptions, _images
from fairseq_ext.captions.networks import LITE0
from fairseq_ext.captions.prepare import PrepareOptions, prepare
from fairseq_ext.captions.prepare import _extractor as made_by
from fairseq_ext.captions.projection import Projection
from fairseq_ext.captions.sources import Source
from fairseq_ext.captions.store import Preparation, Split
from fairseq_ext.regions.feature_files import FeatureSet, open_features
from fairseq_ext.training.errors import CheckpointError, DataError, OptionError
from tests.helpers import require_data

COLOURS = {"red.png": (255, 0, 0), "green.jpg": (0, 255, 0), "blue.png": (0, 0, 255), "grey.png": (128, 128, 128)}


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    (folder / "more").mkdir(parents=True)
    for number, (name, colour) in enumerate(COLOURS.items()):
        Image.new("RGB", (40 + 20 * number, 50), colour).save(folder / ("more" if number else ".") / name)
    return folder


@pytest.fixture
def network(tmp_path):
    torch.manual_seed(0)
    sizes = {"embedding_size": 4, "hidden_sizes": [4, 6], "depths": [1, 1], "layer_type": "basic"}
    ResNetModel(ResNetConfig(**sizes)).save_pretrained(tmp_path / "resnet")
    return tmp_path / "resnet"


def options(folder, model, **more) -> ExtractOptions:
    given = {"image_folder": str(folder), "out": str(folder.parent / "out.npz"), "network": str(model), "size": 32}
    return ExtractOptions(**given | {"batch_size": 3, "device": "cpu"} | more)


def test_features_of_images(images, network):
    assert extract(options(images, network)).endswith("out.npz: features 4 x 4 x 4 x 6")
    with np.load(images.parent / "out.npz") as archive:
        features, names, sizes = archive["features"], archive["names"], archive["sizes"]
    assert features.dtype == np.float16 and sorted(names) == sorted(COLOURS)
    assert {name: size for name, size in zip(names, sizes.tolist(), strict=True)}["red.png"] == [40, 50]
    assert not (images.parent / "out.npz.parts").exists()


def test_features_say_which_network_made_them(images, network):
    """By its weights, whatever the folder is called."""

    def extractor(model, **more):
        extract(options(images, model, **more))
        return open_features(images.parent / "out.npz").extractor

    first = extractor(network)
    copied = shutil.copytree(network, network.with_name("copy"))
    name, checksum = extractor(copied).split()
    assert name == "copy" and first == f"resnet {checksum}"
    weights = load_file(copied / "model.safetensors")
    weights["embedder.embedder.convolution.weight"] *= 1.5
    save_file(weights, copied / "model.safetensors", {"format": "pt"})
    others = [extractor(copied), extractor(network, size=64), extractor(network, pca=2)]
    assert len({other.split()[1] for other in others} | {checksum}) == 4
    assert extractor(network, pca_file=str(images.parent / "out.pca.npz")).split()[1] == others[2].split()[1]
    files = [FeatureSet(other, (), lambda wanted: iter(()), other) for other in (first, first, others[0], "")]
    assert made_by(Source({}, {}, files[:2])) == first and made_by(Source({}, {}, files[2:])) == ""
    with pytest.raises(DataError, match=r"features of different networks: those of copy .*, those of resnet"):
        made_by(Source({}, {}, files))


def test_an_image_is_put_on_a_grey_square(images):
    square, size = extraction._square(images / "red.png", 50)
    assert size == (40, 50) and square.shape == (50, 50, 3)
    assert (square[:, 5:45] == [255, 0, 0]).all() and (square[:, [*range(5), *range(45, 50)]] == 128).all()
    clear = Image.new("RGBA", (20, 40), (255, 0, 0, 0))
    clear.putpixel((19, 39), (0, 255, 0, 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # taken with the camera on its side
    clear.save(images / "clear.png", exif=exif)
    square, size = extraction._square(images / "clear.png", 40)
    assert size == (40, 20) and square[29, 0].tolist() == [0, 255, 0] and (square[:25] == 128).all()


def test_a_killed_extraction_is_resumed(images, network, monkeypatch):
    square, seen = extraction._square, []

    def killed(path, size):
        seen.append(path.name)
        if len(seen) == 4:
            raise KeyboardInterrupt
        return square(path, size)

    monkeypatch.setattr(extraction, "_square", killed)
    with pytest.raises(KeyboardInterrupt):
        extract(options(images, network))
    assert not (images.parent / "out.npz").exists()
    with pytest.raises(OptionError, match=r"out.npz.parts was extracted from other images or with other options"):
        extract(options(images, network, size=64))
    extract(options(images, network))
    assert seen[4:] == seen[3:4], "the first batch was there"
    resumed = (images.parent / "out.npz").read_bytes()
    seen[:] = [""] * 9
    extract(options(images, network))
    assert len(seen) == 9 + 4
    with np.load(images.parent / "out.npz") as archive:
        assert np.isfinite(archive["features"]).all() and len(resumed) == (images.parent / "out.npz").stat().st_size


def test_components_are_of_the_images_that_are_named_and_can_be_used_again(images, network):
    lines = images.parent / "train.jsonl"
    lines.write_text('{"image": "more/green.jpg", "captions": {"en": "a", "de": "b"}}\n{"image_id": "red"}\n')
    extract(options(images, network))
    with np.load(images.parent / "out.npz") as archive:
        whole = dict(zip(archive["names"].tolist(), archive["features"].astype(np.float64), strict=True))
    report = extract(options(images, network, pca=2, pca_images=str(lines)))
    fitted = np.concatenate([whole[name].reshape(-1, 6) for name in ("green.jpg", "red.png")])
    _, values, vectors = np.linalg.svd(fitted - fitted.mean(0), full_matrices=False)
    assert report.endswith(f", {(values[:2] ** 2).sum() / (values**2).sum():.0%} of the variance")
    components = Projection.load(images.parent / "out.pca.npz")
    assert abs(components.components @ vectors[:2].T).round(3).tolist() == np.eye(2).tolist()
    with np.load(images.parent / "out.npz") as archive:
        blue = archive["features"][archive["names"].tolist().index("blue.png")]
    assert blue == pytest.approx(components(whole["blue.png"]), abs=2e-2)
    extract(options(images, network, out=str(images.parent / "b.npz"), pca_file=str(images.parent / "out.pca.npz")))
    with np.load(images.parent / "b.npz") as archive:
        assert (archive["features"][archive["names"].tolist().index("blue.png")] == blue).all()


def test_the_tokens_of_a_vision_transformer_are_a_grid(images, tmp_path):
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    ViTModel(ViTConfig(**sizes, image_size=32, patch_size=8)).save_pretrained(tmp_path / "vit")
    assert extract(options(images, tmp_path / "vit")).endswith("features 4 x 4 x 4 x 8")
    with pytest.raises(CheckpointError, match="vit: gives no features of"):
        extract(options(images, tmp_path / "vit", size=64, out=str(tmp_path / "other.npz")))


def broken(images):
    (images / "broken.jpg").write_bytes(b"\xff\xd8\xff nothing")


def twice(images):
    Image.new("RGB", (9, 9)).save(images / "green.png")


@pytest.mark.parametrize(
    ("change", "more", "error", "message"),
    [
        (broken, {}, DataError, "broken.jpg: cannot be read as an image"),
        (twice, {}, DataError, r"green\.(jpg|png) and .*green\.(jpg|png) have the same name"),
        (None, {"image_folder": "nowhere"}, OptionError, "IMAGE_FOLDER: nowhere is not a folder"),
        (None, {"network": "nowhere"}, OptionError, "--network: 'nowhere' is neither efficientnet-lite0 nor a folder"),
        (None, {"pca": 7}, OptionError, "--pca 7: at most 6"),
        (None, {"pca": 2, "pca_file": "x"}, OptionError, "--pca 2: has no effect with --pca-file x"),
        (None, {"pca_images": "x"}, OptionError, "--pca-images x: has no effect without --pca"),
        (None, {"out": "x.npy"}, OptionError, "OUT must end in .npz, got x.npy"),
    ],
)
def test_refused(images, network, change, more, error, message):
    if change:
        change(images)
    with pytest.raises(error, match=message) as refusal:
        extract(options(images, network, **more))
    assert "\n" not in str(refusal.value)
    assert not list(images.parent.glob("*.npz"))


def test_features_beyond_the_numbers_of_the_file_are_refused(images, network, monkeypatch):
    monkeypatch.setattr(extraction, "load_network", lambda *_: lambda batch: torch.full((len(batch), 6, 2, 2), 1e9))
    message = r"one of the \d images from .*blue.png on has features beyond the range of float16$"
    with pytest.raises(DataError, match=message):
        extract(options(images, network))


def test_other_models_and_empty_folders_are_refused(images, tmp_path):
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    BertModel(BertConfig(**sizes, vocab_size=9)).save_pretrained(tmp_path / "bert")
    with pytest.raises(CheckpointError, match="bert: gives no features of"):
        extract(options(images, tmp_path / "bert"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"empty: no config.json in it"):
        extract(options(images, tmp_path / "empty", out=str(tmp_path / "other.npz")))
    with pytest.raises(OptionError, match="IMAGE_FOLDER: no image in"):
        extract(options(tmp_path / "empty", LITE0))


@pytest.mark.parametrize("pca", [0, 2])
def test_a_model_that_captions_images_reads_the_vectors_of_the_file(images, network, pca):
    extract(options(images, network, pca=pca))
    with np.load(images.parent / "out.npz") as archive:
        features, names = torch.from_numpy(archive["features"]).float(), archive["names"]
        extractor = str(archive["extractor"])
    read_by = Preparation(kind="grid", feature_dim=pca or 6, grid=(4, 4), max_regions=16, extractor=extractor)
    components = {"pca_file": str(images.parent / "out.pca.npz")} if pca else {}
    place = {"model": "m", "data": str(images), "network": str(network), "size": 32, "device": "cpu"}
    asked = GenerateOptions(**place, batch_size=3, **components)
    ids, read = _images(asked, SimpleNamespace(preparation=read_by))
    assert ids == [name.rpartition(".")[0] for name in names]
    rows = [row["features"] for row in [*read(range(3)), *read(range(3, 4))]]
    assert torch.equal(torch.stack(rows), features.flatten(1, 2))


def test_images_with_captions_are_enough(tmp_path):
    source = require_data("captioning/tuxpaint_stamps")
    pytest.importorskip("efficientnet_lite_pytorch")
    (tmp_path / "images").mkdir()
    for split in ("train", "valid", "test"):
        line = gzip.open(source / f"{split}.jsonl.gz", "rt").readline()
        (tmp_path / f"{split}.jsonl").write_text(line)
        image = json.loads(line)["image"]
        (tmp_path / image).write_bytes((source / image).read_bytes())
    extract(ExtractOptions(image_folder=str(tmp_path / "images"), out=str(tmp_path / "grid_features.npz"), pca=8))
    prepare(PrepareOptions(source=(str(tmp_path),), data=str(tmp_path / "data"), language="de", min_count=1))
    preparation = Preparation.load(tmp_path / "data")
    assert (preparation.kind, preparation.grid, preparation.feature_dim) == ("grid", (7, 7), 8)
    split = Split(tmp_path / "data", "test", preparation)
    assert np.isfinite(split.features[:]).all() and split.features[:].std() > 0.1
    # Cells are of the square around the image.
    width, height = split.sizes[0]
    left, top, right, bottom = split.boxes[0, 0], split.boxes[0, 1], split.boxes[-1, 2], split.boxes[-1, 3]
    assert right - left == bottom - top == max(width, height) and left + right == pytest.approx(width)
