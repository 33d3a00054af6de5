"""Every public block and loss with inputs that fit it: the table that the sweeps of ``test_blocks.py`` go through."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from fairseq_ext import losses, modules

LARGEST = "largest"  # of the dtype
# Squares must fit into float32, and losses times class weights; sums of products, and products of such, into float16.
SQUARED, WEIGHED, MAPPED, MAPPED_TWICE = 1e18, 1e30, 300.0, 30.0


@dataclass
class Block:
    """A call of a public name.

    Args:
        name: the public name.
        function: what is called: the name itself, or a module of it.
        inputs: tensors, or lists of them; the floating-point ones get gradients.
        options: keyword arguments.
        batch: the axis of the examples, of every input.
        fixed: which inputs are constants, like the probabilities of a target.
        largest: up to which size finite input must give finite output.
        kind: what the floating-point inputs are: ``"real"``, or ``"probabilities"`` along the last axis.
        unsupported: transform -> why it cannot be.
    """

    name: str
    function: Callable[..., Any]
    inputs: tuple[Any, ...]
    options: dict[str, Any] = field(default_factory=dict)
    batch: int = 0
    fixed: tuple[int, ...] = ()
    largest: float | str = LARGEST
    kind: str = "real"
    unsupported: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        module = self.function.extra_repr() if isinstance(self.function, nn.Module) else ""
        shown = [f"{key}={value}" for key, value in self.options.items() if not isinstance(value, Tensor)]
        return "-".join([self.name, *([module] if module else []), *shown])

    def to(self, dtype: torch.dtype, device: str = "cpu") -> Callable[..., Any]:
        """The function for inputs of ``dtype`` on ``device``."""
        if isinstance(self.function, nn.Module):
            self.function.to(device, dtype)

        def one(value: Any) -> Any:
            return value.to(device, dtype if floating(value) else None) if isinstance(value, Tensor) else value

        options = tree_map(one, self.options)
        return lambda *inputs: self.function(*inputs, **options)

    def varied(self, change: Callable[[Tensor], Tensor]) -> tuple[Any, ...]:
        """The inputs, with ``change`` of their floating-point tensors but for the fixed ones."""

        def one(value: Any) -> Any:
            return change(value) if floating(value) else value

        return tuple(x if i in self.fixed else tree_map(one, x) for i, x in enumerate(self.inputs))


def floating(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


class Fusion(nn.Module):
    """:class:`CrossViewFusion` with a plain attention."""

    def __init__(self, strategy: str = "gca", fusion: str = "mean") -> None:
        super().__init__()
        projection = nn.Linear(8, 8) if strategy == "ama" else None
        self.fuse = modules.CrossViewFusion(8, (1, 2), strategy, fusion, projection)

    def forward(self, query: Tensor, *views: Tensor) -> tuple[Tensor, Tensor | None]:
        def attend(query: Tensor, memory: Tensor, mask: Tensor | None, slot: int) -> tuple[Tensor, Tensor]:
            states = (x.transpose(0, 1).unsqueeze(0) for x in (query, memory, memory))
            context = modules.topk_attention(*states, k=0)[0].transpose(0, 1)
            return context, context.new_ones(1, query.size(1), query.size(0), memory.size(0))

        return self.fuse(attend, query, views)

    def extra_repr(self) -> str:
        return f"{self.fuse.strategy}, {self.fuse.fusion}"


def blocks() -> list[Block]:
    """The table, always with the same numbers."""
    torch.manual_seed(0)
    draw = torch.randn
    scores, heads = draw(2, 3, 4, 6), draw(3, 2, 3, 4, 6)
    rows, states = draw(2, 5, 8), draw(4, 2, 8)
    keep = torch.rand(2, 1, 4, 4) < 0.7
    entmax = {"script": "entmax's functions are Python", "vmap": "entmax's functions have no rule",
              "compile": "entmax's functions are class methods"}  # fmt: skip
    bisect = entmax | {"export": "a graph has no gradient of a bisection"}
    own = {"script": "chooses among normalizers that are Python functions"}
    closure = {"script": "takes the attention as a function"}
    trims = {"script": "the learned span decides how many keys are read"}
    table = [
        *(
            Block("topk_softmax", modules.topk_softmax, (scores,), options)
            for options in ({"k": 2}, {"k": 0}, {"k": 2, "straight_through": True}, {"k": 2, "dim": 1})
        ),
        *(Block("attention_weights", modules.attention_weights, (scores,), options, unsupported=own)
          for options in ({"k": 2}, {"ratio": 2.0})),
        *(
            Block("attention_weights", modules.attention_weights, (scores,), {"normalizer": name}, unsupported=missing)
            for name, missing in (("sparsemax", entmax), ("entmax15", entmax), ("entmax-bisect", bisect))
        ),
        *(
            Block("topk_attention", modules.topk_attention, tuple(heads), options, largest=MAPPED)
            for options in ({"k": 2}, {"k": 0, "is_causal": True}, {"k": 2, "scale": 0.5, "straight_through": True})
        ),
        Block("topk_attention", modules.topk_attention, (*heads[..., :4].unbind(), keep), {"k": 2}, largest=MAPPED),
        *(Block("out_of_window_softmax", modules.out_of_window_softmax, (scores,), {"k": 3, "causal": causal})
          for causal in (False, True)),
        *(
            Block(type(norm).__name__, norm, (rows,), largest=SQUARED)
            for norm in (
                modules.AdaNorm(8, 1.5), modules.AdaNorm(8, k=0.2, unbiased=False),
                modules.LayerNormSimple((5, 8)), modules.LayerNormSimple(8, unbiased=False),
                *(modules.DetachNorm(8, detach) for detach in ("both", "mean", "std")),
            )
        ),
        Block("create_norm", modules.create_norm("adanorm", 8), (rows,), largest=SQUARED),
        *(
            Block("DynamicConv", modules.DynamicConv(8, 2, 3, causal).eval(), (states,), batch=1, largest=MAPPED)
            for causal in (False, True)
        ),
        Block("KernelGate", modules.KernelGate(2), ([states, states + 1],), batch=1),
        *(
            Block("MultiScaleConv", modules.MultiScaleConv(8, 2, [3, 5], True, gate).eval(), (states,), batch=1,
                  largest=MAPPED)
            for gate in (False, True)
        ),
        Block("MultiScaleConv", modules.MultiScaleConv(8, 2, [3]).eval(), (states, torch.rand(2, 4) < 0.3), batch=1,
              largest=MAPPED, unsupported={"empty": "the mask has its examples first"}),
        *(
            Block("AdaptiveSpan", modules.AdaptiveSpan(1, 6, ramp=2, init=0.3, k=k), (draw(4, 3, 6).softmax(-1),),
                  kind="probabilities")
            for k in (0, 2)
        ),
        Block("AdaptiveSpanAttention", modules.AdaptiveSpanAttention(8, 2, 6, ramp=2, init=0.3, k=2),
              (rows, draw(2, 11, 8), draw(1, 4, 6)), largest=MAPPED_TWICE,
              unsupported=trims | {"empty": "the positions have no examples"}),
        Block("box_geometry", modules.box_geometry, (torch.rand(4, 5, 4),), {"width": 4.0, "height": 3.0}),
        Block("VisualEmbedding", modules.VisualEmbedding(8, 6), (draw(4, 5, 6), draw(4, 5, 7)), largest=MAPPED,
              unsupported={"script": "what it reads depends on its arguments"}),
        *(
            Block("CrossViewFusion", Fusion(*options), tuple(draw(3, 4, 2, 8)), batch=1, largest=MAPPED,
                  unsupported=closure)
            for options in (("gca",), ("gca", "gate"), ("gca", "concat"), ("fma", "sum"), ("ama",), ("ama-static",))
        ),
    ]  # fmt: skip
    script = {"script": "a loss is for training"}
    blockwise = script | {
        "empty": "the weight has no examples",
        "export": "the gradient is part of the forward pass",
        "compile": "the gradient is part of the forward pass",
        "vmap": "the gradient is part of the forward pass",
    }
    values = script | {"vmap": "looks at the classes, to name one that does not exist"}
    logits, classes, counts = draw(4, 5), torch.tensor([0, 3, 4, 1]), torch.tensor([9, 5, 3, 2, 1])
    binary, probabilities = torch.tensor([[0, 1, 1, 0, 1]]).repeat(4, 1), draw(4, 5).softmax(-1)
    weight = torch.rand(5) + 0.5
    table += [
        *(
            Block(name, getattr(losses, name), (logits, classes), options, unsupported=script)
            for name in ("encouraging_loss", "encouraging_loss_terms")
            for options in (
                {}, {"label_smoothing": 0.1, "log_end": 1.0},
                {"weight": weight, "label_smoothing": 0.1, "log_end": 1.0, "bonus_clamp": 0.0}, {"bonus": "cosine"},
                {"bonus": "power", "bonus_power": 0.5}, {"bonus_start": 0.5, "bonus_end": 0.9}, {"subsample": 0.9},
            )
        ),
        Block("EncouragingLoss", losses.EncouragingLoss(log_end=0.5, label_smoothing=0.1), (logits, classes),
              unsupported=script),
        *(
            Block("fused_linear_encouraging_loss", losses.fused_linear_encouraging_loss,
                  (draw(4, 8), draw(5, 8), classes), options, largest=MAPPED_TWICE, unsupported=blockwise)
            for options in ({}, {"label_smoothing": 0.1, "bonus_weight": 0.5}, {"class_weight": weight})
        ),
        *(
            Block("mirror_bonus_loss", losses.mirror_bonus_loss, (logits, classes), options, unsupported=script)
            for options in ({}, {"base": "mae", "activation": "sigmoid", "bonus_power": 0.5})
        ),
        *(Block("halted_focal_loss", losses.halted_focal_loss, (logits, binary), options, unsupported=script)
          for options in ({}, {"gamma": 0.5, "halt": "positive"})),
        *(Block("softmax_focal_loss", losses.softmax_focal_loss, (logits, classes), options, unsupported=script)
          for options in ({}, {"gamma": 0.5, "halted": True})),
        *(
            Block("binary_encouraging_loss", losses.binary_encouraging_loss, (logits, binary), options,
                  unsupported=script)
            for options in ({}, {"log_end": 1.0, "bonus_alpha": 0.25, "bonus_gamma": 0.5}, {"bonus_weight": 0.0})
        ),
        *(
            Block(name, getattr(losses, name), (logits, classes), {"class_counts": counts}, largest=WEIGHED,
                  unsupported=values)
            for name in ("reweighted_cross_entropy", "focal_loss", "class_balanced_softmax_loss",
                         "logit_adjusted_cross_entropy")
        ),
        *(
            Block(name, getattr(losses, name), (logits, probabilities), fixed=(1,), unsupported=script)
            for name in ("soft_target_cross_entropy", "soft_target_kl", "distillation_kl")
        ),
        Block("matrix_kl", losses.matrix_kl, tuple(draw(2, 2, 4, 4).softmax(-1)), kind="probabilities",
              unsupported=script),
        Block("reduce_weighted", losses.reduce_weighted, (draw(4), torch.rand(4)), fixed=(1,), unsupported=script),
    ]  # fmt: skip
    return table


# Public names that no sweep over tensors fits.
OTHERS = {
    "grid_geometry": "whole numbers",
    "grid_sinusoid": "whole numbers",
    "view_schedule": "whole numbers",
    "bonus_schedule": "a number of the epoch",
    "class_weights": "counts of examples",
    "pack_linears_": "a conversion of modules",
}
