"""``--fused-output-loss`` changes memory, not numbers."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from fairseq.distributed import ModuleProxyWrapper
from torch import nn

from fairseq_ext.criterions import LabelSmoothedEncouragingLossCriterion as Criterion
from fairseq_ext.criterions import LabelSmoothedEncouragingLossCriterionConfig as Config
from fairseq_ext.losses import fused_linear
from fairseq_ext.training.errors import OptionError
from tests.models.tiny import PAD, dictionary, language_model, translation_model

SOURCE = torch.tensor([[4, 5, 6, 7, 2], [8, 9, 2, PAD, PAD]])
TARGET = torch.tensor([[5, 6, 4, 9, 2], [7, 4, 8, 2, PAD]])
MODELS = {
    "translation": (translation_model, {}),
    "tied": (translation_model, {"share_decoder_input_output_embed": True}),
    "shared": (translation_model, {"share_all_embeddings": True}),
    "all methods": (
        translation_model,
        {"block": "muse", "muse_weight_dropout": 0.0, "norm": "adanorm", "cross_view": "gca"},
    ),
    "language model": (language_model, {}),
    "tied language model": (language_model, {"share_decoder_input_output_embed": True}),
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
    if "language model" not in name:
        net_input["prev_output_tokens"] = TARGET.roll(1, 1)
    return {"net_input": net_input, "target": TARGET, "ntokens": int(TARGET.ne(PAD).sum())}


def criterion(fused, **options):
    task = SimpleNamespace(target_dictionary=dictionary())
    defaults = {"sentence_avg": False, "label_smoothing": 0.1, "report_accuracy": True, "fused_output_loss": fused}
    return Criterion(task, **{**defaults, **options})


def outcome(model, sample, fused, train=True, **options):
    model.zero_grad()
    loss, size, log = criterion(fused, **options).train(train)(model.train(train), sample)
    loss.backward()
    return loss.detach(), size, log, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_same(fused, apart):
    largest = max(grad.abs().max().item() for grad in apart[-1].values())
    torch.testing.assert_close(fused[:-1], apart[:-1], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(fused[-1], apart[-1], rtol=0.0, atol=1e-6 * largest)


@pytest.mark.parametrize("name", MODELS)
def test_the_same_numbers(name):
    model, sample = build(name), sample_of(name)
    assert_same(*(outcome(model, sample, fused) for fused in (True, False)))


# Another value of each option, with what must be set beside it for it to matter.
OPTIONS = {
    "report_accuracy": {"report_accuracy": False},
    "label_smoothing": {"label_smoothing": 0.3},
    "ignore_prefix_size": {"ignore_prefix_size": 2},
    "sentence_avg": {"sentence_avg": True},
    "log_end": {"log_end": 0.2},
    "bonus_weight": {"bonus_weight": 0.0},
    "bonus_clamp": {"log_end": 1.0, "bonus_clamp": 1e-2},
    "smoothing_form": {"smoothing_form": "off-target"},
    "bonus_at_validation": {"bonus_at_validation": True},
}


def test_every_option_has_a_row():
    assert {*OPTIONS, "fused_output_loss"} == {field.name for field in dataclasses.fields(Config)} - {"_name"}


@pytest.mark.parametrize("train", [True, False], ids=["train", "valid"])
@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_does_what_it_does_without(option, train):
    model, sample = build("translation"), sample_of("translation")
    with torch.no_grad():
        model.decoder.output_projection.weight.mul_(30)  # some tokens must be certain for the bonus to matter
    fused, apart = (outcome(model, sample, way, train, **OPTIONS[option]) for way in (True, False))
    assert_same(fused, apart)
    beside = {key: value for key, value in OPTIONS[option].items() if key != option}
    default = outcome(model, sample, True, train, **beside)
    if option != "bonus_at_validation" or not train:
        assert str(fused[:-1]) != str(default[:-1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_half_precision_model_is_no_less_exact(dtype):
    """Of fairseq's --fp16 and --bf16 on a device, which turn the whole model into it; the loss is float32."""
    model, sample = build("translation").to(dtype), sample_of("translation")
    fused, apart = (outcome(model, sample, way) for way in (True, False))
    exact = outcome(model.float(), sample, False)
    assert fused[0].dtype == torch.float32 and {grad.dtype for grad in fused[-1].values()} == {dtype}
    for name, grad in exact[-1].items():
        error, allowed = ((way[-1][name].float() - grad).norm() for way in (fused, apart))
        assert error <= 2 * allowed + 1e-2 * grad.norm(), name
    assert abs(fused[0] - exact[0]) <= 2 * abs(apart[0] - exact[0]) + 1e-2 * exact[0]


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


def test_an_output_layer_with_more_than_a_matrix_is_refused():
    model = build("translation")

    class Scaled(type(model.decoder)):
        def output_layer(self, features):
            return super().output_layer(features) / 2

    model.decoder.__class__ = Scaled
    with pytest.raises(OptionError, match="--fused-output-loss: needs an output layer that is one matrix, Scaled"):
        criterion(True)(model, sample_of("translation"))


class Wrapped(nn.Module):
    """Shows what it wraps, as fairseq's wrapper of a model does, and that it looks for unused parameters."""

    def __init__(self, model):
        super().__init__()
        self.model, self.decoder, self.find_unused_parameters = model, model.decoder, True

    def forward(self, **net_input):
        return self.model(**net_input)

    def get_targets(self, *args):
        return self.model.get_targets(*args)


def test_a_search_for_unused_parameters_needs_tied_embeddings():
    criterion(True)(Wrapped(build("tied")), sample_of("tied"))
    with pytest.raises(OptionError, match="--fused-output-loss: excludes --find-unused-parameters"):
        criterion(True)(Wrapped(build("translation")), sample_of("translation"))


@pytest.fixture
def one_process(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("name", ["translation", "tied"])
def test_ddp_waits_for_the_gradient_of_the_output_layer(name, one_process):
    """fairseq's pytorch_ddp does not run on a CPU, torch's own does."""
    model, sample = build(name), sample_of(name)
    expected = outcome(model, sample, False)
    wrapped = ModuleProxyWrapper(nn.parallel.DistributedDataParallel(model))
    fused = outcome(wrapped, sample, True)
    assert_same((*fused[:-1], {key.removeprefix("module.module."): grad for key, grad in fused[-1].items()}), expected)


def test_the_logits_of_the_batch_are_never_there(monkeypatch):
    model, sample = build("translation"), sample_of("translation")
    monkeypatch.setattr(model.decoder, "output_layer", lambda features: pytest.fail("logits of the whole batch"))
    criterion(True)(model, sample)


class OfSpeech(nn.Module):
    """Always gives logits, as fairseq's models of speech do."""

    def __init__(self, model):
        super().__init__()
        self.decoder = model.decoder

    def forward(self, src_tokens, src_lengths, prev_output_tokens):
        raise AssertionError("called in vain")


def test_a_model_that_always_gives_logits_is_refused():
    model = OfSpeech(build("translation"))
    with pytest.raises(OptionError, match="--fused-output-loss: OfSpeech cannot leave its output layer out"):
        criterion(True)(model, sample_of("translation"))
    wrapped = nn.DataParallel(model)  # shows what it wraps as .module
    wrapped.decoder = model.decoder
    with pytest.raises(OptionError, match="cannot leave its output layer out"):
        criterion(True)(wrapped, sample_of("translation"))
