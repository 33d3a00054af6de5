"""Classifiers as folders: loaded without running foreign code, built from a checkpoint, saved with class names."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from fairseq_ext.training.errors import CheckpointError, OptionError
from fairseq_ext.training.pretrained import (
    LOCAL,
    check_weights,
    cut_layers,
    load_model,
    load_tokenizer,
    loading,
    max_positions,
    read_config,
    save_folder,
)
from vision_language.muka.tokens import Tokens

__all__ = ["Classifier", "accepted", "build_classifier", "load_classifier", "load_classifiers", "save_classifier"]

DEFAULT_LENGTH = 128
SINGLE_LABEL = "single_label_classification"


@dataclass(frozen=True)
class Classifier:
    """A sequence classifier of Hugging Face, its tokenizer, and its class names in the order of its logits.

    Args:
        folder: that it comes from.
        new: names of weights that the folder does not have.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    labels: tuple[str, ...]
    folder: Path
    new: frozenset[str] = frozenset()

    def length(self, asked: int = 0) -> int:
        """The tokens of a text to read: ``asked``; where that is 0, 128 or what the model can.

        Raises:
            OptionError: more than the model has positions for.
        """
        limit = min(limit for limit in (max_positions(self.model), self.tokenizer.model_max_length) if limit)
        if asked > limit:
            raise OptionError(f"--max-length: {self.folder} reads at most {limit} tokens, got {asked}")
        return asked or min(DEFAULT_LENGTH, limit)

    @property
    def hidden_size(self) -> int:
        """The numbers of a hidden state; 0 where the configuration does not say."""
        return int(getattr(self.model.config.get_text_config(), "hidden_size", 0))

    def tokens(self, texts: Sequence[str], max_length: int = 0, known: Sequence[Tokens] = ()) -> Tokens:
        """The tokens that the model reads of ``texts``, of :meth:`length` tokens each at most.

        A model without an attention mask, such as FNet, reads the padding too; its texts all get the same length.

        Args:
            texts: n of them.
            max_length: most tokens of a text. Default: 0, which is 128 or what the model can.
            known: tokens of the same texts for other models, which serve where the tokenizers are equal. Default: none.
        """
        names, length = accepted(self.model), self.length(max_length)
        pad_to = None if "attention_mask" in names else length
        return Tokens(texts, self.tokenizer, length, names, pad_to, known)


def accepted(model: PreTrainedModel) -> frozenset[str]:
    """The names of the arguments that a model takes."""
    return frozenset(inspect.signature(model.forward).parameters)


def _label_names(folder: Path, config: Mapping[str, Any]) -> tuple[str, ...]:
    # transformers writes no id2label where all of it is the default, two classes without names.
    names = config.get("id2label", {"0": "LABEL_0", "1": "LABEL_1"})
    if not isinstance(names, dict) or not names:
        raise CheckpointError(f"{folder}: its id2label in config.json names no class")
    try:
        return tuple(str(names[str(number)]) for number in range(len(names)))
    except KeyError as error:
        raise CheckpointError(f"{folder}: id2label has no class {error} among its {len(names)}") from error


def _check_classes(folder: Path, config: Mapping[str, Any], labels: Sequence[str]) -> None:
    """Refuse a model whose output is no distribution over classes with names of their own."""
    architectures = config.get("architectures") or ["ForSequenceClassification"]
    if not any(str(name).endswith("ForSequenceClassification") for name in architectures):
        raise CheckpointError(f"{folder}: a {architectures[0]} does not tell the class of a text")
    problem = config.get("problem_type") or SINGLE_LABEL
    if problem != SINGLE_LABEL:
        raise CheckpointError(
            f"{folder}: its problem_type is {problem}; only a model that gives each text one class can be used"
        )
    if len(labels) < 2:
        raise CheckpointError(f"{folder}: has {len(labels)} class, at least two are needed")
    if len(set(labels)) < len(labels):
        twice = next(label for label in labels if labels.count(label) > 1)
        raise CheckpointError(f"{folder}: id2label has {twice!r} twice")
    if nameless := next((label for label in labels if re.fullmatch(r"LABEL_\d+", label)), None):
        raise CheckpointError(
            f"{folder}: its id2label has no names but {nameless}, ...; classes are matched by their names: "
            f"give them with --rename {nameless}=NAME"
        )


def load_classifier(folder: str | Path, rename: Mapping[str, str] | None = None) -> Classifier:
    """A trained classifier of any architecture, in evaluation mode.

    Nothing is downloaded, no code of the folder is run, and only safetensors are read.

    Args:
        folder: written by ``save_pretrained`` of an ``AutoModelForSequenceClassification`` and of its tokenizer, with
            class names in ``id2label``.
        rename: other names for some of its classes.

    Raises:
        OptionError: no such folder.
        CheckpointError: no model, no classifier, one of several classes for a text or of none, no class names, pickled
            weights only, or damaged files.
    """
    folder = Path(folder)
    config = read_config(folder)
    labels = tuple((rename or {}).get(label, label) for label in _label_names(folder, config))
    _check_classes(folder, config, labels)
    model, _ = load_model(AutoModelForSequenceClassification.from_pretrained, folder, dtype=torch.float32)
    return Classifier(model.eval(), _tokenizer_of(model.config, folder), labels, folder)


def load_classifiers(folders: Sequence[str | Path], renames: Sequence[str] = ()) -> list[Classifier]:
    """Several classifiers, some of whose classes get other names.

    Args:
        renames: ``OLD=NEW`` for each classifier that has a class OLD, ``2:OLD=NEW`` for the second only.

    Raises:
        OptionError: a renaming of another form, or of a class that there is not.
        InputError: as :func:`load_classifier`.
    """
    names = [_label_names(Path(folder), read_config(folder)) for folder in folders]
    chosen: list[dict[str, str]] = [{} for _ in folders]
    for text in renames:
        form = re.fullmatch(r"(?:(\d+):)?([^=]+)=(.+)", text)
        if not form:
            raise OptionError(f"--rename must be OLD=NEW or NUMBER:OLD=NEW, such as 2:LABEL_0=sport, got {text!r}")
        number, old, new = form.groups()
        having = [t for t, labels in enumerate(names) if old in labels and number in (None, str(t + 1))]
        if not having:
            classes = ", ".join(dict.fromkeys(label for labels in names for label in labels))
            raise OptionError(f"--rename {text}: no such class; there are {classes}")
        for t in having:
            chosen[t][old] = new
    return [load_classifier(folder, rename) for folder, rename in zip(folders, chosen, strict=True)]


def build_classifier(
    checkpoint: str | Path, labels: Sequence[str], num_layers: int = 0, from_scratch: bool = False
) -> Classifier:
    """A classifier to train: a new output layer on a pre-trained encoder, or on random weights.

    Args:
        checkpoint: folder with ``config.json``, a tokenizer and, unless ``from_scratch``, weights.
        labels: names of its classes.
        num_layers: keep only the first so many layers (from scratch: have so many). Default: 0, all.
        from_scratch: random weights of the configuration's shape.

    Raises:
        OptionError: no such folder, or layers that the model does not have.
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
        config.id2label, config.label2id, config.problem_type = names, ids, SINGLE_LABEL
        tokenizer = _tokenizer_of(config, folder)
        if num_layers:
            whole = getattr(config.get_text_config(), "num_hidden_layers", num_layers)
            if not from_scratch and num_layers > whole:
                raise OptionError(f"--num-layers: {folder} has {whole} layers, got {num_layers}")
            cut_layers(config, num_layers, folder)
        kind, number_format = AutoModelForSequenceClassification, torch.float32
        if from_scratch:
            model = kind.from_config(config, trust_remote_code=False, dtype=number_format)
            new = frozenset(model.state_dict())
        else:
            model, new = load_model(kind.from_pretrained, folder, start=True, config=config, dtype=number_format)
    return Classifier(model, tokenizer, tuple(labels), folder, new)


def _tokenizer_of(config: PreTrainedConfig, folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in a model's folder, which pads as the model needs it."""
    text = config.get_text_config()
    tokenizer = load_tokenizer(folder, getattr(text, "vocab_size", None), getattr(text, "pad_token_id", None))
    if getattr(text, "pad_token_id", None) is None:  # GPT-2 and its kin look for the last token before the padding
        text.pad_token_id = tokenizer.pad_token_id
    if getattr(text, "summary_type", "") == "last":  # XLNet tells the class by the last token, padding or not
        tokenizer.padding_side = "left"
    return tokenizer


def save_classifier(classifier: Classifier, folder: str | Path) -> None:
    """Write a folder that :func:`load_classifier` and ``from_pretrained`` read."""
    save_folder(classifier.model, classifier.tokenizer, folder)
