"""Loads a folder of checkpoints: fairseq's models, the task with its dictionaries, and how text was prepared."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from fairseq import checkpoint_utils, tasks
from fairseq.data import Dictionary
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.models import BaseFairseqModel
from fairseq.tasks import FairseqTask
from omegaconf import open_dict

from fairseq_ext.models.inference import CONVERTIBLE
from fairseq_ext.text import PREPARATION, SUBWORD_FILES, Preparation
from fairseq_ext.training.errors import CheckpointError, DataError, InputError, OptionError, one_line
from fairseq_ext.training.weights import check_finite
from fairseq_ext.translate.options import AUTO

__all__ = ["Loaded", "load"]

DEFAULTS = ("checkpoint_average.pt", "checkpoint_best.pt", "checkpoint_last.pt")
TASK = "translation"


class Loaded(NamedTuple):
    """The parts of a translator."""

    models: list[BaseFairseqModel]
    task: FairseqTask
    preparation: Preparation
    files: list[Path]
    """All that decides what is translated how: the checkpoints, then what lies with the data."""


def load(
    folder: str | Path, names: Sequence[str], data: str | Path | None, device: torch.device, inference_dtype: str
) -> Loaded:
    """The models on ``device``, ready to decode; see :meth:`fairseq_ext.Translator.from_pretrained`."""
    checkpoints = _checkpoints(Path(folder), names)
    states = [_read(path) for path in checkpoints]
    prepared = _prepared(Path(folder), data, checkpoints, [state["cfg"].task.data for state in states])
    preparation = Preparation.of(prepared)
    languages = _languages(preparation, checkpoints, states)
    dictionaries = [_dictionary(prepared / f"dict.{language}.txt") for language in languages]

    models, task = [], None
    for path, state in zip(checkpoints, states, strict=True):
        _adapt(state["cfg"], prepared, languages)
        _check_sizes(path, state["model"], dictionaries, languages, prepared)
        try:
            task = task or tasks.setup_task(state["cfg"].task, from_checkpoint=True)
            (model,), _, _ = checkpoint_utils.load_model_ensemble_and_task([str(path)], task=task, state=state)
        except CheckpointError as error:  # whoever builds a model may not know its file
            raise error if str(path) in str(error) else CheckpointError(f"{path}: {error}") from None
        except InputError:
            raise
        except Exception as error:
            raise CheckpointError(f"{path}: its model cannot be built: {one_line(error)}") from error
        state.clear()
        models.append(_ready(model, device, inference_dtype))
    files = [*checkpoints, *_text_files(preparation)]
    return Loaded(models, task, preparation, files)


def _checkpoints(folder: Path, names: Sequence[str]) -> list[Path]:
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder of checkpoints")
    if not names:
        present = sorted(path.name for path in folder.glob("*.pt"))
        names = [name for name in DEFAULTS if name in present][:1] or (present if len(present) == 1 else [])
        if not names:
            hint = f"choose with --checkpoints from {', '.join(present)}" if present else "it holds no .pt file"
            raise CheckpointError(f"{folder}: has none of {', '.join(DEFAULTS)}; {hint}")
    paths = [folder / name for name in names]
    for number, path in enumerate(paths):
        if not path.is_file():
            raise CheckpointError(f"--checkpoints: there is no file {path}")
        if any(path.samefile(other) for other in paths[:number]):
            raise OptionError(f"--checkpoints: {path} is there twice, and would weigh twice in the ensemble")
    return paths


def _read(path: Path) -> dict[str, Any]:
    """A checkpoint, whose ``cfg`` holds the configuration in the form of today's fairseq."""
    try:
        state = checkpoint_utils.load_checkpoint_to_cpu(str(path))
        if state.get("args") is not None:
            state["cfg"], state["args"] = convert_namespace_to_omegaconf(state["args"]), None
        task, _ = state["cfg"].task._name, state["cfg"].task.get("data")
        weights = state["model"]
        state.pop("last_optimizer_state", None)  # twice the size of the model
    except InputError:
        raise
    except Exception as error:
        raise CheckpointError(f"{path}: not a checkpoint of fairseq ({type(error).__name__})") from error
    if task != TASK:
        raise CheckpointError(f"{path}: a model of --task {task}; translate takes those of --task {TASK}")
    if not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise CheckpointError(f"{path}: not a checkpoint of fairseq: its 'model' holds more than tensors")
    check_finite(weights, path)
    return state


def _prepared(folder: Path, data: str | Path | None, checkpoints: Sequence[Path], trained_on: Sequence[Any]) -> Path:
    if data:
        if not Path(data).is_dir():
            raise OptionError(f"--data: there is no folder {data}")
        return Path(data)
    if (folder / PREPARATION).is_file():
        return folder
    places = [str(place or "").split(os.pathsep)[0] for place in trained_on]
    if len({os.path.realpath(place) for place in places}) > 1:
        of = ", ".join(f"{path} of {place}" for path, place in zip(checkpoints, places, strict=True))
        raise OptionError(f"--checkpoints: trained on different data ({of}): one --data is needed for all of them")
    if not Path(places[0]).is_dir():
        raise DataError(
            f"{checkpoints[0]}: was trained on {places[0] or 'no folder'}, and there is no such folder; "
            "say where it is now with --data"
        )
    return Path(places[0])


def _languages(preparation: Preparation, checkpoints: Sequence[Path], states: Sequence[dict[str, Any]]) -> list[str]:
    """Source and target language: a model may translate from the second language of the data to the first."""
    of_data = [preparation.source, preparation.target]
    chosen: list[str] | None = None
    for path, state in zip(checkpoints, states, strict=True):
        task = state["cfg"].task
        languages = [
            task.get(name) or default for name, default in zip(("source_lang", "target_lang"), of_data, strict=True)
        ]
        if sorted(languages) != sorted(of_data):
            raise DataError(
                f"{path}: translates {' to '.join(languages)}, but {preparation.folder} is of {' and '.join(of_data)}"
            )
        if languages != (chosen or languages):
            raise OptionError(f"--checkpoints: {path} translates {' to '.join(languages)}, the first the other way")
        chosen = languages
    return chosen or of_data


def _adapt(cfg: Any, prepared: Path, languages: Sequence[str]) -> None:
    """Change the configuration of a training so that it builds the model here, without the training's files."""
    with open_dict(cfg):
        cfg.task.data, (cfg.task.source_lang, cfg.task.target_lang) = str(prepared), languages
        cfg.task.eval_bleu = False  # it may need a tokeniser
        for name in ("encoder_embed_path", "decoder_embed_path"):  # its first embeddings: the checkpoint has them now
            if name in (vars(cfg.model) if isinstance(cfg.model, Namespace) else cfg.model):
                setattr(cfg.model, name, None)


def _dictionary(path: Path) -> Dictionary:
    try:
        return Dictionary.load(str(path))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    except Exception as error:
        raise DataError(f"{path}: not a dictionary of fairseq: {one_line(error)}") from error


def _check_sizes(
    path: Path, weights: dict[str, Any], dictionaries: Sequence[Dictionary], languages: Sequence[str], prepared: Path
) -> None:
    for side, dictionary, language in zip(("encoder", "decoder"), dictionaries, languages, strict=True):
        embeddings = weights.get(f"{side}.embed_tokens.weight")
        if embeddings is not None and len(embeddings) != len(dictionary):
            raise DataError(
                f"{prepared / f'dict.{language}.txt'}: makes {len(dictionary)} symbols, but {path} knows "
                f"{len(embeddings)}: it was trained on other data; name them with --data"
            )


def _ready(model: BaseFairseqModel, device: torch.device, inference_dtype: str) -> BaseFairseqModel:
    on_cpu = device.type == "cpu"
    if inference_dtype == AUTO:
        dtype = "float32" if on_cpu and isinstance(model, CONVERTIBLE) else None
    elif not on_cpu:
        raise OptionError(f"--inference-dtype {inference_dtype}: is for CPUs, not for --device {device}")
    else:
        dtype = inference_dtype
    generation = SimpleNamespace(inference_dtype=dtype)
    model.to(device).prepare_for_inference_(SimpleNamespace(generation=generation))
    return model


def _text_files(preparation: Preparation) -> list[Path]:
    names = [PREPARATION, *(f"dict.{language}.txt" for language in (preparation.source, preparation.target))]
    model = SUBWORD_FILES.get(preparation.bpe)
    return [preparation.folder / name for name in [*names, *([model] if model else [])]]
