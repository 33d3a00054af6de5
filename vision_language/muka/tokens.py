"""Token ids of texts, in batches of similar length."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase

__all__ = ["Tokens"]


class Tokens:
    """Token ids of texts, padded batch by batch to the longest text of the batch.

    Args:
        texts: n of them.
        tokenizer: of the model that will read them.
        max_length: longer texts are cut to so many tokens, special ones included.
        names: of the arguments that the model takes; others that the tokenizer makes are left out. Default: all.
        pad_to: pad all texts to so many tokens instead.
    """

    def __init__(
        self,
        texts: Sequence[str],
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        names: Collection[str] | None = None,
        pad_to: int | None = None,
    ) -> None:
        padding = "longest" if pad_to is None else "max_length"
        self._pad = DataCollatorWithPadding(tokenizer, padding, max_length=pad_to, return_tensors="pt")
        self._names = names
        # Arrays take a tenth of the memory of lists of integers.
        self.rows: list[dict[str, np.ndarray]] = []
        for start in range(0, len(texts), 1000):
            encoded = tokenizer(list(texts[start : start + 1000]), truncation=True, max_length=max_length)
            columns = [[np.asarray(row, dtype=np.int32) for row in encoded[name]] for name in encoded]
            self.rows += [dict(zip(encoded, row, strict=True)) for row in zip(*columns, strict=True)]
        self.lengths = np.array([len(row["input_ids"]) for row in self.rows])

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, rows: Sequence[int] | np.ndarray, device: torch.device | str = "cpu") -> dict[str, Tensor]:
        """Keyword arguments of the model for the texts ``rows``, on ``device``."""
        padded = self._pad([self.rows[row] for row in rows])
        taken = padded if self._names is None else [name for name in padded if name in self._names]
        return {name: padded[name].long().to(device) for name in taken}

    def digest(self) -> str:
        """SHA-256 of all that a model reads: the token ids, and how batches are padded."""
        sha = hashlib.sha256(repr((self._pad, self._names and sorted(self._names))).encode())
        for row in self.rows:
            for name, values in row.items():
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
