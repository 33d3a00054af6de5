"""Classifiers as folders: loaded without running foreign code, built from a checkpoint, saved with class names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from fairseq_ext.errors import CheckpointError, OptionError
from vision_language.pretrained import LOCAL, check_weights, load_tokenizer, loading, read_config, save_folder

__all__ = ["Classifier", "build_classifier", "load_classifier", "save_classifier"]

DEFAULT_LENGTH = 128


@dataclass(frozen=True)
class Classifier:
    """A sequence classifier of Hugging Face, its tokenizer, and its class names in the order of its logits."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    labels: tuple[str, ...]
    folder: Path

    def length(self, asked: int | None = None) -> int:
        """The tokens of a text to read: ``asked``, by default 128 or what the model can.

        Raises:
            OptionError: more than the model has positions for.
        """
        limit = min(limit for limit in (_positions(self.model), self.tokenizer.model_max_length) if limit)
        if asked is not None and asked > limit:
            raise OptionError(f"--max-length: {self.folder} reads at most {limit} tokens, got {asked}")
        return asked or min(DEFAULT_LENGTH, limit)


def _positions(model: PreTrainedModel) -> int | None:
    """The longest sequence that a model has positions for; None where there is no limit."""
    for name, module in model.named_modules():
        # RoBERTa and its kin count positions from behind the padding index.
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            return int(module.num_embeddings - module.padding_idx - 1)
    return getattr(model.config, "max_position_embeddings", None)


def _label_names(folder: Path, config: dict[str, Any]) -> tuple[str, ...]:
    names = config.get("id2label")
    if not isinstance(names, dict) or not names:
        raise CheckpointError(f"{folder}: its config.json has no id2label, so its classes have no names")
    try:
        labels = tuple(str(names[str(number)]) for number in range(len(names)))
    except KeyError as error:
        raise CheckpointError(f"{folder}: id2label has no class {error} among its {len(names)}") from error
    if len(labels) < 2:
        raise CheckpointError(f"{folder}: has {len(labels)} class, at least two are needed")
    if len(set(labels)) < len(labels):
        twice = next(label for label in labels if labels.count(label) > 1)
        raise CheckpointError(f"{folder}: id2label has {twice!r} twice")
    if all(re.fullmatch(r"LABEL_\d+", label) for label in labels):
        raise CheckpointError(
            f"{folder}: id2label has no names but {labels[0]}, ...; classes are matched by their names"
        )
    return labels


def load_classifier(folder: str | Path) -> Classifier:
    """A trained classifier of any architecture, in evaluation mode.

    Nothing is downloaded, no code of the folder is run, and only safetensors are read.

    Args:
        folder: written by ``save_pretrained`` of an ``AutoModelForSequenceClassification`` and of its tokenizer, with
            class names in ``id2label``.

    Raises:
        OptionError: no such folder.
        CheckpointError: no model, no classifier, no class names, pickled weights only, or damaged files.
    """
    folder = Path(folder)
    config = read_config(folder)
    check_weights(folder)
    labels = _label_names(folder, config)
    with loading(folder):
        model, found = AutoModelForSequenceClassification.from_pretrained(
            folder, use_safetensors=True, output_loading_info=True, dtype=torch.float32, **LOCAL
        )
        if found["missing_keys"]:
            missing = ", ".join(sorted(found["missing_keys"])[:3])
            raise CheckpointError(f"{folder}: not a trained classifier: its weights lack {missing}")
    return Classifier(model.eval(), load_tokenizer(folder, model.config.vocab_size), labels, folder)


def build_classifier(
    checkpoint: str | Path, labels: Sequence[str], layers: int | None = None, from_scratch: bool = False
) -> Classifier:
    """A classifier to train: a new output layer on a pre-trained encoder, or on random weights.

    Args:
        checkpoint: folder with ``config.json``, a tokenizer and, unless ``from_scratch``, weights.
        labels: names of its classes.
        layers: keep only the first so many layers (from scratch: have so many). Default: all.
        from_scratch: random weights of the configuration's shape.

    Raises:
        OptionError: no such folder, or fewer layers than asked for.
        CheckpointError: as :func:`load_classifier`; also where weights of the encoder are missing.
    """
    folder = Path(checkpoint)
    read_config(folder)
    if not from_scratch:
        check_weights(folder)
    names = dict(enumerate(labels))
    ids = {label: number for number, label in names.items()}
    with loading(folder):
        config = AutoConfig.from_pretrained(folder, num_labels=len(names), **LOCAL)
        config.id2label, config.label2id, config.problem_type = names, ids, "single_label_classification"
        if layers is not None:
            if not from_scratch and layers > config.num_hidden_layers:
                raise OptionError(f"--layers: {folder} has {config.num_hidden_layers} layers, got {layers}")
            config.num_hidden_layers = layers
        if from_scratch:
            model = AutoModelForSequenceClassification.from_config(config, trust_remote_code=False, dtype=torch.float32)
        else:
            model, found = AutoModelForSequenceClassification.from_pretrained(
                folder,
                config=config,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # a classifier of other classes may be the start
                dtype=torch.float32,
                **LOCAL,
            )
            _refuse_new_encoder(folder, model, [*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])])
    return Classifier(model, load_tokenizer(folder, config.vocab_size), tuple(labels), folder)


def _refuse_new_encoder(folder: Path, model: nn.Module, new: Sequence[str]) -> None:
    """Weights that the checkpoint does not have may be those of the output layer and of the pooling before it only."""
    prefix = f"{model.base_model_prefix}."
    missing = [key for key in new if key.startswith(prefix) and not key.startswith(f"{prefix}pooler.")]
    if missing:
        raise CheckpointError(f"{folder}: its weights lack {', '.join(sorted(missing)[:3])} of the encoder")


def save_classifier(classifier: Classifier, folder: str | Path) -> None:
    """Write a folder that :func:`load_classifier` and ``from_pretrained`` read."""
    save_folder(classifier.model, classifier.tokenizer, folder)
