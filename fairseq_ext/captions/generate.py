"""Captions of images, and where the model looked for each word."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fairseq_ext.captions.networks import LITE0
from fairseq_ext.training.errors import CheckpointError, DataError, InputError, OptionError
from fairseq_ext.training.files import safe_loads_only
from fairseq_ext.training.flags import Device
from fairseq_ext.training.options import SPLITS, option
from fairseq_ext.training.progress import progress
from fairseq_ext.training.runs import torch_device
from fairseq_ext.training.weights import check_finite

if TYPE_CHECKING:  # these imports take seconds, which other commands do without
    from fairseq.models import BaseFairseqModel

    from fairseq_ext.tasks.captioning import CaptioningTask

__all__ = ["GenerateOptions", "captions", "load"]


@dataclass(frozen=True, kw_only=True)
class GenerateOptions(Device):
    """The trained model, the images, and how a caption is searched for."""

    model: str = option(help="checkpoint file; several, joined by a colon, are an ensemble", positional=True)
    data: str = option(help="folder of prepared data, or of images", positional=True)
    split: str = option("test", "split of prepared data", SPLITS)
    network: str = option(
        LITE0, "network for a folder of images, the one `captions extract` used for the training data"
    )
    size: int = option(
        224, "image size for a folder of images, the one `captions extract` used for the training data", least=32
    )
    pca_file: str = option(
        "", "components for a folder of images, as `captions extract --pca` wrote them for the training data"
    )
    beam: int = option(3, "size of the beam", least=1)
    nbest: int = option(1, "captions of an image, at most as many as the beam has", least=1)
    min_len: int = option(1, "fewest tokens of a caption", least=1)
    max_len_b: int = option(20, "most tokens of a caption", least=1)
    lenpen: float = option(1.0, "length penalty: above 1 favours long captions, below 1 short ones")
    unkpen: float = option(0.0, "penalty of unknown words: above 0 makes them less likely")
    no_repeat_ngram_size: int = option(
        0, "forbid any sequence of this many tokens to occur twice; 0: allow repeats", least=0
    )
    batch_size: int = option(32, "images at a time", least=1)
    json: bool = option(False, "print a line of JSON for each caption, with tokens, attention and score")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.nbest > self.beam:
            raise OptionError(f"--nbest {self.nbest}: a beam of {self.beam} has no more captions, give --beam")
        if self.min_len > self.max_len_b:
            raise OptionError(f"--min-len {self.min_len}: more than --max-len-b {self.max_len_b}")

    def are_images(self) -> bool:
        """Whether ``data`` is a folder of images, and not of prepared data.

        Raises:
            OptionError: no folder, or options that are for the other kind of data.
        """
        if not Path(self.data).is_dir():
            raise OptionError(f"DATA: {self.data} is not a folder")
        prepared = Path(self.data, "captioning.json").is_file()
        if prepared:
            self.refuse_idle("with prepared data", "network", "size", "pca_file")
        else:
            self.refuse_idle(f"with images, and {self.data} has no captioning.json", "split")
        return not prepared


SEARCH = ("beam", "nbest", "min_len", "max_len_b", "lenpen", "unkpen", "no_repeat_ngram_size")


def captions(options: GenerateOptions) -> Iterator[dict[str, Any]] | Iterator[str]:
    """The captions of the images, in the images' order; the best caption of an image comes first.

    Images are read batch by batch, and the captions of a batch come before the next one is read.

    Returns:
        With ``json`` a mapping for each caption, else a line of image and caption.

    Raises:
        CheckpointError: no checkpoint of ``--task captioning``, or one that does not fit the data.
        DataError: a damaged split.
    """
    rows = _rows(options)
    return rows if options.json else (f"{row['image_id']}\t{row['caption']}" for row in rows)


def _rows(options: GenerateOptions) -> Iterator[dict[str, Any]]:
    device, images = torch_device(options.device), options.are_images()
    task, models = load(options.model.split(os.pathsep), "" if images else options.data)
    from fairseq import utils

    from fairseq_ext.tasks.caption_dataset import image_batch
    from fairseq_ext.tasks.caption_options import search_config

    for model in models:
        model.to(device)
    generator = task.build_generator(models, search_config(**{name: getattr(options, name) for name in SEARCH}))
    ids, read = (_images if images else _prepared)(options, task)
    with progress(total=len(ids), desc="captions", unit=" images", leave=False) as bar:
        for start in range(0, len(ids), options.batch_size):
            chosen = range(start, min(start + options.batch_size, len(ids)))
            batch = image_batch(read(chosen), task.target_dictionary)
            sample = utils.apply_to_sample(lambda tensor: tensor.to(device), {"net_input": batch})
            best = task.inference_step(generator, models, sample)
            for number, hypotheses, regions in zip(chosen, best, batch["src_lengths"].tolist(), strict=True):
                for hypothesis in hypotheses[: options.nbest]:
                    yield {"image_id": ids[number], **_row(task, hypothesis, regions)}
            bar.update(len(chosen))


Reader = Callable[[range], list[dict[str, Tensor]]]
"""What a model reads of the images of some numbers."""


def _prepared(options: GenerateOptions, task: CaptioningTask) -> tuple[list[str], Reader]:
    """The identifiers of a split's images, and what reads them."""
    task.load_dataset(options.split, task_cfg=task.cfg)
    dataset = task.datasets[options.split]
    return [str(image_id) for image_id in dataset.split.image_ids], lambda chosen: [dataset.image(i) for i in chosen]


def _images(options: GenerateOptions, task: CaptioningTask) -> tuple[list[str], Reader]:
    """As :func:`_prepared`, for images, whose names are their identifiers."""
    from fairseq_ext.captions.extract import Extractor, image_files, projected
    from fairseq_ext.captions.projection import Projection
    from fairseq_ext.modules.visual import grid_geometry

    data = task.preparation
    if data.kind != "grid":
        raise DataError(f"{options.data}: images give a grid of vectors, the model reads {data.kind}")
    files = image_files(Path(options.data), "DATA")
    projection = Projection.load(Path(options.pca_file)) if options.pca_file else None
    extractor = Extractor(options.network, options.size, torch_device(options.device), projection)
    of = "--network, --size and --pca-file give those of"
    data.check_extractor(extractor.name, f"{options.model}: reads", of)
    wanted, geometry = (*data.grid, data.feature_dim), grid_geometry(*data.grid).float()

    def read(chosen: range) -> list[dict[str, Tensor]]:
        grids = [projected(grid, projection) for grid in extractor(files[chosen.start : chosen.stop])[0]]
        if wanted != (shape := grids[0].shape):
            given = f"{options.data}: --network, --size and --pca-file give {shape} of rows, columns and numbers"
            raise DataError(f"{given}, the model reads {wanted}")
        return [{"geometry": geometry, "features": torch.from_numpy(grid).flatten(0, 1).float()} for grid in grids]

    return [path.stem for path in files], read


def _row(task: CaptioningTask, hypothesis: dict[str, Any], regions: int) -> dict[str, Any]:
    tokens = hypothesis["tokens"][:-1]  # without the end of sentence
    weights = hypothesis["attention"].T[: len(tokens), :regions].tolist()
    return {
        "caption": task.text(tokens),
        "tokens": [task.target_dictionary[token] for token in tokens.tolist()],
        "attention": [[round(weight, 6) for weight in row] for row in weights],
        "score": round(float(hypothesis["score"]), 6),
    }


def load(paths: list[str], data: str) -> tuple[CaptioningTask, list[BaseFairseqModel]]:
    """The task of a folder, and the models that are to caption its images.

    Args:
        paths: paths of the checkpoints.
        data: folder of prepared data; empty for images that do not come from one.

    Raises:
        CheckpointError: a file that is no checkpoint of the task, is of other data, or has weights that are not finite.
    """
    from fairseq_ext import register

    register()
    from fairseq import checkpoint_utils, tasks

    from fairseq_ext.tasks.captioning import CaptioningTask

    task, models = None, []
    for path in paths:
        if not Path(path).is_file():
            raise CheckpointError(f"{path}: no such file")
        try:
            with safe_loads_only():
                state = checkpoint_utils.load_checkpoint_to_cpu(path, {"data": data} if data else {})
        except InputError:
            raise
        except Exception as error:  # fairseq updates old checkpoints, which may lack anything
            raise CheckpointError(f"{path}: not a checkpoint of fairseq ({type(error).__name__})") from error
        cfg = state.get("cfg")
        if cfg is None or cfg.task._name != "captioning":
            raise CheckpointError(f"{path}: not trained with --task captioning")
        check_finite(state["model"], path)
        if task is None and data:
            task = tasks.setup_task(cfg.task, from_checkpoint=True)
        elif task is None:
            task = CaptioningTask.of_checkpoint(cfg.task, state["task_state"])
        ensemble, cfg, _ = checkpoint_utils.load_model_ensemble_and_task([path], task=task, state=state)
        for model in ensemble:
            model.prepare_for_inference_(cfg)
        models += ensemble
    assert task is not None  # a text has at least one part
    return task, models
