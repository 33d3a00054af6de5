"""Words of a caption as the COCO evaluation counts them: lower case, without punctuation."""

from __future__ import annotations

import re

__all__ = ["tokenize"]

BRACKETS = {"(": " -lrb- ", ")": " -rrb- ", "[": " -lsb- ", "]": " -rsb- ", "{": " -lcb- ", "}": " -rcb- "}
PLAIN = str.maketrans({**dict.fromkeys("‘’‚‛′", "'"), **dict.fromkeys('“”„‟″"`', None), **BRACKETS})
BRACKET = re.compile("-[lr][rsc]b-")
CLITIC = r"'(?:s|re|ve|ll|d|m)"
ABBREVIATION = re.compile(
    r"(?:st|ave|blvd|rd|mr|mrs|ms|dr|ft|jr|sr|vs|etc|inc|co|no|mt|e\.g|i\.e|a\.m|p\.m)\.|(?:[^\W\d_]\.){2,}"
)
RULES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\.{2,}|-{2,}|[…–—;?!]", " "),
        (r"(?<!\d)[,:]|[,:](?!\d)", " "),
        (r"(<unk>|[$#%&@*+=<>~])", r" \1 "),
        (r"(?<=\d)(am|pm)\b", r" \1"),
        (r"(?<=\w)n't\b", " n't"),
        (r"\bcannot\b", "can not"),
    )
]


def tokenize(caption: str) -> str:
    """The tokens of a caption, joined by single spaces.

    The COCO evaluation does the same in Java (Stanford's ``PTBTokenizer -lowerCase``, then punctuation tokens are
    removed); the two agree on 24,769 of 24,774 captions of COCO. As there, ``'s`` and ``n't`` become tokens, and
    brackets survive as ``-lrb-`` and ``-rrb-``; so does a model's ``<unk>``. A tokenised caption stays as it is.

    Args:
        caption: a caption as a person or a model wrote it.

    Example:
        >>> tokenize("A man's hand (left) isn't holding 3-4 apples.")
        "a man 's hand -lrb- left -rrb- is n't holding 3-4 apples"
    """
    # After one pass another rule may apply to the rest: `end."` becomes `end.`, then `end`.
    before, text = None, caption
    while text != before:
        before, text = text, _pass(text)
    return text


def _pass(text: str) -> str:
    text = text.lower().translate(PLAIN)
    for pattern, replacement in RULES:
        text = pattern.sub(replacement, text)
    return " ".join(filter(None, map(_word, text.split())))


def _word(word: str) -> str:
    if BRACKET.fullmatch(word) or re.fullmatch(CLITIC, word):
        return word
    word = word.lstrip("'")
    if not ABBREVIATION.fullmatch(word):
        word = word.removesuffix(".")
    word = word.removesuffix("'").strip("-")
    return re.sub(rf"({CLITIC})$", r" \1", word)
