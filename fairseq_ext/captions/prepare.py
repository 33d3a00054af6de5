"""Images and captions to the folder that the task ``captioning`` reads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from fairseq_ext.captions.sources import SPLITS, read_source
from fairseq_ext.captions.store import Preparation
from fairseq_ext.captions.vocabulary import Vocabulary
from fairseq_ext.captions.writer import SplitWriter
from fairseq_ext.training.files import writing_to
from fairseq_ext.training.options import OptionSet, option

__all__ = ["PrepareOptions", "prepare"]


@dataclass(frozen=True, kw_only=True)
class PrepareOptions(OptionSet):
    """What is prepared, and where to."""

    source: tuple[str, ...] = option(help="a folder of the region format", positional=True)
    data: str = option(help="folder to make", positional=True)
    min_count: int = option(5, "words of the training captions that are rarer are unknown", least=1)
    grid: tuple[int, ...] = option((), "rows and columns of a grid that is not square")
    language: str = option("", "of the captions, where the source has several")
    feature_dtype: str = option("float16", "number format of the vectors", ("float16", "float32"))


def prepare(options: PrepareOptions) -> dict[str, Any]:
    """Write a folder as :mod:`fairseq_ext.captions.store` describes it."""
    source = read_source(Path(options.source[0]), options.grid, options.language)
    train = [caption for captions in source.captions["train"].values() for caption in captions]
    vocabulary = Vocabulary(train, options.min_count)
    with writing_to(options.data, "DATA") as folder:
        writers = {
            split: SplitWriter(folder, split, options.feature_dtype, len(vocabulary.dictionary)) for split in SPLITS
        }
        split_of = {key: split for split, captions in source.captions.items() for key in captions}
        most = 0
        for regions in tqdm(source.regions, unit=" images"):
            split = split_of[regions.key]
            captions = source.captions[split][regions.key]
            targets = captions if split == "train" else captions[:1]
            writers[split].add(regions, captions, [vocabulary.encode(caption) for caption in targets])
            most = max(most, len(regions.boxes))
        for writer in writers.values():
            writer.close()
        vocabulary.save(folder)
        if source.categories:
            (folder / "categories.txt").write_text("\n".join(source.categories) + "\n", encoding="utf-8")
        feature_dim = writers["train"].feature_dim
        Preparation(
            kind="grid" if source.grid else "regions" if feature_dim else "classes",
            feature_dim=feature_dim,
            grid=source.grid,
            num_classes=len(source.categories or ()),
            max_regions=most,
            min_count=options.min_count,
            language=options.language,
        ).save(folder)
    return {split: len(writer) for split, writer in writers.items()} | {"words": vocabulary.size}
