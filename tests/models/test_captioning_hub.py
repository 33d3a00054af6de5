"""``from_pretrained`` of a captioning model: captions of single images, and what is no image of its data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq import models, tasks
from omegaconf import OmegaConf
from torch import Tensor

import fairseq_ext
from fairseq_ext.captions.generate import load
from fairseq_ext.captions.store import KINDS
from fairseq_ext.models import CaptioningTransformerExtModel
from fairseq_ext.models.captioning_hub import CaptioningHubInterface
from fairseq_ext.training.errors import CheckpointError, DataError, OptionError
from tests.captions.images import prepared
from tests.models.commands import TINY, configuration, save_checkpoint

OPTIONS = {
    "regions": {"attention_topk": 2, "visual_dropout": 0.3},
    "grid": {"visual_position": "learned", "cross_view": "gca"},
    "classes": {"visual_geometry": "g5"},
}


@pytest.fixture(scope="module", params=KINDS)
def hub(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> CaptioningHubInterface:
    """A model as its checkpoint gives it back, whose weights are random."""
    fairseq_ext.register()
    folder = tmp_path_factory.mktemp(request.param)
    data = prepared(folder, request.param)
    values = {**TINY, **OPTIONS[request.param]}
    cfg = configuration("captioning_transformer_ext", values, data=data, task="captioning")
    built = tasks.setup_task(cfg.task)
    torch.manual_seed(2)
    model = models.build_model(cfg.model, built)
    for name, parameter in model.named_parameters():  # so that the image, and not the words before, decides
        parameter.data.mul_(4.0 if "encoder_attn." in name else 1.0).add_(0.2 * torch.randn_like(parameter))
    save_checkpoint(model, cfg, folder / "model.pt", task_state=built.state_dict())
    return CaptioningTransformerExtModel.from_pretrained(str(folder), "model.pt", str(data))


def parts(hub: CaptioningHubInterface, number: int) -> dict[str, Tensor]:
    """An image of the test set, as a user gives it."""
    image = dict(hub.task.dataset("test").image(number))
    if hub.task.preparation.kind == "grid":
        del image["geometry"]  # a user need not give the cells
    return {"features": None, **image}


def test_an_image_gets_the_caption_that_it_has_in_a_batch(hub: CaptioningHubInterface) -> None:
    hub.task.load_dataset("test")
    dataset = hub.task.dataset("test")
    sample = dataset.collater([dataset[number] for number in range(len(dataset))])
    generator = hub.task.build_generator(hub.models, OmegaConf.create({"beam": 2, "max_len_b": 7, "lenpen": 1.5}))
    with torch.no_grad():
        batch = hub.task.inference_step(generator, hub.models, sample)
    expected = [hub.task.text(hypotheses[0]["tokens"]) for hypotheses in batch]
    captions = [hub.caption(**parts(hub, n), beam=2, max_len_b=7, lenpen=1.5) for n in range(len(dataset))]
    assert captions == expected
    assert len(set(captions)) > 1


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    """By the hub, and by the command."""
    fairseq_ext.register()
    data = prepared(tmp_path, "classes")
    cfg = configuration("captioning_transformer_ext", TINY, data=data, task="captioning")
    built = tasks.setup_task(cfg.task)
    model = models.build_model(cfg.model, built)
    model.encoder.layers[0].fc1.bias.data[0] = torch.nan
    path = save_checkpoint(model, cfg, tmp_path / "model.pt", task_state=built.state_dict())
    for read in (
        lambda: CaptioningTransformerExtModel.from_pretrained(str(tmp_path), "model.pt", str(data)),
        lambda: load([str(path)], str(data)),
    ):
        with pytest.raises(CheckpointError, match=r"model.pt: its weights are not finite in encoder.layers.0.fc1.bias"):
            read()


def test_what_is_no_image_of_its_data_is_refused(hub: CaptioningHubInterface) -> None:
    hub.task.load_dataset("test")
    image, kind = parts(hub, 0), hub.task.preparation.kind
    read = "labels" if kind == "classes" else "features"
    cases: list[tuple[dict[str, Any], str]] = [
        ({read: None}, f"caption: no {read}, which the model reads of {kind}"),
        ({read: image[read][:0], "geometry": torch.zeros(0, 7)}, "caption: "),
        ({read: image[read].float() * float("nan")}, f"caption: a number of {read} is not finite"),
        ({"geometry": torch.zeros(len(image[read]), 5)}, "caption: geometry "),
        ({"labels": torch.full((len(image[read]),), 6)}, "caption: labels must be at least 0 and below"),
        ({"features": torch.zeros(len(image[read]), 4)}, "caption: features"),
    ]
    for changes, message in cases:
        with pytest.raises(DataError) as caught:
            hub.caption(**{**image, **changes})
        assert str(caught.value).startswith(message) and "\n" not in str(caught.value)
    with pytest.raises(OptionError, match="no option breadth"):
        hub.caption(**image, breadth=2)


def test_sentences_are_refused(hub: CaptioningHubInterface) -> None:
    for method in (hub.translate, hub.sample, hub.score):
        with pytest.raises(OptionError, match="reads images, not sentences"):
            method(["a dog"])
