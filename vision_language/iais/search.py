"""The images of a split that fit a query best."""

from __future__ import annotations

from dataclasses import dataclass, replace

from fairseq_ext.training.errors import OptionError
from fairseq_ext.training.options import option
from vision_language.iais.data import Collator, Image, RegionData
from vision_language.iais.encoder import ScoringOptions
from vision_language.iais.evaluate import score_matrix
from vision_language.iais.model import RegionRetriever

__all__ = ["SearchOptions", "check_query", "region_names", "search"]


@dataclass(frozen=True, kw_only=True)
class SearchOptions(ScoringOptions):
    """The trained model, the images, and the text that is looked for."""

    query: str = option(help="text to search images for")
    top: int = option(5, "number of images to show", least=1)


def check_query(query: str) -> None:
    """Refuse a text without words."""
    if not any(map(str.isalnum, query)):
        raise OptionError(f"--query: no word in {query!r}")


def search(
    model: RegionRetriever, data: RegionData, collator: Collator, query: str, count: int = 5, batch_size: int = 64
) -> list[tuple[float, Image]]:
    """The ``count`` images with the highest scores for ``query``, best first.

    Raises:
        OptionError: a query without words.
    """
    check_query(query)
    images = [replace(image, captions=() if number else (query,)) for number, image in enumerate(data.images)]
    asked = RegionData(images, data.labels, data.feature_size)
    scores, order = score_matrix(model, asked, collator, batch_size)[0].sort(descending=True, stable=True)
    best = zip(scores[:count].tolist(), order[:count].tolist(), strict=True)
    return [(score, data.images[number]) for score, number in best]


def region_names(data: RegionData, image: Image) -> list[str]:
    """The class name of every region, or its number where regions have only features."""
    if data.labels is None or image.labels is None:
        return [str(number) for number in range(1, len(image.boxes) + 1)]
    return [data.labels[label] for label in image.labels.tolist()]
