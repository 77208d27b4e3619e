"""Converters of single values and of lists of words. Each raises `Wrong` with what would be right."""

from __future__ import annotations

import math
import os
import re
from decimal import Decimal
from typing import Any, cast

from otel_tokens.conventions import COST_ALIASES_EXCLUSIVE
from otel_tokens.settings.given import NO, YES, Given, Wrong, each, items, nearest, shown
from otel_tokens.settings.schema import Setting
from otel_tokens.text import shown_url

_NAME = re.compile(r"[a-z][a-z0-9_.]*")
_WHOLE = re.compile(r"[-+]?[0-9][0-9_]{0,30}")
_BYTES = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?(?:([kmgt])(i?)b?|b)?", re.IGNORECASE)
STORES = ("memory", "sqlite:///path", "redis://host:port/db", "rediss://…", "unix://path")
_STORE = re.compile(r"memory(://)?|sqlite:///.+|(rediss?|valkeys?|unix)(\+[a-z]+)?://.+")


def to_bool(_: Setting, given: Given) -> bool:
    """true or false, also as yes/no, on/off, 1/0."""
    value = given.value
    if isinstance(value, bool):
        return value
    word = str(value).strip().lower() if isinstance(value, (str, int)) else ""
    if word in YES or word in NO:
        return word in YES
    raise Wrong(f"{shown(value)} is neither true nor false")


def to_int(setting: Setting, given: Given) -> int:
    """A whole number within the setting's bounds."""
    value = given.value
    if isinstance(value, str) and _WHOLE.fullmatch(value.strip()):
        value = int(value.replace("_", ""))
    if isinstance(value, bool) or not isinstance(value, int):
        raise Wrong(f"{shown(value)} is not a whole number{_range(setting)}")
    return _bounded(setting, value)


def to_float(setting: Setting, given: Given) -> float:
    """A finite number within the setting's bounds."""
    value = given.value
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise Wrong(f"{shown(value)} is not a number{_range(setting)}")
    return _bounded(setting, number)


def _bounded(setting: Setting, number: Any) -> Any:
    too_small = setting.minimum is not None and number < setting.minimum
    too_large = setting.maximum is not None and number > setting.maximum
    if too_small or too_large:
        raise Wrong(f"{number} is out of range; it must be a number{_range(setting)}")
    return number


def _range(setting: Setting) -> str:
    low, high = setting.minimum, setting.maximum
    if low is None:
        return ""
    return f" of at least {low:g}" if high is None else f" from {low:g} to {high:g}"


def to_bytes(setting: Setting, given: Given) -> int:
    """A number of bytes from 500, 500MB (10^6) or 1GiB (2^30)."""
    value = given.value
    if isinstance(value, int) and not isinstance(value, bool):
        return _bounded(setting, value)
    match = _BYTES.fullmatch(str(value).strip()) if isinstance(value, (str, Decimal, float)) else None
    if match is None:
        raise Wrong(f"{shown(value)} is not a size; write a number of bytes, or 500MB, 2GB, 1GiB")
    number, unit, binary = match.groups()
    power = " kmgt".index(unit.lower()) if unit else 0
    return _bounded(setting, int(Decimal(number) * (1024 if binary else 1000) ** power))


def to_text(_: Setting, given: Given) -> str:
    """A text that is not empty, without the blanks around it."""
    value = given.value
    if not isinstance(value, str) or not value.strip():
        raise Wrong(f"{shown(value)} is not a text")
    return value.strip()


def to_choice(setting: Setting, given: Given) -> str:
    """One of the setting's allowed words."""
    word = str(given.value).strip().lower()
    if word in setting.allowed:
        return word
    raise Wrong(f"{shown(given.value)} is not one of {', '.join(setting.allowed)}{nearest(word, setting.allowed)}")


def to_names(_: Setting, given: Given) -> tuple[str, ...]:
    """Names, each once, in their order."""

    def name(item: Any) -> str:
        if isinstance(item, str) and _NAME.fullmatch(item):
            return item
        raise Wrong(f"{shown(item)} is not a name; use lower-case letters, digits, '_' and '.', a letter first")

    return tuple(dict.fromkeys(each(items(given), name)))


def to_aliases(setting: Setting, given: Given) -> tuple[str, ...]:
    """Allowed names, each once, in their order."""

    def alias(item: Any) -> str:
        if item in setting.allowed:
            return item
        raise Wrong(f"{shown(item)} is not one of {', '.join(setting.allowed)}{nearest(str(item), setting.allowed)}")

    found = tuple(dict.fromkeys(each(items(given), alias)))
    if set(COST_ALIASES_EXCLUSIVE) <= set(found):
        raise Wrong(f"{' and '.join(COST_ALIASES_EXCLUSIVE)} exclude each other; keep one")
    return found


def to_percents(_: Setting, given: Given) -> tuple[float, ...]:
    """Per cents, ascending."""

    def percent(item: Any) -> float:
        text = str(item).strip().removesuffix("%").strip()
        try:
            number = math.nan if isinstance(item, bool) else float(text)
        except ValueError:
            number = math.nan
        if not 1 <= number <= 1000:  # NaN is not, either
            raise Wrong(f"{shown(item)} is not a per cent from 1 to 1000; write 70 for 70 %")
        return number

    values = [given.value] if isinstance(given.value, (int, float, Decimal)) else items(given)
    return tuple(sorted(set(each(values, percent))))


def to_path(_: Setting, given: Given) -> str:
    """A path; `~` is the home directory, a relative one in a file is relative to that file."""
    value = given.value
    path: Any = os.fspath(cast("os.PathLike[str]", value)) if isinstance(value, os.PathLike) else value
    if not isinstance(path, str) or not path.strip() or "\0" in path:
        raise Wrong(f"{shown(path)} is not a path")
    return os.path.join(given.folder, os.path.expanduser(path.strip()))  # noqa: PTH111, PTH118 (never raises, keeps "./")


def to_ledger(setting: Setting, given: Given) -> str | bool:
    """A path, or False for no ledger."""
    word = str(given.value).strip().lower() if isinstance(given.value, (str, int)) else ""
    if word in YES:
        return given.default_ledger()
    if word in NO:
        return False
    if isinstance(given.value, int):
        raise Wrong(f"{shown(given.value)} is neither a path, nor true (the default place), nor false")
    return to_path(setting, given)


def to_store(setting: Setting, given: Given) -> str:
    """Where a budget is kept."""
    text = to_text(setting, given)
    if _STORE.fullmatch(text):
        return text
    raise Wrong(f"{shown_url(text)!r} is not a store; use one of {', '.join(STORES)}")


def to_endpoint(setting: Setting, given: Given) -> str:
    """An http(s) URL."""
    text = to_text(setting, given)
    if re.fullmatch(r"https?://[^\s/]+\S*", text):
        return text
    raise Wrong(f"{shown_url(text)!r} is not a URL; write http://host:4318")
