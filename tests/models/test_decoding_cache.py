"""The caches of fused decoders hold what plain concatenation and selection would."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fairseq_ext.models.decoding_cache import DecodingCache, GrowingStack

LAYERS, STEPS, WIDTH = 2, 40, 3


def orders(kind: str, rows: int, beam: int) -> Tensor:
    """What a search may do between two steps."""
    sentences = torch.arange(rows).view(-1, beam)
    if kind == "finished" and len(sentences) > 1:
        sentences = sentences[torch.randperm(len(sentences))[1:].sort().values]
    if kind == "any":
        return torch.randint(rows, (int(torch.randint(1, 9, ())),))
    if kind == "calm":
        return torch.where(torch.rand(sentences.shape) < 0.9, sentences, sentences[:, :1]).flatten()
    return sentences.gather(1, torch.randint(beam, sentences.shape)).flatten()


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("kinds", [("within",), ("calm", "calm", "within", "finished"), ("any", "calm")])
def test_prefixes(kinds: tuple[str, ...], seed: int) -> None:
    torch.manual_seed(seed)
    beam = 1 if "any" in kinds else 3
    rows = 12
    cache, state = DecodingCache(), {}
    numbers = [cache.register() for _ in range(LAYERS)]
    expected: list[Tensor] = [torch.empty(0, 2, rows, WIDTH)] * LAYERS
    for step in range(STEPS):
        latest = torch.randn(LAYERS, 2, rows, WIDTH)
        for number, item in zip(numbers, latest, strict=True):
            expected[number] = torch.cat([expected[number], item[None]])
            stack, padding = cache.append(state, number, item, None)
            assert padding is None and torch.equal(stack, expected[number])
        order = orders(kinds[step % len(kinds)], rows, beam)
        cache.reorder_incremental_state(state, order)
        rows = len(order)
        expected = [one.index_select(2, order) for one in expected]


@pytest.mark.parametrize("seed", range(4))
def test_memories_follow_their_hypotheses(seed: int) -> None:
    torch.manual_seed(seed)
    cache, state = DecodingCache(), {}
    number, sentences, beam = cache.register(), 4, 3
    owners = torch.arange(sentences).repeat_interleave(beam)
    numbered = torch.arange(float(sentences))[:, None, None, None]
    cache.set_memory(state, number, (numbered, 2 * numbered, None))
    for kind in ("within", "calm", "finished", "within", "finished", "any", "any"):
        rows = len(owners)
        cache.append(state, number, torch.zeros(2, rows, 1), None)
        together = owners.view(-1, beam).eq(owners.view(-1, beam)[:, :1]).all() if rows % beam == 0 else False
        order = orders(kind if together or kind == "any" else "any", rows, beam if together else 1)
        cache.reorder_incremental_state(state, order)
        owners = owners[order]
        key, value, mask = cache.memory(state, number)
        shared = key.repeat_interleave(len(owners) // len(key), dim=0)
        assert torch.equal(shared.flatten(), owners.float()) and torch.equal(value, 2 * key) and mask is None
        if kind != "any":
            assert len(key) == len(owners) // beam


def test_padding_is_that_of_the_hypothesis() -> None:
    cache, state = DecodingCache(), {}
    number = cache.register()
    masks: list[Any] = [None, torch.tensor([[True], [False]]), None, torch.tensor([[False], [True]])]
    for mask in masks:
        _, padding = cache.append(state, number, torch.zeros(2, 2, 1), mask)
        cache.reorder_incremental_state(state, torch.tensor([1, 0]))
    assert padding.tolist() == [[False, True, False, False], [False, False, False, True]]


def test_room_doubles() -> None:
    stack, rooms = GrowingStack(), set()
    for _ in range(100):
        rooms.add(stack.append(torch.zeros(1, 2, 3)).untyped_storage().size())
    assert len(rooms) == 4  # 16, 32, 64, 128
