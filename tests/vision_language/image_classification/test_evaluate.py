"""What is evaluated: logits that mean something, the classes by their names, the preprocessing of the folder."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from fairseq_ext.training.errors import InputError
from vision_language.image_classification.evaluate import (
    AttackOptions,
    EvaluationOptions,
    OodOptions,
    attack,
    evaluate,
    ood,
)
from vision_language.image_classification.image_set import ImageSet
from vision_language.image_classification.long_tail import GROUPS, THIRDS
from vision_language.image_classification.model import ImageClassifier, ImageNetwork, ImageNetworkConfig, load
from vision_language.image_classification.predict import predict_logits
from vision_language.image_classification.preprocessing import Preprocessing


def untrained(classes, **preprocessing) -> ImageClassifier:
    torch.manual_seed(0)
    config = ImageNetworkConfig(id2label=dict(enumerate(classes)))
    return ImageClassifier(ImageNetwork(config), Preprocessing((0.1,), (0.3,), 28, **preprocessing))


@torch.no_grad()
def test_logits_that_are_not_finite_are_refused(images, others, tmp_path, monkeypatch):
    """Their class would be the first: the accuracy of a damaged model would be that of a guess."""
    classifier = untrained("abcdefghij")
    black = ImageSet(np.zeros((3, 28, 28), np.uint8), np.zeros(3, np.int64), tuple("abcdefghij"), "here.npz")
    classifier.last_linear().bias[2] = torch.inf
    with pytest.raises(InputError, match=r"here.npz: .* logits of 3 of 3 images, such as number 1, are not finite"):
        predict_logits(classifier, black)
    monkeypatch.setattr("vision_language.image_classification.evaluate.load", lambda folder: classifier.eval())
    place = {"model": "x", "data": str(images), "device": "cpu"}
    for command, options in (
        (evaluate, EvaluationOptions(**place)),
        (ood, OodOptions(**place, others=(str(others),))),
        (attack, AttackOptions(**place)),
    ):
        with pytest.raises(InputError, match="are not finite"):
            command(options)


@pytest.mark.parametrize(
    ("own", "labels", "model", "expected"),
    [
        (("3", "7"), [0, 1, 1], tuple("0123456789"), [3, 7, 7]),
        (("7", "3"), [0, 1, 1], ("3", "7"), [1, 0, 0]),
        (("b", "a"), [0, 1, 1], ("a", "x", "b"), [2, 0, 0]),
        (tuple("0123"), [3, 1, 1], ("1", "3"), [1, 0, 0]),  # arrays whose other labels are not there
        (tuple("012"), [2, 1, 0], ("cat", "cow", "dog", "owl"), [2, 1, 0]),
        (("0", "2"), [0, 1, 1], ("cat", "cow", "dog", "owl"), [0, 2, 2]),
        (("0", "1", "2"), [0, 1, 2], ("0", "1", "10", "2"), [0, 1, 3]),  # in the order of earlier versions
        (("a", "a"), [0, 1, 1], ("a", "a"), [0, 1, 1]),
    ],
)
def test_classes_are_found_by_their_names(own, labels, model, expected):
    images = ImageSet(np.zeros((3, 2, 2), np.uint8), np.array(labels), own, "here")
    mapped = images.named_as(model, "it")
    assert mapped.labels.tolist() == expected and mapped.classes == model


@pytest.mark.parametrize(
    ("own", "model", "message"),
    [
        (("0", "1"), ("3", "7"), "--data: here has a class 0, it knows 3, 7"),
        (("cat", "cow"), ("cat", "dog"), "--data: here has a class cow, it knows cat, dog"),
        (("cat", "cow"), ("0", "1"), "--data: here has a class cat, it knows 0, 1"),
        (("0", "4"), ("cat", "dog"), "--data: here has a class 4, it knows cat, dog"),
        (("0", "cat"), ("cat", "dog"), "--data: here has a class 0, it knows cat, dog"),
        (("a", "b"), ("a", "b", "b"), "--data: here has a class b, and it has two of that name"),
    ],
)
def test_other_classes_are_refused(own, model, message):
    images = ImageSet(np.zeros((2, 2, 2), np.uint8), np.array([0, 1]), own, "here")
    with pytest.raises(InputError, match=f"^{message}$"):
        images.named_as(model, "it")


def test_two_folders_of_ten_classes_are_the_same_as_arrays(images, tmp_path, monkeypatch):
    """The figures of folders 3 and 7 are those of the same images as arrays."""
    with np.load(images / "test.npz") as test:
        kept = np.isin(test["y"], (3, 7))
        x, y = test["x"][kept], test["y"][kept]
    np.savez(tmp_path / "arrays.npz", x_test=x, y_test=y)
    for number, (image, label) in enumerate(zip(x, y, strict=True)):
        place = tmp_path / "images" / "test" / str(label)
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"{number}.png")
    classifier = untrained("0123456789")
    monkeypatch.setattr("vision_language.image_classification.evaluate.load", lambda folder: classifier.eval())
    figures = [
        evaluate(EvaluationOptions(model="x", data=str(tmp_path / name), device="cpu"))
        for name in ("arrays.npz", "images")
    ]
    for name in ("images", "accuracy", "class_accuracy"):
        assert figures[0][name] == figures[1][name]
    assert figures[0]["nll"] == pytest.approx(figures[1]["nll"])


@pytest.mark.parametrize("counts", [None, [900, 30, 30, 30, 30, 30, 30, 5, 5, 5]])
def test_a_model_keeps_how_many_images_its_classes_had(images, tmp_path, counts):
    """Folders of earlier versions lack it, and are evaluated without groups."""
    classifier = untrained("0123456789")
    if counts:
        classifier.model.config.train_counts = counts
    classifier.save(tmp_path)
    told = evaluate(EvaluationOptions(model=str(tmp_path), data=str(images), device="cpu"))
    parts = [*GROUPS, *THIRDS, "train_weighted_accuracy"]
    assert [name for name in parts if name in told] == (parts if counts else [])
    if counts:
        assert told["many"] == told["class_accuracy"][0]
        assert told["few"] == told["tail"] == pytest.approx(np.mean(told["class_accuracy"][7:]))


@pytest.mark.parametrize("counts", [[3, 4], "many", [1.5] * 10, [0] * 10])
def test_images_of_other_classes_are_refused(tmp_path, counts):
    classifier = untrained("0123456789")
    classifier.model.config.train_counts = counts
    classifier.save(tmp_path)
    with pytest.raises(InputError, match=r"train_counts of its config.json must be .* each of its 10 classes, got"):
        load(tmp_path)


def test_the_results_of_other_images_keep_what_they_are_called(images, others, tmp_path, monkeypatch):
    """A folder whose name is that of something else in the results would take its place."""
    place = {"model": "x", "data": str(images), "device": "cpu"}
    classifier = untrained("0123456789")
    monkeypatch.setattr("vision_language.image_classification.evaluate.load", lambda folder: classifier.eval())
    ood(OodOptions(**place, others=(str(others),), scores=("energy",), out=str(tmp_path)))
    with np.load(tmp_path / "ood.npz", allow_pickle=False) as arrays:
        own = {*arrays.files, *json.loads((tmp_path / "ood.json").read_text()), "file", "allow_pickle"} - {others.name}
    for name in own:
        with pytest.raises(InputError, match=f"^--others: a/{name}: results are called by the folder; '{name}' names"):
            OodOptions(**place, others=(f"a/{name}",))


def test_files_say_how_they_were_made(images, others, tmp_path, monkeypatch):
    """By every option that is not where something lies, and by what lay there."""
    classifier = untrained("0123456789")
    monkeypatch.setattr("vision_language.image_classification.evaluate.load", lambda folder: classifier.eval())
    place = {"model": "x", "data": str(images), "device": "cpu", "limit": 8, "out": str(tmp_path)}
    commands = {
        "evaluation": (evaluate, EvaluationOptions(**place)),
        "ood": (ood, OodOptions(**place, others=(str(others),))),
        "attack_pgd": (attack, AttackOptions(**place, attack="pgd", attack_steps=1, epsilons=(0.1,))),
    }
    for name, (command, options) in commands.items():
        command(options)
        told = json.loads((tmp_path / f"{name}.json").read_text())
        made = json.loads(json.dumps(options.as_dict()))
        assert told["options"] == {key: value for key, value in made.items() if key not in ("model", "data", "out")}
        assert told["inputs"].keys() == {"model", "data"} | ({others.name} if name == "ood" else set())
    before = told["inputs"]
    with torch.no_grad():
        classifier.last_linear().bias += 1
    attack(AttackOptions(**{**place, "limit": 9}, attack="pgd", attack_steps=1, epsilons=(0.1,)))
    after = json.loads((tmp_path / "attack_pgd.json").read_text())["inputs"]
    assert all(before[name] != after[name] for name in before)


@pytest.mark.parametrize("limit", [0, 7])
def test_the_limit_is_that_of_all_sets(images, others, tmp_path, monkeypatch, limit):
    """So that a copy of the model's own images is known as one."""
    classifier = untrained("0123456789")
    monkeypatch.setattr("vision_language.image_classification.evaluate.load", lambda folder: classifier.eval())
    place = {"model": "x", "data": str(images), "device": "cpu", "limit": limit, "scores": ("energy",)}
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "test.npz").write_bytes((images / "test.npz").read_bytes())
    with pytest.raises(InputError, match=r"^--others: .*copy holds the images of --data$"):
        ood(OodOptions(**place, others=(str(copy),)))
    with np.load(others / "test.npz") as arrays:
        count = len(arrays["x"])
    assert ood(OodOptions(**place, others=(str(others),)))[others.name]["images"] == (limit or count)
