"""Made-up albums with the style counts of the music data, and styles that no review names: for tests and demos."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fairseq_ext.training.errors import choose
from fairseq_ext.training.files import write_json, writing_to
from fairseq_ext.training.options import OptionSet, option, seed_option

__all__ = ["HIDDEN", "RELATIONS", "STYLE_COUNTS", "Albums", "make_albums", "synthesize"]

# How many of the 5,020 training albums of the music data carry each style.
STYLE_COUNTS = {
    "indie": 1511, "rock": 1502, "pop": 1352, "folk": 1103, "electronic": 698, "r&b": 590, "ost": 554,
    "alternative": 505, "jpop": 462, "britpop": 433, "piano": 343, "newage": 309, "punk": 285, "jazz": 226,
    "soul": 219, "classical": 199, "postrock": 185, "metal": 172, "hiphop": 156, "country": 128, "postpunk": 120,
    "darkwave": 63,
}  # fmt: skip

# Which styles share albums is our choice.
RELATIONS = (
    ("punk", "postpunk"), ("r&b", "soul"), ("rock", "alternative"), ("rock", "britpop"), ("rock", "metal"),
    ("rock", "punk"), ("rock", "indie"), ("indie", "folk"), ("indie", "postrock"), ("indie", "electronic"),
    ("pop", "r&b"), ("pop", "jpop"), ("pop", "electronic"), ("pop", "indie"), ("folk", "country"), ("ost", "piano"),
    ("ost", "newage"), ("ost", "jpop"), ("piano", "classical"), ("piano", "newage"), ("jazz", "soul"),
    ("jazz", "classical"), ("r&b", "hiphop"), ("electronic", "darkwave"), ("britpop", "alternative"),
)  # fmt: skip

HIDDEN = ("soul", "newage", "britpop", "country")
LABELS_OF_AN_ALBUM = {2: 0.83, 3: 0.13, 4: 0.03, 5: 0.01}  # 2 to 5, 2.2 on average, as the music data


def _styles(first: str, rng: random.Random) -> list[str]:
    """The styles of an album: ``first``, then related ones, drawn in proportion to their counts."""
    chosen = [first]
    (size,) = rng.choices(list(LABELS_OF_AN_ALBUM), list(LABELS_OF_AN_ALBUM.values()))
    while len(chosen) < size:
        near = {b for pair in RELATIONS for a, b in (pair, pair[::-1]) if a in chosen} - set(chosen)
        candidates = sorted(near)
        if not candidates:
            break
        chosen += rng.choices(candidates, [STYLE_COUNTS[style] for style in candidates])
    return chosen


def _review(styles: Sequence[str], rng: random.Random, length: int, own: float) -> str:
    """A review: words of one style of the album among words without meaning, both with Zipf-like frequencies."""
    style = rng.choice(styles).replace("&", "") if styles else None
    words = []
    for _ in range(length):
        rank = int(rng.paretovariate(1.0))
        words.append(f"{style}{rank % 30}" if style and rng.random() < own else f"word{rank % 500}")
    return " ".join(words)


def make_albums(
    count: int, seed: int = 0, hidden: Sequence[str] = HIDDEN, reviews: int = 10, words: int = 12, own: float = 0.6
) -> list[dict[str, Any]]:
    """Albums in the form of the music data (``tags``, ``all_short_comments``).

    Args:
        count: number of albums.
        seed: the same seed gives the same albums. Default 0.
        hidden: styles whose own words no review uses: only the other styles of an album point to them.
        reviews: reviews of an album (40 in the music data). Default 10.
        words: words of a review (12.4 on average in the music data). Default 12.
        own: share of words that come from a style. Default 0.6.
    """
    for style in hidden:
        choose("--hidden-styles", style, STYLE_COUNTS)
    rng = random.Random(seed)
    # Each style comes first in one album, so that a small training set has all; further first styles are drawn.
    firsts = [*STYLE_COUNTS, *rng.choices(list(STYLE_COUNTS), list(STYLE_COUNTS.values()), k=count)][:count]
    albums = []
    for number, first in enumerate(firsts):
        styles = _styles(first, rng)
        audible = [style for style in styles if style not in hidden]
        comments = [{"comment": _review(audible, rng, words, own)} for _ in range(reviews)]
        albums.append({"title": f"album {number}", "tags": sorted(styles), "all_short_comments": comments})
    return albums


@dataclass(frozen=True, kw_only=True)
class Albums(OptionSet):
    """The made-up data."""

    out: str = option("runs/label_graph_data", "folder to write")
    albums: int = option(1000, "number of albums (music data: 7172)", least=50)
    reviews: int = option(10, "reviews of an album (music data: 40)", least=1)
    words: int = option(12, "words of a review (music data: 12.4 on average)", least=1)
    own: float = option(0.6, "share of the words that come from a style", least=0, most=1)
    hidden_styles: str = option(",".join(HIDDEN), "styles that no review tells")
    seed: int = seed_option(0, "seed of all that is drawn")


def synthesize(options: Albums) -> str:
    """Write made-up albums with the style counts of the music data.

    70, 9 and 21% of the albums of :func:`make_albums` become ``rmsc.data.{train,valid,test}.json``.
    """
    hidden = [style for style in options.hidden_styles.split(",") if style]
    albums = make_albums(options.albums, options.seed, hidden, options.reviews, options.words, options.own)
    train, valid = int(0.7 * len(albums)), int(0.79 * len(albums))
    with writing_to(options.out) as folder:
        for split, part in (("train", albums[:train]), ("valid", albums[train:valid]), ("test", albums[valid:])):
            write_json(folder / f"rmsc.data.{split}.json", part)
    return f"{len(albums)} albums in {options.out}"
