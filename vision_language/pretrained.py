"""Folders of Hugging Face models: read without a network and without running their code, and written whole."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from fairseq_ext.errors import CheckpointError, DataError, InputError, OptionError
from fairseq_ext.files import load_safely, read_json

__all__ = [
    "LOCAL",
    "check_weights",
    "fingerprint",
    "load_tokenizer",
    "loading",
    "read_config",
    "read_weights",
    "save_folder",
]

LOCAL: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
"""Arguments of every ``from_pretrained``; models also get ``use_safetensors=True``."""
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
CONFIGS = ("config.json", "tokenizer_config.json")
OWN_MODELS = "only models and tokenizers that transformers itself has are read"
HASHED = (".safetensors", ".json", ".txt", ".model")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' progress bars, and its table of new and unused weights."""
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
def loading(folder: str | Path) -> Iterator[None]:
    """transformers' long errors as one line.

    Raises:
        CheckpointError: for whatever goes wrong inside.
    """
    try:
        with quiet():
            yield
    except InputError:
        raise
    except Exception as error:  # every reader of a part has errors of its own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"{folder}: cannot be loaded: {reason}") from error


def read_config(folder: str | Path) -> dict[str, Any]:
    """``config.json`` of a model.

    Raises:
        OptionError: no such folder.
        CheckpointError: no model in it, or one with code of its own.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise OptionError(f"{folder} is not a folder; a model is a folder with config.json, weights and a tokenizer")
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
    """Refuse code in a model's folder by name: a class of transformers in its place would be another model."""
    try:
        found = read_json(path) if path.is_file() else {}
    except DataError as error:
        raise CheckpointError(str(error)) from error
    if isinstance(found, dict) and found.get("auto_map"):
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


def fingerprint(path: str | Path) -> str:
    """SHA-256 of a file, or of a model folder: weights, configuration and tokenizer."""
    path = Path(path)
    parts = [path] if path.is_file() else [part for part in sorted(path.iterdir()) if part.suffix in HASHED]
    sha = hashlib.sha256()
    for part in parts:
        if part.is_file() and part.name != "results.json":
            with open(part, "rb") as file:
                sha.update(part.name.encode() + b"\0" + hashlib.file_digest(file, "sha256").digest())
    return sha.hexdigest()


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a ``.safetensors`` file, or of a checkpoint of torch, on the CPU.

    Raises:
        CheckpointError: missing or damaged, code in it, or something else than named tensors.
    """
    if Path(path).suffix == ".safetensors":
        with loading(path):
            return load_file(path)
    found = load_safely(path)
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise CheckpointError(f"{path}: expected named tensors, such as a model's state_dict")
    return found


def load_tokenizer(folder: str | Path, vocab_size: int) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder, for a model of ``vocab_size`` tokens.

    Raises:
        CheckpointError: none in it, or one that does not fit.
    """
    with loading(folder):
        tokenizer = AutoTokenizer.from_pretrained(folder, **LOCAL)
    if len(tokenizer) <= len(tokenizer.all_special_ids):  # transformers makes an empty one where the files are missing
        raise CheckpointError(f"{folder}: no tokenizer in it")
    if tokenizer.pad_token_id is None:
        raise CheckpointError(f"{folder}: its tokenizer has no padding token")
    if len(tokenizer) > vocab_size:
        raise CheckpointError(f"{folder}: its tokenizer has {len(tokenizer)} tokens, its model only {vocab_size}")
    return tokenizer


def save_folder(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: str | Path) -> None:
    """Write a folder that ``from_pretrained`` reads; the weights, which make it a model, come last.

    Raises:
        CheckpointError: the folder cannot be written.
    """
    folder = Path(folder)
    partial = folder / "saving"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        with quiet():
            tokenizer.save_pretrained(partial)
            model.save_pretrained(partial)
        for path in sorted(partial.iterdir(), key=lambda path: ".safetensors" in path.name):
            os.replace(path, folder / path.name)
    except OSError as error:
        raise CheckpointError(f"cannot write {folder}: {error.strerror}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
