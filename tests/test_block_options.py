"""Every option of every public block and loss: its default, and that another value changes something."""

from __future__ import annotations

import dataclasses
import inspect
import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from fairseq_ext import losses, modules
from fairseq_ext.losses.bonus import Bonus
from tests.blocks import Fusion

torch.manual_seed(0)
SCORES, ROWS, STATES = torch.randn(2, 4, 6), 0.05 * torch.randn(2, 5, 8), torch.randn(6, 2, 8)
HEADS = torch.randn(3, 2, 3, 4, 6)
LOGITS, CLASSES, COUNTS = 3 * torch.randn(6, 5), torch.tensor([0, 3, 4, 1, 2, 0]), torch.tensor([90, 50, 30, 20, 1])
LOGITS[0, 0] = 20.0
BINARY, PROBABILITIES = (torch.rand(6, 5) < 0.5).long(), torch.randn(6, 5).softmax(-1)
MAPS = torch.randn(2, 2, 4, 4).softmax(-1)
OUTPUT = torch.eye(5)
WEIGHT, EACH, KEEP = torch.rand(5) + 0.5, torch.rand(6), torch.eye(4, dtype=torch.bool)


def seeded(module: Callable[..., nn.Module], *sizes: Any) -> Callable[..., Tensor]:
    """A module in training with the same weights and the same dropout each time, on ``STATES``."""

    def run(**options: Any) -> Tensor:
        torch.manual_seed(0)
        return module(*sizes, **options)(STATES)

    return run


def span(**options: Any) -> tuple[Tensor, Tensor]:
    module = modules.AdaptiveSpan(2, 60, **options)
    return module(torch.linspace(0, 1, 4 * 60).view(2, 2, 60)), module.span_loss()


def span_attention(**options: Any) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    module = modules.AdaptiveSpanAttention(8, 2, 60, **options)
    return module(ROWS, torch.randn(2, 65, 8), torch.randn(1, 4, 60)), module.span.span_loss()


def fusion(strategy: str = "gca", fusion: str = "mean", ama_proj: nn.Linear | None = None) -> Tensor:
    torch.manual_seed(0)
    block = Fusion()
    block.fuse = modules.CrossViewFusion(8, (1, 2), strategy, fusion, ama_proj)
    return block(*STATES.expand(3, 6, 2, 8) * torch.tensor([1.0, 2.0, -3.0]).view(3, 1, 1, 1))[0]


def encouraging(loss: Callable[..., Any]) -> Callable[..., Any]:
    return lambda **options: loss(LOGITS, CLASSES, **options)


def module_loss(epoch: int = 1, **options: Any) -> Tensor:
    criterion = losses.EncouragingLoss(**options)
    criterion.set_epoch(epoch)
    return criterion(LOGITS, CLASSES)


def embedded(**options: Any) -> Tensor:
    """Regions of vectors, boxes and, with ``num_classes``, classes; with ``grid`` they are its cells."""
    torch.manual_seed(0)
    module = modules.VisualEmbedding(8, **{"feature_dim": 6, **options})
    return module(torch.randn(2, 6, 6), torch.rand(2, 6, 7), torch.tensor([[0, 1, 2, 0, 1, 2]] * 2))


RUN: dict[str, Callable[..., Any]] = {
    "box_geometry": lambda **o: modules.box_geometry(torch.rand(5, 4), 4.0, 3.0, **o),
    "grid_geometry": lambda **o: modules.grid_geometry(2, 3, **o),
    "grid_sinusoid": lambda **o: modules.grid_sinusoid(2, 3, 8, **o),
    "VisualEmbedding": embedded,
    "topk_softmax": lambda **o: modules.topk_softmax(SCORES.requires_grad_(), **{"k": 2, **o}),
    "topk_attention": lambda **o: modules.topk_attention(*HEADS.requires_grad_(), **{"k": 2, **o}),
    "attention_weights": lambda **o: modules.attention_weights(SCORES.requires_grad_(), **o),
    "out_of_window_softmax": lambda **o: modules.out_of_window_softmax(SCORES, 2, **o),
    "AdaNorm": lambda **o: modules.AdaNorm(8, **o)(ROWS),
    "LayerNormSimple": lambda **o: modules.LayerNormSimple(8, **o)(ROWS),
    "DetachNorm": lambda **o: modules.DetachNorm(8, **o)(ROWS.requires_grad_()),
    "create_norm": lambda kind="adanorm", **o: modules.create_norm(kind, 8, **o)(ROWS.requires_grad_()),
    "DynamicConv": seeded(modules.DynamicConv, 8, 2, 3),
    "KernelGate": lambda **o: modules.KernelGate(2)([STATES, STATES], **o),
    "MultiScaleConv": seeded(modules.MultiScaleConv, 8, 2, (3, 5)),
    "AdaptiveSpan": span,
    "AdaptiveSpanAttention": span_attention,
    "CrossViewFusion": fusion,
    "pack_linears_": lambda **o: modules.pack_linears_(nn.Linear(8, 3), "int8", **o)(ROWS),
    "view_schedule": lambda **o: torch.tensor([view[0] for view in modules.view_schedule("gca", 6, 3, **o)]),
    "encouraging_loss": encouraging(losses.encouraging_loss),
    "encouraging_loss_terms": encouraging(losses.encouraging_loss_terms),
    "EncouragingLoss": module_loss,
    "fused_linear_encouraging_loss": lambda **o: losses.fused_linear_encouraging_loss(LOGITS, OUTPUT, CLASSES, **o),
    "bonus_schedule": lambda **o: torch.tensor(losses.bonus_schedule(2, 10, **o)),
    "mirror_bonus_loss": encouraging(losses.mirror_bonus_loss),
    "halted_focal_loss": lambda **o: losses.halted_focal_loss(LOGITS, BINARY, **o),
    "softmax_focal_loss": lambda **o: losses.softmax_focal_loss(LOGITS, CLASSES, **o),
    "binary_encouraging_loss": lambda **o: losses.binary_encouraging_loss(LOGITS, BINARY, **o),
    "reweighted_cross_entropy": lambda **o: losses.reweighted_cross_entropy(LOGITS, CLASSES, COUNTS, **o),
    "focal_loss": lambda **o: losses.focal_loss(LOGITS, CLASSES, COUNTS, **o),
    "class_balanced_softmax_loss": lambda **o: losses.class_balanced_softmax_loss(LOGITS, CLASSES, COUNTS, **o),
    "logit_adjusted_cross_entropy": lambda **o: losses.logit_adjusted_cross_entropy(LOGITS, CLASSES, COUNTS, **o),
    "class_weights": lambda **o: losses.class_weights(COUNTS, **o),
    "soft_target_cross_entropy": lambda **o: losses.soft_target_cross_entropy(LOGITS, PROBABILITIES, **o),
    "soft_target_kl": lambda **o: losses.soft_target_kl(LOGITS, PROBABILITIES, **o),
    "distillation_kl": lambda **o: losses.distillation_kl(LOGITS, PROBABILITIES, **o),
    "matrix_kl": lambda **o: losses.matrix_kl(MAPS[0].masked_fill(KEEP, 0.0), MAPS[1], **o),
    "reduce_weighted": lambda **o: losses.reduce_weighted(LOGITS[:, 0], **o),
}

# Per option: its default, another value, and what must be set before for it to matter.
Change = tuple[Any, Any] | tuple[Any, Any, dict[str, Any]]
NORM: dict[str, Change] = {"eps": (1e-5, 1e-2), "unbiased": (True, False)}  # arXiv:1911.07013 and its released code
BUDGET: dict[str, Change] = {"k": (0, 8), "ratio": (0.0, 4.0), "minimum": (0, 30, {"ratio": 4.0})}
SPAN: dict[str, Change] = {  # arXiv:1905.07799
    "ramp": (32, 8, {"init": 0.2}), "init": (0.0, 0.4), "loss_coeff": (0.0, 1e-3, {"init": 0.2}), **BUDGET,
}  # fmt: skip
REDUCTION: dict[str, Change] = {"reduction": ("mean", "sum")}
TERMS: dict[str, Change] = {  # arXiv:2110.06537 and its released code
    "weight": (None, WEIGHT),
    "ignore_index": (-100, 3),
    "label_smoothing": (0.0, 0.1),
    "log_end": (0.75, 0.5),
    "bonus": ("log", "cosine"),
    "bonus_smoothing": (None, 0.2),
    "bonus_power": (1.0, 2.0, {"bonus": "power"}),
    "bonus_start": (0.0, 0.5),
    "bonus_end": (None, 0.5),
    "subsample": (1.0, 0.5),
    "smoothing_form": ("uniform", "off-target", {"label_smoothing": 0.1}),
    "bonus_clamp": (1e-5, 1e-2, {"log_end": 1.0}),
}
SOFT: dict[str, Change] = {"temperature": (1.0, 2.0), "weight": (None, EACH), **REDUCTION}
BALANCED: dict[str, Change] = {"sample_weight": (None, EACH), **REDUCTION}
OPTIONS: dict[str, dict[str, Change]] = {
    "box_geometry": {"numbers": (7, 5)},
    "grid_geometry": {},
    "grid_sinusoid": {},
    "VisualEmbedding": {
        "feature_dim": (0, 6, {"feature_dim": 0, "num_classes": 3}), "num_classes": (0, 3), "numbers": (7, 5),
        "grid": ((), (2, 3)), "position": ("learned", "sinusoid", {"grid": (2, 3)}), "dropout": (0.0, 0.5),
    },
    "topk_softmax": {"dim": (-1, 1), "straight_through": (False, True)},
    "topk_attention": {
        "attn_mask": (None, KEEP), "dropout_p": (0.0, 0.9), "is_causal": (False, True), "scale": (None, 2.0),
        "straight_through": (False, True), "enable_gqa": (False, True),
    },
    "attention_weights": {
        "normalizer": ("softmax", "sparsemax"), "k": (0, 2), "ratio": (0.0, 3.0), "minimum": (0, 4, {"ratio": 3.0}),
        "straight_through": (False, True, {"k": 2}), "alpha": (1.5, 1.2, {"normalizer": "entmax-bisect"}),
        "select": ("scores", "window", {"k": 2}), "causal": (False, True, {"k": 2, "select": "window"}),
    },
    "out_of_window_softmax": {"causal": (False, True)},
    "AdaNorm": {"scale": (1.0, 2.0), "k": (0.1, 0.3), **NORM},
    "LayerNormSimple": NORM,
    "DetachNorm": {"detach": ("both", "std"), **NORM},
    "create_norm": {
        "adanorm_scale": (1.0, 2.0), "adanorm_k": (0.1, 0.3), "detach": ("both", "std", {"kind": "detachnorm"}), **NORM,
    },
    "DynamicConv": {"causal": (False, True), "weight_dropout": (0.1, 0.0)},  # fixed at 0.1 in the released code
    "KernelGate": {},
    "MultiScaleConv": {"causal": (False, True), "gate": (True, False), "weight_dropout": (0.1, 0.0)},
    "AdaptiveSpan": SPAN,
    "AdaptiveSpanAttention": {"dropout": (0.0, 0.5, {"init": 0.4}), **SPAN},
    "CrossViewFusion": {
        "strategy": ("gca", "ama-static"), "fusion": ("mean", "sum"),
        "ama_proj": (None, nn.Linear(8, 8), {"strategy": "ama", "ama_proj": nn.Linear(8, 8)}),
    },
    "pack_linears_": {},
    "view_schedule": {"use_global": (True, False)},
    "encouraging_loss": {"bonus_weight": (1.0, 0.5), **REDUCTION, **TERMS},
    "encouraging_loss_terms": TERMS,
    "EncouragingLoss": {
        **{name: change for name, change in TERMS.items() if name in ("weight", "ignore_index", "label_smoothing")},
        **REDUCTION, "log_end": TERMS["log_end"], "defer_start": (0, 2),
        "max_epoch": (None, 3, {"schedule": "cos", "max_epoch": 8}),
        "schedule": ("none", "linear", {"schedule": "cos", "max_epoch": 4}),
        "schedule_ratio": (5.0, 1.0, {"schedule": "exp", "max_epoch": 4}),
        "schedule_of": ("bonus_weight", "log_end", {"schedule": "linear", "max_epoch": 4}), "options": (None, None),
    },
    "fused_linear_encouraging_loss": {
        "bias": (None, WEIGHT), "class_weight": (None, WEIGHT), "ignore_index": TERMS["ignore_index"],
        "bonus_weight": (1.0, 0.5), **REDUCTION, "options": (None, None),
    },
    "bonus_schedule": {"schedule": ("linear", "cos"), "ratio": (5.0, -5.0, {"schedule": "exp"})},
    "mirror_bonus_loss": {
        **REDUCTION, "base": ("mse", "mae"), "activation": ("softmax", "sigmoid"), "bonus_power": (2.0, 1.0),
        "bonus_weight": (1.0, 0.5),
    },
    "halted_focal_loss": {**REDUCTION, "alpha": (0.5, 0.25), "gamma": (1.0, 2.0), "halt": ("correct", "positive")},
    "softmax_focal_loss": {**REDUCTION, "gamma": (1.0, 2.0), "halted": (False, True)},
    "binary_encouraging_loss": {
        **REDUCTION, "weight": (None, WEIGHT), "log_end": (0.75, 0.5), "bonus_weight": (1.0, 0.5),
        "bonus_alpha": (None, 0.25), "bonus_gamma": (0.0, 1.0), "bonus_clamp": (1e-5, 1e-2, {"log_end": 1.0}),
    },
    "reweighted_cross_entropy": BALANCED,
    "focal_loss": {"gamma": (2.0, 0.5), **BALANCED},  # arXiv:1708.02002
    "class_balanced_softmax_loss": {"beta": (0.9999, 0.9), **BALANCED},  # arXiv:1901.05555
    "logit_adjusted_cross_entropy": {"tau": (1.0, 0.5), **BALANCED},  # arXiv:2007.07314
    "class_weights": {"beta": (0.9999, 0.9)},
    "soft_target_cross_entropy": SOFT,
    "soft_target_kl": SOFT,
    "distillation_kl": {"temperature": (1.0, 2.0), **REDUCTION},
    "matrix_kl": {"rows": (None, torch.tensor([1, 2])), "eps": (0.0, 1e-6), "tiny": (1e-12, 1e-6)},
    "reduce_weighted": {**BALANCED, "total": (None, torch.tensor(3))},
}  # fmt: skip


def test_every_public_name_is_run() -> None:
    assert set(RUN) == set(OPTIONS) == {*modules.__all__, *losses.__all__}


@pytest.mark.parametrize("name", OPTIONS)
def test_defaults(name: str) -> None:
    function = getattr(modules, name, None) or getattr(losses, name)
    parameters = inspect.signature(function).parameters.values()
    optional = {p.name: p.default for p in parameters if p.default is not p.empty or p.kind is p.VAR_KEYWORD}
    optional |= {"options": None} if "options" in optional else {}
    if name == "encouraging_loss_terms":  # its **bonus is the rest of the dataclass
        del optional["bonus"]
        optional |= {field.name: field.default for field in dataclasses.fields(Bonus)}
    assert optional.keys() == OPTIONS[name].keys()
    assert optional == {option: change[0] for option, change in OPTIONS[name].items()}


def outcome(name: str, options: dict[str, Any]) -> list[Tensor]:
    """Results and, where they have any, the gradient of one of the shared inputs."""
    torch.manual_seed(1)
    results = [x for x in tree_leaves(RUN[name](**options)) if isinstance(x, Tensor)]
    for shared in (SCORES, HEADS, ROWS):
        if shared.requires_grad and results[0].requires_grad:
            weighed = (results[0] * torch.linspace(-1, 2, results[0].numel()).view_as(results[0])).sum()
            (grad,) = torch.autograd.grad(weighed, shared, allow_unused=True, retain_graph=True)
            results += [] if grad is None else [grad]
    return results


# What has no value of its own, and what allows shapes that are an error without it (tests/modules).
WITHOUT_OUTCOME = ("options", "enable_gqa")


@pytest.mark.parametrize(
    ("name", "option"), [(n, o) for n, options in OPTIONS.items() for o in options if o not in WITHOUT_OUTCOME]
)
def test_no_option_is_dead(name: str, option: str) -> None:
    _, value, *beside = OPTIONS[name][option]
    context = dict(*beside)
    before, after = outcome(name, context), outcome(name, context | {option: value})
    same = [a.shape == b.shape and torch.equal(a, b) for a, b in zip(before, after, strict=True)]
    assert not all(same)


NUMBERS = [
    (name, option)
    for name, options in OPTIONS.items()
    for option, (default, value, *_) in options.items()
    if isinstance(default, float) or (default is None and isinstance(value, float))
]


@pytest.mark.parametrize(("name", "option"), NUMBERS)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_numbers_that_are_none_are_refused_by_name(name: str, option: str, value: float) -> None:
    """At once: not as a NaN in the loss, or in the next epoch."""
    _, _, *beside = OPTIONS[name][option]
    said = {"adanorm_scale": "scale", "adanorm_k": "k", "dropout_p": "dropout probability"}.get(option, option)
    with pytest.raises((ValueError, RuntimeError), match=rf"\b{said}\b.*{value}"):
        RUN[name](**{**dict(*beside), option: value})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(bonus_power=2.0), "bonus_power must be 1.0 unless bonus='power', got 2.0"),
        (dict(subsample=0.5, bonus="cosine"), "subsample must be 1.0 unless bonus='log', got 0.5"),
        (dict(log_end=0.5, bonus="power"), "log_end must be 0.75 unless bonus='log', got 0.5"),
        (dict(bonus_clamp=0.0, bonus="cosine"), "bonus_clamp must be 1e-05 unless bonus='log', got 0.0"),
        (dict(bonus_start=0.5, bonus_end=0.5), "bonus_end must be above bonus_start and at most 1, or None, got 0.5"),
        (
            dict(schedule="cos", max_epoch=3, schedule_of="log_end", bonus="cosine"),
            "schedule_of must be 'bonus_weight'",
        ),
        (dict(max_epoch=5), "max_epoch must be a positive number with a schedule, None without one, got 5"),
        (dict(schedule="linear", max_epoch=0), "max_epoch must be a positive number"),
        (dict(schedule_of="log_end"), "schedule_of must be left alone without a schedule"),
        (dict(schedule="cos", max_epoch=3, schedule_ratio=1.0), "schedule_ratio must be 5 unless schedule='exp'"),
        (dict(schedule="exp", max_epoch=3, schedule_ratio=0.0), "schedule_ratio must be not 0"),
        (dict(defer_start=-1), "defer_start must be at least 0"),
    ],
)
def test_options_that_would_do_nothing_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        losses.EncouragingLoss(**options)


@pytest.mark.parametrize("bonus", ["log", "power", "cosine"])
@pytest.mark.parametrize("option", [field.name for field in dataclasses.fields(Bonus) if field.name != "bonus"])
def test_every_form_uses_an_option_or_refuses_it(bonus: str, option: str) -> None:
    """What makes an option matter, as ``log_end=1`` does for ``bonus_clamp``, is left to the table."""
    _, value, *beside = TERMS[option]
    context = {**dict(*beside), "bonus": bonus}
    try:
        before, after = (losses.encouraging_loss(LOGITS, CLASSES, **o) for o in (context, context | {option: value}))
    except ValueError as refusal:
        assert "unless bonus=" in str(refusal) and repr(bonus) not in str(refusal)
        return
    assert not torch.equal(before, after)


@pytest.mark.parametrize("option", ["bonus_weight", "bonus_end", "bonus_start"])
def test_the_module_passes_its_options_on(option: str) -> None:
    _, value = OPTIONS["encouraging_loss"][option]
    assert torch.equal(module_loss(**{option: value}), losses.encouraging_loss(LOGITS, CLASSES, **{option: value}))
