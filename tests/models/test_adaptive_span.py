"""Adaptive spans in a language model: what is shared, cached and brought back into range, and who adds their loss."""

from __future__ import annotations

import copy
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fairseq.criterions import CRITERION_REGISTRY
from fairseq.criterions.adaptive_loss import AdaptiveLoss
from fairseq.criterions.cross_entropy import CrossEntropyCriterion
from fairseq.logging import metrics
from fairseq.models.transformer_lm import TransformerLanguageModel
from omegaconf import DictConfig
from torch import Tensor, nn

from fairseq_ext.criterions import (
    AdaptiveLossWithSpan,
    CrossEntropyWithSpanCriterion,
    LabelSmoothedEncouragingLossCriterion,
)
from fairseq_ext.models import TransformerLanguageModelExt
from fairseq_ext.models.adaptive_span import AdaptiveSpanSelfAttention
from fairseq_ext.training.errors import OptionError
from tests.models.commands import configuration
from tests.models.tiny import EOS, PAD, decode_by_step, dictionary, language_model, task, translation_model

TOKENS = torch.tensor([[EOS, 5, 6, 7, 13, 9], [EOS, 9, 8, 12, PAD, PAD]])
TARGET = torch.tensor([[5, 6, 7, 13, 9, EOS], [9, 8, 12, EOS, PAD, PAD]])
SAMPLE = {"net_input": {"src_tokens": TOKENS}, "target": TARGET, "ntokens": 10, "nsentences": 2}
SPAN = {"attention_span": 6, "attention_span_ramp": 2, "attention_span_init": 0.5, "attention_span_loss": 0.3}
ADAPTIVE = {"adaptive_softmax_cutoff": "6,10", "adaptive_softmax_factor": 2.0}
WORDS = SimpleNamespace(target_dictionary=dictionary())


def build(**options: Any) -> TransformerLanguageModelExt:
    torch.manual_seed(0)
    return language_model(**{**SPAN, **options})


def set_spans(model: nn.Module, *values: float) -> None:
    with torch.no_grad():
        for attention, value in zip(model.span_attentions(), values, strict=True):
            attention.span.current_val.fill_(value)


def test_layers_share_their_positions_and_nothing_else() -> None:
    model = build()
    names = {name for name, _ in model.named_parameters() if ".self_attn." in name}
    own = [f"{name}_proj.weight" for name in ("q", "k", "v", "out")] + ["span.current_val"]
    layers = [f"decoder.layers.{index}.self_attn" for index in range(2)]
    assert names == {f"{layer}.{name}" for layer in layers for name in own} | {f"{layers[0]}.position"}
    reloaded = build()
    state = {name: torch.randn_like(value) for name, value in model.state_dict().items() if "version" not in name}
    state[f"{layers[1]}.position"] = state[f"{layers[0]}.position"]
    reloaded.load_state_dict(state, strict=False)
    assert all(torch.equal(value, state[name]) for name, value in reloaded.state_dict().items() if name in state)
    assert len({id(attention.position) for attention in reloaded.span_attentions()}) == 1


@pytest.mark.parametrize("budget", [{"attention_topk": 3}, {"attention_topk_ratio": 20.0}], ids=str)
def test_the_cache_does_not_outgrow_the_span(budget: dict[str, Any]) -> None:
    """Slots are trimmed by 64; of 200, a span of 8 needs 8 states and keeps 72."""
    model = build(attention_span=200, attention_span_ramp=8, attention_span_init=0.0, **budget).eval()
    torch.manual_seed(0)
    tokens = torch.randint(4, 14, (2, 90))
    tokens[:, 0] = EOS
    state: dict[str, Any] = {}
    with torch.no_grad():
        full = model(tokens)[0]
        for step in range(90):
            logits = model.decoder(tokens[:, : step + 1], incremental_state=state)[0][:, -1]
            torch.testing.assert_close(logits, full[:, step], rtol=1e-4, atol=2e-5)
    sizes = {states.size(1) for cache in state.values() for states in cache.values()}
    assert sizes == {72}


@pytest.mark.parametrize("budget", [{"attention_topk": 2}, {"attention_topk_ratio": 2.0}], ids=str)
def test_padding_on_the_left_is_never_seen_neither_at_once_nor_step_by_step(budget: dict[str, Any]) -> None:
    model = build(**budget, no_token_positional_embeddings=True).eval()
    alone = torch.tensor([[EOS, 9, 8, 12]])
    padded = torch.cat([torch.full((1, 2), PAD), alone], dim=1)
    with torch.no_grad():
        expected = model(alone)[0]
        torch.testing.assert_close(model(padded)[0][:, 2:], expected, rtol=1e-4, atol=2e-5)
        torch.testing.assert_close(decode_by_step(model, padded)[:, 2:], expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("init", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("ratio", [{}, {"attention_topk": 2}])
def test_a_token_sees_its_span_and_not_itself(init: float, ratio: dict[str, Any]) -> None:
    model = build(layers=1, attention_span=5, attention_span_ramp=1, attention_span_init=init, **ratio).eval()
    attention = model.decoder.layers[0].self_attn
    x = torch.randn(9, 1, 8, requires_grad=True)
    for i in range(9):
        out = attention(x)[0][i].sum()
        (grad,) = torch.autograd.grad(out, x)
        # beyond the span the gradient is that of the 1e-8 in the renormalisation
        seen = (grad[:, 0].abs().sum(-1) > 1e-5).nonzero().flatten().tolist()
        others = {j for j in seen if j != i}  # its own state is the query
        assert others <= set(range(max(0, i - attention.span.current_max_span()), i))
        assert others or i == 0


@pytest.mark.parametrize("form", ["none", "list", "flat"])
def test_spans_return_after_an_optimiser_step(form: str) -> None:
    """The trainer hands over the optimiser's copies of half-precision parameters, as a list or flat by device."""
    model = build()
    set_spans(model, -0.3, 1.7)
    parameters = [parameter.detach().clone() for parameter in model.parameters()]
    flat = torch.cat([*(parameter.flatten() for parameter in parameters), torch.full((3,), 5.0)])
    copies = {"none": None, "list": parameters, "flat": {0: nn.Parameter(flat)}}[form]
    before = [parameter.clone() for parameter in parameters]
    model.perform_slowmo(None, copies)
    assert [attention.span.current_val.unique().tolist() for attention in model.span_attentions()] == [[0.0], [1.0]]
    if form == "none":
        return
    after = parameters if form == "list" else copies[0].data[:-3].split([p.numel() for p in parameters])
    for (name, _), old, new in zip(model.named_parameters(), before, after, strict=True):
        expected = old.clamp(0, 1) if name.endswith("current_val") else old
        torch.testing.assert_close(new.view_as(old), expected, rtol=0, atol=0)
    if form == "flat":
        assert copies[0].data[-3:].tolist() == [5.0] * 3


def test_without_spans_an_optimiser_step_changes_nothing() -> None:
    model = language_model()
    before = [parameter.clone() for parameter in model.parameters()]
    model.perform_slowmo(None, {0: nn.Parameter(torch.randn(sum(p.numel() for p in before)))})
    assert all(map(torch.equal, before, model.parameters()))


ADDING = {
    "cross_entropy_with_span": (CrossEntropyWithSpanCriterion, CrossEntropyCriterion, {}),
    "adaptive_loss_with_span": (AdaptiveLossWithSpan, AdaptiveLoss, ADAPTIVE),
    "label_smoothed_encouraging_loss": (LabelSmoothedEncouragingLossCriterion, None, {}),
}


def losses(name: str, sentence_avg: bool, **options: Any) -> tuple[nn.Module, Any, Any]:
    """A model, its criterion, and fairseq's criterion without spans."""
    kind, plain, extra = ADDING[name]
    smoothing = [] if plain else [0.1]
    model = build(**extra, **options)
    criterion = kind(WORDS, sentence_avg, *smoothing)
    return model, criterion, plain(WORDS, sentence_avg) if plain else None


def test_every_criterion_that_adds_the_loss_has_a_row() -> None:
    assert {name for name, kind in CRITERION_REGISTRY.items() if getattr(kind, "adds_span_loss", False)} == set(ADDING)


@pytest.mark.parametrize("sentence_avg", [False, True])
@pytest.mark.parametrize("name", ADDING)
def test_the_loss_is_added_to_the_mean(name: str, sentence_avg: bool) -> None:
    model, criterion, _ = losses(name, sentence_avg)
    without = losses(name, sentence_avg, attention_span_loss=0.0)[0]
    set_spans(model, 0.5, 0.25)
    set_spans(without, 0.5, 0.25)
    loss, size, log = criterion(model, SAMPLE)
    plain_loss, plain_size, _ = criterion(without, SAMPLE)
    weight = 0.3 * 6 * (0.5 + 0.25)
    assert size == plain_size == (2 if sentence_avg else 10)
    torch.testing.assert_close(loss / size, plain_loss / size + weight)
    torch.testing.assert_close(log["span_loss"], torch.tensor(weight * size))
    assert log["avg_span"] == size * ((3 + 2) + (2 + 2)) / 2
    gradients = [
        torch.autograd.grad(value.sum() / size, [attention.span.current_val for attention in one.span_attentions()])
        for value, one in ((loss, model), (plain_loss, without))
    ]
    for with_loss, plain in zip(*gradients, strict=True):
        torch.testing.assert_close(with_loss - plain, torch.full((2, 1, 1), 0.3 * 6 / 2))


@pytest.mark.parametrize("name", ADDING)
def test_validation_and_perplexity_are_without_it(name: str) -> None:
    model, criterion, plain = losses(name, False)
    expected = (plain or criterion).eval()(model.eval(), SAMPLE)
    loss, _, log = criterion.eval()(model, SAMPLE)
    torch.testing.assert_close(loss, expected[0])
    trained = criterion.train()(model, SAMPLE)[2]
    assert {"span_loss", "avg_span"} < trained.keys() == log.keys()
    for key in expected[2].keys() - {"loss", "bonus"} if plain is None else expected[2]:
        torch.testing.assert_close(torch.as_tensor(trained[key]), torch.as_tensor(expected[2][key]))


@pytest.mark.parametrize("name", ADDING)
def test_metrics_weigh_batches_by_their_size(name: str) -> None:
    model, criterion, _ = losses(name, False)
    logs = [criterion(model, {**SAMPLE, "ntokens": size})[2] for size in (10, 30)]
    with metrics.aggregate() as meters:
        criterion.reduce_metrics(logs)
    values = meters.get_smoothed_values()
    assert values["avg_span"] == 5.0
    assert values["span_loss"] == pytest.approx(0.3 * 6 * 0.5 * 2 / math.log(2), abs=1e-4)
    with metrics.aggregate() as meters:
        criterion.reduce_metrics([{k: v for k, v in log.items() if "span" not in k} for log in logs])
    assert not [key for key in meters.get_smoothed_values() if "span" in key]


@pytest.fixture(scope="module")
def command_line() -> DictConfig:
    values = {"tokens_per_sample": 16, "decoder_embed_dim": 8, "decoder_attention_heads": 2, "decoder_layers": 1}
    return configuration("transformer_lm_ext", {**values, **SPAN}, task="language_modeling")


@pytest.mark.parametrize("name", sorted(CRITERION_REGISTRY))
def test_a_criterion_adds_the_loss_or_is_refused_by_name(name: str, command_line: DictConfig) -> None:
    cfg = copy.deepcopy(command_line)
    cfg.criterion._name = name
    if name in ADDING:
        assert TransformerLanguageModelExt.build_model(cfg.model, task()).span_loss() > 0
        return
    with pytest.raises(OptionError) as caught:
        TransformerLanguageModelExt.build_model(cfg.model, task())
    assert str(caught.value) == (
        f"--attention-span-loss 0.3: --criterion {name} does not add it, adaptive_loss_with_span, "
        "cross_entropy_with_span, label_smoothed_encouraging_loss do"
    )
    cfg.model.attention_span_loss = 0.0
    TransformerLanguageModelExt.build_model(cfg.model, task())


@pytest.mark.parametrize("model", [language_model(), nn.Linear(1, 1)])
@pytest.mark.parametrize("name", [name for name in ADDING if name.endswith("with_span")])
def test_a_criterion_with_spans_needs_them(name: str, model: nn.Module) -> None:
    with pytest.raises(OptionError, match=r"^--criterion: those with_span need a transformer_lm_ext model") as caught:
        ADDING[name][0](WORDS, False)(model, SAMPLE)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": 0}, "--attention-span 6: needs at least one layer, got --decoder-layers 0"),
        ({"block": "muse"}, "--attention-span 6: excludes --block muse, needs transformer"),
        ({"block": "muse-simple"}, "--attention-span 6: excludes --block muse-simple, needs transformer"),
        (
            {"attention_normalizer": "entmax15"},
            "--attention-span 6: excludes --attention-normalizer entmax15, needs softmax",
        ),
        (
            {"attention_topk": 2, "attention_topk_select": "window"},
            "--attention-span 6: excludes --attention-topk-select window, needs scores",
        ),
    ],
)
def test_what_a_span_excludes(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError) as caught:
        build(**options)
    assert str(caught.value) == message


def test_a_translation_model_has_no_span() -> None:
    with pytest.raises(OptionError, match=r"^--attention-span 6: for language models alone, transformer_lm_ext$"):
        translation_model(attention_span=6)


def test_a_span_longer_than_any_sample_warns(caplog: pytest.LogCaptureFixture) -> None:
    build(attention_span=16)
    assert not caplog.records
    build(attention_span=17)
    assert "--attention-span 17: a sample has at most 16 tokens" in caplog.text


@pytest.mark.parametrize("compiler", [torch.jit.script, lambda model: model.prepare_for_onnx_export_()])
def test_what_does_not_compile_says_so(compiler: Any) -> None:
    with pytest.raises(OptionError, match=r"^--attention-span: no ") as caught:
        compiler(build())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"quant_noise_pq": 0.1, "quant_noise_pq_block_size": 4},
        {"quant_noise_scalar": 0.1},
        {"decoder_layerdrop": 0.5},
        {"checkpoint_activations": True},
        {"scale_heads": True, "scale_attn": True},
        {"no_token_positional_embeddings": True},
        {"attention_dropout": 0.5},
        {"init": "km"},
        {"norm": "adanorm"},
    ],
    ids=str,
)
def test_it_trains_with(options: dict[str, Any]) -> None:
    """In the same numbers of every precision but for rounding, and to another result than without the option."""
    model, criterion, _ = losses("cross_entropy_with_span", False, **options)
    optimizer = torch.optim.Adagrad(model.parameters(), 0.05)
    values: list[float] = []
    for _ in range(8):
        optimizer.zero_grad()
        loss, size, log = criterion(model.train(), SAMPLE)
        (loss / size).backward()
        optimizer.step()
        model.perform_slowmo(optimizer)
        values.append(log["loss"].item())
        assert all(0 <= z <= 1 for a in model.span_attentions() for z in a.span.current_val.flatten().tolist())
    assert values[-1] < values[0]
    with torch.no_grad():
        full, real = model.eval()(TOKENS)[0], TOKENS.ne(PAD)
        torch.testing.assert_close(decode_by_step(model, TOKENS)[real], full[real], rtol=1e-4, atol=2e-5)


def initial(options: dict[str, Any]) -> list[Tensor]:
    return [attention.q_proj.weight for attention in build(**options).span_attentions()]


def test_initial_weights_follow_the_law() -> None:
    bound = math.sqrt(1 / 8)
    assert all(0.9 < weight.abs().max() / bound <= 1 for weight in initial({"init": "km"}))


def test_dropout_is_retained_by_name() -> None:
    model = build(attention_dropout=0.5).eval()
    kept = SimpleNamespace(retain_dropout=True, retain_dropout_modules=[AdaptiveSpanSelfAttention.__name__])
    model.prepare_for_inference_(SimpleNamespace(generation=kept))
    assert not torch.equal(model(TOKENS)[0], model(TOKENS)[0])


def test_stock_models_are_untouched() -> None:
    assert not isinstance(language_model().decoder.layers[0].self_attn, AdaptiveSpanSelfAttention)
    assert issubclass(TransformerLanguageModelExt, TransformerLanguageModel)
