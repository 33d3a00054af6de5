"""The checkpoint of a training: its parts, its progress, and the settings that both belong to."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fairseq_ext.training.errors import CheckpointError, OptionError
from fairseq_ext.training.files import load_safely, save_atomically
from fairseq_ext.training.settings import Settings

__all__ = ["CHECKPOINT", "BestWeights", "Checkpoint", "RandomState"]

CHECKPOINT = "checkpoint.pt"
"""Its file in the folder of a training, as long as that is not among the results of an experiment."""


class RandomState:
    """Torch's generators as a part of a :class:`Checkpoint`, for trainings that draw from them across epochs."""

    def state_dict(self) -> dict[str, Any]:
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        return {"cpu": torch.get_rng_state(), "cuda": cuda}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Set the generators to ``state``; those of the GPUs only if there are as many GPUs as when it was saved."""
        torch.set_rng_state(state["cpu"])
        if len(state["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(state["cuda"])


class BestWeights:
    """The weights of a model at the best step, as a part of a :class:`Checkpoint`; the memory must hold them twice.

    Example:
        >>> if training.improved(validate()):
        ...     best.keep()
        >>> best.restore()  # after the last step
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._weights: dict[str, Any] = {}

    def keep(self) -> None:
        """Copy the model's present weights."""
        self._weights = {name: value.detach().clone() for name, value in self.model.state_dict().items()}

    def restore(self) -> None:
        """Give the model the weights that were kept, if any were."""
        if self._weights:
            self.model.load_state_dict(self._weights)

    def state_dict(self) -> dict[str, Any]:
        return self._weights

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Refuse weights of another model, as torch does; the model keeps its own."""
        if state:
            copy.deepcopy(self.model).load_state_dict(state)
        self._weights = dict(state)


class Checkpoint:
    """Saves and restores a training, whole or not at all.

    Args:
        path: the file.
        settings: whatever changes the training; best made by :meth:`Settings.of`, which knows the options' defaults.
        progress: counts and records of the training; :meth:`restore` brings them up to date in place.
        **parts: objects with ``state_dict`` and ``load_state_dict``; one that is None is left out.

    Example:
        >>> checkpoint = Checkpoint(folder / "checkpoint.pt", settings, progress, model=model, optimizer=optimizer)
        >>> if not checkpoint.restore():
        ...     checkpoint.prove()
    """

    def __init__(
        self, path: str | Path, settings: Mapping[str, Any], progress: dict[str, Any], **parts: Any | None
    ) -> None:
        self.path, self.settings, self.progress = Path(path), Settings(settings), progress
        self.parts = {name: part for name, part in parts.items() if part is not None}

    def save(self) -> None:
        """Replace the file.

        Raises:
            CheckpointError: it cannot be written.
        """
        self._write(self.path)

    def prove(self) -> None:
        """Save once, under another name, and remove that file: a checkpoint that cannot be saved is refused at once.

        Other processes look for the checkpoint meanwhile, and must not begin to read a file that goes away again.

        Raises:
            CheckpointError: the file cannot be written.
        """
        proof = self.path.with_name(f"{self.path.name}.tmp")
        self._write(proof)
        proof.unlink()

    def _write(self, path: Path) -> None:
        states = {name: part.state_dict() for name, part in self.parts.items()}
        save_atomically({"settings": dict(self.settings), "progress": self.progress, **states}, path)

    def restore(self) -> bool:
        """Resume from the file; False if there is none.

        Raises:
            OptionError: ``--out`` holds a training with other settings; the message names them.
            CheckpointError: a damaged file, or one of another program.
        """
        if not self.path.exists():
            return False
        content = load_safely(self.path)
        if not self._is_ours(content):
            raise CheckpointError(f"{self.path}: not a checkpoint of this training; delete it to start anew")
        if other := [name for name, *_ in self.settings.differing(content["settings"])]:
            raise OptionError(
                f"--out: {self.path} was trained with other {', '.join(other)}: choose another folder, or delete it"
            )
        try:
            for name, part in self.parts.items():
                part.load_state_dict(content[name])
        except Exception as error:  # models, optimisers and schedules raise many types
            raise CheckpointError(f"{self.path}: does not fit its model; delete it to start anew") from error
        self.progress.update(content["progress"])
        return True

    def _is_ours(self, content: Any) -> bool:
        return (
            isinstance(content, dict)
            and {"settings", "progress", *self.parts} <= content.keys()
            and isinstance(content["settings"], dict)
            and isinstance(content["progress"], dict)
            and content["progress"].keys() == self.progress.keys()
        )
