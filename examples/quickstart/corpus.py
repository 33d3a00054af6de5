"""A parallel corpus that needs no download: localisation pairs rendered from the CLDR data that ships with Babel.

Every pair states one *fact* (a date, a list of countries, an amount of money, ...) in two languages. A fact is drawn
once, without reference to any language, as a function `Locale -> str`; Babel renders it on both sides, so the two sides
mean the same by construction and any pair of CLDR locales works.
"""

from __future__ import annotations

import datetime as dt
import difflib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from babel import Locale, UnknownLocaleError, dates, lists, numbers, units
from babel.localedata import locale_identifiers

from fairseq_ext.text import clean
from fairseq_ext.training.errors import OptionError

Fact = Callable[[Locale], str]
Pair = tuple[str, str]

_CURRENCIES = "EUR USD GBP JPY CHF SEK NOK DKK PLN CZK HUF CAD AUD NZD CNY INR BRL MXN ZAR KRW".split()
_ZONES = (
    "Europe/Berlin Europe/London Europe/Athens America/New_York America/Chicago America/Los_Angeles "
    "America/Sao_Paulo Asia/Tokyo Asia/Shanghai Asia/Kolkata Australia/Sydney"
).split()
_SKELETONS = "yMMMd yMMMEd yMMMM yMMM MMMEd MMMd yMd yMEd".split()
_INTERVALS = "yMMMd yMMMEd MMMd MMMEd yMd".split()
_BIDI_MARKS = dict.fromkeys(map(ord, "\u200e\u200f\u061c\u2066\u2067\u2068\u2069"))


@dataclass(frozen=True)
class Corpus:
    """Three splits of `(source, target)` pairs. No source and no target occurs twice, within or across splits."""

    train: list[Pair]
    valid: list[Pair]
    test: list[Pair]

    def write(self, folder: Path, source: str, target: str) -> None:
        """Write `{train,valid,test}.{source,target}`: plain UTF-8, one segment per line, line i matching line i."""
        for split in ("train", "valid", "test"):
            for side, language in enumerate((source, target)):
                lines = "".join(f"{pair[side]}\n" for pair in getattr(self, split))
                (folder / f"{split}.{language}").write_text(lines, encoding="utf-8")


def parse_locale(name: str, option: str) -> Locale:
    """Return the Babel locale called `name`.

    Raises:
        OptionError: no such locale; the message names `option`, the nearest names and some that are allowed.
    """
    identifiers = locale_identifiers()
    try:
        return Locale.parse(name)
    except (ValueError, UnknownLocaleError):
        near = difflib.get_close_matches(name, identifiers, n=3, cutoff=0.4)
        hint = f"nearest: {', '.join(near)}; " if near else ""
        raise OptionError(
            f"{option}: unknown locale {name!r} ({hint}allowed: any of Babel's {len(identifiers)} locales, "
            "such as en, de, fr, es, pt_BR, ru, ja)"
        ) from None


def new_line(source: str) -> str:
    """A line of text in the language `source`, of a kind that the corpus has."""
    return dates.format_date(dt.date(2031, 5, 17), "full", locale=Locale.parse(source)).translate(_BIDI_MARKS)


class _Facts:
    """Draws facts that both locales can express. Each `_kind` method is one kind of text and returns one fact."""

    def __init__(self, rng: random.Random, source: Locale, target: Locale) -> None:
        self.rng = rng
        self.territories = sorted(t for t in source.territories if t in target.territories and t.isalpha())
        self.languages = sorted(source.languages.keys() & target.languages.keys())
        self.scripts = sorted(source.scripts.keys() & target.scripts.keys())
        self.currencies = sorted(source.currencies.keys() & target.currencies.keys())
        for table in ("territories", "languages", "scripts", "currencies"):
            if len(getattr(self, table)) < 4:
                raise OptionError(
                    f"--source/--target: CLDR names too few {table} in both {source} and {target} "
                    f"({len(getattr(self, table))}; 4 are needed)"
                )
        self.units = sorted(
            unit
            for unit in source.unit_display_names.keys() & target.unit_display_names.keys()
            if units.get_unit_name(unit, locale=source) and units.get_unit_name(unit, locale=target)
        )
        self.skeletons = [s for s in _SKELETONS if all(s in side.datetime_skeletons for side in (source, target))]
        self.intervals = [s for s in _INTERVALS if all(s in side.interval_formats for side in (source, target))]
        self.locales = sorted(
            name for name in locale_identifiers() if "_" in name and len(name) <= 11 and "POSIX" not in name
        )
        kinds = {
            self._date: 12,
            self._time: 3,
            self._moment: 12,
            self._interval: 8,
            self._relative: 6,
            self._name: 6,
            self._locale_name: 3,
            self._name_list: 18,
            self._quantity: 10,
            self._quantity_list: 8,
            self._speed: 4,
            self._money: 10,
            self._share: 4,
            self._count: 4,
            self._entry: 16,
        }
        # A kind that one of the two locales has no data for is left out, rather than rendered as codes.
        needs = {self._interval: self.intervals, self._quantity: self.units, self._quantity_list: self.units}
        self.kinds = {kind: weight for kind, weight in kinds.items() if needs.get(kind, True)}

    def draw(self) -> Fact:
        return self.rng.choices(list(self.kinds), list(self.kinds.values()))[0]()

    def _day(self) -> dt.date:
        return dt.date(1990, 1, 1) + dt.timedelta(days=self.rng.randrange(45 * 365))

    def _clock(self) -> dt.time:
        return dt.time(self.rng.randrange(24), self.rng.randrange(60), self.rng.randrange(60))

    def _amount(self) -> float:
        """A number whose size is uniform in scale, with 0 to 2 decimals: 7, 3.5, 240, 18000, ..."""
        decimals = self.rng.choice((0, 0, 1, 2))
        value = round(10 ** self.rng.uniform(0, 5), decimals)
        return value if decimals else int(value)

    def _date(self) -> Fact:
        day, rng = self._day(), self.rng
        if self.skeletons and rng.random() < 0.4:
            skeleton = rng.choice(self.skeletons)
            return lambda locale: dates.format_skeleton(skeleton, day, locale=locale)
        style = rng.choice(("short", "medium", "long", "full"))
        return lambda locale: dates.format_date(day, style, locale=locale)

    def _time(self) -> Fact:
        clock, style = self._clock(), self.rng.choice(("short", "medium"))
        return lambda locale: dates.format_time(clock, style, locale=locale)

    def _moment(self) -> Fact:
        moment, rng = dt.datetime.combine(self._day(), self._clock()), self.rng
        style = rng.choice(("short", "medium", "long", "full"))
        zone = dates.get_timezone(rng.choice(_ZONES))
        return lambda locale: dates.format_datetime(moment, style, tzinfo=zone, locale=locale)

    def _interval(self) -> Fact:
        start, skeleton = self._day(), self.rng.choice(self.intervals)
        end = start + dt.timedelta(days=self.rng.choice((1, 2, 3, 7, 30, 45, 100, 400)))
        return lambda locale: dates.format_interval(start, end, skeleton, locale=locale)

    def _relative(self) -> Fact:
        unit, seconds = self.rng.choice(dates.TIMEDELTA_UNITS)
        delta = dt.timedelta(seconds=seconds * self.rng.randint(1, 90) * self.rng.choice((-1, 1)))
        style, direction = self.rng.choice(("long", "short")), self.rng.random() < 0.8
        return lambda locale: dates.format_timedelta(
            delta, granularity=unit, threshold=1e9, add_direction=direction, format=style, locale=locale
        )

    def _name(self) -> Fact:
        rng = self.rng
        table = rng.choices(("territories", "languages", "currencies", "scripts"), (5, 4, 3, 1))[0]
        code = rng.choice(getattr(self, table))
        return lambda locale: getattr(locale, table)[code]

    def _locale_name(self) -> Fact:
        named = Locale.parse(self.rng.choice(self.locales))
        return lambda locale: named.get_display_name(locale)

    def _joined(self, facts: Sequence[Fact], *styles: str) -> Fact:
        style = self.rng.choice(styles)
        return lambda locale: lists.format_list([fact(locale) for fact in facts], style, locale)

    def _name_list(self) -> Fact:
        table = self.rng.choice(("territories", "territories", "languages", "currencies"))
        codes = self.rng.sample(getattr(self, table), self.rng.randint(2, 4))
        names = [lambda locale, code=code: getattr(locale, table)[code] for code in codes]
        return self._joined(names, "standard", "standard", "or")

    def _quantity(self) -> Fact:
        value, unit = self._amount(), self.rng.choice(self.units)
        length = self.rng.choice(("long", "long", "short"))
        return lambda locale: units.format_unit(value, unit, length, locale=locale)

    def _quantity_list(self) -> Fact:
        facts = [self._quantity() for _ in range(self.rng.randint(2, 3))]
        return self._joined(facts, "standard", "or")

    def _speed(self) -> Fact:
        rng, value = self.rng, self._amount()
        unit = rng.choice(("kilometer", "meter", "mile", "liter", "kilogram", "ton", "gram", "byte", "megabyte"))
        per = rng.choice(("second", "minute", "hour", "day", "week", "month"))
        length = rng.choice(("long", "short"))
        return lambda locale: units.format_compound_unit(value, unit, 1, per, length, locale=locale)

    def _money(self) -> Fact:
        rng, value, code = self.rng, self._amount(), self.rng.choice(_CURRENCIES)
        if rng.random() < 0.2:
            value = int(value) * 1000
            return lambda locale: numbers.format_compact_currency(value, code, locale=locale, fraction_digits=1)
        style = rng.choice(("standard", "name"))
        return lambda locale: numbers.format_currency(value, code, locale=locale, format_type=style)

    def _share(self) -> Fact:
        value = round(self.rng.uniform(0, 2), 3)
        percent: Fact = lambda locale: numbers.format_percent(value, locale=locale, decimal_quantization=False)  # noqa: E731
        return self._joined([percent, self._name()], "unit")

    def _count(self) -> Fact:
        value = int(10 ** self.rng.uniform(3, 9))
        count: Fact = lambda locale: numbers.format_compact_decimal(  # noqa: E731
            value, format_type="long", locale=locale, fraction_digits=1
        )
        return self._joined([count, self._name()], "unit")

    def _entry(self) -> Fact:
        """A line of a ledger or itinerary: a date or a time, a name, and an amount."""
        when = self.rng.choice((self._date, self._moment, self._relative))()
        what = self.rng.choice((self._money, self._quantity if self.units else self._money))()
        return self._joined([when, self._name(), what], "unit")


def _render(fact: Fact, locale: Locale) -> str:
    """The fact as plain text, or "" where CLDR has a gap (a list style, a relative time) that Babel answers so."""
    try:
        text = fact(locale) or ""
    except (KeyError, AttributeError):
        return ""
    # CLDR writes no-break and narrow spaces and invisible direction marks; a plain text corpus has spaces only.
    return clean(text.translate(_BIDI_MARKS))


def build_corpus(source: str = "en", target: str = "de", pairs: int = 20_000, seed: int = 1) -> Corpus:
    """Draw `pairs` distinct pairs and split them; valid and test hold 500 each (a tenth each of a small corpus).

    A pair is kept only if neither its source nor its target was seen before, so the text is one-to-one and every split
    is disjoint from every other on both sides. The same arguments (and Babel version) give the same corpus.

    Raises:
        OptionError: a locale is unknown, both are the same, or the two cannot give that many distinct pairs.
    """
    locales = parse_locale(source, "--source"), parse_locale(target, "--target")
    if locales[0] == locales[1]:
        raise OptionError(f"--target: {target!r} is also the source (allowed: any other locale)")
    if pairs < 100:
        raise OptionError(f"--pairs: {pairs} is too few (allowed: 100 or more)")
    facts = _Facts(random.Random(seed), *locales)
    seen: tuple[set[str], set[str]] = set(), set()
    drawn: list[Pair] = []
    for _ in range(20 * pairs):
        fact = facts.draw()
        pair = _render(fact, locales[0]), _render(fact, locales[1])
        if all(pair) and pair[0] not in seen[0] and pair[1] not in seen[1]:
            drawn.append(pair)
            for side in (0, 1):
                seen[side].add(pair[side])
            if len(drawn) == pairs:
                break
    else:
        raise OptionError(
            f"--pairs: {source}-{target} gives only {len(drawn)} distinct pairs (asked: {pairs}); ask for fewer"
        )
    # Rare short names come early in the draw and late ones are mostly long: the split must not follow that order.
    random.Random(seed).shuffle(drawn)
    held_out = min(500, pairs // 10)
    return Corpus(drawn[2 * held_out :], drawn[:held_out], drawn[held_out : 2 * held_out])
