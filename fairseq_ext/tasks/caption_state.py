"""Compares the training folder that a checkpoint of ``--task captioning`` remembers with another folder.

Both are described by the task's ``state_dict``: ``preparation``, ``words``, ``categories``, and ``images``, a checksum
of each split.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fairseq_ext.captions.store import Preparation
from fairseq_ext.training.errors import CheckpointError, first_few

__all__ = ["compare_images", "compare_states"]

COMPARED = ("kind", "feature_dim", "grid", "num_classes", "tokenizer", "words", "categories")


def compare_states(own: dict[str, Any], trained: dict[str, Any], folder: str, origin: str) -> None:
    """Check that a trained model reads the images of a folder and writes its words.

    Args:
        own: state of the folder.
        trained: state in the checkpoint.
        folder, origin: names of the folder and the checkpoint, for messages.

    Raises:
        CheckpointError: the model was trained with another task, or on data that differ.
        DataError: the model was trained on features of another network.
    """
    ours, theirs = ({**state.get("preparation", {}), **state} for state in (own, trained))
    if lacking := sorted(ours.keys() - theirs.keys()):
        raise CheckpointError(f"{origin}: not trained with --task captioning: it lacks {first_few(lacking)}")
    for name in COMPARED:
        one, other = ours[name], theirs[name]
        if one != other:
            if isinstance(one, list):
                one, other = _at_difference(one, other), _at_difference(other, one)
            raise CheckpointError(f"{folder}: {name} {one}, but {origin} was trained on {other}")
    preparation = Preparation(**own["preparation"])
    preparation.check_extractor(theirs["extractor"], f"{folder}:", f"{origin} was trained on those of")


def compare_images(
    own: dict[str, Any], trained: dict[str, Any], splits: Sequence[str], folder: str, origin: str
) -> None:
    """Check that a resumed training has its own images and captions.

    Args:
        own, trained, folder, origin: as in :func:`compare_states`, which comes first.
        splits: the splits to train on and to validate on.

    Raises:
        CheckpointError: a split has other images or captions.
    """
    for split in splits:
        if trained["images"].get(split) != own["images"].get(split):
            raise CheckpointError(
                f"{folder}: not the images and captions of {split} that {origin} was trained with; --reset-dataloader "
                "starts on others from its weights"
            )


def _at_difference(one: list[str], two: list[str]) -> str:
    """The size of a list of words, and its first word that another list does not have in the same place."""
    pairs = enumerate(zip(one, two, strict=False))
    place = next((place for place, (own, other) in pairs if own != other), min(len(one), len(two)))
    return f"{len(one)}, number {place} {one[place]!r}" if place < len(one) else f"{len(one)}"
