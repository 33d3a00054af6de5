"""Every option of ``captioning_transformer_ext`` changes the model, or is refused by name where it would not."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fairseq.quantization_utils import quantize_model_scalar
from fairseq.tasks import TASK_REGISTRY
from torch import nn

from fairseq_ext.models import CaptioningTransformerExtModel
from fairseq_ext.models.captioning_options import WITHOUT_WORDS, VisualOptions
from fairseq_ext.models.ext_options import ExtOptions
from fairseq_ext.training.errors import OptionError
from fairseq_ext.training.options import flag
from tests.models import test_every_option, test_stock_fields
from tests.models.tiny import dictionary
from tests.models.tiny_images import PREVIOUS, captioning_config, captioning_model, collate, image, task

# as translation_model, but for what an image has no use for
HONOURED = {name: row for name, row in test_stock_fields.HONOURED.items() if name not in WITHOUT_WORDS}
HONOURED |= {"max_source_positions": (50, {}), "decoder_embed_dim": (24, {})}
REFUSED = {name: True for name in WITHOUT_WORDS} | test_stock_fields.REFUSED
REFUSED |= {"encoder_embed_path": "vectors.txt"}
SIZES = {"width": 16, "ffn": 16, "layers": 3, "dropout": 0.3, "attention_dropout": 0.2, "activation_dropout": 0.1}


def observe(kind: str, **options: Any) -> list[Any]:
    """What a model has, computes with its dropout, sends back, and computes without dropout."""
    torch.manual_seed(3)
    model = quantize_model_scalar(captioning_model(kind, **options), captioning_config(**options))
    batch = collate(image(kind, 6, seed=1), image(kind, 4, seed=2))
    seen: list[Any] = [*model.state_dict().items(), model.max_positions(), [type(module) for module in model.modules()]]
    seen = [value.clone() if isinstance(value, torch.Tensor) else value for item in seen for value in item]
    torch.manual_seed(5)
    output = logits(model.train(), batch)
    output.square().sum().backward()
    seen += [output, *(parameter.grad for parameter in model.parameters())]
    with torch.no_grad():
        return [*seen, logits(model.eval(), batch)]


def logits(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    output = model(**batch, prev_output_tokens=PREVIOUS)[0]
    if model.decoder.adaptive_softmax is None:
        return output
    scores, _ = model.decoder.adaptive_softmax(output, PREVIOUS.roll(-1, 1))
    return torch.cat([part.flatten() for part in scores if part is not None])


def differ(one: list[Any], other: list[Any]) -> bool:
    return len(one) != len(other) or not all(test_stock_fields.same(*pair) for pair in zip(one, other, strict=True))


def test_every_option_of_fairseq_is_here() -> None:
    assert sorted(test_stock_fields.stock_fields()) == sorted({**HONOURED, **REFUSED})


@pytest.mark.parametrize("name", sorted(HONOURED.keys() - test_stock_fields.INVISIBLE))
def test_what_fairseq_has_is_honoured(name: str, tmp_path: Path, stand_ins: None) -> None:
    value, companions = HONOURED[name]
    if value == "VECTORS":
        value = str(tmp_path / "vectors.txt")
        rows = [f"{word} {' '.join(['0.5'] * 16)}" for word in dictionary(10).symbols[4:]]
        Path(value).write_text("\n".join(["10 16", *rows]))
    assert differ(observe("regions", **SIZES | companions | {name: value}), observe("regions", **SIZES | companions))


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_for_words_is_refused(name: str) -> None:
    with pytest.raises(OptionError, match=f"^{flag(name)}"):
        captioning_model("regions", **{name: REFUSED[name]})


@pytest.mark.parametrize("name", [name for name, row in test_every_option.ROWS.items() if row.translation])
def test_every_option_of_transformer_ext_is_found_in_the_model(name: str) -> None:
    row = test_every_option.ROWS[name]
    torch.manual_seed(2)
    assert row.shows(captioning_model("grid", width=16, layers=3, **row.beside, **{name: row.value}))
    torch.manual_seed(2)
    assert not row.shows(captioning_model("grid", width=16, layers=3, **row.beside))


# of each option: a value, the images that it is for, and what is beside it
VISUAL: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "visual_geometry": ("g5", "classes", {}),
    "visual_position": ("learned", "grid", {}),
    "visual_dropout": (0.5, "regions", {}),
    "visual_classes": (True, "labelled", {}),
}
IDLE = {
    "another position of regions": ("regions", {"visual_position": "learned"}, "--visual-position learned"),
    "another position of classes": ("classes", {"visual_position": "none"}, "--visual-position none"),
    "geometry of learned cells": (
        "grid",
        {"visual_position": "learned", "visual_geometry": "g5"},
        "--visual-geometry g5: has no effect with --visual-position learned",
    ),
    "cells without geometry": ("grid", {"visual_geometry": "none"}, "--visual-geometry none"),
    "sinusoids of an odd width": (
        "grid",
        {"visual_position": "sinusoid", "width": 6},
        "--visual-position sinusoid: --encoder-embed-dim 6",
    ),
    "dropout of no vectors": ("classes", {"visual_dropout": 0.5}, "--visual-dropout 0.5: has no effect on classes"),
    "classes twice": ("classes", {"visual_classes": True}, "--visual-classes: has no effect on classes"),
    "classes that are not there": ("regions", {"visual_classes": True}, "--visual-classes: these regions have no"),
    "a geometry that is none": ("regions", {"visual_geometry": "g6"}, "--visual-geometry: 'g6' is not one of"),
    "a position that is none": ("grid", {"visual_position": "row"}, "--visual-position: 'row' is not one of"),
    "dropout of all": ("regions", {"visual_dropout": 1.0}, "--visual-dropout must be at least 0 and less than 1"),
    "spans": ("regions", {"attention_span": 4}, "--attention-span 4: for language models alone"),
}


def test_every_visual_option_has_a_row() -> None:
    assert VISUAL.keys() == {field.name for field in dataclasses.fields(VisualOptions)} - {"_name"}
    assert not VISUAL.keys() & {field.name for field in dataclasses.fields(ExtOptions)} - {"_name"}


@pytest.mark.parametrize("name", VISUAL)
def test_every_visual_option_changes_the_model(name: str) -> None:
    value, kind, beside = VISUAL[name]
    assert differ(observe(kind, **beside, **{name: value}), observe(kind, **beside))


@pytest.mark.parametrize("case", IDLE)
def test_what_would_do_nothing_is_refused(case: str) -> None:
    kind, options, message = IDLE[case]
    with pytest.raises(OptionError) as caught:
        captioning_model(kind, **options)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["translation", "language_modeling", "masked_lm"])
def test_tasks_of_fairseq_are_refused(name: str) -> None:
    with pytest.raises(OptionError, match=f"^--task {name}: not for captioning_transformer_ext, .* captioning$"):
        CaptioningTransformerExtModel.build_model(captioning_config(), object.__new__(TASK_REGISTRY[name]))


def test_a_task_without_images_is_refused() -> None:
    text = SimpleNamespace(source_dictionary=dictionary(), target_dictionary=dictionary())
    with pytest.raises(OptionError, match=r"^captioning_transformer_ext: needs --task captioning"):
        CaptioningTransformerExtModel.build_model(captioning_config(), text)
    assert CaptioningTransformerExtModel.build_model(captioning_config(), task("grid"))
