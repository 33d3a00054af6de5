"""Image files are the same to all that read them, and one that cannot be read is one line."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest
from PIL import Image

from fairseq_ext.captions.drawing import embedded, find_images
from fairseq_ext.captions.extract import _square, image_files
from fairseq_ext.regions.names import image_key
from fairseq_ext.training.errors import DataError, OptionError
from fairseq_ext.training.images import ENDINGS, is_image_file, open_image
from tests.helpers import ROOT
from tests.test_floors import SOURCES
from vision_language.image_classification.image_files import read_unlabelled


@pytest.mark.parametrize("ending", [*ENDINGS, ENDINGS[0].upper()])
def test_all_readers_know_every_ending(tmp_path, ending):
    path = tmp_path / f"31{ending}"
    Image.new("L", (4, 4)).save(path)
    (tmp_path / "31.txt").write_text("no image")
    (tmp_path / "folder.png").mkdir()
    assert is_image_file(path) and image_key(path.name) == "31"
    assert image_files(tmp_path) == [path] and find_images(tmp_path, ["31"]) == {"31": path}
    assert read_unlabelled(tmp_path).images.paths == [path]


READERS = {
    "captions extract": lambda path: _square(path, 8),
    "captions page": embedded,
    "images, header": read_unlabelled,
    "images, pixels": lambda path: read_unlabelled(path).images[0],
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("damage", ["text", "cut"])
def test_what_is_no_image_is_named_in_one_line(tmp_path, reader, damage):
    path = tmp_path / "a.png"
    Image.effect_noise((64, 64), 50).save(path)
    path.write_bytes(b"text\n" if damage == "text" else path.read_bytes()[:700])
    if (reader, damage) == ("images, header", "cut"):
        return
    with pytest.raises(DataError, match=r"a\.png: cannot be read as an image: \S") as refusal:
        READERS[reader](tmp_path if reader.startswith("images") else path)
    assert "\n" not in str(refusal.value)


def test_without_pillow_an_image_asks_for_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(OptionError, match=r"^a\.png: images need Pillow: pip install pillow$"), open_image("a.png"):
        pass


def test_no_other_file_lists_endings_or_opens_images():
    """But for the plots, which open what they have drawn."""
    listing, opening = set(), set()
    for path in SOURCES:
        name, nodes = path.relative_to(ROOT).as_posix(), list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        listing |= {name for node in nodes if isinstance(node, ast.Constant) and node.value in (".jpg", ".jpeg")}
        opening |= {name for node in nodes if isinstance(node, ast.Attribute) and ast.unparse(node) == "Image.open"}
    own = Path("fairseq_ext/training")
    assert listing == {f"{own}/images.py"} and opening == {f"{own}/images.py", f"{own}/plotting.py"}
