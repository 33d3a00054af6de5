"""Models with every value of every option: logits, gradients and beam search, against the CPU in float32."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from fairseq.sequence_generator import SequenceGenerator
from torch import Tensor, nn

from tests.gpu.devices import Device, assert_near, distance
from tests.models.test_combinations import LANGUAGE_MODELS, PREVIOUS, SOURCE, TRANSLATION, build
from tests.models.tiny import PAD, dictionary, language_model, translation_model

pytestmark = pytest.mark.gpu

BEAM = 3
# In half precision a selection among nearly equal scores may differ, after which some numbers do.
FARTHEST = {torch.float32: 1e-5, torch.float16: 0.1, torch.bfloat16: 0.15}


def covering(table: dict[str, dict[str, Any]]) -> list[str]:
    """Rows in which each option has each of its values at least once."""
    seen: set[tuple[str, Any]] = set()
    rows = []
    for name, options in table.items():
        if not options.items() <= seen:
            rows.append(name)
            seen |= options.items()
    return rows


CASES = [(translation_model, TRANSLATION[name], name) for name in covering(TRANSLATION)]
CASES += [(language_model, LANGUAGE_MODELS[name], name) for name in covering(LANGUAGE_MODELS)]
parametrised = pytest.mark.parametrize(
    ("builder", "options"), [pytest.param(*case[:2], id=f"{case[0].__name__}-{case[2]}") for case in CASES]
)


def inputs(builder: Any) -> tuple[Any, ...]:
    return (SOURCE, None, PREVIOUS) if builder is translation_model else (PREVIOUS,)


def pass_through(model: nn.Module, arguments: tuple[Any, ...]) -> tuple[Tensor, list[Tensor]]:
    """Logits and gradients of the parameters; in evaluation mode, since the devices draw other dropout masks."""
    logits = model.eval()(*arguments)[0]
    kept = arguments[-1].ne(PAD)
    logits[kept].float().log_softmax(-1)[:, 5].mean().backward()
    return logits[kept], [parameter.grad for parameter in model.parameters()]


@parametrised
def test_forward_and_backward(builder: Any, options: dict[str, Any], dtype: torch.dtype, device: Device) -> None:
    model = build(builder, options).to(dtype)  # rounded here, so that both have the same weights
    reference = copy.deepcopy(model).float()
    got = pass_through(model.to(device.name), device.put(inputs(builder)))
    for ours, expected in zip(got, pass_through(reference, inputs(builder)), strict=True):
        assert distance(ours, expected) <= FARTHEST[dtype]


@parametrised
def test_beam_search(builder: Any, options: dict[str, Any], device: Device) -> None:
    """As ``fairseq-generate`` prepares models: the same translations with the same scores."""
    model = build(builder, options).eval()
    translations = []
    for place in (Device(dry_run=True), device):
        there = copy.deepcopy(model).to(place.name)
        sources = SOURCE if builder is translation_model else PREVIOUS[:, :3]
        net_input = place.put({"src_tokens": sources, "src_lengths": sources.ne(PAD).sum(-1)})
        generator = SequenceGenerator([there], dictionary(10), beam_size=BEAM, max_len_a=0, max_len_b=6)
        translations.append(generator.generate([there], {"net_input": net_input}))
    for one, other in zip(*translations, strict=True):
        for hypothesis, expected in zip(one, other, strict=True):
            assert hypothesis["tokens"].tolist() == expected["tokens"].tolist()
            assert_near(hypothesis["positional_scores"], expected["positional_scores"], torch.float32)
