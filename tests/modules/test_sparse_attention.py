"""Top-k attention: recorded values and gradients of the released code, then the rules that must always hold."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fairseq_ext.modules.sparse_attention import (
    NORMALIZERS,
    attention_weights,
    effective_k,
    ensemble_topk_softmax,
    out_of_window_mask,
    out_of_window_softmax,
    topk_attention,
    topk_probabilities,
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
        weights=lambda scores: attention_weights(scores, normalizer=normalizer, **options),
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

    def attend(queries: Tensor, keys: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return multi_head_attention(
            queries, keys, w, int(g["meta.num_heads"]), mask=mask, weights=lambda s: attention_weights(s, **options)
        )

    full, attn = attend(query, query, torch.full((length, length), NEG_INF).triu(1))
    steps = torch.cat([attend(query[t : t + 1], query[: t + 1])[0] for t in range(length)])
    close(full, g["out_full"])
    close(attn, g["attn_full"])
    close(steps, g["out_incremental"])
    # A fixed budget decodes as it trains; a ratio does not.
    assert math.isclose((full - steps).abs().max(), g["max_abs_diff_full_vs_incremental"], abs_tol=1e-5)


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


def tensor2tensor_weights(scores: Tensor, g: dict[str, np.ndarray]) -> Tensor:
    kind, selected = str(g["meta.self_attenion_type"]), str(g["meta.selected_topk_attention_type"])
    dense = selected == "two" and kind == "decoder_self_attention"
    k = 0 if dense else effective_k(scores.size(-1), **budget(int(g["meta.d"]), int(g["meta.lb"])))
    across_heads = "ensemble" in str(g["meta.fn"])
    if not g["meta.before_softmax"]:
        return topk_probabilities(scores, k, softmax_again=bool(g["meta.softmax_again"]), across_heads=across_heads)
    return ensemble_topk_softmax(scores, k) if across_heads else topk_softmax(scores, k)


@pytest.mark.parametrize("name", [n for n in golden_names("sparse", "t2t_") if "beforepadding" not in n])
def test_golden_tensor2tensor(name: str) -> None:
    g = load_golden("sparse", name)
    q, k, v = (leaf(g[x]) for x in "qkv")
    scores = (q @ k.transpose(-2, -1)).masked_fill(torch.from_numpy(g["bias"]) < -1e8, NEG_INF)
    weights = tensor2tensor_weights(scores, g)
    out = weights @ v
    close(weights, g["weights"])
    close(out, g["out"])
    (out * torch.from_numpy(g["grad_out"])).sum().backward()
    for x, tensor in zip("qkv", (q, k, v), strict=True):
        close(tensor.grad, g[f"grad_{x}"])


def test_selecting_before_masking_is_not_reproduced() -> None:
    """The release's ``before_padding=True`` gives weight to future keys; masking first never does."""
    g = load_golden("sparse", "t2t_pre_k3_beforepadding")
    masked = (torch.from_numpy(g["bias"]) < -1e8).expand(g["weights"].shape)
    scores = torch.from_numpy(g["q"] @ g["k"].swapaxes(-1, -2)).masked_fill(masked, NEG_INF)
    weights = topk_softmax(scores, 3)
    assert g["weights"][masked.numpy()].max() > 0.1
    assert weights[masked].abs().max() == 0
    torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))


@pytest.mark.parametrize("name", golden_names("sparse", "oow_"))
def test_golden_out_of_window(name: str) -> None:
    g = load_golden("sparse", name)
    leaf_scores = leaf(g["scores"])
    scores = leaf_scores
    if "key_padding_mask" in g:
        scores = scores.masked_fill(torch.from_numpy(g["key_padding_mask"])[:, None, None], NEG_INF)
    k, causal = int(g["meta.k"]), bool(g["meta.causal"])
    attn = out_of_window_softmax(scores, k, causal)
    assert (out_of_window_mask(scores, k, causal).numpy() == g["keep"]).all()
    close(attn, g["attn"], 1e-12)
    (attn * torch.from_numpy(g["grad_out"])).sum().backward()
    close(leaf_scores.grad, g["grad_scores"], 1e-12)


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
        ({"normalizer": "entmax-bisect", "alpha": 1.0}, "alpha must be above 1, got 1.0"),
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


def test_topk_attention_rejects_two_masks() -> None:
    q = torch.randn(1, 1, 4, 2)
    with pytest.raises(ValueError, match="attn_mask and is_causal=True exclude each other"):
        topk_attention(q, q, q, torch.ones(4, 4, dtype=torch.bool), is_causal=True, k=2)


# --- Out of window, and the Tensor2Tensor variants --------------------------------------------------------------------


@given(st.integers(1, 12), st.integers(1, 14), st.booleans(), st.integers(0, 2**31))
def test_out_of_window_set(length: int, k: int, causal: bool, seed: int) -> None:
    torch.manual_seed(seed)
    scores = torch.randn(2, length, length, dtype=torch.float64)
    valid = torch.rand(2, 1, length) < 0.8
    allowed = (valid & torch.ones(length, length, dtype=torch.bool).tril()) if causal else valid.expand_as(scores)
    keep = out_of_window_mask(scores.masked_fill(~valid, NEG_INF), k, causal)
    width = k // 2
    for b in range(2):
        for i in range(length):
            near = range(i - width + 1, i + 1) if causal else range(i - width // 2, i + math.ceil(width / 2))
            window = {j for j in near if 0 <= j < length and allowed[b, i, j]}
            rest = [j for j in range(length) if j not in near and allowed[b, i, j]]
            far = sorted(rest, key=lambda j, b=b, i=i: -scores[b, i, j].item())[: k - width]
            assert set(keep[b, i].nonzero().flatten().tolist()) == window | set(far)


@pytest.mark.parametrize("k", [1, 2, 5])
def test_out_of_window_decoding_step_is_the_last_row(k: int) -> None:
    scores = torch.randn(2, 9, 9)
    full = out_of_window_softmax(scores, k, causal=True)
    for t in range(9):
        step = out_of_window_softmax(scores[:, t : t + 1, : t + 1], k, causal=True)
        torch.testing.assert_close(step, full[:, t : t + 1, : t + 1])


def test_out_of_window_masked_row_is_zero() -> None:
    scores = torch.randn(1, 4, 4)
    scores[0, 2] = NEG_INF
    scores.requires_grad_()
    weights = out_of_window_softmax(scores, 2)
    (grad,) = torch.autograd.grad(weights.square().sum(), scores)
    assert (weights[0, 2] == 0).all() and (grad[0, 2] == 0).all() and grad.isfinite().all()


@pytest.mark.parametrize("function", [out_of_window_softmax, topk_probabilities, ensemble_topk_softmax])
def test_variants_reject_an_empty_budget(function) -> None:
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        function(torch.randn(1, 2, 4, 4), 0)


def test_out_of_window_rejects_more_queries_than_keys() -> None:
    with pytest.raises(ValueError, match=r"no more queries than keys .* got 5 queries and 4 keys"):
        out_of_window_softmax(torch.randn(5, 4), 2)


def test_ensemble_head_without_kept_keys_is_uniform() -> None:
    scores = torch.zeros(1, 2, 1, 4, dtype=torch.float64)
    scores[0, 0] = torch.tensor([5.0, 6.0, 7.0, 8.0])
    scores[0, 1] = torch.tensor([1.0, 2.0, 3.0, NEG_INF])
    weights = ensemble_topk_softmax(scores, 2)
    torch.testing.assert_close(weights[0, 0, 0], scores[0, 0, 0].softmax(-1))
    torch.testing.assert_close(weights[0, 1, 0], torch.tensor([1, 1, 1, 0], dtype=torch.float64) / 3)
    # Its logits still learn: the gradient is that of a softmax whose logits are all equal.
    free = scores.clone().requires_grad_()
    (grad,) = torch.autograd.grad(ensemble_topk_softmax(free, 2)[0, 1, 0, 0], free)
    torch.testing.assert_close(grad[0, 1, 0], torch.tensor([2, -1, -1, 0], dtype=torch.float64) / 9)


@given(masked_scores())
def test_variants_never_attend_to_masked_keys(case: tuple[Tensor, Tensor, int]) -> None:
    scores, valid, k = (x[None] if isinstance(x, Tensor) else x for x in case)  # (1, H, T, S)
    scores = scores.clone().requires_grad_()
    dead = ~valid.any(-1)
    results = [ensemble_topk_softmax(scores, k)]
    results += [topk_probabilities(scores, k, softmax_again=a, across_heads=h) for a in (0, 1) for h in (0, 1)]
    for number, weights in enumerate(results):
        assert (weights[~valid] == 0).all()
        if number in (0, 3, 4):  # those that end in a softmax
            torch.testing.assert_close(weights.sum(-1), (~dead).float())
        (grad,) = torch.autograd.grad(weights.square().sum(), scores)
        assert grad.isfinite().all() and (grad[~valid] == 0).all()
