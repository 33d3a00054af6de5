"""Token ids of texts, in batches of similar length."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from torch import Tensor
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase

__all__ = ["Tokens"]

NO_MATTER = ("_tokenizer", "name_or_path", "init_kwargs", "vocab_file", "files_loaded", "deprecation_warnings")
"""Attributes of a fast tokenizer that do not show in token ids; the first is compared by its content."""


@dataclass(frozen=True, eq=False)
class _Table:
    """What a tokenizer makes of texts: for each name one int32 array of all texts, one text after the other."""

    made_by: tuple[str, int] | None
    offsets: np.ndarray
    columns: dict[str, np.ndarray]

    @classmethod
    def of(
        cls, texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, max_length: int, known: Iterable[_Table]
    ) -> _Table:
        """That of ``known`` which the same tokenizer made, or else a new one."""
        state = _state(tokenizer)
        made_by = (state, max_length) if state else None
        if made_by and (table := next((table for table in known if table.made_by == made_by), None)):
            return table
        lengths: list[int] = []
        parts: dict[str, list[np.ndarray]] = {}
        for start in range(0, len(texts), 1000):
            encoded = tokenizer(list(texts[start : start + 1000]), truncation=True, max_length=max_length)
            lengths += map(len, encoded["input_ids"])
            for name, rows in encoded.items():
                flat = np.fromiter(chain.from_iterable(rows), dtype=np.int32)
                parts.setdefault(name, []).append(_compact([flat]))
        offsets = np.cumsum([0, *lengths])
        return cls(made_by, offsets, {name: _compact(parts.pop(name)) for name in list(parts)})

    def row(self, number: int) -> dict[str, np.ndarray]:
        part = slice(self.offsets[number], self.offsets[number + 1])
        return {name: values[part] for name, values in self.columns.items()}


def _compact(parts: Sequence[np.ndarray]) -> np.ndarray:
    """The parts as one array; one of a single value, such as an attention mask, takes the memory of that value."""
    first = next((part[0] for part in parts if len(part)), np.int32(0))
    if all((part == first).all() for part in parts):
        return np.broadcast_to(first, sum(map(len, parts)))
    return np.concatenate(parts)


def _state(tokenizer: PreTrainedTokenizerBase) -> str:
    """What decides the token ids of a text, equal for copies in several folders; empty where it cannot be told."""
    if (backend := getattr(tokenizer, "backend_tokenizer", None)) is None:
        return ""
    content = json.loads(backend.to_str())
    content.update(truncation=None, padding=None)  # set anew by each call
    settings = [f"{name}={value!r}" for name, value in vars(tokenizer).items() if name not in NO_MATTER]
    return hashlib.sha256(json.dumps([str(type(tokenizer)), content, settings]).encode()).hexdigest()


class Tokens:
    """Token ids of texts, padded batch by batch to the longest text of the batch.

    Args:
        texts: n of them.
        tokenizer: of the model that will read them.
        max_length: longer texts are cut to so many tokens, special ones included.
        names: of the arguments that the model takes; others that the tokenizer makes are left out. Default: all.
        pad_to: pad all texts to so many tokens instead.
        known: tokens of the same texts; those that the same tokenizer made are taken, nothing is tokenized again.
    """

    def __init__(
        self,
        texts: Sequence[str],
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        names: Collection[str] | None = None,
        pad_to: int | None = None,
        known: Sequence[Tokens] = (),
    ) -> None:
        padding = "longest" if pad_to is None else "max_length"
        self._pad = DataCollatorWithPadding(tokenizer, padding, max_length=pad_to, return_tensors="pt")
        self._names = names
        self._table: _Table = _Table.of(texts, tokenizer, max_length, [each._table for each in known])
        self.lengths = np.diff(self._table.offsets)

    def __len__(self) -> int:
        return len(self.lengths)

    def batch(self, rows: Sequence[int] | np.ndarray, device: torch.device | str = "cpu") -> dict[str, Tensor]:
        """Keyword arguments of the model for the texts ``rows``, on ``device``."""
        padded = self._pad([self._table.row(row) for row in rows])
        taken = padded if self._names is None else [name for name in padded if name in self._names]
        return {name: padded[name].long().to(device) for name in taken}

    def digest(self) -> str:
        """SHA-256 of all that a model reads: the token ids, and how batches are padded."""
        sha = hashlib.sha256(repr((self._pad, self._names and sorted(self._names))).encode())
        for number in range(len(self)):
            for name, values in self._table.row(number).items():
                sha.update(f"{name} {len(values)} ".encode() + values.tobytes())
        return sha.hexdigest()

    def in_order(self, batch_size: int) -> list[np.ndarray]:
        """Batches of all rows, the longest texts first, so that little is padding."""
        order = np.argsort(-self.lengths, kind="stable")
        return np.split(order, range(batch_size, len(order), batch_size))

    def shuffled(self, batch_size: int, seed: int, epoch: int, window: int = 50) -> list[np.ndarray]:
        """Batches of similar length in random order, from (seed, epoch) alone.

        Rows are shuffled, sorted by length within windows of ``window`` batches, and the batches shuffled again, so
        that a batch is a random sample but for the lengths (our choice).
        """
        generator = np.random.default_rng([seed, epoch])
        order = generator.permutation(len(self))
        batches = []
        for part in np.split(order, range(window * batch_size, len(order), window * batch_size)):
            part = part[np.argsort(self.lengths[part], kind="stable")]
            batches += np.split(part, range(batch_size, len(part), batch_size))
        return [batches[i] for i in generator.permutation(len(batches))]
