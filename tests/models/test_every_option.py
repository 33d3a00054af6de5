"""Every option of ``transformer_ext`` arrives in the model, or is refused where it would do nothing.

A new option fails here until it has a row.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from fairseq import options
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from omegaconf import OmegaConf
from torch import Tensor, nn

from fairseq_ext.models.ext_options import ExtOptions
from fairseq_ext.models.transformer import TransformerExtModel
from fairseq_ext.modules.muse_init import INIT_LAWS
from fairseq_ext.modules.normalization import AdaNorm, DetachNorm, LayerNormSimple
from fairseq_ext.training.errors import OptionError
from fairseq_ext.training.options import flag
from tests.models.tiny import EOS, PAD, language_model, task, translation_model

SOURCE = torch.tensor([[5, 6, 7, 8, 9, 4, EOS], [PAD, PAD, PAD, 10, 4, 6, EOS]])
PREVIOUS = torch.tensor([[EOS, 5, 6, 7, 11, 8], [EOS, 9, 8, 12, PAD, PAD]])
GENERATION = OmegaConf.create({"generation": {}, "common_eval": {}})
PRE_NORM = {"encoder_normalize_before": True, "decoder_normalize_before": True}


def sides(model: nn.Module) -> list[str]:
    return [side for side in ("encoder", "decoder") if hasattr(model, side)]


def each_layer(model: nn.Module, value: Callable[[nn.Module], Any]) -> list[Any]:
    """``value`` of every layer, encoder first."""
    return [value(layer) for side in sides(model) for layer in getattr(model, side).layers]


def layers(value: Callable[[nn.Module], Any], expected: Any) -> Callable[[nn.Module], bool]:
    """Whether ``value`` of every layer is ``expected``."""

    def shows(model: nn.Module) -> bool:
        try:
            return all(one == expected for one in each_layer(model, value))
        except AttributeError:  # a layer that has no such part
            return False

    return shows


def attentions(model: nn.Module, name: str) -> dict[str, set[Any]]:
    """An attribute of the attentions of every layer: what is found in each of the three kinds."""
    kinds: dict[str, set[Any]] = {}
    for side in sides(model):
        for layer in getattr(model, side).layers:
            kinds.setdefault(f"{side}-self", set()).add(getattr(layer.self_attn, name, None))
            if getattr(layer, "encoder_attn", None) is not None:
                kinds.setdefault("cross", set()).add(getattr(layer.encoder_attn, name, None))
    return kinds


def everywhere(name: str, value: Any) -> Callable[[nn.Module], bool]:
    return lambda model: all(values == {value} for values in attentions(model, name).values())


def selects_in(*kinds: str) -> Callable[[nn.Module], bool]:
    return lambda model: {kind for kind, values in attentions(model, "topk").items() if values == {2}} == set(kinds)


def spans(**expected: Any) -> Callable[[nn.Module], bool]:
    def is_there(model: nn.Module) -> bool:
        attentions = [layer.self_attn for layer in model.decoder.layers]
        return all(
            hasattr(attention, "span")
            and all(getattr(attention.span, name) == value for name, value in expected.items())
            for attention in attentions
        )

    return is_there


def norms(model: nn.Module) -> dict[str, nn.Module]:
    """Every norm of the layers and after the stacks."""
    return {
        name: module
        for name, module in model.named_modules()
        if name.endswith("layer_norm") and not isinstance(module, nn.ModuleList)
    }


def every_norm(kind: type[nn.Module], **expected: Any) -> Callable[[nn.Module], bool]:
    return lambda model: all(
        isinstance(norm, kind) and all(getattr(norm, name) == value for name, value in expected.items())
        for norm in norms(model).values()
    )


def only_final_norms(model: nn.Module) -> bool:
    return {name for name, norm in norms(model).items() if isinstance(norm, AdaNorm)} == {
        f"{side}.layer_norm" for side in sides(model)
    }


def kernels(model: nn.Module) -> bool:
    kernels = each_layer(model, lambda layer: [conv.kernel_size for conv in layer.self_attn.conv.convs])
    return kernels == [[3], [5], [7, 9]] * len(sides(model))


def fusions(expected: str) -> Callable[[nn.Module], bool]:
    return lambda model: all(
        getattr(getattr(layer.encoder_attn, "fusion", None), "fusion", None) == expected
        for layer in model.decoder.layers
    )


def views(expected: list[tuple[int, ...]]) -> Callable[[nn.Module], bool]:
    def shows(model: nn.Module) -> bool:
        fusions = [getattr(layer.encoder_attn, "fusion", None) for layer in model.decoder.layers]
        return [None if fusion is None else fusion.views for fusion in fusions] == expected

    return shows


def unfused(model: nn.Module) -> bool:
    before = each_layer(model, type)
    model.prepare_for_inference_(GENERATION)
    return each_layer(model, type) == before


def law(init: str) -> Callable[[nn.Module], bool]:
    """Whether every projection fills the interval that the law gives it, and no other."""

    def bound(linear: nn.Linear, role: str, index: int) -> float:
        fan_in, fan_out = linear.in_features, linear.out_features
        if init == "xavier" or (role == "ffn" and init != "km"):
            gain = {"xi": (index + 1) ** -0.5, "fixup": 6**-0.5}.get(init, 1.0)
            return gain * math.sqrt(6 / (fan_in + fan_out * (3 if role == "in" else 1)))
        return math.sqrt((3 if role == "out" and init != "adanorm" else 1) / fan_in)

    def shows(model: nn.Module) -> bool:
        checks = []
        for side in sides(model):
            for index, layer in enumerate(getattr(model, side).layers):
                linears = [(layer.fc1, "ffn"), (layer.fc2, "ffn")]
                for attention in (layer.self_attn, getattr(layer, "encoder_attn", None)):
                    if attention is not None:
                        linears += [(getattr(attention, f"{name}_proj"), "in") for name in "qkv"]
                        linears.append((attention.out_proj, "out"))
                for linear, role in linears:
                    reach = linear.weight.abs().max().item() / bound(linear, role, index)
                    checks.append(0.93 < reach <= 1.0001 and not linear.bias.any())
        return all(checks)

    return shows


@dataclasses.dataclass
class Row:
    """How one option is seen.

    Args:
        value: not the default.
        shows: whether it is in a model.
        beside: other options that it needs.
        idle: other options with which it does nothing; ``None`` where there are none such.
        lm: whether a language model takes it.
        translation: whether a translation model takes it.
    """

    value: Any
    shows: Callable[[nn.Module], bool]
    beside: dict[str, Any] = dataclasses.field(default_factory=dict)
    idle: dict[str, Any] | None = dataclasses.field(default_factory=dict)
    lm: bool = True
    translation: bool = True


MUSE = {"block": "muse"}
GCA = {"cross_view": "gca"}
SPAN = {"attention_span": 6, "attention_span_init": 0.5}
ROWS: dict[str, Row] = {
    "block": Row("muse-simple", layers(lambda layer: layer.final_layer_norm, None), idle=None),
    "muse_kernels": Row("3/5/7,9", kernels, MUSE, {"block": "muse-simple"}),
    "muse_no_gate": Row(True, layers(lambda layer: layer.self_attn.conv.gate, None), MUSE),
    "muse_input_dropout": Row(0.25, layers(lambda layer: layer.input_dropout_module.p, 0.25), {"block": "muse-simple"}),
    "muse_weight_dropout": Row(
        0.35,
        layers(lambda layer: {conv.dropout_module.p for conv in layer.self_attn.conv.convs}, {0.35}),
        MUSE,
        {"block": "muse-simple"},
    ),
    "muse_no_padding_mask": Row(True, layers(lambda layer: layer.self_attn.mask_padding, False), MUSE, lm=False),
    "muse_no_fuse": Row(True, unfused, MUSE),
    "attention_topk": Row(2, everywhere("topk", 2), idle=None),
    "attention_topk_ratio": Row(3.0, everywhere("topk_ratio", 3.0), idle=None),
    "attention_topk_min": Row(2, everywhere("topk_min", 2), {"attention_topk_ratio": 6.0}, {"attention_topk": 2}),
    "attention_topk_in": Row(
        "encoder-self, cross", selects_in("encoder-self", "cross"), {"attention_topk": 2}, lm=False
    ),
    "attention_topk_select": Row("heads", everywhere("select", "heads"), {"attention_topk": 2}),
    "attention_normalizer": Row("entmax15", everywhere("normalizer", "entmax15"), idle=None),
    "attention_span": Row(4, spans(max_span=4), idle=None, translation=False),
    "attention_span_ramp": Row(2, spans(ramp=2), SPAN, translation=False),
    "attention_span_init": Row(0.75, spans(init=0.75), {"attention_span": 6}, translation=False),
    "attention_span_loss": Row(1e-3, spans(loss_coeff=1e-3), SPAN, translation=False),
    "norm": Row("layernorm-simple", every_norm(LayerNormSimple), idle=None),
    "norm_scope": Row("final", only_final_norms, {"norm": "adanorm", **PRE_NORM}),
    "norm_convention": Row("paper", every_norm(AdaNorm, unbiased=False), {"norm": "adanorm"}),
    "norm_detach": Row("std", every_norm(DetachNorm, detach="std"), {"norm": "detachnorm"}, {"norm": "adanorm"}),
    "adanorm_scale": Row(1.5, every_norm(AdaNorm, scale=1.5), {"norm": "adanorm"}, {"norm": "layernorm-simple"}),
    "adanorm_k": Row(0.3, every_norm(AdaNorm, k=0.3), {"norm": "adanorm"}, {"norm": "detachnorm"}),
    "cross_view": Row("gpa", views([(3, 1), (3, 2), (3,)]), idle=None, lm=False),
    "cross_view_fusion": Row("sum", fusions("sum"), GCA, lm=False),
    "cross_view_norm": Row(
        "separate",
        lambda model: hasattr(model.encoder, "view_layer_norm"),
        {**GCA, **PRE_NORM},
        {**GCA, "decoder_normalize_before": True},
        lm=False,
    ),
    "cross_view_no_global": Row(True, views([(3,), (2,), (1,)]), GCA, lm=False),
    "init": Row("xi", law("xi"), idle=None),
}


def build(lm: bool, **chosen: Any) -> nn.Module:
    torch.manual_seed(2)
    if lm:
        chosen = {name: value for name, value in chosen.items() if not name.startswith("encoder_")}
        return language_model(width=16, layers=3, **chosen)
    return translation_model(width=16, **chosen)


def fingerprint(lm: bool, **chosen: Any) -> list[Any]:
    """What a model is and does: parameters, a training step on padded input, its own loss, layers while generating."""
    model = build(lm, **chosen)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    inputs = (PREVIOUS,) if lm else (SOURCE, None, PREVIOUS)
    torch.manual_seed(3)
    logits = model(*inputs)[0]
    logits[PREVIOUS.ne(PAD)].log_softmax(-1)[:, 5].sum().backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    own_loss = model.span_loss().detach() if lm and chosen.get("attention_span") else None
    generating = model.eval()
    generating.prepare_for_inference_(GENERATION)
    return [state, logits.detach(), gradients, own_loss, [type(module) for module in generating.modules()]]


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(value, other[name]) for name, value in one.items())
    if isinstance(one, list):
        return len(one) == len(other) and all(same(*pair) for pair in zip(one, other, strict=True))
    return one == other


OPTIONS = [field.name for field in dataclasses.fields(ExtOptions) if field.name != "_name"]
KINDS = pytest.mark.parametrize("lm", [False, True], ids=["translation", "language model"])


def test_every_option_has_a_row() -> None:
    assert sorted(ROWS) == sorted(OPTIONS)
    for name, row in ROWS.items():
        assert row.value != getattr(ExtOptions, name)


@KINDS
@pytest.mark.parametrize("name", ROWS)
def test_every_option_is_found_in_the_model(name: str, lm: bool) -> None:
    row = ROWS[name]
    chosen = {**row.beside, name: row.value}
    if not (row.lm if lm else row.translation):
        with pytest.raises(OptionError, match=r"^--"):
            build(lm, **chosen)
        return
    assert row.shows(build(lm, **chosen))
    assert not row.shows(build(lm, **row.beside)), "also shown without the option"
    assert not same(fingerprint(lm, **chosen), fingerprint(lm, **row.beside)), "the model does what it did"


@KINDS
@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.idle is not None])
def test_every_idle_option_is_refused_by_name(name: str, lm: bool) -> None:
    row = ROWS[name]
    if not lm:
        build(lm, **row.idle)  # that the situation is legal
    with pytest.raises(OptionError) as caught:
        build(lm, **row.idle, **{name: row.value})
    message = str(caught.value)
    named = flag(name) if not lm or row.lm or "cross_view" not in row.idle else "--cross-view"
    assert message.startswith((f"{named} ", f"{named}:")), message
    assert "\n" not in message


CHOICES = {
    field.name: field.metadata["choices"]
    for field in dataclasses.fields(ExtOptions)
    if field.metadata.get("choices") and field.name != "norm_scope"
}


@pytest.mark.parametrize("name", CHOICES)
def test_every_choice_makes_another_model(name: str) -> None:
    beside = {**ROWS[name].beside, **({} if name in ("block", "init") else PRE_NORM)}
    if name == "cross_view_fusion":
        beside["decoder_layers"] = 2
    if name == "attention_topk_select":  # cross-attention has no window
        beside["attention_topk_in"] = "encoder-self,decoder-self"
    prints = {choice: fingerprint(False, **beside, **{name: choice}) for choice in CHOICES[name]}
    alike = [(a, b) for a in prints for b in prints if a < b and same(prints[a], prints[b])]
    assert not alike


def test_a_window_is_causal_in_the_decoder_alone() -> None:
    options = {"attention_topk": 4, "attention_topk_select": "window"}
    model = build(False, **options, attention_topk_in="encoder-self,decoder-self")
    assert attentions(model, "causal") == {"encoder-self": {False}, "decoder-self": {True}, "cross": {None}}
    assert attentions(build(True, **options), "causal") == {"decoder-self": {True}}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "--attention-topk-select window: cross-attention has no keys around its query"),
        (
            {"attention_topk_in": "cross"},
            "--attention-topk-select window: cross-attention has no keys around its query",
        ),
        (
            {"no_cross_attention": True, "cross_self_attention": True},
            "--attention-topk-select window: excludes --cross",
        ),
    ],
)
def test_a_window_needs_self_attention(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError) as caught:
        build(False, **options, attention_topk=2, attention_topk_select="window")
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


@KINDS
@pytest.mark.parametrize("init", INIT_LAWS)
@pytest.mark.parametrize("block", ["transformer", "muse"])
def test_initial_weights_follow_the_law(init: str, block: str, lm: bool) -> None:
    model = build(lm, init=init, block=block)
    assert [name for name in INIT_LAWS if law(name)(model)] == [init]


OUT_OF_RANGE = {
    "muse_input_dropout": [-0.1, 1.0, 2.0],
    "muse_weight_dropout": [-0.1, 1.0, 2.0],
    "attention_topk": [-1],
    "attention_topk_ratio": [-1.0, 0.5],
    "attention_topk_min": [-1],
    "attention_span": [-1],
    "attention_span_ramp": [0, -1],
    "attention_span_init": [-0.1, 1.1],
    "attention_span_loss": [-1e-7],
    "adanorm_scale": [0.0, -1.0],
    "adanorm_k": [-0.1],
}


def test_every_number_has_limits() -> None:
    numbers = {field.name: field.type for field in dataclasses.fields(ExtOptions) if field.type in (int, float)}
    assert set(OUT_OF_RANGE) == set(numbers)
    for name, kind in numbers.items():
        beyond = OUT_OF_RANGE[name] + ([math.nan, math.inf, -math.inf] if kind is float else [])
        for value in beyond:
            with pytest.raises(OptionError, match=f"^{flag(name)}.* got {value}$"):
                build(False, **ROWS[name].beside, **{name: value})


@pytest.mark.parametrize("extra", [[], ["--block", "muse-simple"]])
def test_a_command_line_with_an_idle_option_is_refused(extra: list[str]) -> None:
    parser = options.get_training_parser("translation")
    line = ["data", "--arch", "transformer_ext", "--muse-kernels", "nonsense", *extra]
    config = convert_namespace_to_omegaconf(options.parse_args_and_arch(parser, line)).model
    block = extra[-1] if extra else "transformer"
    with pytest.raises(OptionError, match=f"^--muse-kernels nonsense: has no effect with --block {block}$"):
        TransformerExtModel.build_model(config, task())


def test_a_normalizer_is_where_keys_are_selected() -> None:
    model = translation_model(attention_normalizer="entmax15", attention_topk_in="encoder-self,decoder-self")
    normalizers = {kind: normalizers - {None} for kind, normalizers in attentions(model, "normalizer").items()}
    assert normalizers["encoder-self"] == normalizers["decoder-self"] == {"entmax15"}
    assert normalizers["cross"] <= {"softmax"}


@pytest.mark.parametrize("scope", ["all", "final"])
def test_the_norms_of_views_are_norms_after_a_stack(scope: str) -> None:
    views = {"cross_view": "gca", "cross_view_norm": "separate", **PRE_NORM}
    model = translation_model(norm="adanorm", norm_scope=scope, **views)
    assert [type(norm) for norm in model.encoder.view_layer_norm] == [AdaNorm, AdaNorm]
    left = [path for path, module in model.named_modules() if type(module) is nn.LayerNorm]
    assert bool(left) == (scope == "final")
