"""Images with captions as fairseq's batches, for :mod:`~.captioning` alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from fairseq.data import Dictionary, FairseqDataset, data_utils
from fairseq.data.indexed_dataset import MMapIndexedDataset
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from fairseq_ext.captions.store import Split
from fairseq_ext.modules.visual import box_geometry, grid_geometry
from fairseq_ext.training.errors import OptionError

__all__ = ["CaptionDataset", "image_batch"]


def image_batch(images: Sequence[dict[str, Tensor]], dictionary: Dictionary) -> dict[str, Tensor]:
    """The encoder's input for several images.

    fairseq reads padding, lengths, batch size and device from ``src_tokens``, whatever the encoder reads. Here
    ``src_tokens`` has the class plus the number of special symbols, or ``<unk>`` if regions have vectors.

    Args:
        images: for each image ``geometry`` (R, 7), and ``features`` (R, D), ``labels`` (R,) or both.
        dictionary: dictionary with the special symbols.

    Shape:
        - ``src_tokens`` (B, R), ``src_lengths`` (B,) and ``geometry`` (B, R, 7), with the largest R of the images.
        - ``features`` (B, R, D), and ``labels`` (B, R) beside these, if the images have them. Padded places are 0.
    """
    columns = {
        name: [image[name] for image in images] for name in ("geometry", "features", "labels") if name in images[0]
    }
    if "features" in columns:
        tokens = [torch.full((len(geometry),), dictionary.unk()) for geometry in columns["geometry"]]
    else:
        tokens = [labels + dictionary.nspecial for labels in columns.pop("labels")]
    return {
        "src_tokens": pad_sequence(tokens, batch_first=True, padding_value=dictionary.pad()),
        "src_lengths": torch.tensor([len(regions) for regions in tokens]),
        **{name: pad_sequence(values, batch_first=True) for name, values in columns.items()},
    }


class CaptionDataset(FairseqDataset):
    """Pairs of image and caption for training, or each image once.

    Args:
        split: prepared images.
        dictionary: dictionary of the captions.
        max_target_positions: longer captions are cut to so many tokens, the end of sentence among them.
        training: if true, there is a sample for each caption, in a random order; else one for each image, with its
            first caption as target, so that a sample has the number of its image.

    Attributes:
        num_cut: how many captions are cut.
    """

    def __init__(self, split: Split, dictionary: Dictionary, max_target_positions: int, training: bool) -> None:
        self.split, self.dictionary, self.training = split, dictionary, training
        self.captions = MMapIndexedDataset(str(split.folder / f"{split.name}.captions"))
        self.max_target_positions = max_target_positions
        # for each sample, the number of its image and of its caption
        self.images = np.repeat(np.arange(len(split)), np.diff(split.caption_offsets))
        self.lines = np.arange(len(self.captions))
        if not training:
            self.images, self.lines = np.arange(len(split)), split.caption_offsets[:-1]
        lengths = self.captions.sizes[self.lines]
        self.num_cut = int((lengths > max_target_positions).sum())
        self.num_regions = np.diff(split.offsets)[self.images]
        self.lengths = np.minimum(lengths, max_target_positions)
        grid = split.preparation.grid
        self.cells = grid_geometry(*grid).float() if grid else None

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        tokens = self.captions[int(self.lines[index])]
        if len(tokens) > self.max_target_positions:
            tokens = torch.cat([tokens[: self.max_target_positions - 1], tokens[-1:]])
        return {"id": int(index), "target": tokens, **self.image(int(self.images[index]))}

    def image(self, number: int) -> dict[str, Tensor]:
        """``geometry`` of an image of the split, and its ``features`` and ``labels`` if it has them."""
        rows, split = self.split.rows(number), self.split
        boxes = torch.from_numpy(split.boxes[rows].astype(np.float64))
        # float32 only at the end: a training in half precision would compute with pixels of half precision
        geometry = box_geometry(boxes, *split.sizes[number].tolist()).float() if self.cells is None else self.cells
        image = {"geometry": geometry}
        if split.features is not None:
            image["features"] = torch.from_numpy(split.features[rows].astype(np.float32))
        if split.labels is not None:
            image["labels"] = torch.from_numpy(split.labels[rows].astype(np.int64))
        return image

    def collater(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """A batch; an empty one for no samples, with which a process ends that has fewer batches than the others."""
        if not samples:
            return {}

        def tokens(first: bool) -> Tensor:
            return data_utils.collate_tokens(
                [sample["target"] for sample in samples],
                self.dictionary.pad(),
                self.dictionary.eos(),
                move_eos_to_beginning=first,
            )

        return {
            "id": torch.tensor([sample["id"] for sample in samples]),
            "nsentences": len(samples),
            "ntokens": sum(len(sample["target"]) for sample in samples),
            "net_input": {**image_batch(samples, self.dictionary), "prev_output_tokens": tokens(first=True)},
            "target": tokens(first=False),
            "split": self.split.name,
        }

    @property
    def can_reuse_epoch_itr_across_epochs(self) -> bool:
        """False in training: batches are drawn by the number of the epoch, so that a resumed training has the same
        batches as one that was never killed. fairseq's other datasets keep the batches of the first epoch.
        """
        return not self.training

    @property
    def sizes(self) -> np.ndarray:
        """``(samples, 2)``: regions, and tokens of the caption."""
        return np.stack([self.num_regions, self.lengths], axis=1)

    def size(self, index: int) -> tuple[int, int]:
        """Regions, and tokens of the caption."""
        return int(self.num_regions[index]), int(self.lengths[index])

    def num_tokens(self, index: int) -> int:
        """The number that ``--max-tokens`` counts: regions or tokens of the caption, whichever are more."""
        return max(self.size(index))

    def num_tokens_vec(self, indices: np.ndarray) -> np.ndarray:
        """:meth:`num_tokens` of several samples."""
        return np.maximum(self.num_regions[indices], self.lengths[indices])

    def ordered_indices(self) -> np.ndarray:
        """Samples by number of regions; in training then by length, and in an order drawn by NumPy's seed for ties."""
        if not self.training:
            return np.argsort(self.num_regions, kind="stable")
        order = np.random.permutation(len(self))
        order = order[np.argsort(self.lengths[order], kind="stable")]
        return order[np.argsort(self.num_regions[order], kind="stable")]

    def filter_indices_by_size(self, indices: np.ndarray, max_sizes: Any) -> tuple[np.ndarray, list[int]]:
        """As fairseq's, for all samples at once."""
        return data_utils.filter_paired_dataset_indices_by_size(self.num_regions, self.lengths, indices, max_sizes)

    def batch_by_size(self, indices: np.ndarray, max_tokens: int | None = None, **kwargs: Any) -> list[Any]:
        """As fairseq's.

        Raises:
            OptionError: a sample alone has more than ``--max-tokens``.
        """
        most = int(self.num_tokens_vec(indices).max(initial=0))
        if max_tokens is not None and most > max_tokens:
            raise OptionError(f"--max-tokens {max_tokens}: an image of {self.split.name} has {most} regions or tokens")
        return super().batch_by_size(indices, max_tokens=max_tokens, **kwargs)
