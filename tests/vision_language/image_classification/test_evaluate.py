"""What is evaluated: logits that mean something, the classes by their names, the preprocessing of the folder."""

from __future__ import annotations

import numpy as np
import pytest
import torch

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
from vision_language.image_classification.model import ImageClassifier, ImageNetwork, ImageNetworkConfig, Preprocessing
from vision_language.image_classification.predict import predict_logits


def untrained(classes, **preprocessing) -> ImageClassifier:
    torch.manual_seed(0)
    config = ImageNetworkConfig(id2label=dict(enumerate(classes)))
    return ImageClassifier(ImageNetwork(config), Preprocessing((0.1,), (0.3,), 28, **preprocessing))


@torch.no_grad()
def test_logits_that_are_not_finite_are_refused(pictures, others, tmp_path, monkeypatch):
    """Their class would be the first: the accuracy of a damaged model would be that of a guess."""
    classifier = untrained("abcdefghij")
    images = ImageSet(np.zeros((3, 28, 28), np.uint8), np.zeros(3, np.int64), tuple("abcdefghij"), "here.npz")
    classifier.last_linear().bias[2] = torch.inf
    with pytest.raises(InputError, match=r"here.npz: .* logits of 3 of 3 images, such as number 1, are not finite"):
        predict_logits(classifier, images)
    monkeypatch.setattr("vision_language.image_classification.evaluate.load", lambda folder: classifier.eval())
    place = {"model": "x", "data": str(pictures), "device": "cpu"}
    for command, options in (
        (evaluate, EvaluationOptions(**place)),
        (ood, OodOptions(**place, others=(str(others),))),
        (attack, AttackOptions(**place)),
    ):
        with pytest.raises(InputError, match="are not finite"):
            command(options)
