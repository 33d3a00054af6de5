"""``fairseq-ext captions page``: one HTML file with images, captions, and where the model looked."""

from __future__ import annotations

import base64
import io
import json
from html.parser import HTMLParser

import pytest
from PIL import Image

from fairseq_ext.captions.drawing import embedded
from fairseq_ext.captions.page import PageOptions, write_page
from fairseq_ext.training.errors import InputError
from tests.captions.splits import REFERENCES, write_generated, write_split

CAPTIONS = ["a dog is running", "two <unk> cats", "", "a boat near a tree"]
VOID = {"meta", "input", "image", "rect"}


class Page(HTMLParser):
    """The elements of a page and their text; fails where a tag is not closed."""

    def __init__(self, path):
        super().__init__()
        self.open, self.elements, self.texts = [], [], []
        self.feed(path.read_text(encoding="utf-8"))
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    def of(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture
def data(tmp_path):
    return write_split(tmp_path / "data", {**REFERENCES, "22": ["Two cats & <b>a mat</b>."]})


@pytest.fixture
def generated(tmp_path):
    return write_generated(tmp_path / "gen.txt", CAPTIONS)


def paged(data, generated, out="page.html", **options):
    path = data.parent / out
    assert write_page(PageOptions(data=str(data), generated=str(generated), out=str(path), **options)) == path
    return Page(path)


def attention(path, **changes):
    """A line an image, whose region i has the weight i of a caption's every word."""
    lines = []
    for image, (key, caption) in enumerate(zip(REFERENCES, CAPTIONS, strict=True)):
        words = caption.split()
        weights = [[*range(image + 1)] for _ in words]
        lines.append({"image_id": key, "caption": caption, "tokens": words, "attention": weights})
    lines[1] |= changes
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return str(path)


def test_every_image_has_its_regions_and_captions(data, generated):
    page = paged(data, generated, order="worst")
    scores = [float(article["data-score"]) for article in page.of("article")]
    assert len(scores) == 4 and scores == sorted(scores)
    assert len(page.of("rect")) == 1 + 2 + 3 + 4
    assert page.texts.count("dog") == 4 and "a <b> & c" in page.texts, "class names"
    assert "Two cats & <b>a mat</b>." in page.texts and not page.of("b"), "what people write is text"
    assert {"two <unk> cats", "(empty)"} <= {*page.texts}
    assert not [tag for tag, attributes in page.elements if {"src", "href"} & attributes.keys()], "all in one file"


def test_the_order_chooses_the_images(data, generated):
    def scores(**options):
        return [float(article["data-score"]) for article in paged(data, generated, **options).of("article")]

    assert scores(order="best", count=4) == scores(order="worst", count=4)[::-1]
    assert scores(order="best", count=2) == scores(order="best", count=4)[:2]
    drawn = {tuple(scores(order="random", seed=seed)) for seed in range(8)}
    assert len(drawn) > 1 and scores(order="random", seed=3) == scores(order="random", seed=3)


def test_attention_is_shown_word_by_word(data, generated, tmp_path):
    page = paged(data, generated, attention=attention(tmp_path / "attention.jsonl"))
    assert sorted(word["data-attention"] for word in page.of("b")) == ["0"] * 4 + ["0 1"] * 3 + ["0 1 2 3"] * 5
    own = paged(data, tmp_path / "attention.jsonl")
    assert own.of("b") == page.of("b"), "one file of captions and attention"
    (tmp_path / "attention.jsonl").write_text((tmp_path / "attention.jsonl").read_text().partition("\n")[0])
    with pytest.raises(InputError, match="nothing of image"):
        paged(data, generated, count=4, attention=str(tmp_path / "attention.jsonl"))


FORM = "attention.jsonl:2: expected .* one list of weights per token, one weight per region"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_id": 5}, "attention.jsonl:2: image 5 is not in test, which has 11"),
        ({"attention": [[1, 2, 3]] * 3}, r"attention \(3, 3\), but \(3, 2\) tokens and regions"),
        ({"attention": [[1, 2]] * 2}, r"attention \(2, 2\), but \(3, 2\)"),
        ({"attention": [[1, 2], [1]]}, FORM),
        ({"attention": [[1, float("nan")]] * 3}, FORM),
        ({"attention": [[1, -1]] * 3}, FORM),
        ({"tokens": None}, FORM),
        ({"tokens": ["two", "big", "cats"]}, "'two big cats', but the caption of image 22 is 'two <unk> cats'"),
        ({"image_id": "11", "tokens": ["a", "dog", "is", "running"], "attention": [[1]] * 4}, "image 11 a second time"),
    ],
)
def test_attention_of_other_captions_is_refused(data, generated, tmp_path, changes, message):
    path = attention(tmp_path / "attention.jsonl", **changes)
    with pytest.raises(InputError, match=message):
        paged(data, generated, attention=path)
    assert not (tmp_path / "page.html").exists()


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    (folder / "more").mkdir(parents=True)
    for name in ("11.png", "COCO_val2014_000000000022.jpg", "more/33.PNG", "44.jpg"):
        Image.new("RGB", (1200, 800), "red").save(folder / name)
    return folder


def test_images_are_embedded_small(data, generated, images, tmp_path):
    images = paged(data, generated, image_folder=str(images)).of("image")
    assert len(images) == 4 and {image["width"] for image in images} == {"120"}, "drawn in the units of the boxes"
    kind, _, code = images[0]["href"].partition(",")
    assert kind == "data:image/jpeg;base64"
    assert Image.open(io.BytesIO(base64.b64decode(code))).size == (480, 320)
    transparent = tmp_path / "transparent.png"
    Image.new("RGBA", (120, 80), (0, 0, 0, 0)).save(transparent)
    image = Image.open(io.BytesIO(base64.b64decode(embedded(transparent).partition(",")[2])))
    assert min(image.getpixel((9, 9))) > 250, "what is transparent"


@pytest.mark.parametrize("change", ["missing", "twice", "damaged", "no folder"])
def test_an_image_that_is_not_there_is_refused(data, generated, images, change):
    message = "--image-folder: expected one file of image 44, found"
    if change == "missing":
        (images / "44.jpg").unlink()
        message += f" none in {images}"
    elif change == "twice":
        (images / "more" / "44.png").write_bytes(b"")
    elif change == "damaged":
        (images / "44.jpg").write_bytes(b"version https://git-lfs")
        message = "44.jpg: cannot be read as an image"
    else:
        images, message = images / "none", "found none in"
    with pytest.raises(InputError, match=message):
        paged(data, generated, image_folder=str(images))


def test_a_file_that_is_read_is_never_written(data, generated, tmp_path):
    path = attention(tmp_path / "attention.jsonl")
    for out in (generated.name, "attention.jsonl"):
        with pytest.raises(InputError, match="is the file of"):
            paged(data, generated, out, attention=path)
