"""Exact top-k attention by blocks: the kernel against the torch path."""

from __future__ import annotations

import functools
import itertools
import math
import re
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fairseq_ext.models.attention import SelectiveAttention
from fairseq_ext.modules import sparse_attention
from fairseq_ext.modules.sparse_attention import topk_attention
from tests.helpers import refuses_batched_gradients, refuses_second_derivative
from tests.kernels.compiled import CAPABILITIES, Compiled, compile_launches
from tests.kernels.interpreted import DEVICE, kernel

HALF = (torch.float16, torch.bfloat16)
NEG_INF = -math.inf

# The interpreter computes with numpy, which tells of what a card computes in silence.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


@pytest.fixture(scope="module")
def topk() -> ModuleType:
    return kernel("topk_attention")


def draw(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def heads(queries: int, keys: int, width: int, value_width: int, size: tuple[int, int] = (1, 2)) -> list[Tensor]:
    return [
        draw(*size, n, d, seed=i) for i, (n, d) in enumerate([(queries, width), (keys, width), (keys, value_width)])
    ]


def reference(query, key, value, bias=None, keep=None, is_causal=False, *, scale, k):
    """The torch path with both kinds of masks at once."""
    mask = bias
    if keep is not None:
        mask = torch.zeros((), dtype=query.dtype, device=DEVICE) if bias is None else bias
        mask = mask.expand(*query.shape[:3], key.size(2)).masked_fill(~keep, NEG_INF)
    return topk_attention(query, key, value, mask, is_causal=is_causal, scale=scale, k=k)


def with_gradients(function, states, *args, **options) -> list[Tensor]:
    """The output and the gradients of query, key and value, for an upstream that differs everywhere."""
    leaves = [x.detach().requires_grad_() for x in states]
    out = function(*leaves, *args, **options)
    return [out.detach(), *torch.autograd.grad(out, leaves, draw(*out.shape, dtype=out.dtype, seed=9))]


def assert_equal_results(got: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    for name, one, other in zip(("output", "query", "key", "value"), got, expected, strict=True):
        torch.testing.assert_close(
            one, other, rtol=tolerance, atol=tolerance, equal_nan=True, msg=lambda text, name=name: f"{name}: {text}"
        )


def padding(*lengths: int, keys: int) -> Tensor:
    return (torch.arange(keys) < torch.tensor(lengths)[:, None])[:, None, None].to(DEVICE)


CASES = {
    "odd sizes": (heads(35, 70, 20, 24, (1, 1)), {"k": 5}),
    "one key": (heads(3, 140, 16, 16, (1, 1)), {"k": 1}),  # long enough for tiles without a kept key to be passed over
    "many keys": (heads(33, 80, 8, 128, (1, 1)), {"k": 64}),
    "causal": (heads(70, 70, 16, 16, (1, 1)), {"k": 3, "is_causal": True}),
    "causal, more queries": (heads(70, 20, 16, 16, (1, 1)), {"k": 3, "is_causal": True}),
    "padding": (heads(5, 40, 16, 16, (2, 2)), {"k": 6, "keep": padding(40, 3, keys=40)}),
    "added by position": (heads(5, 40, 16, 16, (2, 1)), {"k": 6, "bias": draw(5, 40)}),
    "added by head, and padding": (
        heads(4, 40, 16, 16, (2, 2)),
        {"k": 6, "bias": draw(1, 2, 4, 40), "keep": padding(0, 33, keys=40)},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_equals_the_torch_path(topk, case):
    states, options = CASES[case]
    got = with_gradients(topk.topk_attention, states, scale=0.3, **options)
    expected = with_gradients(reference, states, scale=0.3, **options)
    assert_equal_results(got, expected, 1e-5)
    again = with_gradients(topk.topk_attention, states, scale=0.3, **options)
    assert all(torch.equal(one, other) for one, other in zip(got, again, strict=True))


@pytest.mark.parametrize("dtype", HALF)
def test_half_precision_keeps_the_same_keys(topk, dtype):
    """Small integers: every score is exact in half precision, and most thresholds are tied."""
    states = [(2 * x).round().to(dtype) for x in heads(20, 130, 16, 16, (1, 1))]
    bias = draw(20, 130, dtype=dtype).round()
    for options in ({"k": 7}, {"k": 7, "bias": bias, "keep": padding(120, keys=130)}):
        got = with_gradients(topk.topk_attention, states, scale=0.5, **options)
        expected = with_gradients(reference, states, scale=0.5, **options)
        # The weights are rounded before the sum here, after it there; gradients are sums of such numbers.
        assert_equal_results(got, expected, 16 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
def test_ties_are_kept_across_tiles(topk, dtype):
    """The best key three times, far from each other; ``k`` is two, or ends within the ties of another."""
    query, key, _ = (x.to(dtype) for x in heads(3, 150, 16, 16, (1, 1)))
    best = (query[0, 0, 1] @ key[0, 0].T).argmax()
    copies = [1, 70, 149]
    key[0, 0, copies] = key[0, 0, best].clone()
    kept = sorted({best.item(), *copies})
    for k in (1, 2, 3):
        out = torch.zeros(150, device=DEVICE)
        for start in range(0, 150, 75):  # identity values in two halves: the output is the weights
            value = torch.zeros(1, 1, 150, 75, dtype=dtype, device=DEVICE)
            value[0, 0, start : start + 75] = torch.eye(75)
            out[start : start + 75] = topk.topk_attention(query, key, value, scale=0.3, k=k)[0, 0, 1].float()
        assert out.nonzero().flatten().tolist() == kept
        assert out[kept].eq(out[kept[0]]).all() and math.isclose(out.sum(), 1, rel_tol=4 * torch.finfo(dtype).eps)


def test_scores_are_compared_in_their_own_dtype(topk):
    query = torch.ones(1, 1, 2, 16, dtype=torch.float16, device=DEVICE)
    key = torch.zeros(1, 1, 4, 16, dtype=torch.float16, device=DEVICE)
    key[0, 0, 1:3, 0] = 1
    key[0, 0, 2, 1] = 2**-12  # in float32 alone the larger of the two
    out = topk.topk_attention(
        query, key, torch.eye(4, dtype=torch.float16, device=DEVICE).expand(1, 1, 4, 4), scale=1.0, k=1
    )
    assert out[0, 0, 0].tolist() == [0, 0.5, 0.5, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_extreme_scores(topk, dtype):
    """The table of ``fairseq_ext.modules.topk``, a row each; two keys lie in another tile than the others."""
    limits, inf = torch.finfo(dtype), math.inf
    rows = [
        [NEG_INF] * 6,
        [limits.min] * 6,
        [limits.min, NEG_INF, limits.min, NEG_INF, NEG_INF, NEG_INF],
        [limits.max, limits.min, limits.max / 2, 0, limits.max, 1],
        [inf, 0, 1, inf, limits.max, 2],
        [0, 1, 2, 3, 4, inf],
        [NEG_INF, 0, NEG_INF, NEG_INF, NEG_INF, NEG_INF],
        [0, math.nan, 1, 2, 3, 4],
        [inf, math.nan, 1, 2, 3, NEG_INF],
        [0, 0, 1, 1, -0.0, 0],
    ]
    bias = torch.full((len(rows), 90), NEG_INF)
    bias[:, [0, 3, 5, 31, 64, 89]] = torch.tensor(rows)
    query, key, value = (x.to(dtype) for x in heads(len(rows), 90, 16, 16, (1, 1)))
    states, bias = (query * 0, key, value), bias.to(DEVICE, dtype)
    got = with_gradients(topk.topk_attention, states, bias, scale=1.0, k=3)
    expected = with_gradients(reference, states, bias, scale=1.0, k=3)
    assert got[0][0, 0, 7:9].isnan().all() and got[0][0, 0, :7].isfinite().all()
    assert not got[0][0, 0, 0].any()
    assert_equal_results(got, expected, 1e-5 if dtype == torch.float32 else 8e-3)


def test_any_strides(topk):
    states, options = CASES["padding"]
    plain = with_gradients(topk.topk_attention, states, scale=0.3, **options)
    by_position = [x.permute(2, 0, 1, 3).contiguous().permute(1, 2, 0, 3) for x in states]  # fairseq's (T, B, C)
    turned = [x.mT.contiguous().mT for x in states]
    for other in (by_position, turned):
        assert not other[0].is_contiguous()
        got = with_gradients(topk.topk_attention, other, scale=0.3, **options)
        assert all(torch.equal(a, b) for a, b in zip(got, plain, strict=True))
    assert topk.topk_attention(*by_position, scale=0.3, k=6).permute(2, 0, 1, 3).is_contiguous()


def test_dropout(topk):
    """Of the weights, without renormalisation; the same draw in the backward pass; from torch's generator."""
    query, key, value = heads(40, 60, 16, 60, (1, 2))
    eye = torch.eye(60, device=DEVICE).expand(1, 2, 60, 60)
    weights = topk.topk_attention(query, key, eye, scale=0.3, k=20)

    def dropped(*states: Tensor) -> Tensor:
        torch.manual_seed(5)
        return topk.topk_attention(*states, dropout_p=0.25, scale=0.3, k=20)

    spared = dropped(query, key, eye) / weights.where(weights > 0, 1)
    torch.testing.assert_close(spared[spared > 0], torch.full_like(spared[spared > 0], 1 / 0.75))
    share = (spared > 0).sum((-1, -2)) / (weights > 0).sum((-1, -2))
    assert (share - 0.75).abs().max() < 0.05 and not torch.equal(spared[0, 0], spared[0, 1])
    columns = (spared > 0).sum((0, 1, 2)) / (weights > 0).sum((0, 1, 2))
    assert 0.4 < columns.min() and columns.std() < 0.15

    def explicit(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return (topk_attention(query, key, eye, scale=0.3, k=20) * (spared > 0) / 0.75) @ value

    got = with_gradients(dropped, (query, key, value))
    assert_equal_results(got, with_gradients(explicit, (query, key, value)), 1e-5)
    torch.manual_seed(6)
    assert not torch.equal(topk.topk_attention(query, key, value, dropout_p=0.25, scale=0.3, k=20), got[0])


def test_checkpointing_draws_the_same(topk):
    states = heads(8, 20, 16, 16)
    options = {"dropout_p": 0.5, "scale": 0.3, "k": 4}
    torch.manual_seed(0)
    plain = with_gradients(topk.topk_attention, states, **options)
    torch.manual_seed(0)
    again = with_gradients(lambda *x: checkpoint(topk.topk_attention, *x, use_reentrant=False, **options), states)
    assert all(torch.equal(one, other) for one, other in zip(plain, again, strict=True))


def test_keeps_no_matrix_of_scores(topk):
    states = [x.requires_grad_() for x in heads(32, 96, 16, 16, (1, 1))]
    sizes: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
        topk.topk_attention(*states, scale=0.3, k=4)
    assert sum(sizes) == sum(x.numel() for x in states) + 32 * 16 + 3 * 32


def test_a_graph_is_gone_back_through_as_often_as_is_asked(topk):
    """Each time with its own gradient, and what the forward pass has kept stays."""
    states = [x.requires_grad_() for x in heads(8, 20, 16, 16, (1, 1))]
    out = topk.topk_attention(*states, scale=0.3, k=4)
    kept = [x.clone() for x in out.grad_fn.saved_tensors if x is not None]
    first, other = draw(*out.shape, seed=1), draw(*out.shape, seed=2)
    expected = torch.autograd.grad(out, states, first, retain_graph=True)
    torch.autograd.grad(out, states, other, retain_graph=True)
    again = torch.autograd.grad(out, states, first, retain_graph=True)
    assert all(map(torch.equal, again, expected))
    assert all(map(torch.equal, kept, [x for x in out.grad_fn.saved_tensors if x is not None]))


STATES = heads(5, 12, 16, 16)
BOOLEAN, FLOAT = torch.ones(5, 12, dtype=torch.bool, device=DEVICE), torch.zeros(5, 12, device=DEVICE)


@pytest.fixture
def handed(topk, monkeypatch) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """The calls that the kernel gets where it may have any."""
    calls = []
    monkeypatch.setattr(sparse_attention, "usable", lambda *tensors: True)
    original = topk.topk_attention

    def recorded(*args: Any, **names: Any) -> Tensor:
        calls.append((args, names))
        return original(*args, **names)

    monkeypatch.setattr(topk, "topk_attention", recorded)
    return calls


@pytest.mark.parametrize(
    ("options", "arguments", "names"),
    [
        ({"is_causal": True, "dropout_p": 0.5}, (None, None, 0.5, True), {"scale": 0.25, "k": 3}),
        ({"attn_mask": BOOLEAN, "scale": 0.5}, (None, BOOLEAN, 0.0, False), {"scale": 0.5, "k": 3}),
        ({"attn_mask": FLOAT}, (FLOAT, None, 0.0, False), {"scale": 0.25, "k": 3}),
    ],
)
def test_topk_attention_hands_over(handed, options, arguments, names):
    out = topk_attention(*STATES, **options, k=3)
    assert out.shape == STATES[0].shape
    ((got, named),) = handed
    assert named == names
    for one, other in zip(got, (*STATES, *arguments), strict=True):
        assert one is other if isinstance(one, Tensor) else one == other


def test_topk_attention_hands_over_a_mask_in_the_dtype_of_the_states(handed):
    topk_attention(*STATES, FLOAT.half(), k=3)
    assert torch.equal(handed[0][0][3], FLOAT.half().to(STATES[0].dtype))


@pytest.mark.parametrize(
    "options",
    [{"straight_through": True}, {"k": 0}, {"k": 12}, {"k": 40}, {"dropout_p": 1.0}],
    ids=str,
)
def test_topk_attention_keeps_to_torch(handed, options):
    topk_attention(*STATES, **{"k": 3} | options)
    topk_attention(*(x[0] for x in STATES), k=3)  # no batch
    topk_attention(STATES[0][:, :, :1], *STATES[1:], k=3)  # a step of decoding
    topk_attention(STATES[0][:, :1], *STATES[1:], k=3)  # heads that broadcast
    with torch.autocast(DEVICE.type, torch.bfloat16):
        topk_attention(*STATES, k=3)
    assert not handed


@pytest.mark.parametrize("kind", ["self", "cross"])
def test_selective_attention_hands_over(handed, kind):
    options = {"self": {"self_attention": True}, "cross": {"encoder_decoder_attention": True, "kdim": 6, "vdim": 6}}[
        kind
    ]
    torch.manual_seed(0)
    module = SelectiveAttention(8, 2, topk=2, dropout=0.5, **options).to(DEVICE)
    query = draw(7, 2, 8)
    memory = query if kind == "self" else draw(9, 2, 6)
    lengths = torch.tensor([len(memory), 4], device=DEVICE)
    inputs = {"key_padding_mask": torch.arange(len(memory), device=DEVICE) >= lengths[:, None]}
    if kind == "self":
        inputs["attn_mask"] = torch.full((7, 7), NEG_INF, device=DEVICE).triu(1)

    def run(**names: Any) -> list[Tensor]:
        out, weights = module(query, memory, memory, **inputs, **names)
        assert (weights is None) != names.get("need_weights", False)
        return [out, *torch.autograd.grad(out.square().sum(), module.parameters())]

    module.eval()
    expected = run(need_weights=True)
    assert not handed
    got = run(need_weights=False, static_kv=kind == "cross")
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    module.train()
    run(need_weights=False)
    assert [args[5] for args, _ in handed] == [0.0, 0.5]
    for other in ({"incremental_state": {}}, {"need_head_weights": True}, {"before_softmax": True}):
        module(query, memory, memory, need_weights=False, **other)
    assert len(handed) == 2


@pytest.mark.parametrize(
    "options",
    [{"topk": 20}, {"normalizer": "sparsemax"}, {"topk": 2, "select": "heads"}, {"topk": 2, "add_zero_attn": True}],
)
def test_selective_attention_keeps_to_torch(handed, options):
    module = SelectiveAttention(8, 2, self_attention=True, **options).to(DEVICE)
    query = draw(7, 2, 8)
    assert module(query, query, query, need_weights=False)[0].shape == query.shape and not handed


@pytest.mark.parametrize(
    ("change", "taken"),
    [
        ({}, True),
        ({"k": 64}, True),
        ({"k": 65}, False),
        ({"k": 0}, False),
        ({"keys": 8}, False),
        ({"width": 129}, False),
        ({"value_width": 129}, False),
        ({"dropout_p": 1.0}, False),
        ({"dropout_p": 1.5}, False),
        ({"bias": torch.zeros(3, 99, requires_grad=True)}, False),
        ({"bias": torch.zeros(3, 99)}, True),
        ({"keep": torch.zeros(3, 99, device="meta")}, False),
    ],
)
def test_takes(topk, change, taken):
    call = {"keys": 99, "width": 16, "value_width": 16, "bias": None, "keep": None, "dropout_p": 0.0, "k": 8} | change
    sizes = call.pop("keys"), call.pop("width"), call.pop("value_width")
    states = [x.cpu() for x in heads(3, *sizes)]
    assert topk.takes(*states, **call) == taken
    for empty in (slice(0), (slice(None), slice(0))):
        assert not topk.takes(*(x[empty] for x in states), **call)
    assert not topk.takes(states[0][:, :, :0], *states[1:], **call)
    assert not topk.takes(states[0], states[1][:, :1], states[2], **call)
    assert not topk.takes(states[0], states[1], states[2].double(), **call)


def test_takes_masks_whose_columns_are_near(topk):
    """The kernel counts them in 32 bits: a transposed mask of very many queries has them far from each other."""
    states = [x.to("meta") for x in heads(3, 99, 16, 16)]
    for distance, near in ((2**24, True), (2**25, False)):
        mask = torch.empty(99, distance, dtype=torch.bool, device="meta")[:, :3].T
        for bias, keep in ((mask, None), (None, mask)):
            assert topk.takes(*states, bias, keep, 0.0, 8) == near
    assert topk.takes(*states, torch.empty((), device="meta"), None, 0.0, 8)


def launches(topk: ModuleType) -> Iterator[str]:
    """Each dtype, narrow and wide heads; all masks and dropout, none, and the causal one."""
    for dtype, width, k, options in [
        (torch.bfloat16, 64, 8, {"dropout_p": 0.1, "keep": torch.ones(2, 1, 1, 128, dtype=torch.bool)}),
        (torch.float16, 128, 8, {"is_causal": True}),
        (torch.float32, 32, 8, {}),
    ]:
        states = [torch.zeros(2, 2, 128, width, dtype=dtype, requires_grad=True) for _ in range(3)]
        if "keep" in options:
            options["bias"] = torch.zeros(128, 128, dtype=dtype)
        topk.topk_attention(*states, **options, scale=0.1, k=k).sum().backward()
        yield f"{dtype}, {width} wide, k={k}"


@pytest.fixture(scope="module")
def compiled() -> list[Compiled]:
    return compile_launches("topk_attention", launches)


def test_every_launch_fits_its_card(compiled):
    functions = ("_topk_forward", "_topk_backward_query", "_topk_backward_key_value")
    assert {(one.kernel, one.capability) for one in compiled} == set(itertools.product(functions, CAPABILITIES))
    for one in compiled:
        # Beside two tiles of scores and one or two of gradients, some numbers wait in the cache.
        one.assert_fits(spilt=256 if "backward" in one.kernel and "float32" not in one.case else 16)


def test_half_precision_is_multiplied_by_tensor_cores(compiled):
    for one in compiled:
        instruction = "wgmma.mma_async" if one.capability == 90 else "mma.sync"
        assert (instruction in one.ptx) == ("float32" not in one.case), f"{one.kernel}, {one.case}"


def test_no_sum_depends_on_the_order_of_programs(compiled):
    assert not any(re.search(r"\b(atom|red)\.", one.ptx) for one in compiled)


def test_there_is_no_second_derivative_and_none_of_many_outputs_at_once(topk: ModuleType) -> None:
    query, key, value = (draw(1, 1, 8, 5).transpose(2, 3).requires_grad_() for _ in range(3))
    function = functools.partial(topk.topk_attention, k=2, scale=1.0)
    refuses_second_derivative(function, query, key, value, match="kernels.disabled")
    refuses_batched_gradients(function, query, key, value, match="kernels.disabled")
