"""Fonts with which matplotlib draws names and texts in any script."""

from __future__ import annotations

import contextlib
import functools
import sys
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["fonts_for", "without_font"]

PLACEHOLDERS = "Last Resort"
"""matplotlib's own font of boxes, which has every character."""


@contextlib.contextmanager
def fonts_for(figure: Figure) -> Iterator[None]:
    """Within this context ``figure`` can be saved: installed fonts serve the characters that matplotlib's own lack.

    Characters that no installed font has stay boxes, and one line on standard error says so.

    Example:
        >>> with fonts_for(figure):
        ...     figure.savefig("labels.png")
    """
    from matplotlib.text import Text

    missing: set[str] = set()
    texts = [text for text in figure.findobj(Text) if text.get_text().strip()]
    for text in texts:
        drawn = {character for character in text.get_text() if character.isprintable() and character != " "}
        missing |= drawn - _characters_of(tuple(text.get_fontfamily()))
    added = _covering(missing) if missing else []
    for text in texts if added else ():
        text.set_fontfamily([*text.get_fontfamily(), *(name for name, _ in added)])
    if missing := missing.difference(*(characters for _, characters in added)):
        sample = "".join(sorted(missing)[:10])
        print(f"no installed font has {sample}: drawn as boxes; install one, such as Noto Sans CJK", file=sys.stderr)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+ .*missing from")  # said above, in one line
        yield


def without_font(characters: set[str]) -> set[str]:
    """Those of ``characters`` that no installed font has."""
    return characters.difference(*(covered for _, covered in _covering(characters)))


@functools.cache
def _characters_of(families: tuple[str, ...]) -> frozenset[str]:
    from matplotlib.font_manager import FontProperties, findfont
    from matplotlib.ft2font import FT2Font

    return frozenset(map(chr, FT2Font(findfont(FontProperties(family=list(families)))).get_charmap()))


def _covering(characters: set[str]) -> list[tuple[str, set[str]]]:
    """Names of few installed fonts that have as many of ``characters`` as can be, and which each adds."""
    from matplotlib.font_manager import findSystemFonts, fontManager
    from matplotlib.ft2font import FT2Font

    for file in set(findSystemFonts()) - {entry.fname for entry in fontManager.ttflist}:
        with contextlib.suppress(Exception):  # installed since matplotlib looked, or no font that it can read
            fontManager.addfont(file)
    available: dict[str, set[str]] = {}
    for entry in fontManager.ttflist:
        if entry.style == "normal" and not entry.name.startswith(PLACEHOLDERS):
            with contextlib.suppress(Exception):  # a font that was removed since
                font = FT2Font(entry.fname)
                has = characters.intersection(map(chr, font.get_charmap())) if font.scalable else set()
                if len(has) > len(available.get(entry.name, ())):
                    available[entry.name] = has
    chosen = []
    while characters and available:
        name = max(sorted(available), key=lambda name: len(available[name] & characters))
        has = available.pop(name) & characters
        if not has:
            break
        chosen.append((name, has))
        characters = characters - has
    return chosen
