"""The attentions as modules: what a call leaves behind, and what they hand to others."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from fairseq.modules import MultiheadAttention
from torch import Tensor, nn

from fairseq_ext.models.attention import SelectiveAttention
from fairseq_ext.models.cross_view_attention import CrossViewAttention
from fairseq_ext.models.muse_attention import MuseSelfAttention
from fairseq_ext.modules.cross_view import CrossViewFusion
from fairseq_ext.modules.muse import MultiScaleConv
from fairseq_ext.training.errors import OptionError

WIDTH, HEADS, SOURCE, BATCH = 8, 2, 5, 4
PADDING = torch.arange(SOURCE) >= torch.tensor([[5], [4], [5], [3]])


def cross_view(strategy: str = "gca", fusion: str = "mean", views: tuple[int, ...] = (3, 1)) -> CrossViewAttention:
    torch.manual_seed(0)
    projection = nn.Linear(WIDTH, WIDTH, bias=False) if strategy == "ama" else None
    combine = CrossViewFusion(WIDTH, views, strategy, fusion, projection)
    attention = CrossViewAttention(WIDTH, HEADS, encoder_decoder_attention=True, topk=3, fusion=combine)
    return attention.eval()


ATTENTIONS = {
    "top-k": lambda: SelectiveAttention(WIDTH, HEADS, self_attention=True, topk=2),
    "muse": lambda: MuseSelfAttention(WIDTH, HEADS, self_attention=True, conv=MultiScaleConv(WIDTH, HEADS, (3,), True)),
    "gca": cross_view,
    "separate": lambda: cross_view(fusion="separate"),
    "ama": lambda: cross_view("ama", views=(1, 2, 3)),
}


def snapshot(module: nn.Module) -> dict[str, Any]:
    """Everything that a module and its parts hold, but for tensors and parts themselves."""
    return {
        f"{path}.{name}": copy.deepcopy(value)
        for path, part in module.named_modules()
        for name, value in vars(part).items()
        if name not in ("_modules", "_parameters", "_buffers")
    }


@pytest.mark.parametrize("name", ATTENTIONS)
def test_a_call_changes_nothing_but_the_incremental_state(name: str) -> None:
    attention = ATTENTIONS[name]().eval()
    before = snapshot(attention)
    query, state = torch.randn(1, BATCH, WIDTH), {}
    memory = query if attention.self_attention else torch.randn(SOURCE, BATCH, 3 * WIDTH)
    static = {} if attention.self_attention else {"static_kv": True}
    if isinstance(attention, MuseSelfAttention):
        static = {}
    attention(query, memory, memory, incremental_state=state, **static)
    attention.reorder_incremental_state(state, torch.arange(BATCH).flip(0))
    assert state
    assert snapshot(attention) == before


@pytest.mark.parametrize("fusion", ["mean", "separate"])
@pytest.mark.parametrize("beam", [1, 2])
def test_views_have_caches_of_their_own(fusion: str, beam: int) -> None:
    """In any order of the calls, before and after sentences leave the batch."""
    attention = cross_view(fusion=fusion)
    memory = torch.randn(SOURCE, BATCH // beam, 3 * WIDTH).repeat_interleave(beam, 1)
    padding = PADDING[: BATCH // beam].repeat_interleave(beam, 0)
    views = attention.fusion.select(memory)
    for part in attention.modules():
        if isinstance(part, MultiheadAttention):
            part.set_beam_size(beam)

    def expected(query: Tensor, slot: int, order: Tensor) -> tuple[Tensor, Tensor | None]:
        with_views = views[slot].index_select(1, order), padding.index_select(0, order)
        return attention.attend_view(query, *with_views, slot, need_weights=True)

    state: dict[str, Any] = {}
    order = torch.arange(BATCH)
    for step, slots in enumerate([(1, 0), (0, 1), (1, 1, 0)]):
        query = torch.randn(1, len(order), WIDTH)
        for slot in slots:
            # only the first step reads the memory: the others read the cache
            memory_now = views[slot] if step == 0 else torch.full_like(views[slot], float("nan"))
            result = attention.attend_view(query, memory_now, padding, slot, state, need_weights=True)
            torch.testing.assert_close(result, expected(query, slot, order))
        if step == 0:  # the first sentences are done
            order = torch.tensor([2, 3])
            for part in attention.modules():  # fairseq calls the parts of a module too
                if hasattr(part, "reorder_incremental_state"):
                    part.reorder_incremental_state(state, order)


def test_scores_and_values_are_those_of_fairseq() -> None:
    stock = MultiheadAttention(WIDTH, HEADS, self_attention=True)
    stock.skip_embed_dim_check = True  # its fused path knows no before_softmax
    ours = SelectiveAttention(WIDTH, HEADS, self_attention=True, topk=2)
    ours.load_state_dict(stock.state_dict())
    x = torch.randn(SOURCE, BATCH, WIDTH)
    expected = stock(x, x, x, PADDING, before_softmax=True)
    torch.testing.assert_close(ours.scores_and_values(x, x, x, PADDING), expected)
    torch.testing.assert_close(ours(x, x, x, PADDING, before_softmax=True), expected)


def test_scores_of_a_fused_attention_are_refused() -> None:
    dense, x = SelectiveAttention(WIDTH, HEADS, self_attention=True), torch.randn(SOURCE, BATCH, WIDTH)
    with pytest.raises(AssertionError, match="fused"):
        dense.scores_and_values(x, x, x)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [({"static_kv": False}, ValueError), ({"before_softmax": True}, TypeError), ({"attn_mask": None}, TypeError)],
)
def test_views_refuse_what_they_have_no_meaning_for(arguments: dict[str, Any], error: type[Exception]) -> None:
    memory = torch.randn(SOURCE, BATCH, 3 * WIDTH)
    with pytest.raises(error, match=next(iter(arguments))):
        cross_view()(torch.randn(1, BATCH, WIDTH), memory, memory, **arguments)


@pytest.mark.parametrize(
    "make",
    [
        lambda **slots: SelectiveAttention(WIDTH, HEADS, topk=2, **slots),
        lambda **slots: SelectiveAttention(WIDTH, HEADS, normalizer="sparsemax", **slots),
        lambda **slots: MuseSelfAttention(WIDTH, HEADS, conv=MultiScaleConv(WIDTH, HEADS, (3,), True), **slots),
        lambda **slots: CrossViewAttention(WIDTH, HEADS, fusion=CrossViewFusion(WIDTH, (3, 1), "gca", "mean"), **slots),
    ],
    ids=["top-k", "sparsemax", "muse", "gca"],
)
def test_a_learned_key_is_refused_and_a_zero_one_is_not(make: Callable[..., nn.Module]) -> None:
    with pytest.raises(OptionError, match=r"^add_bias_kv: not with"):
        make(add_bias_kv=True)
    make(add_zero_attn=True)


@pytest.mark.parametrize("slots", [{"add_zero_attn": True}, {"add_bias_kv": True}], ids=str)
def test_slots_are_keys_like_others(slots: dict[str, bool]) -> None:
    options = {"self_attention": True, **slots}
    stock = MultiheadAttention(WIDTH, HEADS, **options)
    k = {} if "add_bias_kv" in slots else {"topk": SOURCE + 1}
    ours = SelectiveAttention(WIDTH, HEADS, **options, **k)
    ours.load_state_dict(stock.state_dict())
    x = torch.randn(SOURCE, BATCH, WIDTH)
    torch.testing.assert_close(ours(x, x, x, PADDING)[0], stock(x, x, x, PADDING)[0])
    if k:
        few = SelectiveAttention(WIDTH, HEADS, **options, topk=2)
        weights = few(x, x, x, PADDING, need_head_weights=True)[1]
        assert weights.size(-1) == SOURCE + 1 and (weights.ne(0).sum(-1) == 2).all()
