"""Every legal combination of the options trains, decodes step by step, ignores padding and serves beam search."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from fairseq.sequence_generator import SequenceGenerator
from torch import Tensor, nn

from fairseq_ext.modules.cross_view import STRATEGIES
from fairseq_ext.training.errors import OptionError
from tests.models.tiny import EOS, PAD, decode_by_step, dictionary, language_model, translation_model

SOURCE = torch.tensor([[5, 6, 7, 8, 9, EOS], [PAD, PAD, 10, 4, 6, EOS]])
PREVIOUS = torch.tensor([[EOS, 5, 6, 7, 11], [EOS, 9, 8, 12, PAD]])
TOLERANCE = {"rtol": 1e-4, "atol": 2e-5}

BLOCKS = ("transformer", "muse", "muse-simple")
SELECTIONS: dict[str, dict[str, Any]] = {
    "dense": {},
    "top2": {"attention_topk": 2},
    "entmax15": {"attention_normalizer": "entmax15"},
}
# Other ways to spend the budget; those of probabilities alone leave rows that sum to less than one.
CHOICES = {
    select: {"attention_topk": 3, "attention_topk_select": select}
    for select in ("window", "heads", "probabilities-softmax", "heads-probabilities-softmax")
}
RATIOS: dict[str, dict[str, Any]] = {
    "half": {"attention_topk_ratio": 2.0},
    **{f"half-{select}": {"attention_topk_ratio": 2.0, "attention_topk_select": select} for select in CHOICES},
}
NORMS = ("layernorm", "adanorm")
VIEWS: dict[str, dict[str, Any]] = {
    "none": {},
    **{name: {"cross_view": name} for name in ("gca", "gpa", "fga", "fma", "ama", "ama-static")},
    **{
        f"gca-{fusion}": {"cross_view": "gca", "cross_view_fusion": fusion}
        for fusion in ("sum", "concat", "gate", "sequential", "separate")
    },
    "fma-concat": {"cross_view": "fma", "cross_view_fusion": "concat"},
    "gca-no-global": {"cross_view": "gca", "cross_view_no_global": True},
}
TRANSLATION: dict[str, dict[str, Any]] = {}
for _number, (_block, _selection, _norm, _views) in enumerate(itertools.product(BLOCKS, SELECTIONS, NORMS, VIEWS)):
    if _block != "transformer" and _views == "gca-sequential":
        continue
    # norms before and after the sub-layers take turns, so that each meets every option
    _pre_norm = bool((_number + _number // len(VIEWS)) % 2)
    TRANSLATION["-".join([_block, _selection, _norm, _views, "pre" if _pre_norm else "post"])] = {
        "block": _block,
        "norm": _norm,
        "encoder_normalize_before": _pre_norm,
        "decoder_normalize_before": _pre_norm,
        **SELECTIONS[_selection],
        **VIEWS[_views],
    }
TRANSLATION["separate-view-norms"] = {
    "cross_view": "gca",
    "cross_view_norm": "separate",
    "encoder_normalize_before": True,
    "decoder_normalize_before": True,
}
TRANSLATION["no-view-norms"] = {**TRANSLATION["separate-view-norms"], "cross_view_norm": "none"}
for _block, (_select, _options) in itertools.product(BLOCKS, {**CHOICES, **RATIOS}.items()):
    _in = "encoder-self,decoder-self" if "window" in _select else "encoder-self,decoder-self,cross"
    TRANSLATION[f"{_block}-{_select}"] = {"block": _block, **_options, "attention_topk_in": _in}

LANGUAGE_MODELS = {
    f"{block}-{selection}-{norm}-{'pre' if pre_norm else 'post'}": {
        "block": block,
        "norm": norm,
        "decoder_normalize_before": pre_norm,
        **SELECTIONS[selection],
    }
    for block, selection, norm, pre_norm in itertools.product(BLOCKS, SELECTIONS, NORMS, (False, True))
}
for _block, _select in itertools.product(BLOCKS, (*CHOICES, "probabilities", "heads-probabilities")):
    LANGUAGE_MODELS[f"{_block}-{_select}"] = {
        "block": _block, "attention_topk": 3, "attention_topk_select": _select,
    }  # fmt: skip
for _block in BLOCKS:
    LANGUAGE_MODELS[f"{_block}-half"] = {"block": _block, **RATIOS["half"]}
_BUDGETS = {"dense": {}, "top2": SELECTIONS["top2"], "half": RATIOS["half"]}
for (_name, _budget), _norm, _pre_norm in itertools.product(_BUDGETS.items(), NORMS, (False, True)):
    LANGUAGE_MODELS[f"span-{_name}-{_norm}-{'pre' if _pre_norm else 'post'}"] = {
        "attention_span": 4, "attention_span_ramp": 3, "attention_span_init": 0.3, **_budget,
        "norm": _norm, "decoder_normalize_before": _pre_norm,
    }  # fmt: skip


def build(builder: Any, options: dict[str, Any]) -> nn.Module:
    torch.manual_seed(1)
    kernels = {"muse_kernels": "3,5"} if options.get("block") == "muse" else {}
    model = builder(symbols=10, **kernels, **options)
    for parameter in model.parameters():  # gates, mixes and gains must not sit at a symmetric initial value
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    return model


def assert_trains(model: nn.Module, *inputs: Tensor | None) -> None:
    model.train()
    logits, _ = model(*inputs)
    logits[PREVIOUS.ne(PAD)].log_softmax(-1)[:, 5].sum().backward()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert not without, f"no gradient: {without}"
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    # the key bias shifts all scores of a query alike, which no softmax notices
    silent = [name for name, parameter in model.named_parameters() if not parameter.grad.any()]
    assert all(name.endswith("k_proj.bias") for name in silent), f"zero gradient: {silent}"


def assert_reorders(model: nn.Module, full: Tensor, encoder_out: Any = None) -> None:
    """Two steps, then a beam search's shuffle of the hypotheses, then two more, as the prefixes say."""
    order = torch.tensor([1, 0, 0])
    state: dict[str, Any] = {}
    arguments = {} if encoder_out is None else {"encoder_out": encoder_out}
    for step in range(1, 3):
        model.decoder(PREVIOUS[:, :step], incremental_state=state, **arguments)
    model.decoder.reorder_incremental_state_scripting(state, order)
    if encoder_out is not None:
        arguments = {"encoder_out": model.encoder.reorder_encoder_out(encoder_out, order)}
    reordered = PREVIOUS[order]
    for step in range(3, 5):
        logits, _ = model.decoder(reordered[:, :step], incremental_state=state, **arguments)
        torch.testing.assert_close(logits[:, -1], full[order, step - 1], **TOLERANCE)


@pytest.mark.parametrize("name", TRANSLATION)
def test_translation(name: str) -> None:
    model = build(translation_model, {"layers": 2, **TRANSLATION[name]})
    assert_trains(model, SOURCE, None, PREVIOUS)
    model.eval()
    with torch.no_grad():
        full, extra = model(SOURCE, None, PREVIOUS)
        real = PREVIOUS.ne(PAD)
        stepwise = decode_by_step(model, PREVIOUS, model.encoder(SOURCE, None))
        torch.testing.assert_close(stepwise[real], full[real], **TOLERANCE)
        assert_reorders(model, full, model.encoder(SOURCE, None))

        alone, _ = model(SOURCE[1:, 2:], None, PREVIOUS[1:, :4])
        torch.testing.assert_close(alone[0], full[1, :4], **TOLERANCE)

        attention = extra["attn"][0]
        torch.testing.assert_close(attention.sum(-1), torch.ones(PREVIOUS.shape), **TOLERANCE)
        assert not attention[1, :, :2].any(), "attends to padding"


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_language_modelling(name: str) -> None:
    model = build(language_model, LANGUAGE_MODELS[name])
    assert_trains(model, PREVIOUS)
    model.eval()
    with torch.no_grad():
        full = model(PREVIOUS)[0]
        real = PREVIOUS.ne(PAD)
        torch.testing.assert_close(decode_by_step(model, PREVIOUS)[real], full[real], **TOLERANCE)
        assert_reorders(model, full)
        torch.testing.assert_close(model(PREVIOUS[1:, :4])[0][0], full[1, :4], **TOLERANCE)
        # causal: the last token changes nothing before it
        changed = PREVIOUS.clone()
        changed[:, 3] = 4
        torch.testing.assert_close(model(changed)[0][:, :3], full[:, :3], **TOLERANCE)


@pytest.mark.parametrize(("encoder_layers", "decoder_layers"), [(1, 2), (2, 1), (3, 2), (2, 3)])
def test_views_train_every_encoder_layer_or_are_refused(encoder_layers: int, decoder_layers: int) -> None:
    refused = set()
    for strategy, no_global in itertools.product(STRATEGIES, (False, True)):
        options = {"encoder_layers": encoder_layers, "decoder_layers": decoder_layers, "cross_view": strategy}
        try:
            model = build(translation_model, {**options, "cross_view_no_global": no_global})
        except OptionError:
            refused.add((strategy, no_global))
            continue
        model(SOURCE, None, PREVIOUS)[0].log_softmax(-1)[..., 5].sum().backward()
        assert all(layer.fc1.weight.grad.any() for layer in model.encoder.layers)
    without = {"gca", "gpa", "fga"} if decoder_layers > 1 else set()
    without -= {"fga"} if encoder_layers > 1 else set()
    assert refused == {(strategy, True) for strategy in STRATEGIES if strategy not in without}


def score(model: nn.Module, source: Tensor, tokens: Tensor) -> float:
    previous = torch.cat([tokens.new_tensor([EOS]), tokens[:-1]])[None]
    log_probs = model(source, None, previous)[0].log_softmax(-1)
    return log_probs[0].gather(-1, tokens[:, None]).sum().item() / len(tokens)


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("views", [name for name in VIEWS if name != "gca-no-global"])
def test_beam_search(block: str, views: str) -> None:
    """Its scores are those of the hypotheses it returns, found again in one full pass."""
    if block != "transformer" and views == "gca-sequential":
        pytest.skip("parallel branches have no sequential views")
    selection = SELECTIONS["top2" if views in ("gca", "ama", "gca-separate") else "dense"]
    model = build(translation_model, {"block": block, **VIEWS[views], **selection}).eval()
    generator = SequenceGenerator([model], dictionary(10), beam_size=3, max_len_b=5)
    sample = {"net_input": {"src_tokens": SOURCE, "src_lengths": SOURCE.ne(PAD).sum(-1)}}
    with torch.no_grad():
        generated = generator.generate([model], sample)
        assert [len(hypotheses) for hypotheses in generated] == [3, 3]
        for source, hypotheses in zip(SOURCE, generated, strict=True):
            for hypothesis in hypotheses:
                expected = score(model, source[None], hypothesis["tokens"])
                assert hypothesis["score"].item() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("views", ["gca", "gca-separate", "ama", "fma-concat", "gca-sequential"])
def test_beams_may_share_the_encoders_keys(views: str) -> None:
    """With a beam size set on the attention, fairseq keeps one copy of the keys for all hypotheses of a sentence."""
    model = build(translation_model, {**VIEWS[views], "attention_topk": 2}).eval()
    beam = 3
    rows = torch.arange(len(SOURCE)).repeat_interleave(beam)
    previous = torch.randint(4, 14, (len(rows), 4))
    previous[:, 0] = EOS
    with torch.no_grad():
        full = model(SOURCE[rows], None, previous)[0]
        for module in model.modules():
            if hasattr(module, "set_beam_size"):
                module.set_beam_size(beam)
        stepwise = decode_by_step(model, previous, model.encoder(SOURCE[rows], None))
    torch.testing.assert_close(stepwise, full, **TOLERANCE)


def test_granularity_consistency_is_a_matter_of_order() -> None:
    """gca reads each lower layer in another decoder layer; fga always reads the first."""
    torch.manual_seed(0)
    changed = {}
    for strategy in ("gca", "fga"):
        model = build(translation_model, {"cross_view": strategy, "encoder_layers": 4, "decoder_layers": 4}).eval()
        with torch.no_grad():
            encoder_out = model.encoder(SOURCE, None)
            before = model.decoder(PREVIOUS, encoder_out=encoder_out)[0]
            parts = encoder_out["encoder_out"][0].unflatten(-1, (4, 8))
            encoder_out["encoder_out"] = [parts[..., [0, 2, 1, 3], :].flatten(-2)]
            after = model.decoder(PREVIOUS, encoder_out=encoder_out)[0]
        changed[strategy] = not torch.allclose(before, after)
    assert changed == {"gca": True, "fga": False}
