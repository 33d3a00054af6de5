"""The settings that decide the outcome of a training: no result or checkpoint is taken for that of another one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import DTypeLike

from fairseq_ext.training.options import OptionSet

__all__ = ["Blocks", "Settings", "digest", "file_digest", "files_digest"]

ENTRIES = 4096
"""Entries of a list whose JSON text is in the memory at once."""
VALUES = 1 << 20
"""Values of an array that are copied at a time."""


@dataclass(frozen=True)
class Blocks:
    """An array too large for the memory, for :func:`digest`: its digest is that of the array.

    Args:
        dtype: type of the array, which the blocks are converted to.
        shape: shape of the array.
        blocks: its rows in order, any number of them in an array.
    """

    dtype: DTypeLike
    shape: tuple[int, ...]
    blocks: Iterable[np.ndarray]


def digest(*parts: Any) -> str:
    """SHA-256 of tensors, arrays, :class:`Blocks` and JSON values: of their contents, types, shapes and order.

    Sparse tensors are equal where their coalesced entries are, in any layout.
    """
    sha = hashlib.sha256()
    for part in parts:
        for piece in _pieces(part.detach().cpu() if isinstance(part, torch.Tensor) else part):
            sha.update(piece)
        sha.update(b"\0")
    return sha.hexdigest()


def file_digest(path: str | Path) -> str:
    """SHA-256 of the content of a file, which need not fit into the memory."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_digest(paths: Iterable[str | Path]) -> str:
    """SHA-256 of the contents of several files, in their order; their names do not matter."""
    return hashlib.sha256(b"".join(bytes.fromhex(file_digest(path)) for path in paths)).hexdigest()


def _pieces(part: Any) -> Iterator[Any]:
    """The bytes that describe type and shape, then the bytes of the content."""
    if isinstance(part, torch.Tensor) and part.layout != torch.strided:
        entries = part.to_sparse_coo().coalesce()
        yield json.dumps(["sparse", part.shape]).encode()
        yield from _pieces(entries.indices())
        yield from _pieces(entries.values())
    elif isinstance(part, (torch.Tensor, np.ndarray)):
        try:
            array = np.asarray(part)
            kind = array.dtype.str
        except TypeError:  # a type that NumPy lacks, such as bfloat16
            array, kind = torch.as_tensor(part).reshape(-1).view(torch.uint8).numpy(), str(part.dtype)
        yield json.dumps([kind, part.shape]).encode()
        # Only blocks are copied: a memory map in Fortran's order may not fit into the memory as a whole.
        blocks = [array] if array.flags.c_contiguous else np.array_split(array, array.size // VALUES + 1)
        for block in blocks:
            yield np.ascontiguousarray(block).data
    elif isinstance(part, Blocks):
        yield json.dumps([np.dtype(part.dtype).str, part.shape]).encode()
        for block in part.blocks:
            yield np.ascontiguousarray(block, part.dtype).data
    elif isinstance(part, (list, tuple)):
        yield b"["
        for start in range(0, len(part), ENTRIES):
            text = json.dumps(part[start : start + ENTRIES], sort_keys=True)[1:-1]
            yield f"{', ' if start else ''}{text}".encode()
        yield b"]"
    else:
        yield json.dumps(part, sort_keys=True).encode()


class Settings(dict[str, Any]):
    """Names and values, in the form in which JSON gives them back.

    Args:
        values: whatever changes the outcome.
        defaults: values of names that older results lack: such results were made with the default.
        aliases: earlier names, each with its present name.
        left_out: names that are not compared.

    Example:
        >>> settings = Settings.of(options, inputs={"graph": digest(data.x, data.edge_index)})
        >>> list(settings.differing(older))
        [('lr', 0.01, 0.005), ('inputs.graph', '5891b5b5...', '9f86d081...')]
    """

    def __init__(
        self,
        values: Mapping[str, Any],
        defaults: Mapping[str, Any] | None = None,
        aliases: Mapping[str, str] | None = None,
        left_out: Collection[str] = (),
    ) -> None:
        super().__init__(_as_json(values))
        if isinstance(values, Settings):
            defaults, aliases = defaults or values.defaults, aliases or values.aliases
            left_out = left_out or values.left_out
        self.defaults: dict[str, Any] = _as_json(defaults or {})
        self.aliases: dict[str, str] = dict(aliases or {})
        self.left_out: frozenset[str] = frozenset(left_out)

    @classmethod
    def of(cls, options: OptionSet, *, inputs: Mapping[str, str], leave_out: Collection[str] = (), **more: Any) -> Self:
        """The settings of a trainer.

        Options that change no outcome, as their :func:`~fairseq_ext.training.options.option` says, are kept, so that
        the results are a valid ``--config``, but not compared.

        Args:
            options: options of the trainer.
            inputs: the :func:`digest` of everything that the options name: data, models.
            leave_out: further options that are not compared, such as the seed where each run has its own.
            more: further settings.
        """
        values = options.as_dict() | more | {"inputs": inputs}
        return cls(values, options.defaults(), options.aliases(), {*leave_out, *options.without_outcome()})

    def differing(self, before: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
        """Name, value in ``before`` and value here of each setting that differs; ``outer.inner`` within a mapping."""
        before = {self.aliases.get(name, name): value for name, value in before.items()}
        for name, old, new in _differing({**self.defaults, **before}, {**self.defaults, **self}):
            if name not in self.left_out:
                yield name, old, new


def _as_json(values: Mapping[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(dict(values), default=str))


def _differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    for name in sorted({*before, *now}):
        old, new = before.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from ((f"{name}.{inner}", *values) for inner, *values in _differing(old, new))
        elif old != new:
            yield name, old, new
