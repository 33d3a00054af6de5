"""Every metric that picks a model or compares two is one of which it is known whether less is better."""

from __future__ import annotations

import pytest
import torch

from fairseq_ext.training.directions import HIGHER, LOWER, lower_is_better
from graph.label_graph.metrics import METRICS
from vision_language.iais.options import Options
from vision_language.image_classification.predict import classification_metrics
from vision_language.muka.options import SELECTIONS

IMAGES = classification_metrics(torch.eye(3), torch.arange(3), [300, 50, 5])
PICKED = (*METRICS, *SELECTIONS, *Options.__dataclass_fields__["select"].metadata["choices"])
COMPARED = [f"test_{name}" for name, value in IMAGES.items() if isinstance(value, float)]
NEITHER = ["test_margin", "best_step", "epochs", "seconds_per_step", "train_images", "threshold"]


@pytest.mark.parametrize("metric", [*PICKED, *COMPARED, *NEITHER])
def test_the_direction_is_known(metric):
    if metric in NEITHER:
        assert lower_is_better(metric) is None
    else:
        less = metric in ("loss", "one_error", "hamming_loss", "test_nll", "test_ece")
        assert lower_is_better(metric) is less


def test_no_name_is_both():
    assert not set(LOWER) & set(HIGHER)
