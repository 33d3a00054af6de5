"""``--fused-output-loss`` changes memory, not numbers."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from fairseq_ext.criterions import LabelSmoothedEncouragingLossCriterion as Criterion
from fairseq_ext.losses import fused_linear
from fairseq_ext.training.errors import OptionError
from tests.models.tiny import PAD, dictionary, language_model, translation_model

SOURCE = torch.tensor([[4, 5, 6, 7, 2], [8, 9, 2, PAD, PAD]])
TARGET = torch.tensor([[5, 6, 4, 9, 2], [7, 4, 8, 2, PAD]])
MODELS = {
    "translation": (translation_model, {}),
    "tied": (translation_model, {"share_decoder_input_output_embed": True}),
    "all methods": (
        translation_model,
        {"block": "muse", "muse_weight_dropout": 0.0, "norm": "adanorm", "cross_view": "gca"},
    ),
    "language model": (language_model, {}),
}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(fused_linear, "block_elements", lambda device: 3 * len(dictionary()))


def build(name, **options):
    torch.manual_seed(0)
    make, values = MODELS[name]
    return make(**values, **options)


def sample_of(name):
    net_input = {"src_tokens": SOURCE, "src_lengths": SOURCE.ne(PAD).sum(1)}
    if name != "language model":
        net_input["prev_output_tokens"] = TARGET.roll(1, 1)
    return {"net_input": net_input, "target": TARGET, "ntokens": int(TARGET.ne(PAD).sum())}


def criterion(fused, **options):
    task = SimpleNamespace(target_dictionary=dictionary())
    return Criterion(
        task, False, **{"label_smoothing": 0.1, "report_accuracy": True, **options}, fused_output_loss=fused
    )


def outcome(model, sample, fused, train=True, **options):
    model.zero_grad()
    loss, size, log = criterion(fused, **options).train(train)(model.train(train), sample)
    loss.backward()
    return loss.detach(), size, log, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    "options",
    [{}, {"bonus_weight": 0.0}, {"ignore_prefix_size": 2}, {"smoothing_form": "off-target", "log_end": 0.75}],
    ids=str,
)
@pytest.mark.parametrize("train", [True, False], ids=["train", "valid"])
def test_the_same_numbers(name, options, train):
    model, sample = build(name), sample_of(name)
    fused, apart = (outcome(model, sample, way, train, **options) for way in (True, False))
    largest = max(grad.abs().max().item() for grad in apart[-1].values())
    torch.testing.assert_close(fused[:-1], apart[:-1], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(fused[-1], apart[-1], rtol=0.0, atol=1e-6 * largest)


def test_rows_apart_are_not_fused():
    model, sample = build("translation"), sample_of("translation")
    fused, apart = (criterion(way)(model, sample, reduce=False)[0] for way in (True, False))
    assert fused.shape == (TARGET.numel(), 1) and torch.equal(fused, apart)


@pytest.mark.parametrize("train", [True, False], ids=["train", "valid"])
def test_an_adaptive_softmax_is_refused(train):
    model = build("translation", adaptive_softmax_cutoff="6,10", adaptive_softmax_factor=2.0)
    message = "--adaptive-softmax-cutoff" if train else "--fused-output-loss: needs an output layer that is one matrix"
    with pytest.raises(OptionError, match=message):
        criterion(True).train(train)(model.train(train), sample_of("translation"))


def test_the_logits_of_the_batch_are_never_there(monkeypatch):
    model, sample = build("translation"), sample_of("translation")
    monkeypatch.setattr(model.decoder, "output_layer", lambda features: pytest.fail("logits of the whole batch"))
    criterion(True)(model, sample)
