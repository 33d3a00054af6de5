"""The teachers' outputs for every text: computed once, and kept on disk under a key of all they depend on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from fairseq_ext.training.arrays import load_npz, write_npz
from fairseq_ext.training.errors import DataError, OptionError
from fairseq_ext.training.files import writing_to
from fairseq_ext.training.loop import seed_of
from fairseq_ext.training.pretrained import model_digest
from fairseq_ext.training.progress import say
from vision_language.muka.logits import predict_logits, row_values
from vision_language.muka.models import Classifier
from vision_language.muka.options import AmalgamationOptions, DiagnosisOptions
from vision_language.muka.text_files import Texts
from vision_language.muka.tokens import Tokens
from vision_language.muka.uncertainty import (
    SCORES,
    dropout_probabilities,
    mc_dropout_probabilities,
    teacher_scores,
)

__all__ = ["TeacherCache", "cached_arrays", "single_pass_scores"]


def cached_arrays(
    path: Path,
    depends_on: Mapping[str, Any],
    compute: Callable[[], dict[str, np.ndarray]],
    accelerator: Accelerator,
) -> dict[str, np.ndarray]:
    """Arrays from ``path``, or from ``compute`` where the file is missing, damaged or of another key; then written.

    Args:
        path: an ``.npz`` file. Its key is the SHA-256 of ``depends_on``.
        depends_on: everything that changes the arrays, as JSON.
        compute: called by all processes or by none.
    """
    key = hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()
    stored, reason = _read(path, key)
    hits = accelerator.reduce(torch.tensor(stored is not None, device=accelerator.device).long(), "sum")
    if stored is not None and int(hits) == accelerator.num_processes:
        return stored
    if reason:
        say(f"{path}: {reason}; computed again")
    arrays = compute()
    if accelerator.is_main_process:
        with writing_to(path.parent, "--cache"):
            write_npz(path, {"key": np.array(key), **arrays})
    return arrays


def _read(path: Path, key: str) -> tuple[dict[str, np.ndarray] | None, str]:
    """The arrays of a file with this key; or None, and why."""
    if not path.exists():
        return None, ""
    try:
        arrays = load_npz(path)
    except DataError:
        return None, "damaged"
    if str(arrays.pop("key", None)) != key:
        return None, "of other teachers, texts or settings"
    return arrays, ""


class TeacherCache:
    """Logits and scores of teachers for texts, from disk where they are there already.

    A file's key covers weights and configuration as they are in memory, the token ids of the texts, batches, number
    format, kind of device and, for scores, passes, dropout and seed. Scores of every kind are kept, so that another
    ``--score`` computes nothing. Texts are tokenized once for all teachers of one tokenizer and both kinds of outputs.

    Args:
        folder: of the ``.npz`` files; runs with the same teachers may share it.
        max_length: tokens of a text. Default: 0, which is 128 or what the teacher can.
        batch_size: texts of a batch.
    """

    def __init__(self, folder: str | Path, accelerator: Accelerator, max_length: int = 0, batch_size: int = 64) -> None:
        self.folder = Path(folder)
        self.accelerator = accelerator
        self.max_length = max_length
        self.batch_size = batch_size
        self._texts: Sequence[str] = ()
        self._known: list[Tokens] = []

    def _tokens(self, teacher: Classifier, texts: Sequence[str]) -> Tokens:
        """The teacher's tokens of ``texts``; of the texts that were asked for last they are kept."""
        if texts is not self._texts:
            self._texts, self._known = texts, []
        tokens = teacher.tokens(texts, self.max_length, self._known)
        self._known.append(tokens)
        return tokens

    def _cached(
        self,
        teacher: Classifier,
        texts: Texts,
        name: str,
        compute: Callable[[Tokens], dict[str, Tensor]],
        **depends_on: Any,
    ) -> dict[str, Tensor]:
        tokens = self._tokens(teacher, texts.texts)
        depends_on |= {
            "model": model_digest(teacher.model),
            "tokens": tokens.digest(),
            "batch_size": self.batch_size,
            "mixed_precision": self.accelerator.mixed_precision,
            "device": self.accelerator.device.type,  # whose generator draws the dropout masks
        }

        def arrays() -> dict[str, np.ndarray]:
            teacher.model.to(self.accelerator.device)
            values = compute(tokens)
            teacher.model.cpu()  # teachers need not fit on the device together
            return {name: value.numpy() for name, value in values.items()}

        values = cached_arrays(self.folder / f"{name}.npz", depends_on, arrays, self.accelerator)
        return {name: torch.from_numpy(value) for name, value in values.items()}

    def logits(self, teacher: Classifier, texts: Texts, name: str) -> Tensor:
        """Logits of one pass without dropout, ``(n, C_t)``; ``name`` is that of the teacher and split."""

        def compute(tokens: Tokens) -> dict[str, Tensor]:
            description = f"{name} logits"
            return {"logits": predict_logits(teacher.model, tokens, self.batch_size, self.accelerator, description)}

        return self._cached(teacher, texts, f"{name}-logits", compute)["logits"]

    def scores(
        self,
        teacher: Classifier,
        texts: Texts,
        name: str,
        passes: int = 16,
        seed: int = 1,
        dropout: float | None = None,
    ) -> dict[str, Tensor]:
        """Scores of Monte-Carlo dropout by kind, ``(n)`` each; ``dropout`` as :func:`mc_dropout_probabilities`."""

        def compute(tokens: Tokens) -> dict[str, Tensor]:
            def scores(batch: dict[str, Tensor], number: int) -> Tensor:
                # A seed for each batch, so that the masks do not depend on the number of processes.
                mask_seed = seed_of(seed, number)
                try:
                    with self.accelerator.autocast():
                        probabilities = mc_dropout_probabilities(
                            teacher.model, batch, passes, dropout=dropout, seed=mask_seed
                        )
                except OptionError as error:
                    raise OptionError(f"{teacher.folder}: {error}") from error
                return torch.stack([teacher_scores(probabilities, kind) for kind in SCORES], -1)

            description = f"{name} {passes} passes"
            values = row_values(tokens, scores, self.batch_size, self.accelerator, description)
            return dict(zip(SCORES, values.unbind(-1), strict=True))

        rates = dropout_probabilities(teacher.model) if dropout is None else dropout
        return self._cached(teacher, texts, f"{name}-scores", compute, passes=passes, seed=seed, dropout=rates)

    def all_logits(self, teachers: Sequence[Classifier], texts: Texts, split: str) -> list[Tensor]:
        """:meth:`logits` of every teacher."""
        return [self.logits(teacher, texts, name) for teacher, name in _named(teachers, split)]

    def all_scores(
        self,
        teachers: Sequence[Classifier],
        texts: Texts,
        split: str,
        kind: str = "entropy",
        passes: int = 16,
        seed: int = 1,
        dropout: float | None = None,
    ) -> Tensor:
        """:meth:`scores` of every teacher, of one kind, ``(n, T)``."""
        scores = [self.scores(teacher, texts, name, passes, seed, dropout) for teacher, name in _named(teachers, split)]
        return torch.stack([of_teacher[kind] for of_teacher in scores], -1)

    def scores_for(
        self,
        options: AmalgamationOptions | DiagnosisOptions,
        teachers: Sequence[Classifier],
        logits: Sequence[Tensor],
        texts: Texts,
        split: str,
    ) -> Tensor:
        """The scores ``(n, T)`` that ``options`` ask for; those of one pass are made of the teachers' ``logits``."""
        if options.no_mc:
            return single_pass_scores(logits, options.score, options.temperature)
        passes, dropout = options.passes, options.teacher_dropout or None
        return self.all_scores(teachers, texts, split, options.score, passes, options.seed, dropout)


def _named(teachers: Sequence[Classifier], split: str) -> list[tuple[Classifier, str]]:
    # Folders may have one name.
    return [(teacher, f"{split}-teacher{t}-{teacher.folder.name}") for t, teacher in enumerate(teachers, 1)]


def single_pass_scores(logits: Sequence[Tensor], kind: str = "entropy", temperature: float = 1.0) -> Tensor:
    """Scores ``(n, T)`` from one pass without dropout, the ablation of the paper's code."""
    return torch.stack([teacher_scores((z / temperature).softmax(-1)[None], kind) for z in logits], -1)
