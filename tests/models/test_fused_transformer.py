"""Layers in their form for generation give what the originals give, whatever the options."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fairseq import search
from fairseq.sequence_generator import SequenceGenerator, SequenceGeneratorWithAlignment
from fairseq.token_generation_constraints import pack_constraints
from torch import Tensor, nn

from fairseq_ext.models.fused import MUSE_FORMS, TRANSFORMER_FORMS, fuse_for_inference
from fairseq_ext.models.fused_layer import FusedDecoding, FusedLayer
from tests.models.test_every_option import CHOICES, GCA, PRE_NORM, ROWS
from tests.models.test_stock_fields import HONOURED
from tests.models.tiny import EOS, PAD, decode_by_step, dictionary, language_model, translation_model

pytestmark = pytest.mark.usefixtures("exact_softmax", "stand_ins")

SOURCE = torch.tensor([[PAD, PAD, 4, 5, 6, EOS], [7, 8, 9, 10, 11, EOS], [PAD, 4, 9, 4, 13, EOS]])
BEAM = 2
EXPANDED = torch.arange(3).repeat_interleave(BEAM)
# Before these steps: all descend from the first hypothesis; some change places; the second sentence is finished.
ORDERS = {
    1: [0, 0, 2, 2, 4, 4],
    2: [1, 0, 2, 2, 5, 4],
    3: [0, 0, 3, 3, 4, 5],
    4: [1, 0, 5, 5],
    6: [0, 1, 2, 2],
    7: [0, 0, 3, 2],
    9: [3, 3],
}
# Those of a caller who is no beam search.
ANY_ORDERS = {1: [2, 0, 1, 4, 4, 5], 2: [5, 3, 1, 1], 4: [3, 2, 1, 0], 5: [0, 0, 0, 1, 1, 3, 2], 6: [6, 1], 8: [1]}
STEPS = 12

TRANSLATION = {f"{name}={row.value}": {**row.beside, name: row.value} for name, row in ROWS.items() if row.translation}
TRANSLATION |= {
    f"{name}={choice}": {**ROWS[name].beside, name: choice}
    for name, choices in CHOICES.items()
    for choice in choices
    if (name, choice) not in {("attention_topk_select", "window"), ("init", "fairseq")}
}
TRANSLATION |= {
    f"{name}={value}": {**beside, name: value}
    for name, (value, beside) in HONOURED.items()
    if value != "VECTORS" and not name.endswith("layers_to_keep")
}
WINDOW = {"attention_topk": 4, "attention_topk_select": "window", "attention_topk_in": "encoder-self,decoder-self"}
TRANSLATION |= {"plain": {}, "pre-norm": PRE_NORM, "window": WINDOW, "gca pre-norm": {**GCA, **PRE_NORM}}
LANGUAGE_MODELS = {
    f"{name}={row.value}": {key: value for key, value in row.beside.items() if not key.startswith("encoder_")}
    | {name: row.value}
    for name, row in ROWS.items()
    if row.lm
}
LANGUAGE_MODELS |= {
    "plain": {},
    "pre-norm": {"decoder_normalize_before": True},
    "window": {"attention_topk": 4, "attention_topk_select": "window"},
    "tied": {"share_decoder_input_output_embed": True},
    "adaptive": {"adaptive_softmax_cutoff": [6, 10]},
    "--scale-*": {"scale_heads": True, "scale_attn": True, "scale_fc": True, "scale_resids": True},
}
# What the fused form of a decoder's layers does not cover.
KEPT = (
    "attention_span", "cross_self_attention", "cross_view_fusion=sequential", "decoder_xformers", "encoder_xformers",
    "--scale-*",
)  # fmt: skip


def pair(build: Callable[..., nn.Module], options: dict[str, Any]) -> tuple[nn.Module, nn.Module]:
    """A model with every parameter random, and its twin in the form for generation."""
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        models.append(build(**{"width": 16, "ffn": 16, "layers": 3, **options}).double().eval())
    for parameter in models[0].parameters():
        nn.init.normal_(parameter, std=0.3)
    models[1].load_state_dict(models[0].state_dict())
    convert(models[1])
    return models[0], models[1]


def convert(model: nn.Module) -> nn.Module:
    return fuse_for_inference(model, MUSE_FORMS | TRANSFORMER_FORMS)


def search_by_hand(
    model: nn.Module, encoder_out: Any = None, orders: dict[int, list[int]] = ORDERS, whole: bool = False
) -> list[Tensor]:
    """Outputs of a decoder whose hypotheses change places; with ``whole``, the last ones of whole prefixes."""
    state: dict[str, Any] = {}
    outputs = []
    tokens = torch.full((len(EXPANDED), STEPS), EOS)
    if encoder_out is not None:
        encoder_out = model.encoder.reorder_encoder_out(encoder_out, EXPANDED)
    for step in range(STEPS):
        if step in orders:
            order = torch.tensor(orders[step])
            model.decoder.reorder_incremental_state_scripting(state, order)
            tokens = tokens[order]
            if encoder_out is not None:
                encoder_out = model.encoder.reorder_encoder_out(encoder_out, order)
        tokens[:, step] = torch.arange(len(tokens)) + 4 + step % 3  # hypotheses differ from here on
        cache = None if whole else state
        output, extra = model.decoder(tokens[:, : step + 1], encoder_out=encoder_out, incremental_state=cache)
        outputs += [part[:, -1] for part in (output, *extra["attn"]) if part is not None]
    return outputs


def all_close(results: list[Tensor], expected: list[Tensor]) -> None:
    assert len(results) == len(expected)
    for result, other in zip(results, expected, strict=True):
        torch.testing.assert_close(result.double(), other.double(), rtol=1e-6, atol=1e-7)


def fused_as_expected(model: nn.Module, name: str) -> None:
    fused = [isinstance(layer, FusedDecoding) for layer in model.decoder.layers]
    assert fused == [not name.startswith(KEPT)] * len(fused)


@pytest.mark.parametrize("name", TRANSLATION)
@torch.no_grad()
def test_translation(name: str) -> None:
    models = pair(translation_model, TRANSLATION[name])
    fused_as_expected(models[1], name)
    encoded = [model.encoder(SOURCE, None) for model in models]
    all_close(encoded[1]["encoder_out"], encoded[0]["encoder_out"])
    all_close(*(search_by_hand(*both) for both in zip(models, encoded, strict=True)))
    whole = torch.randint(4, 16, (3, 7))
    whole[1, 5:] = PAD
    all_close(*([model(SOURCE, None, whole)[0]] for model in models))
    assert "attn" in models[1].decoder(whole, encoded[1])[1]


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
@torch.no_grad()
def test_language_models(name: str) -> None:
    models = pair(language_model, LANGUAGE_MODELS[name])
    fused_as_expected(models[1], name)
    all_close(*map(search_by_hand, models))
    whole = torch.randint(4, 16, (3, 7))
    all_close(*([model.decoder(whole)[0]] for model in models))


BUILDERS = pytest.mark.parametrize("build", [translation_model, language_model])


@BUILDERS
@pytest.mark.parametrize(
    "options",
    [{}, {"attention_topk": 2}, {"block": "muse"}, {"block": "muse-simple"}],
    ids=["plain", "topk", "muse", "muse-simple"],
)
@torch.no_grad()
def test_steps_equal_whole_prefixes_in_any_order(build: Callable[..., nn.Module], options: dict[str, Any]) -> None:
    _, model = pair(build, options)
    encoded = model.encoder(SOURCE, None) if build is translation_model else None
    for orders in (ORDERS, ANY_ORDERS):
        all_close(*(search_by_hand(model, encoded, orders, whole) for whole in (False, True)))


@BUILDERS
@torch.no_grad()
def test_padding_in_a_prefix(build: Callable[..., nn.Module]) -> None:
    models = pair(build, {})
    prefix = torch.tensor([[EOS, 4, PAD, 5, 6], [EOS, 7, 8, 9, 10], [EOS, PAD, PAD, 5, 6]])
    memory = models[0].encoder(SOURCE, None) if build is translation_model else None
    all_close(*([decode_by_step(model, prefix, memory)] for model in models))


@pytest.mark.parametrize("options", [{}, {"attention_topk": 2}, {"block": "muse"}], ids=["plain", "topk", "muse"])
@torch.no_grad()
def test_sentences_are_kept_once(options: dict[str, Any]) -> None:
    _, model = pair(translation_model, options)
    encoded = model.encoder(SOURCE, None)
    out = model.encoder.reorder_encoder_out(encoded, EXPANDED)
    assert out["encoder_out"][0] is encoded["encoder_out"][0]
    for order, sentences in (([1, 0, 2, 2, 5, 4], 3), ([0, 1, 5, 5], 2), ([0, 2, 1, 1], 4), ([3, 3], 2)):
        out = model.encoder.reorder_encoder_out(out, torch.tensor(order))
        assert out["encoder_out"][0].size(1) == len(out["encoder_padding_mask"][0]) == sentences


def prepared(options: dict[str, Any], lm: bool = False, **generation: Any) -> tuple[nn.Module, nn.Module]:
    """A model and its twin, both prepared as ``fairseq-generate`` does."""
    build = language_model if lm else translation_model
    models = [build(**options).double() for _ in range(2)]
    torch.manual_seed(5)
    for parameter in models[0].parameters():
        nn.init.normal_(parameter, std=0.5)
    models[1].load_state_dict(models[0].state_dict())
    settings = {"beam": 3, "print_alignment": None, "retain_dropout": False, **generation}
    for model in models:
        model.prepare_for_inference_(SimpleNamespace(generation=SimpleNamespace(**settings)))
    return models[0], convert(models[1])


def generate(models: list[nn.Module], kind: type[SequenceGenerator] = SequenceGenerator, **options: Any) -> Any:
    arguments = {name: options.pop(name) for name in ("prefix_tokens", "constraints") if name in options}
    generator = kind(models, dictionary(), **{"beam_size": 3, "max_len_a": 0, "max_len_b": 9, **options})
    sample = {
        "id": torch.arange(3),
        "net_input": {"src_tokens": SOURCE, "src_lengths": SOURCE.ne(PAD).sum(1)},
        "target": SOURCE,
    }
    if not hasattr(models[0], "encoder"):
        sample["net_input"]["src_tokens"] = torch.tensor([[EOS, 4], [EOS, 7], [EOS, 9]])
    torch.manual_seed(9)
    return generator.generate(models, sample, **arguments)


def same_hypotheses(result: Any, expected: Any) -> None:
    for left, right in zip(result, expected, strict=True):
        assert [one["tokens"].tolist() for one in left] == [one["tokens"].tolist() for one in right]
        for one, other in zip(left, right, strict=True):
            torch.testing.assert_close(one["positional_scores"], other["positional_scores"], atol=1e-5, rtol=1e-5)
            assert torch.equal(torch.as_tensor(one["alignment"]), torch.as_tensor(other["alignment"]))
            torch.testing.assert_close(one["attention"].double(), other["attention"].double(), atol=1e-5, rtol=1e-5)


SEARCHES: dict[str, Callable[[], dict[str, Any]]] = {
    "beam": dict,
    "one": lambda: {"beam_size": 1},
    "wide": lambda: {"beam_size": 5, "no_repeat_ngram_size": 2, "len_penalty": 0.5, "min_len": 3},
    "prefix": lambda: {"prefix_tokens": torch.tensor([[4, 5], [6, PAD], [8, 9]])},
    "diverse": lambda: {"search_strategy": search.DiverseBeamSearch(dictionary(), 3, 0.5)},
    "siblings": lambda: {"search_strategy": search.DiverseSiblingsSearch(dictionary(), 0.5)},
    "sampling": lambda: {"search_strategy": search.Sampling(dictionary(), sampling_topk=5)},
    "nucleus": lambda: {"search_strategy": search.Sampling(dictionary(), sampling_topp=0.8)},
    "length": lambda: {"search_strategy": search.LengthConstrainedBeamSearch(dictionary(), 0.5, 3, 1.0, 1)},
    "constrained": lambda: {
        "search_strategy": search.LexicallyConstrainedBeamSearch(dictionary(), "ordered"),
        "constraints": pack_constraints([[torch.tensor([6])], [torch.tensor([9, 4])], []]),
    },
    "alignment": lambda: {"kind": SequenceGeneratorWithAlignment},
}


@pytest.mark.parametrize("options", [{}, {"attention_topk": 2}, GCA], ids=["plain", "topk", "gca"])
@pytest.mark.parametrize("name", SEARCHES)
def test_searches(name: str, options: dict[str, Any]) -> None:
    original, fused = prepared(options, print_alignment="hard" if name == "alignment" else None)
    expected = generate([original], **SEARCHES[name]())
    for _ in range(2):  # nothing is left over from the first
        same_hypotheses(generate([fused], **SEARCHES[name]()), expected)


def test_one_model_in_searches_of_several_widths() -> None:
    original, fused = prepared({})
    for beam in (5, 1, 3):
        same_hypotheses(generate([fused], beam_size=beam), generate([original], beam_size=beam))


def test_an_ensemble() -> None:
    pairs = [prepared({}), prepared({"attention_topk": 2}), prepared({"block": "muse"})]
    originals, fused = (list(models) for models in zip(*pairs, strict=True))
    expected = generate(originals)
    same_hypotheses(generate(fused), expected)
    same_hypotheses(generate([fused[0], *originals[1:]]), expected)


@pytest.mark.parametrize("prefix", [False, True])
def test_a_language_model_goes_on_from_a_text(prefix: bool) -> None:
    arguments = {"prefix_tokens": torch.tensor([[4, 5], [7, PAD], [9, 9]])} if prefix else {}
    original, fused = prepared({}, lm=True)
    same_hypotheses(generate([fused], **arguments), generate([original], **arguments))


@pytest.mark.parametrize(("names", "kept"), [(None, True), (["MultiheadAttention"], True), (["Other"], False)])
def test_layers_with_retained_dropout_stay(names: list[str] | None, kept: bool) -> None:
    original, fused = prepared({"dropout": 0.3}, retain_dropout=True, retain_dropout_modules=names)
    assert {isinstance(layer, FusedLayer) for layer in fused.decoder.layers} == {not kept}
    same_hypotheses(generate([fused]), generate([original]))


def test_a_replaced_linear_stays() -> None:
    class Other(nn.Linear):
        pass

    model = translation_model()
    model.decoder.layers[0].self_attn.k_proj = Other(8, 8)
    model.encoder.layers[1].fc1 = Other(8, 12)
    convert(model)
    assert [isinstance(layer, FusedLayer) for layer in model.decoder.layers] == [False, True, True]
    assert [isinstance(layer, FusedLayer) for layer in model.encoder.layers] == [True, False, True]


def test_the_original_is_left_alone_and_the_fused_is_not_trained() -> None:
    layer = translation_model().decoder.layers[0]
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    fused = TRANSFORMER_FORMS[type(layer)](layer)
    assert layer.training and all(parameter.requires_grad for parameter in layer.parameters())
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())
    with pytest.raises(RuntimeError, match="fused"):
        fused.train()
