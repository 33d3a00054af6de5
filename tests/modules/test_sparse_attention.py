"""Top-k attention: recorded values and gradients of the released code, then the rules that must always hold."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fairseq_ext import modules
from fairseq_ext.modules.sparse_attention import (
    NORMALIZERS,
    attention_weights,
    effective_k,
    ratio_softmax,
    topk_attention,
    topk_softmax,
)
from tests.helpers import golden_names, load_golden

NEG_INF = float("-inf")
ENTMAX_MODES = {0: "softmax", 1: "sparsemax", 2: "entmax15", 3: "entmax-bisect"}


def close(actual: Tensor, expected: np.ndarray, tolerance: float = 8e-6) -> None:
    torch.testing.assert_close(
        actual.detach().double(), torch.from_numpy(expected).double(), rtol=tolerance, atol=tolerance
    )


def budget(div: int, lb: int = 0) -> dict[str, int]:
    """The released code's single option: negative is a fixed budget, positive a ratio with a lower bound."""
    return {"k": -div} if div < 0 else {"ratio": div, "minimum": lb}


def released_k(scores: Tensor, options: dict[str, int]) -> dict[str, int]:
    """Of :func:`budget`, the number of keys: the release counts masked keys too, where we do not."""
    return {"k": effective_k(scores.size(-1), **options)}


def leaf(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array).requires_grad_()


# --- Recorded values: multi-head attention ---------------------------------------------------------------------------


def heads(x: Tensor, num_heads: int) -> Tensor:
    return x.view(x.size(0), x.size(1), num_heads, -1).permute(1, 2, 0, 3)  # (T, B, E) -> (B, H, T, E / H)


def project(x: Tensor, w: dict[str, Tensor], name: str) -> Tensor:
    return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])


def multi_head_attention(query, key, w, num_heads, *, weights, mask=None, padding=None, keep=None, dropout=0.0):
    """fairseq's multi-head attention written plainly around ``weights(scores)``; returns the output and the weights."""
    q = heads(project(query, w, "q_proj") * (query.size(-1) // num_heads) ** -0.5, num_heads)
    k, v = project(key, w, "k_proj"), project(key, w, "v_proj")
    extra = 0
    if "bias_k" in w:  # add_bias_kv and add_zero_attn: one learned and one zero slot after the keys
        zero = torch.zeros_like(k[:1])
        k = torch.cat([k, w["bias_k"].expand_as(zero), zero])
        v = torch.cat([v, w["bias_v"].expand_as(zero), zero])
        extra = 2
    scores = q @ heads(k, num_heads).transpose(-2, -1)
    if mask is not None:
        scores = scores + F.pad(mask, (0, extra))
    if padding is not None:
        scores = scores.masked_fill(F.pad(padding, (0, extra))[:, None, None], NEG_INF)
    attn = weights(scores)
    dropped = attn if keep is None else attn * keep / (1 - dropout)
    context = (dropped @ heads(v, num_heads)).permute(2, 0, 1, 3).flatten(2)
    return project(context, w, "out_proj"), attn.transpose(0, 1)


def module_weights(g: dict[str, np.ndarray], make=leaf) -> dict[str, Tensor]:
    return {name[2:]: make(array) for name, array in g.items() if name.startswith("w.")}


@pytest.mark.parametrize("name", golden_names("sparse", "mha_"))
def test_golden_multi_head(name: str) -> None:
    g = load_golden("sparse", name)
    normalizer = ENTMAX_MODES[int(g["meta.entmax"])]
    active = normalizer == "softmax" and str(g["meta.attn_type"]) in str(g["meta.use_att"]).split(",")
    options = budget(int(g["meta.div"]), int(g["meta.lb"])) if active else {}
    query, w = leaf(g["query"]), module_weights(g)
    key = leaf(g["key"]) if "key" in g else query
    optional = {ours: torch.from_numpy(g[theirs]) for ours, theirs in
                (("mask", "attn_mask"), ("padding", "key_padding_mask")) if theirs in g}  # fmt: skip
    if "dropout_keep" in g:
        optional["keep"] = torch.from_numpy(g["dropout_keep"]).transpose(0, 1)
    out, attn = multi_head_attention(
        query, key, w, int(g["meta.num_heads"]), dropout=float(g["meta.dropout"]), **optional,
        weights=lambda scores: attention_weights(scores, normalizer=normalizer, **released_k(scores, options)),
    )  # fmt: skip
    close(out, g["out"])
    close(attn, g["attn"])
    assert ((attn != 0).sum(-1).numpy() == g["nnz"]).all()
    (out * torch.from_numpy(g["grad_out"])).sum().backward()
    close(query.grad, g["grad_query"])
    if "key" in g:
        close(key.grad, g["grad_key"])
    for parameter, value in w.items():
        close(value.grad, g[f"gw.{parameter}"])


@pytest.mark.parametrize("name", golden_names("sparse", "incr_"))
def test_golden_incremental(name: str) -> None:
    g = load_golden("sparse", name)
    query, w = torch.from_numpy(g["query"]), module_weights(g, torch.from_numpy)
    options = budget(int(g["meta.div"]), int(g["meta.lb"]))
    length = query.size(0)

    def attend(queries: Tensor, keys: Tensor, budget: Callable[[Tensor], dict], mask: Tensor | None = None):
        def weights(scores: Tensor) -> Tensor:
            return attention_weights(scores, **budget(scores))

        return multi_head_attention(queries, keys, w, int(g["meta.num_heads"]), mask=mask, weights=weights)

    causal = torch.full((length, length), NEG_INF).triu(1)
    full, attn = attend(query, query, lambda scores: released_k(scores, options), causal)
    close(full, g["out_full"])
    close(attn, g["attn_full"])
    # the release decodes with a ratio as it never trained; here both are what it decodes
    steps = [attend(query[t : t + 1], query[: t + 1], lambda scores: options)[0] for t in range(length)]
    close(torch.cat(steps), g["out_incremental"])
    close(attend(query, query, lambda scores: options, causal)[0], g["out_incremental"])


# --- Recorded values: functions --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", golden_names("sparse", "xt_"))
def test_golden_x_transformers(name: str) -> None:
    g = load_golden("sparse", name)
    logits = leaf(g["logits"])
    masked = logits.masked_fill(logits <= torch.finfo(torch.float64).min, NEG_INF)
    attn = topk_softmax(masked, int(g["meta.k"]), straight_through=bool(g["meta.straight_through"]))
    close(attn, g["attn"], 1e-12)
    (attn * torch.from_numpy(g["grad_out"])).sum().backward()
    close(logits.grad, g["grad_logits"], 1e-12)


@pytest.mark.parametrize("name", golden_names("sparse", "entmax_"))
def test_golden_entmax(name: str) -> None:
    g = load_golden("sparse", name)
    x = leaf(g["x"])
    if "bisect" in name:
        options = {"normalizer": "entmax-bisect", "alpha": float(g["meta.alpha"])}
    else:
        options = {"normalizer": {2.0: "sparsemax", 1.5: "entmax15"}[float(g["meta.alpha"])]}
    p = attention_weights(x, **options)
    close(p, g["p"])
    (p * torch.from_numpy(g["grad_out"])).sum().backward()
    close(x.grad, g["grad_x"])


# --- The budget ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_keys", "options", "expected"),
    [
        (10, {}, 0),
        (10, {"minimum": 4}, 0),
        (10, {"k": 4}, 4),
        (3, {"k": 8}, 3),
        (7, {"ratio": 2}, 4),
        (7, {"ratio": 2.5}, 3),
        (7, {"ratio": 1}, 7),
        (7, {"ratio": 3, "minimum": 4}, 4),
        (7, {"ratio": 3, "minimum": 2}, 3),
        (7, {"ratio": 3, "minimum": 9}, 7),
    ],
)
def test_effective_k(num_keys: int, options: dict, expected: int) -> None:
    assert effective_k(num_keys, **options) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": -1}, "k must be 0 (dense) or positive, got -1"),
        ({"minimum": -2}, "minimum must be 0 or positive, got -2"),
        ({"ratio": -3}, "ratio must be 0 (off) or at least 1, got -3"),
        ({"ratio": 0.5}, "ratio must be 0 (off) or at least 1, got 0.5"),
        ({"ratio": math.nan}, "ratio must be"),
        ({"k": 2, "ratio": 3}, "k or ratio, not both: got k=2 and ratio=3"),
    ],
)
def test_effective_k_rejects(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        effective_k(8, **options)


# --- Rules -----------------------------------------------------------------------------------------------------------


@st.composite
def masked_scores(draw: st.DrawFn, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, int]:
    """Scores with ``-inf`` at random keys (whole rows now and then), the mask of valid keys, and a budget."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    rows, keys = draw(st.integers(1, 6)), draw(st.integers(1, 40))
    scores = torch.randn(2, rows, keys, generator=generator) * draw(st.sampled_from([0.1, 1.0, 30.0]))
    if draw(st.booleans()):
        scores = scores.round()  # ties
    valid = torch.rand(2, rows, keys, generator=generator) < draw(st.sampled_from([0.0, 0.2, 0.7, 1.0]))
    return scores.to(dtype).masked_fill(~valid, NEG_INF), valid, draw(st.integers(1, keys + 3))


def plain_topk_softmax(scores: Tensor, k: int) -> Tensor:
    """The definition, one row at a time, in float64."""
    out = torch.zeros(scores.shape, dtype=torch.float64)
    for row, result in zip(scores.flatten(0, -2).double(), out.flatten(0, -2), strict=True):
        threshold = row.sort(descending=True).values[min(k, len(row)) - 1]
        kept = (row >= threshold) & (row > NEG_INF)
        result[kept] = row[kept].softmax(-1)
    return out


@given(masked_scores())
def test_is_the_definition(case: tuple[Tensor, Tensor, int]) -> None:
    scores, valid, k = case
    weights = topk_softmax(scores, k)
    close(weights, plain_topk_softmax(scores, k).numpy(), 1e-6)
    assert (weights[~valid] == 0).all()
    torch.testing.assert_close(weights.sum(-1), valid.any(-1).float())


@given(masked_scores())
def test_number_of_kept_keys(case: tuple[Tensor, Tensor, int]) -> None:
    scores, valid, k = case
    scores = scores / 30  # keep exp() away from underflow, where a kept key weighs nothing
    kept = (topk_softmax(scores, k) > 0).sum(-1)
    least = valid.sum(-1).clamp(max=k)
    assert (kept >= least).all()
    ranks = scores.argsort(-1).argsort(-1) / scores.size(-1)  # no two keys of a row are equal
    distinct = ranks.masked_fill(~valid, NEG_INF)
    assert ((topk_softmax(distinct, k) > 0).sum(-1) == least).all()


@given(masked_scores(), st.sampled_from([1, 1.5, 2, 7]), st.integers(0, 3))
def test_a_ratio_is_of_the_unmasked_keys(case: tuple[Tensor, Tensor, int], ratio: float, minimum: int) -> None:
    scores, valid, _ = case
    rows = [
        plain_topk_softmax(row[None], max(1, effective_k(int(there.sum()), ratio=ratio, minimum=minimum)))
        for row, there in zip(scores.flatten(0, -2), valid.flatten(0, -2), strict=True)
    ]
    close(ratio_softmax(scores, ratio, minimum).flatten(0, -2), torch.cat(rows).numpy(), 1e-6)


@given(masked_scores(), st.sampled_from([0, -1, None]))
def test_large_or_no_budget_is_dense(case: tuple[Tensor, Tensor, int], k: int | None) -> None:
    scores, valid, _ = case
    weights = topk_softmax(scores, scores.size(-1) if k is None else k)
    torch.testing.assert_close(weights, scores.softmax(-1).masked_fill(~valid.any(-1, keepdim=True), 0.0))


@given(masked_scores(), st.integers(1, 9), st.randoms(use_true_random=False))
def test_padding_and_order_of_keys_do_not_matter(case: tuple[Tensor, Tensor, int], width: int, random) -> None:
    scores, _, k = case
    k = min(k, scores.size(-1))
    expected = topk_softmax(scores, k)
    torch.testing.assert_close(topk_softmax(F.pad(scores, (width, 0), value=NEG_INF), k)[..., width:], expected)
    order = random.sample(range(scores.size(-1)), scores.size(-1))
    torch.testing.assert_close(topk_softmax(scores[..., order], k), expected[..., order])


@given(masked_scores(), st.integers(0, 2))
def test_any_axis(case: tuple[Tensor, Tensor, int], dim: int) -> None:
    scores, _, k = case
    moved = scores.movedim(-1, dim)
    expected = topk_softmax(scores, k).movedim(-1, dim)
    torch.testing.assert_close(topk_softmax(moved, k, dim), expected)
    torch.testing.assert_close(topk_softmax(moved, k, dim - 3), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@given(case=masked_scores())
def test_half_precision(dtype: torch.dtype, case: tuple[Tensor, Tensor, int]) -> None:
    scores, valid, k = case
    scores = scores.to(dtype).requires_grad_()
    weights = topk_softmax(scores, k)
    assert weights.dtype == dtype
    # Selected in half precision, normalised in float32, rounded once.
    torch.testing.assert_close(weights, topk_softmax(scores.float(), k).to(dtype), rtol=0, atol=0)
    (grad,) = torch.autograd.grad(weights.square().sum(), scores)
    assert grad.dtype == dtype and grad.isfinite().all() and (grad[~valid] == 0).all()


@pytest.mark.parametrize("straight_through", [False, True])
@given(case=masked_scores(torch.float64))
def test_gradient(straight_through: bool, case: tuple[Tensor, Tensor, int]) -> None:
    """Through the kept keys only; straight-through: the gradient of the dense softmax."""
    scores, valid, k = case
    ours, plain = scores.clone().requires_grad_(), scores.clone().requires_grad_()
    weights = topk_softmax(ours, k, straight_through=straight_through)
    assert (weights == topk_softmax(scores, k)).all()
    grad_out = torch.linspace(-1, 2, scores.numel(), dtype=torch.float64).view_as(scores)
    kept = valid if straight_through else plain_topk_softmax(scores, k) > 0
    dead = ~valid.any(-1, keepdim=True)
    softmax = plain.masked_fill(~kept, NEG_INF).masked_fill(dead, 0.0).softmax(-1).masked_fill(dead, 0.0)
    (expected,) = torch.autograd.grad((softmax * grad_out).sum(), plain)
    (actual,) = torch.autograd.grad((weights * grad_out).sum(), ours)
    torch.testing.assert_close(actual, expected)
    assert (actual[~valid] == 0).all()


def test_gradcheck() -> None:
    torch.manual_seed(0)
    scores = torch.randn(3, 7, dtype=torch.float64)
    scores[0, 2:] = NEG_INF
    scores[1, 0] = NEG_INF
    free = torch.randn(3, 7, dtype=torch.float64, requires_grad=True)
    for k in (0, 3):
        assert torch.autograd.gradcheck(lambda x, k=k: topk_softmax(x + scores, k), free)
        assert torch.autograd.gradgradcheck(lambda x, k=k: topk_softmax(x + scores, k), free)


def test_keeps_only_the_probabilities_for_the_backward_pass() -> None:
    scores = torch.randn(4, 50, requires_grad=True)
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        weights = topk_softmax(scores, 5)
    assert len(saved) == 1 and torch.equal(saved[0], weights)


def test_nan_is_not_hidden() -> None:
    scores = torch.randn(2, 6)
    scores[0, 3] = math.nan
    for k in (0, 2):
        weights = topk_softmax(scores, k)
        assert weights[0].isnan().any() and weights[1].isfinite().all()


# --- Normalizers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("normalizer", NORMALIZERS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@given(case=masked_scores())
def test_normalizers(normalizer: str, dtype: torch.dtype, case: tuple[Tensor, Tensor, int]) -> None:
    scores, valid, _ = case
    scores = scores.to(dtype).requires_grad_()
    weights = attention_weights(scores, normalizer=normalizer)
    assert weights.dtype == dtype and (weights[~valid] == 0).all()
    tolerance = {torch.float16: 5e-3, torch.bfloat16: 4e-2}.get(dtype, 1e-4)
    torch.testing.assert_close(weights.float().sum(-1), valid.any(-1).float(), rtol=0, atol=tolerance)
    (grad,) = torch.autograd.grad(weights.square().sum(), scores)
    assert grad.isfinite().all() and (grad[~valid] == 0).all()


@pytest.mark.parametrize("normalizer", NORMALIZERS)
def test_normalizers_compute_half_precision_in_float32(normalizer: str) -> None:
    scores = torch.randn(20, 30, generator=torch.Generator().manual_seed(0)).half()
    expected = attention_weights(scores.float(), normalizer=normalizer).half()
    assert torch.equal(attention_weights(scores, normalizer=normalizer), expected)


@pytest.mark.parametrize("normalizer", NORMALIZERS)
def test_fully_masked_row(normalizer: str) -> None:
    scores = torch.tensor([[NEG_INF] * 4, [1.0, NEG_INF, 0.5, 0.0]], requires_grad=True)
    weights = attention_weights(scores, normalizer=normalizer, k=2 if normalizer == "softmax" else 0)
    assert (weights[0] == 0).all() and math.isclose(weights[1].sum().item(), 1.0, rel_tol=1e-6)
    (grad,) = torch.autograd.grad((weights * torch.arange(4.0)).sum(), scores)
    assert (grad[0] == 0).all() and grad[1].abs().sum() > 0


# Every normalizer, and what else goes through the same contract.
CONTRACT = {
    **{name: {"normalizer": name} for name in NORMALIZERS},
    "top 1": {"k": 1},
    "top 2": {"k": 2},
    "straight-through": {"k": 1, "straight_through": True},
    "alpha 1.01": {"normalizer": "entmax-bisect", "alpha": 1.01},
    "alpha 3": {"normalizer": "entmax-bisect", "alpha": 3.0},
}
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@st.composite
def extreme_scores(draw: st.DrawFn, dtype: torch.dtype) -> Tensor:
    limits = torch.finfo(dtype)
    values = [NEG_INF, limits.min, -1e4, -1.0, 0.0, limits.tiny, 1.0, 1e4, limits.max, math.inf]
    row = st.lists(st.sampled_from(values) | st.floats(-30, 30, width=16), min_size=4, max_size=4)
    return torch.tensor(draw(st.lists(row, min_size=1, max_size=4)), dtype=dtype)


@pytest.mark.parametrize("name", CONTRACT)
@pytest.mark.parametrize("dtype", FLOATS)
@given(data=st.data())
def test_extreme_scores_mean_the_same_to_every_normalizer(name: str, dtype: torch.dtype, data: st.DataObject) -> None:
    scores = data.draw(extreme_scores(dtype)).requires_grad_()
    weights = attention_weights(scores, **CONTRACT[name])
    (grad,) = torch.autograd.grad(weights, scores, torch.tensor([1.0, -2.0, 3.0, 0.5], dtype=dtype).expand_as(scores))
    assert weights.isfinite().all() and grad.isfinite().all() and (weights >= 0).all()
    masked, infinite = scores == NEG_INF, scores == math.inf
    assert (weights[masked] == 0).all() and (grad[masked] == 0).all()
    total = (~masked.all(-1)).to(dtype)
    torch.testing.assert_close(weights.double().sum(-1), total.double(), rtol=0, atol=2e-2)
    share = infinite.double() / infinite.sum(-1, keepdim=True).clamp(min=1)
    limit = torch.where(infinite.any(-1, keepdim=True), share, weights.double())
    torch.testing.assert_close(weights.double(), limit, rtol=0, atol=1e-3)
    top = scores.amax(-1, keepdim=True)
    assert (weights[scores.double() < top.double() - 1e3 - top.double().abs() * 0.5] < 1e-6).all()


@pytest.mark.parametrize("name", CONTRACT)
@pytest.mark.parametrize("dtype", FLOATS)
def test_nan_stays_in_its_row(name: str, dtype: torch.dtype) -> None:
    scores = torch.tensor([[0.0, math.nan, 1.0], [0.0, NEG_INF, 1.0], [math.inf, math.nan, NEG_INF]], dtype=dtype)
    weights = attention_weights(scores, **CONTRACT[name])
    assert weights[[0, 2]].isnan().all(-1).tolist() == [True, True] and weights[1].isfinite().all()


@pytest.mark.parametrize("name", CONTRACT)
@pytest.mark.parametrize("shape", [(2, 3, 0), (2, 0, 3), (0, 3, 3), (0,), (0, 0)])
def test_no_scores_give_no_weights(name: str, shape: tuple[int, ...]) -> None:
    scores = torch.zeros(shape, requires_grad=True)
    weights = attention_weights(scores, **CONTRACT[name])
    assert weights.shape == shape and torch.autograd.grad(weights.sum(), scores)[0].shape == shape


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"normalizer": "entmax1.5"}, "normalizer must be one of softmax, sparsemax, entmax15, entmax-bisect, got "
                                      "'entmax1.5': did you mean 'entmax15'?"),
        ({"normalizer": "sparse-max"}, "did you mean 'sparsemax'?"),
        ({"normalizer": "sparsemax", "k": 3}, "k or ratio needs normalizer='softmax', got normalizer='sparsemax'"),
        ({"normalizer": "entmax15", "ratio": 2}, "k or ratio needs normalizer='softmax'"),
        ({"normalizer": "entmax15", "straight_through": True}, "straight_through needs normalizer='softmax'"),
        ({"alpha": 1.2}, "alpha is an option of normalizer='entmax-bisect'"),
        ({"normalizer": "entmax-bisect", "alpha": 1.0}, "alpha must be above 1 and finite, got 1.0"),
        ({"normalizer": "entmax-bisect", "alpha": math.inf}, "alpha must be above 1 and finite, got inf"),
        ({"k": -8}, "k must be 0 (dense) or positive, got -8"),
    ],
)  # fmt: skip
def test_attention_weights_rejects(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        attention_weights(torch.randn(2, 5), **options)


# --- topk_attention --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", ["none", "bool", "float", "causal"])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_dense_topk_attention_is_torch_attention(mask: str, scale: float | None) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 3, 5, 8), torch.randn(2, 3, 7, 8), torch.randn(2, 3, 7, 4)
    keep = torch.rand(2, 1, 5, 7) < 0.7
    keep[..., 0] = True
    options = {"none": {}, "bool": {"attn_mask": keep}, "float": {"attn_mask": torch.randn(5, 7)},
               "causal": {"is_causal": True}}[mask]  # fmt: skip
    expected = F.scaled_dot_product_attention(q, k, v, scale=scale, **options)
    torch.testing.assert_close(topk_attention(q, k, v, k=0, scale=scale, **options), expected)
    torch.testing.assert_close(topk_attention(q, k, v, k=99, scale=scale, **options), expected)
    sparse = topk_attention(q, k, v, k=2, scale=scale, **options)
    assert (sparse - expected).abs().max() > 1e-3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [1.0, 8.0, 300.0])
@pytest.mark.parametrize("autocast", [False, True])
def test_dense_topk_attention_of_half_precision_is_torch_attention(dtype: torch.dtype, size: float, autocast: bool):
    """Of scores up to 200 bfloat16 keeps no digit behind the point, and float16 ends at 65504."""
    torch.manual_seed(0)
    q, k, v = ((torch.randn(2, 4, 16, 64) * factor).to(dtype) for factor in (size, size, 1))
    exact = F.scaled_dot_product_attention(q.double(), k.double(), v.double())
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        outputs = [topk_attention(q, k, v, k=keys) for keys in (0, 16, 99)]
    for out in outputs:
        assert out.dtype == (torch.bfloat16 if autocast else dtype)
        assert (out.double() - exact).abs().max() < 4 * torch.finfo(out.dtype).eps


def test_topk_attention_keeps_the_best_keys() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 3, 5, 8), torch.randn(2, 3, 7, 8), torch.eye(7).expand(2, 3, 7, 7)
    weights = topk_attention(q, k, v, k=2)  # identity values: the output is the weights
    best = (q @ k.transpose(-2, -1)).topk(2).indices.sort().values
    assert torch.equal((weights > 0).nonzero()[:, -1].view_as(best), best)


def test_topk_attention_dropout() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(1, 2, 64, 8), torch.randn(1, 2, 7, 8), torch.eye(7).expand(1, 2, 7, 7)
    weights, dropped = topk_attention(q, k, v, k=3), topk_attention(q, k, v, None, 0.5, k=3)
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], 2 * weights[kept])
    assert 0.3 < kept.sum() / (weights != 0).sum() < 0.7


def test_topk_attention_query_without_keys() -> None:
    q, k, v = (torch.randn(1, 1, 4, 2, requires_grad=True) for _ in range(3))
    mask = torch.ones(4, 4, dtype=torch.bool)
    mask[1] = False
    out = topk_attention(q, k, v, mask, k=2)
    assert (out[..., 1, :] == 0).all()
    grads = torch.autograd.grad(out.sum(), (q, k, v))
    assert all(grad.isfinite().all() for grad in grads) and (grads[0][..., 1, :] == 0).all()


@pytest.mark.parametrize("empty", ["batch", "heads", "queries", "keys", "width", "value width"])
@pytest.mark.parametrize("k", [0, 2])
@pytest.mark.parametrize("mask", ["none", "bool", "float", "causal"])
def test_topk_attention_with_an_empty_dimension(empty: str, k: int, mask: str) -> None:
    sizes = {"batch": 2, "heads": 3, "queries": 4, "keys": 5, "width": 6, "value width": 7, empty: 0}
    batch, heads_, queries, keys, width, value_width = sizes.values()
    q = torch.randn(batch, heads_, queries, width, requires_grad=True)
    key = torch.randn(batch, heads_, keys, width, requires_grad=True)
    value = torch.randn(batch, heads_, keys, value_width, requires_grad=True)
    options = {"none": {}, "bool": {"attn_mask": torch.ones(queries, keys, dtype=torch.bool)},
               "float": {"attn_mask": torch.zeros(queries, keys)}, "causal": {"is_causal": True}}[mask]  # fmt: skip
    out = topk_attention(q, key, value, k=k, **options)
    assert out.shape == (batch, heads_, queries, value_width) and out.isfinite().all()
    if empty == "keys":
        assert (out == 0).all()
    elif k == 0 and empty != "width":  # there torch divides 0 by the root of 0
        torch.testing.assert_close(out, F.scaled_dot_product_attention(q, key, value, **options))
    grads = torch.autograd.grad(out.sum(), (q, key, value), allow_unused=True)
    assert all(grad is None or grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_grouped_queries_are_those_of_torch(groups: int) -> None:
    q, k, v = (torch.randn(2, heads, 3, 6, dtype=torch.float64) for heads in (4, 4 // groups, 4 // groups))
    causal = {"is_causal": True, "enable_gqa": True}
    expected = F.scaled_dot_product_attention(q, k, v, **causal)
    torch.testing.assert_close(topk_attention(q, k, v, k=0, **causal), expected)
    q, k, v = leaves = [states.requires_grad_() for states in (q, k, v)]
    sparse = topk_attention(q, k, v, k=2, **causal)
    by_head = [
        topk_attention(q[:, [head]], k[:, [head // groups]], v[:, [head // groups]], k=2, is_causal=True)
        for head in range(4)
    ]
    torch.testing.assert_close(sparse, torch.cat(by_head, 1))
    gradients = [torch.autograd.grad(out.square().sum(), leaves) for out in (sparse, torch.cat(by_head, 1))]
    torch.testing.assert_close(*gradients)
    if groups == 2:  # one head for all broadcasts, several do not
        with pytest.raises(RuntimeError, match="size"):
            topk_attention(q, k, v, k=2)


@pytest.mark.parametrize(("heads", "shared"), [(4, 3), (2, 4), (4, 0)])
def test_grouped_queries_of_other_heads_are_refused(heads: int, shared: int) -> None:
    q, k = torch.randn(1, heads, 3, 6), torch.randn(1, shared, 3, 6)
    with pytest.raises(ValueError, match=rf"the {heads} heads of the query must be a multiple .*, got {shared}"):
        topk_attention(q, k, k, k=2, enable_gqa=True)
    with pytest.raises(ValueError, match="with heads"):
        topk_attention(q[0, 0], q[0, 0], q[0, 0], k=2, enable_gqa=True)


def test_topk_attention_takes_the_arguments_of_torch() -> None:
    """By name, as the builtin function documents them."""
    documented = F.scaled_dot_product_attention.__doc__.partition("(")[2].partition(") ->")[0]
    theirs = {argument.partition("=")[0].strip() for argument in documented.split(",")}
    assert {"attn_mask", "scale", "enable_gqa"} <= theirs <= set(inspect.signature(topk_attention).parameters)


def test_topk_attention_rejects_two_masks() -> None:
    q = torch.randn(1, 1, 4, 2)
    with pytest.raises(ValueError, match="attn_mask and is_causal=True exclude each other"):
        topk_attention(q, q, q, torch.ones(4, 4, dtype=torch.bool), is_causal=True, k=2)


def test_a_mask_is_boolean_or_added_in_the_dtype_of_the_scores():
    """One of 0 and 1, as tokenizers give, would be added, and hide nothing."""
    q = torch.randn(1, 2, 4, 8)
    keep = torch.tensor([True, True, False, True])
    expected = topk_attention(q, q, q, keep, k=2)
    for dtype in (torch.int64, torch.uint8):
        with pytest.raises(ValueError, match=r"attn_mask must be boolean, or floating-point .*int.*\.bool\(\)"):
            topk_attention(q, q, q, keep.to(dtype), k=2)
    for dtype in (torch.float64, torch.float16):
        added = torch.zeros(4, dtype=dtype).masked_fill(~keep, -math.inf)
        torch.testing.assert_close(topk_attention(q, q, q, added, k=2), expected)
        half = topk_attention(*[q.bfloat16()] * 3, added, k=2)
        torch.testing.assert_close(half, topk_attention(*[q.bfloat16()] * 3, keep, k=2))


@pytest.mark.parametrize(
    ("module", "inputs"),
    [
        (modules.MultiScaleConv(8, 2, [3]), (torch.randn(4, 2, 8),)),
        (modules.AdaptiveSpanAttention(8, 2, 6), (torch.randn(2, 4, 8), torch.randn(2, 4, 8), torch.randn(1, 4, 6))),
    ],
)
def test_padding_is_marked_by_a_boolean_mask(module, inputs):
    module(*inputs, key_padding_mask=torch.zeros(2, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"key_padding_mask must be boolean, got torch.int64"):
        module(*inputs, key_padding_mask=torch.zeros(2, 4, dtype=torch.long))
