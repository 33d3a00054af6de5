"""The other selections: recorded values and gradients of the released code, then the rules that must always hold."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fairseq_ext.modules.sparse_attention import attention_weights
from fairseq_ext.modules.sparse_variants import (
    SELECTIONS,
    ensemble_topk_softmax,
    out_of_window_mask,
    out_of_window_softmax,
    topk_probabilities,
)
from fairseq_ext.modules.topk import effective_k, topk_softmax
from tests.helpers import golden_names, load_golden
from tests.modules.test_sparse_attention import NEG_INF, budget, close, leaf, masked_scores


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


@pytest.mark.parametrize("select", SELECTIONS)
@pytest.mark.parametrize("shape", [(2, 3, 4, 0), (2, 3, 0, 4), (0, 3, 4, 4)])
def test_no_scores_give_no_weights(select: str, shape: tuple[int, ...]) -> None:
    scores = torch.zeros(shape, requires_grad=True)
    weights = attention_weights(scores, select=select, k=2)
    assert weights.shape == shape and torch.autograd.grad(weights.sum(), scores)[0].shape == shape


@pytest.mark.parametrize("select", SELECTIONS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_extreme_scores_have_finite_weights_and_nan_is_seen(select: str, dtype: torch.dtype) -> None:
    low, high = torch.finfo(dtype).min, torch.finfo(dtype).max
    rows = [[math.inf, 0, 1, high], [low, low, NEG_INF, low], [NEG_INF] * 4, [high, high, low, 0]]
    scores = torch.tensor([rows, rows[::-1]], dtype=dtype)[None].requires_grad_()
    weights = attention_weights(scores, select=select, k=2)
    (grad,) = torch.autograd.grad((weights * torch.arange(4, dtype=dtype)).sum(), scores)
    assert weights.isfinite().all() and grad.isfinite().all() and (weights[scores == NEG_INF] == 0).all()
    broken = scores.detach().clone()
    broken[0, 0, 3, 2] = math.nan
    seen = attention_weights(broken, select=select, k=2)
    assert seen[0, 0, 3].isnan().any() and not seen[0, :, :3].isnan().any()


def test_selections_are_the_functions() -> None:
    scores = torch.randn(2, 3, 5, 5).masked_fill(torch.ones(5, 5).triu(1).bool(), NEG_INF)
    expected = {
        "scores": topk_softmax(scores, 2),
        "window": out_of_window_softmax(scores, 2, True),
        "heads": ensemble_topk_softmax(scores, 2),
        "probabilities": topk_probabilities(scores, 2),
        "probabilities-softmax": topk_probabilities(scores, 2, softmax_again=True),
        "heads-probabilities": topk_probabilities(scores, 2, across_heads=True),
        "heads-probabilities-softmax": topk_probabilities(scores, 2, across_heads=True, softmax_again=True),
    }
    assert tuple(expected) == SELECTIONS
    for select, weights in expected.items():
        assert torch.equal(attention_weights(scores, select=select, k=2, causal=select == "window"), weights)


@pytest.mark.parametrize("k", [3, 8, 64])
def test_a_window_does_not_depend_on_how_many_keys_pad_the_row(k: int) -> None:
    scores = torch.randn(1, 1, 6, 6)
    padded = torch.nn.functional.pad(scores, (0, 40, 0, 40), value=NEG_INF)
    weights = attention_weights(padded, select="window", k=k)[..., :6, :6]
    torch.testing.assert_close(weights, attention_weights(scores, select="window", k=k))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"select": "windows", "k": 2},
            "select must be one of scores, .* got 'windows': did you mean 'window'?",
        ),
        ({"select": "window"}, "select='window' needs k or ratio"),
        ({"select": "heads", "k": 2, "causal": True}, "causal is an option of select='window', got select='heads'"),
        ({"causal": True}, "causal is an option of select='window', got select='scores'"),
        ({"select": "heads", "k": 2, "straight_through": True}, "straight_through is an option of select='scores'"),
        ({"select": "heads", "k": 2, "normalizer": "entmax15"}, "k or ratio needs normalizer='softmax'"),
    ],
)
def test_attention_weights_refuses_idle_selections(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        attention_weights(torch.randn(1, 2, 4, 4), **options)
