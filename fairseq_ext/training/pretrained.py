"""Folders of Hugging Face models: read without a network and without running their code, and written whole.

More than 300 lines, as reading, refusing and writing such a folder belong together.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from fairseq_ext.training.errors import CheckpointError, DataError, InputError, OptionError, first_few, first_line
from fairseq_ext.training.files import load_safely, read_json
from fairseq_ext.training.progress import say
from fairseq_ext.training.settings import file_digest
from fairseq_ext.training.weights import check_finite

__all__ = [
    "LOCAL",
    "check_weights",
    "cut_layers",
    "fingerprint",
    "load_model",
    "load_tokenizer",
    "loading",
    "max_positions",
    "model_digest",
    "read_config",
    "read_weights",
    "save_folder",
]

LOCAL: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
"""Arguments of every ``from_pretrained``; :func:`load_model` loads the models."""
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
CONFIGS = ("config.json", "tokenizer_config.json")
OWN_MODELS = "only models and tokenizers that transformers itself has are read"
NOT_OF_THE_MODEL = ("results.json", "diagnostics.json", "*.md", "*.tmp", ".*")
"""What a folder may hold beside the model; all its other files count in a :func:`fingerprint`."""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """A context without transformers' progress bars and its table of new and unused weights."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


@contextlib.contextmanager
def loading(folder: str | Path, refusal: str = "cannot be loaded") -> Iterator[None]:
    """A context in which transformers' long errors become one line.

    Raises:
        CheckpointError: anything goes wrong inside.
    """
    try:
        with quiet():
            yield
    except InputError:
        raise
    except Exception as error:  # every reader of a part has errors of its own
        raise CheckpointError(f"{folder}: {refusal}: {first_line(error)}") from error


def read_config(folder: str | Path) -> dict[str, Any]:
    """``config.json`` of a model.

    Raises:
        OptionError: no such folder.
        CheckpointError: no model in it, or one with code of its own.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise OptionError(
            f"{folder} is not a folder; a model is a folder with config.json, weights and, of text, a tokenizer"
        )
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder}: no config.json in it, so it is no model")
    try:
        config = read_json(folder / "config.json")
    except DataError as error:
        raise CheckpointError(str(error)) from error
    if not isinstance(config, dict) or "model_type" not in config:
        raise CheckpointError(f"{folder / 'config.json'}: no model_type in it, so it is no model of transformers")
    for name in CONFIGS:
        _refuse_code(folder / name)
    return config


def _refuse_code(path: Path) -> None:
    """Refuse a model that names code of its own: a transformers class in its place would be a different model."""
    try:
        settings = read_json(path) if path.is_file() else {}
    except DataError as error:
        raise CheckpointError(str(error)) from error
    if isinstance(settings, dict) and settings.get("auto_map"):
        raise CheckpointError(f"{path}: auto_map names code of the model's own, which is never run; {OWN_MODELS}")


def check_weights(folder: str | Path) -> None:
    """Refuse a folder without safetensors.

    Raises:
        CheckpointError: no weights in it, or pickled ones only.
    """
    folder = Path(folder)
    if any((folder / name).is_file() for name in WEIGHTS):
        return
    pickled = [path.name for pattern in ("*.bin", "*.pt", "*.ckpt") for path in sorted(folder.glob(pattern))]
    if pickled:
        raise CheckpointError(f"{folder}: {pickled[0]} could run code when loaded; only {WEIGHTS[0]} is read")
    raise CheckpointError(f"{folder}: no {WEIGHTS[0]} in it")


def load_model(
    from_pretrained: Callable[..., Any],
    folder: str | Path,
    *,
    start: bool = False,
    head: Callable[[PreTrainedModel], str] | None = None,
    **options: Any,
) -> tuple[Any, frozenset[str]]:
    """A model with the weights of a folder; transformers alone would draw missing weights at random, and go on.

    Args:
        from_pretrained: the method of a class of models.
        folder: a folder with safetensors.
        start: whether the model is yet to be trained. Its output layer and the pooling before it (all but the encoder)
            may then be missing, or be for other classes; they are drawn from torch's generator, and a line says so.
            Default: a trained model, in which nothing may be missing.
        head: gives the name of the output layer, for a model that has no encoder as a part of its own.
        **options: further arguments of ``from_pretrained``.

    Returns:
        The model, and the names of the weights that do not come from the folder.

    Raises:
        CheckpointError: no safetensors, weights that are missing, of another shape or not finite, or whatever else
            goes wrong.
    """
    check_weights(folder)
    options |= {"use_safetensors": True, "output_loading_info": True, "ignore_mismatched_sizes": start, **LOCAL}
    with loading(folder):
        model, keys = from_pretrained(folder, **options)
    new = {*keys["missing_keys"], *(name for name, *_ in keys["mismatched_keys"])}
    if new and not start:
        raise CheckpointError(f"{folder}: not a trained model: its weights lack {first_few(sorted(new))}")
    encoder = "" if model.base_model is model else f"{model.base_model_prefix}."
    free = [f"{encoder}pooler.", *([f"{head(model)}."] if head else [])]
    if lacking := {name for name in new if name.startswith(encoder) and not name.startswith(tuple(free))}:
        raise CheckpointError(f"{folder}: its weights lack {first_few(sorted(lacking))} of the encoder")
    check_finite({name: value for name, value in model.state_dict().items() if name not in new}, folder)
    if new:
        say(f"{folder}: new weights, drawn at random: {first_few(sorted(new))}")
    return model, frozenset(new)


def fingerprint(path: str | Path) -> str:
    """SHA-256 of a file, or of a model folder: weights, configuration, tokenizer, and whatever else lies in it."""
    path = Path(path)
    parts = [path] if path.is_file() else [part for part in sorted(path.iterdir()) if part.is_file()]
    sha = hashlib.sha256()
    for part in parts:
        if part == path or not any(part.match(pattern) for pattern in NOT_OF_THE_MODEL):
            sha.update(part.name.encode() + b"\0" + bytes.fromhex(file_digest(part)))
    return sha.hexdigest()


def model_digest(model: PreTrainedModel) -> str:
    """SHA-256 of a model as it is in memory: its class, configuration and weights."""
    settings = model.config.to_dict() | {"attention": model.config._attn_implementation}
    own = {name: value for name, value in settings.items() if not name.startswith("_")}
    sha = hashlib.sha256(f"{type(model).__name__} {json.dumps(own, sort_keys=True, default=str)}".encode())
    for name, value in model.state_dict().items():
        sha.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        sha.update(value.detach().cpu().flatten().view(torch.uint8).numpy())
    return sha.hexdigest()


def _offset_positions(model: PreTrainedModel) -> Any:
    """The positions of RoBERTa and its kin, which start after the padding index."""
    places = (module for name, module in model.named_modules() if name.endswith("position_embeddings"))
    return next((module for module in places if getattr(module, "padding_idx", None) is not None), None)


def max_positions(model: PreTrainedModel) -> int | None:
    """The longest sequence that a model has positions for; None where there is no limit."""
    if offset := _offset_positions(model):
        return int(offset.weight.size(0) - offset.padding_idx - 1)
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return limit if limit and limit > 0 else None  # XLNet's -1


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a ``.safetensors`` file, or of a checkpoint of torch, on the CPU.

    Raises:
        CheckpointError: missing or damaged, code in it, or something else than named tensors of finite numbers.
    """
    if Path(path).suffix == ".safetensors":
        with loading(path):
            weights = load_file(path)
    else:
        weights = load_safely(path)
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise CheckpointError(f"{path}: expected named tensors, such as a model's state_dict")
    check_finite(weights, path)
    return weights


def load_tokenizer(
    folder: str | Path, vocab_size: int | None, pad_token_id: int | None = None
) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder, for a model of ``vocab_size`` tokens, if the model has a vocabulary.

    Args:
        pad_token_id: padding token of the model. A tokenizer without padding token, such as GPT-2's, gets this one or,
            without it, the token that ends a text.

    Raises:
        CheckpointError: the folder has no tokenizer, or one that does not fit.
    """
    with loading(folder):
        tokenizer = AutoTokenizer.from_pretrained(folder, **LOCAL)
    if len(tokenizer) <= len(tokenizer.all_special_ids):  # transformers makes an empty one where the files are missing
        raise CheckpointError(f"{folder}: no tokenizer in it")
    if vocab_size is not None and len(tokenizer) > vocab_size:
        raise CheckpointError(f"{folder}: its tokenizer has {len(tokenizer)} tokens, its model only {vocab_size}")
    if tokenizer.pad_token_id is None:
        padding = tokenizer.eos_token_id if pad_token_id is None else pad_token_id
        if padding is None or not 0 <= padding < len(tokenizer):
            raise CheckpointError(f"{folder}: its tokenizer has no padding token")
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(padding)
    return tokenizer


def cut_layers(config: PreTrainedConfig, layers: int, folder: str | Path) -> None:
    """Give ``config`` so many layers; its lists with an entry for each layer, or with layer numbers, are cut too.

    Args:
        folder: folder of the model, for messages.

    Raises:
        OptionError: more layers than these lists have, or a model whose layers cannot be cut.
    """
    text = config.get_text_config()
    whole = getattr(text, "num_hidden_layers", None)
    if config.is_encoder_decoder or not isinstance(whole, int):
        raise OptionError(f"--num-layers: {folder}: the layers of a {config.model_type} model are not one stack to cut")
    for name, value in list(vars(text).items()):
        if not isinstance(value, (list, tuple)):
            continue
        if len(value) == whole:
            if layers > whole:
                raise OptionError(f"--num-layers: {folder} has a {name} for each of its {whole} layers, got {layers}")
            setattr(text, name, type(value)(value[:layers]))
        elif "layer" in name and all(isinstance(number, int) for number in value):
            setattr(text, name, type(value)(number for number in value if number < layers))
    if hasattr(text, "attention_types"):  # GPT-Neo's, from which its list for each layer comes when it is read
        text.attention_types = [[list(text.attention_layers), 1]]
    try:
        text.num_hidden_layers = layers
    except Exception as error:  # Funnel's layers are the sum of its blocks
        raise OptionError(f"--num-layers: {folder}: {first_line(error)}") from error


def save_folder(model: PreTrainedModel, processor: Any, folder: str | Path) -> None:
    """Write a folder that ``from_pretrained`` reads; the weights, which make it a model, come last.

    Args:
        processor: tokenizer or image preprocessing, with ``save_pretrained``.

    Raises:
        CheckpointError: the folder cannot be written.
    """
    folder = Path(folder)
    partial = folder / "saving"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        with quiet():
            processor.save_pretrained(partial)
            model.save_pretrained(partial)
        for path in sorted(partial.iterdir(), key=lambda path: ".safetensors" in path.name):
            os.replace(path, folder / path.name)
    except OSError as error:
        raise CheckpointError(f"cannot write {folder}: {error.strerror}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
