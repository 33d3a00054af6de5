"""Sweeps over all public blocks and losses: torch's transforms, half precision with extreme inputs, empty batches."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map

from fairseq_ext import losses, modules
from tests.blocks import LARGEST, OTHERS, Block, blocks, floating

BLOCKS = blocks()
HALF = (torch.float16, torch.bfloat16)
# All losses but the one that multiplies, as a linear layer, in the dtype of its input.
IN_FLOAT32 = [x for x in BLOCKS if x.name in losses.__all__ and x.name != "fused_linear_encouraging_loss"]
TRANSFORMS = ("script", "export", "compile", "vmap")
# Of any sizes, which are numbers that math's functions do not take.
DYNAMIC = "topk_attention", "attention_weights", "encouraging_loss", "mirror_bonus_loss", "AdaNorm"


def test_every_public_name_has_a_row() -> None:
    assert {block.name for block in BLOCKS} | set(OTHERS) == {*modules.__all__, *losses.__all__}


class Call(nn.Module):
    """``torch.export`` takes modules."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.function, self.options = block.function, block.options

    def forward(self, *inputs: Any) -> Any:
        return self.function(*inputs, **self.options)


def with_gradients(block: Block, function: Any, inputs: tuple[Any, ...]) -> tuple[list[Tensor], list[Tensor | None]]:
    """What ``function`` returns, and the gradient of every input for an upstream that differs everywhere."""
    leaves = replace(block, inputs=inputs).varied(lambda x: x.detach().clone().requires_grad_())
    outputs = [x for x in tree_leaves(function(*leaves)) if isinstance(x, Tensor)]
    free = [x for x in tree_leaves(leaves) if floating(x) and x.requires_grad]
    total = weighed(outputs)
    if not total.requires_grad:  # a target is a constant
        return outputs, [None] * len(free)
    return [x.detach() for x in outputs], list(torch.autograd.grad(total, free, allow_unused=True))


def weighed(outputs: list[Tensor]) -> Tensor:
    """Their sum, each number times a weight that every dtype holds exactly."""

    def weights(x: Tensor) -> Tensor:
        return ((5 * torch.arange(x.numel(), device=x.device) % 13 - 4) / 4).to(x.dtype).view(x.shape)

    return sum((x * weights(x)).sum() for x in outputs if floating(x))


def assert_equal(block: Block, other: Any) -> None:
    expected = with_gradients(block, Call(block), block.inputs)
    torch.testing.assert_close(with_gradients(block, other, block.inputs), expected)


def transformed(transform: str, block: Block) -> Any:
    if transform == "script":
        scripted = torch.jit.script(block.function)
        return lambda *inputs: scripted(*inputs, **block.options)
    call = Call(block)
    if transform == "export":
        return torch.export.export(call, block.inputs).module()
    torch._dynamo.reset()
    return torch.compile(call, fullgraph=True, backend="eager")


@pytest.mark.parametrize(
    ("transform", "block"),
    [(t, b) for t in TRANSFORMS[:3] for b in BLOCKS if t not in b.unsupported],
    ids=lambda value: str(value),
)
def test_transforms_change_nothing(transform: str, block: Block) -> None:
    assert_equal(block, transformed(transform, block))


@pytest.mark.parametrize("name", DYNAMIC)
def test_one_graph_is_for_all_sizes(name: str) -> None:
    block = next(block for block in BLOCKS if block.name == name)
    torch._dynamo.reset()
    assert_equal(block, torch.compile(Call(block), fullgraph=True, dynamic=True, backend="eager"))


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_inference_mode_changes_no_value(block: Block) -> None:
    with torch.no_grad():
        expected = Call(block)(*block.inputs)
    with torch.inference_mode():
        got = Call(block)(*tree_map(lambda x: x.clone(), block.inputs))
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("block", [block for block in BLOCKS if "vmap" not in block.unsupported], ids=str)
def test_vmap_is_a_loop(block: Block) -> None:
    """Value and gradient, over inputs that differ."""
    call = Call(block)
    parts = [block.inputs, block.varied(lambda x: x.flip(block.batch) * 2)]
    if block.kind == "probabilities":
        parts[1] = block.varied(lambda x: x.square() / x.square().sum(-1, keepdim=True))
    stacked = tree_map(lambda *values: torch.stack(values), *parts)

    def total(*inputs: Any) -> Tensor:
        return weighed([x for x in tree_leaves(call(*inputs)) if isinstance(x, Tensor)])

    slope = torch.func.grad_and_value(total)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="There is a performance drop")
        got = torch.func.vmap(slope)(*stacked)
    expected = tree_map(lambda *values: torch.stack(values), *[slope(*part) for part in parts])
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize(
    ("transform", "block"),
    [(t, b) for t in TRANSFORMS for b in BLOCKS if t in b.unsupported and b.unsupported[t] != "a loss is for training"],
    ids=lambda value: str(value),
)
def test_the_exceptions_are_exceptions(transform: str, block: Block) -> None:
    """Each is stated with its reason; one that works by now belongs into the table."""
    with pytest.raises(Exception):  # noqa: B017 -- torch raises a different one for each reason
        if transform == "vmap":
            torch.func.vmap(Call(block))(*tree_map(lambda x: torch.stack([x, x]), block.inputs))
        else:
            assert_equal(block, transformed(transform, block))


def extremes(block: Block, dtype: torch.dtype) -> dict[str, Any]:
    """Inputs of ``dtype`` with floating-point values at the ends of what ``block`` takes."""
    limits = torch.finfo(dtype)
    largest = limits.max if block.largest == LARGEST else min(block.largest, limits.max)

    def fill(pattern: str) -> Any:
        def one(x: Tensor) -> Tensor:
            position = torch.arange(x.numel()).view_as(x)
            if block.kind == "probabilities":
                inside = {"certain": position % x.size(-1) == 0, "far": position % x.size(-1) == x.size(-1) - 1}
                if pattern in inside:
                    return inside[pattern].to(dtype)
                share = {"equal": 1 / x.size(-1), "smallest": limits.smallest_normal}[pattern]
                return torch.full_like(x, share, dtype=dtype)
            value = {
                "zero": torch.zeros_like(x),
                "equal": torch.full_like(x, largest),
                "smallest": limits.smallest_normal * (1 - 2 * (position % 2)),
                "alternating": largest * (1 - 2 * (position % 2)).double(),
                "one": largest * (position % 7 == 3).double(),
                "negative one": -largest * (position % 7 == 3).double(),
            }[pattern]
            return value.to(dtype)

        return tree_map(lambda x: x.to(dtype) if floating(x) else x, block.varied(one))

    real = ("zero", "equal", "smallest", "alternating", "one", "negative one")
    patterns = real if block.kind == "real" else ("certain", "far", "equal", "smallest")
    return {pattern: fill(pattern) for pattern in patterns}


def assert_no_nan(block: Block, dtype: torch.dtype) -> None:
    """At the extremes of the dtype; what float32 makes finite and the dtype can hold is finite."""
    limit = torch.finfo(dtype).max
    for pattern, inputs in extremes(block, dtype).items():
        results = with_gradients(block, block.to(dtype), inputs)
        wide = tree_map(lambda x: x.float() if floating(x) else x, inputs)
        reference = with_gradients(block, block.to(torch.float32), wide)
        for got, want in zip(*(tree_flatten(x)[0] for x in (results, reference)), strict=True):
            if got is None or not floating(got):
                continue
            assert not got.isnan().any(), pattern
            holds = (want.abs() < 0.9 * limit) & want.isfinite()
            assert got[holds].isfinite().all(), pattern


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_half_precision_knows_no_nan(block: Block, dtype: torch.dtype) -> None:
    assert_no_nan(block, dtype)


def assert_computed_in_float32(block: Block, dtype: torch.dtype) -> None:
    """Of half precision the values are those of float32, in it; and so are the gradients, rounded once."""
    inputs, options = tree_map(lambda x: x.to(dtype) if floating(x) else x, (block.inputs, block.options))
    wide = tree_map(lambda x: x.float() if floating(x) else x, inputs)
    results = with_gradients(block, block.to(dtype), inputs)
    reference = with_gradients(block, replace(block, options=options).to(torch.float32), wide)
    assert {x.dtype for x in results[0] if floating(x)} == {x.dtype for x in reference[0] if floating(x)}
    for got, want in zip(*(tree_flatten(x)[0] for x in (results, reference)), strict=True):
        if got is not None and floating(got):
            step = 4 * torch.finfo(got.dtype).eps
            torch.testing.assert_close(got.to(want), want, rtol=step, atol=step * float(want.abs().max()))


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("block", IN_FLOAT32, ids=str)
def test_losses_of_half_precision_are_computed_in_float32(block: Block, dtype: torch.dtype) -> None:
    assert_computed_in_float32(block, dtype)


def assert_empty(block: Block) -> None:
    """No examples give no outputs, or one number."""
    inputs = tree_map(lambda x: x.narrow(block.batch, 0, 0), block.inputs)
    full, _ = with_gradients(block, block.to(torch.float32), block.inputs)
    outputs, grads = with_gradients(block, block.to(torch.float32), inputs)
    for out, whole in zip(outputs, full, strict=True):
        assert out.dim() == whole.dim() and (out.numel() == 0 or out.dim() == 0)
    free = [x for i, value in enumerate(inputs) if i not in block.fixed for x in tree_leaves(value) if floating(x)]
    assert [x.shape for x, grad in zip(free, grads, strict=True) if grad is not None and grad.shape != x.shape] == []


@pytest.mark.parametrize("block", [block for block in BLOCKS if "empty" not in block.unsupported], ids=str)
def test_no_examples_give_no_outputs(block: Block) -> None:
    assert_empty(block)
