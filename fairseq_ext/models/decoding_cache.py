"""The memory of a decoder between the steps of generation, without copies that no hypothesis needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from fairseq.incremental_decoding_utils import FairseqIncrementalState
from torch import Tensor, nn

from fairseq_ext.models.attention import IncrementalState

__all__ = ["DecodingCache", "GrowingStack", "Memory", "kept_sentences", "reorder_parts", "reorder_sentences"]

_FIRST_ROOM = 16

Memory = tuple[Tensor, Tensor, Tensor | None]
"""Keys, values (B, H, S, D) and additive mask (B, 1, 1, S) of the encoder's output."""


def kept_sentences(new_order: Tensor, beam: int) -> Tensor | None:
    """The sentences in ``new_order``, if each group of ``beam`` rows still belongs to one sentence; else ``None``."""
    origin = new_order // beam
    kept = origin[::beam]
    return kept if torch.equal(kept.repeat_interleave(beam), origin) else None


def reorder_sentences(
    reorder: Callable[[dict[str, list[Any]], Tensor], dict[str, list[Any]]],
    encoder_out: dict[str, list[Any]],
    new_order: Tensor,
) -> dict[str, list[Any]]:
    """The encoder's output for rows in ``new_order``, with one copy per sentence while its hypotheses stay together.

    fairseq copies the whole output once per hypothesis, and again at every step of the search.

    Args:
        reorder: fairseq's ``reorder_encoder_out``.
        encoder_out: the encoder's output; its ``beam`` says how many rows share a sentence, one if absent.
        new_order: for each new row, the number of the present row that it becomes.
    """
    sentences = encoder_out["encoder_out"][0].size(1)
    beam = encoder_out.get("beam", [1])[0]
    if beam > 1:
        kept, shared = kept_sentences(new_order, beam), beam
    else:
        shared = max(1, new_order.numel() // sentences)
        kept = new_order[::shared]
        kept = kept if torch.equal(kept.repeat_interleave(shared), new_order) else None
    if kept is None:
        kept, shared = new_order // beam, 1
    if not torch.equal(kept, torch.arange(sentences, device=kept.device)):
        encoder_out = reorder(encoder_out, kept)
    return {**encoder_out, "beam": [shared]}


def reorder_parts(parts: list[nn.Module], incremental_state: IncrementalState, new_order: Tensor) -> None:
    """fairseq's ``reorder_incremental_state_scripting``, for only those modules of a decoder that keep a state."""
    for part in parts:
        incremental_state = part.reorder_incremental_state(incremental_state, new_order) or incremental_state


class GrowingStack:
    """One tensor (T, ..., N, C) of a tensor (..., N, C) per step, with room for more; reordered without allocating."""

    def __init__(self) -> None:
        self._room: Tensor | None = None
        self._spare: Tensor | None = None
        self.length = 0

    def append(self, item: Tensor) -> Tensor:
        """Puts ``item`` on top and returns the whole stack, which is valid until the next call of any method."""
        if self._room is None or self.length == self._room.size(0):
            grown = item.new_empty(max(_FIRST_ROOM, 2 * self.length), *item.shape)
            if self._room is not None:
                grown[: self.length] = self._room
            self._room, self._spare = grown, None
        self._room[self.length] = item
        self.length += 1
        return self.items

    @property
    def items(self) -> Tensor:
        assert self._room is not None, "nothing was appended"
        return self._room[: self.length]

    def reorder(self, new_order: Tensor) -> None:
        """Makes row ``i`` of every item what row ``new_order[i]`` was."""
        target = self._spare_for(new_order.numel())
        torch.index_select(self.items, -2, new_order, out=target[: self.length])
        self._room, self._spare = target, self._room

    def move(self, target: Tensor, source: Tensor) -> None:
        """Makes the rows ``target`` of the flattened stack (T * ... * N, C) what the rows ``source`` were."""
        rows = self.items.flatten(0, -2)
        moved = self._spare_for(self.items.size(-2)).flatten(0, -2)[: len(source)]
        rows.index_copy_(0, target, torch.index_select(rows, 0, source, out=moved))

    def _spare_for(self, rows: int) -> Tensor:
        room = self._room
        assert room is not None
        shape = (*room.shape[:-2], rows, room.size(-1))
        size = room.numel() // max(1, room.size(-2)) * rows
        if self._spare is None or self._spare.numel() < size:
            self._spare = room.new_empty(size)
        return self._spare.flatten()[:size].view(shape)


@dataclass
class _Generation:
    """The state of one search: what all layers share, and what each layer keeps."""

    # which row wrote a row's state at a step: rows that agree there have the same past
    writers: GrowingStack = field(default_factory=GrowingStack)
    padding: Tensor | None = None
    prefixes: dict[int, GrowingStack] = field(default_factory=dict)
    memories: dict[int, Memory] = field(default_factory=dict)


class DecodingCache(FairseqIncrementalState, nn.Module):
    """Keys and values of the layers of one decoder while it generates, in fairseq's ``incremental_state``.

    All layers share it, so that fairseq's search reorders once. Keys and values of earlier words lie in buffers that
    grow by doubling; words that the hypotheses of a sentence have in common, most of them, are not copied when
    hypotheses change places. Keys and values of the encoder's output are kept once per sentence.
    """

    def __init__(self) -> None:
        super().__init__()
        self._layers = 0

    def register(self) -> int:
        """A number for one more layer."""
        self._layers += 1
        return self._layers - 1

    def append(
        self, incremental_state: IncrementalState, layer: int, key_value: Tensor, key_padding_mask: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Adds a step's keys and values (2, N, C); returns those of all steps (T, 2, N, C) and their padding (N, T)."""
        generation = self._generation(incremental_state)
        prefix = generation.prefixes.setdefault(layer, GrowingStack())
        if prefix.length == generation.writers.length:  # the first layer to come to this step
            rows = torch.arange(key_value.size(-2), device=key_value.device)
            generation.writers.append(rows[:, None])
            if key_padding_mask is not None or generation.padding is not None:
                generation.padding = _extend_padding(
                    generation.padding, key_padding_mask, generation.writers.items[..., 0].t()
                )
        return prefix.append(key_value.detach()), generation.padding

    def memory(self, incremental_state: IncrementalState | None, layer: int) -> Memory | None:
        """The memory that :meth:`set_memory` was given for this layer; ``None`` if it was given none."""
        if incremental_state is None:
            return None
        return self._generation(incremental_state).memories.get(layer)

    def set_memory(self, incremental_state: IncrementalState | None, layer: int, memory: Memory) -> None:
        """Keeps the keys and values of the encoder's output for the steps to come."""
        if incremental_state is not None:
            self._generation(incremental_state).memories[layer] = memory

    def reorder_incremental_state(self, incremental_state: IncrementalState, new_order: Tensor) -> IncrementalState:
        """Called by beam search between two steps."""
        generation = self._generation(incremental_state)
        if not generation.writers.length:
            return incremental_state
        writers = generation.writers.items[..., 0]
        rows = writers.size(1)
        moves = _moves(writers, new_order) if new_order.numel() == rows else None
        for prefix in generation.prefixes.values():
            if moves is None:
                prefix.reorder(new_order)
            elif len(moves[0]):
                prefix.move(*moves)
        generation.writers.reorder(new_order)
        if generation.padding is not None:
            generation.padding = generation.padding.index_select(0, new_order)
        self._reorder_memories(generation.memories, new_order, rows)
        return incremental_state

    def _reorder_memories(self, memories: dict[int, Memory], new_order: Tensor, rows: int) -> None:
        if not memories:
            return
        sentences = next(iter(memories.values()))[0].size(0)
        beam = rows // sentences
        kept = kept_sentences(new_order, beam)
        if kept is None:
            kept = new_order // beam
        elif torch.equal(kept, torch.arange(sentences, device=kept.device)):
            return
        for layer, parts in memories.items():
            memories[layer] = tuple(part if part is None else part.index_select(0, kept) for part in parts)

    def _generation(self, incremental_state: IncrementalState) -> _Generation:
        key = self._get_full_incremental_state_key("generation")
        if key not in incremental_state:
            incremental_state[key] = {"state": _Generation()}
        return incremental_state[key]["state"]


def _moves(writers: Tensor, new_order: Tensor) -> tuple[Tensor, Tensor] | None:
    """Which rows of a flattened (T, 2, N, C) change, and what each becomes; ``None`` if they are many."""
    step, row = (writers.index_select(1, new_order) != writers).nonzero(as_tuple=True)
    if 2 * len(row) > writers.numel():  # a row that is moved is copied twice
        return None
    rows = writers.size(1)
    key = 2 * rows * step
    target, source = key + row, key + new_order[row]
    return torch.cat([target, target + rows]), torch.cat([source, source + rows])


def _extend_padding(padding: Tensor | None, latest: Tensor | None, writers: Tensor) -> Tensor:
    """The padding of all steps (N, T), from that of earlier steps and of the latest ones."""
    rows, length = writers.shape
    extended = torch.zeros(rows, length, dtype=torch.bool, device=writers.device)
    if padding is not None:
        extended[:, : padding.size(1)] = padding
    if latest is not None:
        extended[:, -latest.size(1) :] = latest.bool()
    return extended
