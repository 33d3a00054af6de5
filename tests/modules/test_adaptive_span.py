"""Adaptive span: recorded values and gradients of the released implementation, then its bookkeeping."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fairseq_ext.modules.adaptive_span import AdaptiveSpan, AdaptiveSpanAttention
from fairseq_ext.modules.topk import topk_softmax
from tests.helpers import golden_names, load_golden

MODULE_NAMES = {  # ours: the released code's
    "q_proj.weight": "proj_query.weight",
    "k_proj.weight": "proj_key.weight",
    "v_proj.weight": "proj_val.weight",
    "out_proj.weight": "proj_out.weight",
    "span.current_val": "attn.adaptive_span._mask.current_val",
}


def close(actual: Tensor, expected: np.ndarray) -> None:
    torch.testing.assert_close(actual.detach(), torch.from_numpy(expected), rtol=1e-10, atol=1e-10)


def options(g: dict[str, np.ndarray]) -> dict[str, float]:
    div = int(g["meta.div"])
    budget = {"k": -div} if div < 0 else {"ratio": div, "minimum": int(g.get("meta.lb", 0))}
    return {"ramp": int(g["meta.ramp"]), **budget}


def is_multi_head(name: str) -> bool:
    return name.startswith("aspan_mhseq")


@pytest.mark.parametrize("name", [n for n in golden_names("sparse", "aspan_") if not is_multi_head(n)])
def test_golden_span(name: str) -> None:
    g = load_golden("sparse", name)
    span = AdaptiveSpan(
        int(g["meta.nb_heads"]), int(g["meta.max_span"]), loss_coeff=float(g["meta.loss_coeff"]), **options(g)
    ).double()
    span.load_state_dict({"current_val": torch.from_numpy(g["w.current_val"])})
    attn = torch.from_numpy(g["attn_in"]).requires_grad_()
    out = span(attn, normalize=bool(g["meta.normalize"]))
    close(out, g["attn_out"])
    (out * torch.from_numpy(g["grad_out"])).sum().backward()
    close(attn.grad, g["grad_attn_in"])
    close(span.current_val.grad, g["gw.current_val"])
    assert math.isclose(span.span_loss().item(), g["span_loss"], rel_tol=1e-9)
    assert span.trim_length() == g["trim_len"]
    assert span.current_max_span() == g["current_max_span"]
    assert span.current_avg_span() == g["current_avg_span"]
    assert span.cache_size() == g["cache_size"]


@pytest.mark.parametrize("name", golden_names("sparse", "aspan_mhseq"))
def test_golden_attention(name: str) -> None:
    g = load_golden("sparse", name)
    module = AdaptiveSpanAttention(
        g["query"].shape[-1], int(g["meta.nb_heads"]), int(g["meta.attn_span"]), **options(g)
    ).double()
    module.load_state_dict({ours: torch.from_numpy(g[f"w.{theirs}"]) for ours, theirs in MODULE_NAMES.items()})
    inputs = {key: torch.from_numpy(g[key]).requires_grad_() for key in ("query", "key_value", "key_pe")}
    out = module(*inputs.values())
    close(out, g["out"])
    (out * torch.from_numpy(g["grad_out"])).sum().backward()
    for key, tensor in inputs.items():
        close(tensor.grad, g[f"grad_{key}"])
    for ours, parameter in module.named_parameters():
        close(parameter.grad, g[f"gw.{MODULE_NAMES[ours]}"])


def test_mask_opens_from_the_last_slot() -> None:
    span = AdaptiveSpan(2, 8, ramp=4)
    with torch.no_grad():
        span.current_val.copy_(torch.tensor([0.0, 0.5]).view(2, 1, 1))
    expected = torch.tensor([[0, 0, 0, 0, 0.25, 0.5, 0.75, 1], [0.25, 0.5, 0.75, 1, 1, 1, 1, 1]])
    torch.testing.assert_close(span.mask().squeeze(1), expected)
    torch.testing.assert_close(span.mask(3).squeeze(1), expected[:, -3:])


@pytest.mark.parametrize(
    ("max_span", "z", "expected"),  # expected: longest span, mean span, trimmed slots, cached states
    [
        (8192, (0.0, 0.0), (32, 32, 8128, 128)),
        (8192, (0.1, 0.0), (852, 442, 7296, 960)),
        (8192, (1.0, 0.5), (8192, 6176, 0, 8192)),
        (200, (0.25, 0.0), (82, 57, 64, 200)),
        (10, (0.0, 0.0), (10, 10, 0, 10)),
        (64, (-1.0, -1.0), (0, 0, 0, 64)),
        (65, (-1.0, -1.0), (0, 0, 64, 65)),
    ],
)
def test_spans_and_trimming(max_span: int, z: tuple[float, float], expected: tuple[int, ...]) -> None:
    span = AdaptiveSpan(2, max_span, ramp=32)
    with torch.no_grad():
        span.current_val.copy_(torch.tensor(z).view(2, 1, 1))
    lengths = (span.current_max_span(), span.current_avg_span(), span.trim_length(), span.cache_size())
    assert lengths == expected
    assert span.mask()[..., : span.trim_length()].abs().sum() == 0  # nothing of use is trimmed


def test_clamp() -> None:
    span = AdaptiveSpan(3, 8)
    with torch.no_grad():
        span.current_val.copy_(torch.tensor([-0.3, 0.4, 1.7]).view(3, 1, 1))
    span.clamp_()
    torch.testing.assert_close(span.current_val.detach().flatten(), torch.tensor([0.0, 0.4, 1.0]))
    assert span.current_val.requires_grad


def test_span_loss_shortens_every_head_alike() -> None:
    span = AdaptiveSpan(4, 100, init=0.5, loss_coeff=0.01)
    loss = span.span_loss()
    assert math.isclose(loss.item(), 0.01 * 100 * 0.5, rel_tol=1e-6)
    loss.backward()
    torch.testing.assert_close(span.current_val.grad, torch.full((4, 1, 1), 0.25))


@given(st.integers(1, 12), st.integers(0, 2**31))
def test_open_span_is_topk_softmax(k: int, seed: int) -> None:
    """With the span fully open, selecting probabilities and renormalising is selecting before the softmax."""
    torch.manual_seed(seed)
    scores = torch.randn(4, 3, 10, dtype=torch.float64)
    span = AdaptiveSpan(2, 10, init=1.0, k=k).double()
    torch.testing.assert_close(span(scores.softmax(-1)), topk_softmax(scores, k), rtol=1e-6, atol=1e-7)


def test_span_shorter_than_the_budget() -> None:
    span = AdaptiveSpan(1, 12, ramp=2, k=5)
    attn = span(torch.full((1, 1, 12), 1 / 12))
    torch.testing.assert_close(attn[0, 0, -2:], torch.tensor([1 / 3, 2 / 3]))
    assert (attn[..., :-2] == 0).all()


def plain_attention(module: AdaptiveSpanAttention, query: Tensor, memory: Tensor, position: Tensor) -> Tensor:
    """Each query on its own, over its own window of the memory, never trimmed."""
    heads, length = module.num_heads, module.span.max_span
    outputs = []
    for i in range(query.size(1)):
        window = memory[:, i : i + length]
        q = module.q_proj(query[:, i]).unflatten(-1, (heads, -1))
        k, v = (x.unflatten(-1, (heads, -1)) for x in (module.k_proj(window), module.v_proj(window)))
        scores = torch.einsum("bhd,blhd->bhl", q, k) + torch.einsum("bhd,dl->bhl", q, position[0])
        attn = (scores / math.sqrt(q.size(-1))).softmax(-1)
        attn = module.span(attn.flatten(0, 1)[:, None])[:, 0].unflatten(0, (-1, heads))
        outputs.append(module.out_proj(torch.einsum("bhl,blhd->bhd", attn, v).flatten(1)))
    return torch.stack(outputs, 1)


@pytest.mark.parametrize("k", [0, 3])
@pytest.mark.parametrize(("max_span", "init"), [(7, 0.4), (150, 0.2), (150, 1.0)])
def test_attention_is_the_definition_with_and_without_trimming(max_span: int, init: float, k: int) -> None:
    torch.manual_seed(0)
    module = AdaptiveSpanAttention(8, 2, max_span, ramp=4, init=init, k=k).double()
    assert module.span.trim_length() == (64 if (max_span, init) == (150, 0.2) else 0)
    query, memory = torch.randn(3, 5, 8).double(), torch.randn(3, max_span + 5, 8).double()
    position = torch.randn(1, 4, max_span).double()
    expected = plain_attention(module, query, memory, position)
    # Trimming changes the softmax denominator, and so the weight of the 1e-8 in the renormalisation.
    torch.testing.assert_close(module(query, memory, position), expected, rtol=1e-5, atol=1e-6)


def test_many_queries_are_cut_into_blocks() -> None:
    torch.manual_seed(0)
    module = AdaptiveSpanAttention(8, 2, 30, ramp=4, init=0.4, k=3).double()
    query, memory = torch.randn(2, 200, 8).double(), torch.randn(2, 230, 8).double()
    position = torch.randn(1, 4, 30).double()
    expected = plain_attention(module, query, memory, position)
    torch.testing.assert_close(module(query, memory, position), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("budget", [{}, {"k": 3}, {"ratio": 3.0}, {"ratio": 6.0, "minimum": 2}], ids=str)
@pytest.mark.parametrize(("max_span", "init"), [(7, 0.4), (150, 0.2), (150, 1.0)])
@pytest.mark.parametrize("earlier", [0, 2, 100])
def test_a_short_memory_is_one_whose_first_states_are_padding(
    earlier: int, max_span: int, init: float, budget: dict[str, float]
) -> None:
    torch.manual_seed(0)
    earlier = min(earlier, max_span)
    module = AdaptiveSpanAttention(8, 2, max_span, ramp=4, init=init, **budget).double()
    query, memory = torch.randn(3, 5, 8).double(), torch.randn(3, max_span + 5, 8).double()
    position, absent = torch.randn(1, 4, max_span).double(), max_span - earlier
    mask = (torch.rand(3, max_span + 5) < 0.2) | (torch.arange(max_span + 5) < absent)
    short = module(query, memory[:, absent:], position, mask[:, absent:])
    torch.testing.assert_close(module(query, memory, position, mask), short, rtol=1e-5, atol=1e-6)
    changed = memory.masked_fill(mask[..., None], 9.0)
    torch.testing.assert_close(module(query, changed, position, mask), short, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(module(query, changed, position), short)


def test_a_ratio_is_of_the_slots_that_a_position_may_see() -> None:
    """An open span with flat scores: the weight of the i-th position on what is before it tells how many it keeps."""
    torch.manual_seed(0)
    module = AdaptiveSpanAttention(8, 1, 12, ramp=1, init=1.0, ratio=2.0)
    kept: list[int] = []
    module.dropout_module.register_forward_hook(lambda *hooked: kept.extend((hooked[2] > 0).sum(-1)[0].tolist()))
    query = torch.randn(1, 9, 8)
    module(query, query, torch.randn(1, 8, 12))
    module(query, query, torch.randn(1, 8, 12), (torch.arange(9) < 3)[None])
    assert kept == [0, 1, 1, 2, 2, 3, 3, 4, 4, 0, 0, 0, 0, 1, 1, 2, 2, 3]


def test_given_budgets_are_those_of_rows() -> None:
    attn = torch.tensor([0.1, 0.2, 0.3, 0.4]).expand(2, 1, 4)
    span = AdaptiveSpan(1, 4, ramp=1, init=1.0)
    assert (span(attn, budget=torch.tensor([1, 3]).view(2, 1, 1)) > 0).sum(-1).flatten().tolist() == [1, 3]


def test_a_position_with_nothing_before_it_gets_zeros() -> None:
    module = AdaptiveSpanAttention(8, 2, 6, init=0.5)
    for states in (1, 4):
        query = torch.randn(2, states, 8)
        assert not module(query, query, torch.randn(1, 4, 6))[:, 0].any()


def test_attention_never_sees_its_own_or_later_positions() -> None:
    torch.manual_seed(0)
    module = AdaptiveSpanAttention(8, 2, 6, ramp=2, init=0.5, k=2)
    query, memory, position = torch.randn(1, 4, 8), torch.randn(1, 10, 8, requires_grad=True), torch.randn(1, 4, 6)
    for i in range(4):
        (grad,) = torch.autograd.grad(module(query, memory, position)[:, i].sum(), memory)
        seen = grad[0].abs().sum(-1).nonzero().flatten().tolist()
        assert seen and max(seen) < 6 + i and min(seen) >= i


@pytest.mark.parametrize(("batch", "queries"), [(0, 3), (2, 0), (0, 0)])
def test_nothing_attends_to_nothing(batch: int, queries: int) -> None:
    module = AdaptiveSpanAttention(8, 2, 7, init=0.4, k=3)
    query, memory = torch.randn(batch, queries, 8), torch.randn(batch, 7 + queries, 8)
    assert module(query, memory, torch.randn(1, 4, 7)).shape == (batch, queries, 8)


def test_dropout_only_in_training() -> None:
    torch.manual_seed(0)
    module = AdaptiveSpanAttention(8, 2, 6, dropout=0.5, init=1.0)
    inputs = torch.randn(1, 4, 8), torch.randn(1, 10, 8), torch.randn(1, 4, 6)
    assert not torch.allclose(module(*inputs), module(*inputs))
    module.eval()
    assert torch.equal(module(*inputs), module(*inputs))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_row_whose_weight_is_out_of_sight_is_zero(dtype: torch.dtype) -> None:
    """1e-8 is 0 in float16, and 0 / 0 NaN."""
    module = AdaptiveSpan(1, 8, ramp=2).to(dtype)
    attn = torch.zeros(1, 1, 8, dtype=dtype)
    attn[..., 0] = 1
    attn.requires_grad_()
    out = module(attn)
    (grad,) = torch.autograd.grad((out * torch.arange(8)).sum(), attn)
    assert out.dtype == dtype and (out == 0).all() and grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_tells_the_slots_of_a_long_span_apart(dtype: torch.dtype) -> None:
    exact, rounded = AdaptiveSpan(1, 8192, init=0.5), AdaptiveSpan(1, 8192, init=0.5).to(dtype)
    torch.testing.assert_close(rounded.mask(), exact.mask())


def test_state_and_repr() -> None:
    module = AdaptiveSpanAttention(8, 2, 6, k=2)
    assert set(module.state_dict()) == set(MODULE_NAMES)
    assert "max_span=6" in repr(module) and "k=2" in repr(module) and "num_heads=2" in repr(module)
    with torch.no_grad():
        module.span.current_val.fill_(0.9)
    module.span.reset_parameters()
    assert (module.span.current_val == 0).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 0}, "num_heads must be at least 1, got 0"),
        ({"max_span": 0}, "max_span must be at least 1, got 0"),
        ({"ramp": 0}, "ramp must be at least 1, got 0"),
        ({"init": 1.5}, "init must be between 0 and 1, got 1.5"),
        ({"loss_coeff": -1.0}, "loss_coeff must be 0 or positive, got -1.0"),
        ({"k": -2}, "k must be 0 (dense) or positive, got -2"),
    ],
)
def test_span_rejects(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        AdaptiveSpan(**{"num_heads": 2, "max_span": 8, **changes})


def test_rejects_wrong_shapes() -> None:
    span = AdaptiveSpan(2, 8)
    with pytest.raises(ValueError, match=re.escape("attn must have batch * 2 rows (num_heads), got 3")):
        span(torch.rand(3, 1, 8))
    with pytest.raises(ValueError, match="attn must have at most max_span=8 slots, got 9"):
        span(torch.rand(2, 1, 9))
    with pytest.raises(ValueError, match="num_heads must divide embed_dim=9, got 2"):
        AdaptiveSpanAttention(9, 2, 8)
    module = AdaptiveSpanAttention(8, 2, 6)
    for states in (3, 11):
        with pytest.raises(ValueError, match=rf"memory must have T to max_span \+ T states \(4 to 10\), got {states}"):
            module(torch.rand(1, 4, 8), torch.rand(1, states, 8), torch.rand(1, 4, 6))
    with pytest.raises(ValueError, match="position must have max_span = 6 slots, got 5"):
        module(torch.rand(1, 4, 8), torch.rand(1, 10, 8), torch.rand(1, 4, 5))
