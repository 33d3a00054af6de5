"""Every form of images that is read, and every form damaged: refused with one line that names the file."""

from __future__ import annotations

import gzip
import os
import pickle
import struct

import numpy as np
import pytest
from PIL import Image

from fairseq_ext.training.errors import InputError
from tests.helpers import require_data
from vision_language.image_classification.image_files import read_split, read_unlabelled
from vision_language.image_classification.image_set import ImageFiles

PIXELS = np.arange(5 * 4 * 4, dtype=np.uint8).reshape(5, 4, 4)
LABELS = np.array([0, 1, 2, 1, 0])


def idx(array: np.ndarray) -> bytes:
    header = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(np.uint8).tobytes()


def write_idx(folder, packed: bool = False, place: str = ""):
    (folder / place).mkdir(parents=True, exist_ok=True)
    for stem in ("train", "t10k"):
        for kind, array in (("images-idx3", PIXELS), ("labels-idx1", LABELS)):
            path = folder / place / f"{stem}-{kind}-ubyte"
            if packed:
                path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(idx(array)))
            else:
                path.write_bytes(idx(array))
    return folder


def write_npz(folder, **arrays):
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "val", "test"):
        np.savez(folder / f"{split}.npz", **(arrays or {"x": PIXELS, "y": LABELS}))
    return folder


def write_cifar(folder):
    folder.mkdir(parents=True, exist_ok=True)
    rows = np.arange(4 * 3072, dtype=np.int64).astype(np.uint8).reshape(4, 3072)
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
        (folder / name).write_bytes(pickle.dumps({"data": rows, "labels": [0, 1, 1, 0]}, protocol=2))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": ["cat", "dog"]}, protocol=2))
    return folder


def write_images(folder, mode: str = "L"):
    for split in ("train", "test"):
        for name, count in (("cat", 2), ("dog", 3)):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                Image.new(mode, (6, 4), 40 * number).save(folder / split / name / f"{number}.png")
    return folder


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("place", ["", "raw", "MNIST/raw"])
def test_idx_files(tmp_path, packed, place):
    images = read_split(write_idx(tmp_path, packed, place), "train")
    assert np.array_equal(images.images, PIXELS) and images.labels.tolist() == LABELS.tolist()
    assert images.classes == ("0", "1", "2") and images.counts == [2, 2, 1] and images.channels == 1
    assert read_split(tmp_path, "valid") is None


def test_npz_files_of_splits(tmp_path):
    write_npz(tmp_path)
    assert read_split(tmp_path, "valid").origin.endswith("val.npz")
    assert np.array_equal(read_split(tmp_path, "test").images, PIXELS)


def test_one_npz_file_of_all_splits(tmp_path):
    path = tmp_path / "all.npz"
    np.savez(path, x_train=PIXELS, y_train=LABELS, x_test=PIXELS[..., None].repeat(3, -1), y_test=LABELS)
    for source in (path, tmp_path):
        assert read_split(source, "train").channels == 1
        assert read_split(source, "test").channels == 3
        assert read_split(source, "valid") is None


def test_cifar_batches(tmp_path):
    write_cifar(tmp_path / "cifar-10-batches-py")
    images = read_split(tmp_path, "train")
    assert images.images.shape == (20, 32, 32, 3) and images.classes == ("cat", "dog")
    # A row is the red, then the green, then the blue plane.
    assert images.images[0, 0, :3].tolist() == [[0, 0, 0], [1, 1, 1], [2, 2, 2]]
    assert len(read_split(tmp_path, "test")) == 4


def test_images_of_two_data_sets_are_not_mixed(tmp_path):
    """Although one of them has only the training images."""
    write_idx(tmp_path, False, "MNIST/raw")
    for file in (write_idx(tmp_path, True, "FashionMNIST/raw") / "FashionMNIST" / "raw").glob("t10k-*"):
        file.unlink()
    with pytest.raises(InputError, match=r"both .*FashionMNIST/raw and .*/MNIST/raw hold images: name one of them"):
        read_split(tmp_path, "train")
    assert len(read_split(tmp_path / "MNIST", "test")) == len(PIXELS)
    write_cifar(tmp_path / "small" / "cifar-10-batches-py")
    write_cifar(tmp_path / "small" / "cifar-100-python")
    with pytest.raises(InputError, match=r"both .*cifar-10-batches-py and .*cifar-100-python hold images"):
        read_split(tmp_path / "small", "train")


def test_a_batch_that_is_missing_is_named(tmp_path):
    (write_cifar(tmp_path) / "data_batch_3").unlink()
    with pytest.raises(InputError, match=r"has no data_batch_3$"):
        read_split(tmp_path, "train")


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_folders_of_images(tmp_path, mode):
    images = read_split(write_images(tmp_path, mode), "train")
    assert images.classes == ("cat", "dog") and images.labels.tolist() == [0, 0, 1, 1, 1]
    assert images.images[4].shape == ((4, 6) if mode == "L" else (4, 6, 3))
    part = images.subset([3, 0])
    assert part.labels.tolist() == [1, 0] and isinstance(part.images, ImageFiles)
    assert np.array_equal(part.images[0], images.images[3])


def test_images_below_a_class_are_of_it_and_other_files_are_named(tmp_path, capsys):
    write_images(tmp_path)
    below = tmp_path / "train" / "cat" / "session"
    below.mkdir()
    Image.new("L", (6, 4), 7).save(below / "9.JPEG")
    for name in ("notes.txt", ".DS_Store"):
        (below / name).write_text("x")
    (tmp_path / "train" / "cat" / "gone.png").symlink_to("nowhere")
    assert read_split(tmp_path, "train").counts == [3, 3]
    assert "train/cat: 2 of 5 files are left, such as gone.png: none of .png, " in capsys.readouterr().err


def test_images_are_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.new("RGB", (6, 4)).save(tmp_path / "photo.jpg", exif=exif)
    assert ImageFiles([tmp_path / "photo.jpg"], grey=False)[0].shape == (6, 4, 3)


@pytest.mark.parametrize("grey", [True, False])
def test_grey_of_16_bits_keeps_its_shades(tmp_path, grey):
    """In either order of bytes; an image of 8 bits with the same shades is the same."""
    pixels = np.linspace(0, 65535, 16).reshape(4, 4)
    Image.fromarray(pixels.astype(np.uint16)).save(tmp_path / "png.png")
    Image.frombytes("I;16B", (4, 4), pixels.astype(">u2").tobytes()).save(tmp_path / "big.tif")
    expected = (pixels.astype(int) // 256).tolist()
    for name in ("png.png", "big.tif"):
        array = ImageFiles([tmp_path / name], grey)[0]
        assert array.dtype == np.uint8 and (array if grey else array[..., 1]).tolist() == expected


@pytest.mark.parametrize(("kind", "mode"), [(np.int32, "I"), (np.float32, "F")])
def test_images_of_numbers_without_a_scale_are_refused(tmp_path, kind, mode):
    place = tmp_path / "test" / "cat"
    place.mkdir(parents=True)
    Image.fromarray(np.full((4, 4), 300, kind)).save(place / "1.tif")
    with pytest.raises(InputError, match=rf"1\.tif: its pixels are numbers without a scale \(mode {mode} of Pillow\)"):
        read_split(tmp_path, "test").images[0]


def test_folders_whose_names_are_numbers_are_sorted_by_number(tmp_path):
    for name in map(str, range(12)):
        (tmp_path / "test" / name).mkdir(parents=True)
        Image.new("L", (3, 3), int(name)).save(tmp_path / "test" / name / "x.png")
    images = read_split(tmp_path, "test")
    assert images.classes == tuple(map(str, range(12))) and images.images[10].max() == 10


def test_images_of_any_kind_below_a_folder(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    Image.new("L", (3, 3), 7).save(tmp_path / "a" / "b" / "x.PNG")
    images = read_unlabelled(tmp_path)
    assert len(images) == 1 and images.images[0].tolist() == [[7] * 3] * 3
    (tmp_path / "a" / "b" / "x.PNG").unlink()
    with pytest.raises(InputError, match="holds no idx files"):
        read_unlabelled(tmp_path)


def test_the_digest_tells_pixels_labels_and_files(tmp_path):
    first = read_split(write_npz(tmp_path / "1"), "train")
    changed = PIXELS.copy()
    changed[0, 0, 0] += 1
    others = [
        read_split(write_npz(tmp_path / "2", x=changed, y=LABELS), "train"),
        read_split(write_npz(tmp_path / "3", x=PIXELS, y=np.roll(LABELS, 1)), "train"),
        read_split(write_images(tmp_path / "4"), "train"),
    ]
    assert len({first.digest(), *(images.digest() for images in others)}) == 4
    again = read_split(write_npz(tmp_path / "5"), "train")
    assert first.digest() == again.digest()
    images = others[-1].digest()
    Image.new("L", (6, 4), 99).save(tmp_path / "4" / "train" / "cat" / "0.png")
    assert read_split(tmp_path / "4", "train").digest() != images


DAMAGES = {
    "empty": lambda content: b"",
    "half": lambda content: content[: len(content) // 2],
    "tail": lambda content: content[:-3],
    "noise": lambda content: bytes(range(256)) * 4,
    "flipped": lambda content: bytes(255 - byte for byte in content[:16]) + content[16:],
    "text": lambda content: b"hello",
}
FORMS = {
    "idx": (write_idx, "train-images-idx3-ubyte"),
    "idx labels": (write_idx, "train-labels-idx1-ubyte"),
    "idx.gz": (lambda folder: write_idx(folder, packed=True), "train-images-idx3-ubyte.gz"),
    "npz": (write_npz, "train.npz"),
    "cifar": (write_cifar, "data_batch_1"),
    "cifar names": (write_cifar, "batches.meta"),
    "image": (write_images, "train/dog/2.png"),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files_are_refused_by_name(tmp_path, form, damage):
    if (form, damage) == ("image", "tail"):
        pytest.skip("a PNG without its last bytes has all of its pixels")
    write, name = FORMS[form]
    path = write(tmp_path) / name
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    with pytest.raises(InputError) as refusal:
        images = read_split(tmp_path, "train")
        for index in range(len(images)):  # images are read when they are asked for
            images.images.__getitem__(index)
    assert path.name.partition(".")[0] in str(refusal.value) and "\n" not in str(refusal.value)


class Evil:
    def __reduce__(self):
        return os.system, ("touch evil",)


def test_a_pickle_that_would_run_code_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_cifar(tmp_path)
    (tmp_path / "data_batch_1").write_bytes(pickle.dumps({"data": Evil(), "labels": []}))
    with pytest.raises(InputError, match=r"data_batch_1: refused: it holds posix\.system, which could run code"):
        read_split(tmp_path, "train")
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": PIXELS.astype(float), "y": LABELS}, r"x must be uint8 \(N, H, W\) or \(N, H, W, 3\), got float64"),
        ({"x": PIXELS[0], "y": LABELS}, "x must be uint8"),
        ({"x": PIXELS, "y": LABELS[:3]}, r"y must be 5 whole numbers, got int64 \(3,\)"),
        ({"x": PIXELS, "y": LABELS / 2}, "y must be 5 whole numbers, got float64"),
        ({"x": PIXELS, "y": LABELS - 1}, "labels from -1 to 1, of 2 classes"),
        ({"x": PIXELS, "y": LABELS + 10**9}, "y: class number 1000000002; they count from 0 to 999999 at most"),
        ({"x": PIXELS[:0], "y": LABELS[:0]}, "there is no image in it"),
        ({"x": PIXELS}, "has no array y, it has x"),
        ({"x": np.array([object()] * 5), "y": LABELS}, "not an npz of number arrays"),
    ],
)
def test_refused_arrays(tmp_path, arrays, message):
    with pytest.raises(InputError, match=f"train.npz: .*{message}"):
        read_split(write_npz(tmp_path, **arrays), "train")


def test_refused_folders(tmp_path):
    with pytest.raises(InputError, match=r"--data: .*absent does not exist"):
        read_split(tmp_path / "absent", "train")
    with pytest.raises(InputError, match="holds no idx files, CIFAR batches"):
        read_split(tmp_path, "train")
    write_idx(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(LABELS[:2]))
    with pytest.raises(InputError, match="2 labels for the 5 images of train-images-idx3-ubyte"):
        read_split(tmp_path, "train")
    (tmp_path / "train-labels-idx1-ubyte").unlink()
    with pytest.raises(InputError, match="its labels, train-labels-idx1-ubyte, are not beside it"):
        read_split(tmp_path, "train")


def test_the_real_mnist():
    folder = require_data("images/mnist")
    train, test = (read_split(folder / "MNIST", split) for split in ("train", "test"))
    assert (len(train), len(test), train.counts[0], test.counts[9]) == (60_000, 10_000, 5923, 1009)
