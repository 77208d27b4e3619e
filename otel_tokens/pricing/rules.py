"""Prices that the user states: `prices:` in otel-tokens.yaml, in a file of their own, or in Python."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal, InvalidOperation
from typing import Any, cast

from otel_tokens.errors import ConfigError
from otel_tokens.pricing.card import RATE_NAMES
from otel_tokens.settings.entry import Entry
from otel_tokens.settings.given import shown

EXAMPLE = "{model: gpt-4o, input: 2.50, output: 10}"
_MAX_DIGITS = 100  # reading a longer number takes quadratic time, and Python refuses it from 4300 digits on


@dataclass(frozen=True, slots=True)
class PriceRule:
    """One price that the user states. It wins over every other source.

    `model` is an exact name, or a pattern if it has `*` or `?`. An exact name wins over a pattern, a longer pattern
    over a shorter one, a later `start` over an earlier one, and a later rule over an earlier one. `provider`, `tier`
    (also a speed such as "fast") and `above` limit the rule; without `tier` it is the price on every tier.

    `rates` are USD per million tokens by the names of `card.Rates`. A kind of tokens without a rate is charged as what
    it is part of: cached and written tokens as `input`, audio as text, a lifetime of a cache write as `cache_write`.
    Output without a rate leaves the call unpriced. `per_request` and `web_search` are USD for one. With `above`, the
    rates hold for calls with more input tokens than that, beside the rule for the rest. `start` is its first day and
    `end` its last (UTC).
    """

    model: str
    rates: Mapping[str, Decimal] = field(default_factory=dict[str, Decimal])
    provider: str | None = None
    tier: str | None = None
    per_request: Decimal | None = None
    web_search: Decimal | None = None
    above: int | None = None
    start: date | None = None
    end: date | None = None
    note: str = ""
    where: str = ""

    @property
    def is_pattern(self) -> bool:
        """Whether `model` stands for several models."""
        return "*" in self.model or "?" in self.model

    @property
    def title(self) -> str:
        """How the rule is named on a cost: `file prices.yaml:12 "gpt-4o*"`."""
        kind = "" if self.where in ("", "keyword") else "file "
        return f'{kind}{self.where or "rule"} "{self.model}"'

    def fits(self, name: str) -> bool:
        """Whether the rule is about the model `name` (any case)."""
        name, model = name.lower(), self.model.lower()
        if not self.is_pattern:
            return name == model
        pattern = "".join(".*" if c == "*" else "." if c == "?" else re.escape(c) for c in model)
        return re.fullmatch(pattern, name, re.DOTALL) is not None

    def active(self, day: date) -> bool:
        """Whether the rule holds on this day (UTC)."""
        return (self.start is None or self.start <= day) and (self.end is None or day <= self.end)

    def is_beside(self, base: PriceRule) -> bool:
        """Whether `base` has the price up to the `above` of this rule."""
        same = (base.model.lower(), base.tier) == (self.model.lower(), self.tier)
        return (
            base.above is None and same and (None in (base.provider, self.provider) or base.provider == self.provider)
        )

    def boundaries(self) -> Iterable[float]:
        """The moments, in unix seconds, at which the rule begins and ends to hold."""
        days = (self.start, self.end + timedelta(1) if self.end and self.end < date.max else None)
        return (datetime(d.year, d.month, d.day, tzinfo=UTC).timestamp() for d in days if d is not None)


def parse_rules(entries: object, where: str) -> tuple[PriceRule, ...]:
    """The rules of a `prices:` list.

    `entries` is that list, or a `settings.Entry` of it or of a whole file that has it. An entry is a mapping, or an
    `Entry`, which knows its own line; `where` is the file (and line) of plain mappings. Its keys: `model` (or
    `pattern`), `provider`, `tier`, `from`, `until` (dates, both inclusive, UTC), `above` (input tokens), `note`,
    `currency` (USD), `per_request` and `web_search` (USD for one), and per million tokens `input`, `output`,
    `cache_read`, `cache_write`, `cache_write_5m` … (see `card.Rates`). Numbers keep all their digits; 0 is a price
    only if it is written. Raises `ConfigError` with all mistakes.
    """
    rules, problems = examined_rules(entries, where)
    if problems:
        raise ConfigError.combined(problems)
    return rules


def examined_rules(entries: object, where: str) -> tuple[tuple[PriceRule, ...], list[ConfigError]]:
    """The rules without a mistake, and the mistakes (see `parse_rules`). An empty file has no rules."""
    problems: list[ConfigError] = []
    if isinstance(entries, Entry):
        whole: object = entries.value
        if isinstance(whole, Mapping) and "prices" in whole:
            others = (key for key in cast("Mapping[str, object]", whole) if key != "prices")
            problems += [entries.error("is not known in a file of prices; only `prices:` is", key) for key in others]
            entries = entries.child("prices")
            whole = entries.value
        if whole is not None and not isinstance(whole, (list, tuple)):
            return (), [*problems, entries.error(f"is not a list; write prices as '- {EXAMPLE}'")]
        entries = list(entries.children())
    if not isinstance(entries, (list, tuple)):
        return (), [ConfigError(f"is not a list; write prices as '- {EXAMPLE}'", where=where, key="prices")]
    rules: list[PriceRule] = []
    beside: list[tuple[Entry, PriceRule]] = []
    for index, item in enumerate(cast("Iterable[object]", entries)):
        entry = item if isinstance(item, Entry) else Entry(item, where, ("prices", index))
        rule = entry.value if isinstance(entry.value, PriceRule) else _rule(entry, problems)
        if rule is not None:
            rules.append(rule)
            if rule.above is not None:
                beside.append((entry, rule))
    for entry, rule in beside:
        if not problems and not any(rule.is_beside(other) for other in rules):
            problems.append(
                entry.error("needs a row of the same model (and tier) without `above`, for the rest", "above")
            )
    return tuple(rules), problems


class _Wrong(Exception):  # noqa: N818 (never leaves this module)
    pass


def _rule(entry: Entry, problems: list[ConfigError]) -> PriceRule | None:
    value: object = entry.value
    if not isinstance(value, Mapping):
        problems.append(entry.error(f"{shown(value)} is not a mapping such as {EXAMPLE}"))
        return None
    fields: dict[str, Any] = {"where": entry.where()}
    rates: dict[str, Decimal] = {}
    before = len(problems)
    for key, given in cast("Mapping[Any, Any]", value).items():
        name = str(key)
        try:
            if name in RATE_NAMES:
                rates[name] = _amount(given)
            elif name in _KEYS:
                target, convert = _KEYS[name]
                if target in fields:
                    raise _Wrong("and its other spelling are both given; keep one")
                fields[target] = convert(given)
            else:
                raise _Wrong(f"is not known{_nearest(name)}; allowed: {', '.join((*_KEYS, *RATE_NAMES))}")
        except _Wrong as error:
            problems.append(entry.error(str(error), name))
    fields.pop("currency", None)
    _check(entry, fields, rates, problems, complete=len(problems) == before)
    return PriceRule(rates=rates, **fields) if len(problems) == before else None


def _check(
    entry: Entry, fields: dict[str, Any], rates: dict[str, Decimal], problems: list[ConfigError], *, complete: bool
) -> None:
    """Check what an entry as a whole must have."""
    start, end = fields.get("start"), fields.get("end")
    if "model" not in fields and complete:
        problems.append(entry.error(f"`model` is missing: the model's name or a pattern, as in {EXAMPLE}"))
    elif not rates and "per_request" not in fields and complete:
        problems.append(entry.error(f"states no price; add input and output, as in {EXAMPLE}"))
    elif start and end and end < start:
        problems.append(entry.error(f"until {end} is before from {start}; the last day must not be before the first"))


def _amount(value: object) -> Decimal:
    """A price: a number that is not negative. A float is read by its shortest spelling, as it was written."""
    if value is None:
        raise _Wrong("has no value; write the price, 0 for free, or leave the key out")
    if isinstance(value, bool) or not isinstance(value, (int, float, str, Decimal)):
        raise _Wrong(f"{shown(value)} is not a price; write USD as 2.50")
    text = str(value).strip()
    try:
        amount = Decimal(text)
    except InvalidOperation:
        raise _Wrong(f"{shown(value)} is not a number; write USD without sign or unit, as 2.50") from None
    if not amount.is_finite() or amount < 0:
        raise _Wrong(f"{shown(value)} is not a price; write a number from 0 on")
    if not -30 <= amount.adjusted() <= 30:
        raise _Wrong(f"{shown(value)} is no believable price in USD per million tokens")
    return amount


def _text(value: object) -> str:
    if isinstance(value, str) and value.strip():
        return value.strip()
    raise _Wrong(f"{shown(value)} is not a name; write text, in quotes if it looks like a number")


def _word(value: object) -> str:
    return _text(value).lower()


def _note(value: object) -> str:
    return "" if value is None else str(value)


def _tokens(value: object) -> int:
    if isinstance(value, str) and len(value) <= _MAX_DIGITS and value.strip().replace("_", "").isdecimal():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    raise _Wrong(f"{shown(value)} is not a number of input tokens; write a whole number such as 200000")


def _day(value: object) -> date:
    if isinstance(value, datetime):
        return value.astimezone(UTC).date() if value.tzinfo else value.date()
    if isinstance(value, date):
        return value
    if isinstance(value, str):
        try:
            return date.fromisoformat(value.strip())
        except ValueError:
            pass
    raise _Wrong(f"{shown(value)} is not a date; write it as 2026-01-31")


def _dollars(value: object) -> str:
    if isinstance(value, str) and value.strip().upper() == "USD":
        return "USD"
    raise _Wrong(f"{shown(value)} is not supported; state prices in USD")


def _nearest(word: str) -> str:
    from difflib import get_close_matches  # only mistakes need it

    found = get_close_matches(word.lower().replace("-", "_"), (*_KEYS, *RATE_NAMES), n=1)
    return f" (did you mean {found[0]!r}?)" if found else ""


_KEYS: dict[str, tuple[str, Callable[[object], Any]]] = {
    "model": ("model", _text),
    "pattern": ("model", _text),
    "provider": ("provider", _word),
    "tier": ("tier", _word),
    "from": ("start", _day),
    "until": ("end", _day),
    "above": ("above", _tokens),
    "per_request": ("per_request", _amount),
    "web_search": ("web_search", _amount),
    "currency": ("currency", _dollars),
    "note": ("note", _note),
}
