"""Ladders of models: the cheaper model that a call goes to when its budget runs low. Pure functions."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import cast

from otel_tokens.guard.budgets.mistakes import Mistake, check

Known = Callable[[str], bool]
"""Whether a model of this name has a price (with the call's provider)."""

_LAST_NUMBER = re.compile(r"\d+(?!.*\d)")
_NEWEST = 20
"""Larger numbers are no versions."""
_DATE = re.compile(r"[-@](?:20\d{6}|20\d\d-\d\d-\d\d|\d{4})$|-latest$")


@dataclass(frozen=True, slots=True)
class Rung:
    """One model of a ladder. `match` is a pattern or a word for models that stand here, `use` what is sent."""

    match: str
    use: str

    def holds(self, model: str) -> bool:
        """Whether `model` stands on this rung: by pattern, by name, by name with a date, or by the word in it."""
        name, own = model.lower(), self.match.lower()
        if fnmatchcase(name, own) or name == self.use.lower():
            return True
        if name.startswith(own) and _DATE.fullmatch(name[len(own) :]):
            return True
        return own.isalpha() and re.search(rf"(?<![a-z]){own}(?![a-z])", name) is not None


def ladder(value: object) -> tuple[Rung, ...]:
    """Rungs from a list of model names or {match: pattern, use: model}, dearest first. Raises `Wrong`."""
    check(isinstance(value, (list, tuple)), "a ladder is a list of models, dearest first")
    rungs: list[Rung] = []
    for index, item in enumerate(cast("list[object]", value)):
        with Mistake.at(index):
            rungs.append(_rung(item))
    check(len(rungs) != 1, "a ladder needs two models or more")
    return tuple(rungs)


def _rung(item: object) -> Rung:
    if isinstance(item, Rung):
        return item
    if isinstance(item, Mapping):
        row = {str(k): v for k, v in cast("Mapping[object, object]", item).items()}
        match, use = row.get("match"), row.get("use")
        check(
            set(row) == {"match", "use"} and isinstance(match, str) and isinstance(use, str),
            "a rung is a model's name, or {match: pattern, use: model}",
        )
        return Rung(cast("str", match), cast("str", use))
    if not isinstance(item, str) or not item.strip():
        raise Mistake(f"{item!r} is not a model")
    check("*" not in item and "?" not in item, f"{item!r} is a pattern: write {{match: {item!r}, use: a model}}")
    return Rung(item, item)


def step_down(rungs: tuple[Rung, ...], model: str, steps: int, known: Known) -> str | None:
    """The model `steps` rungs below `model`'s own (at most the last), or None if there is none to go to.

    A rung that is only a word ("sonnet") stands for the same name with that word ("claude-opus-4-1" →
    "claude-sonnet-4-1"), if that has a price, else for the newest older one that has ("claude-opus-4-8" →
    "claude-sonnet-4-6"). Models not on the ladder stay as they are.
    """
    here = next((index for index, rung in enumerate(rungs) if rung.holds(model)), None)
    if here is None or steps <= 0:
        return None
    for index in range(min(here + steps, len(rungs) - 1), here, -1):
        target = _target(rungs[here], rungs[index], model, known)
        if target is not None:
            return target
    return None


def _target(here: Rung, there: Rung, model: str, known: Known) -> str | None:
    word = there.use
    if not word.isalpha() or known(word):
        return word
    if not here.match.isalpha():
        return None
    swapped = re.sub(rf"(?<![a-zA-Z]){here.match}(?![a-zA-Z])", word, model, count=1, flags=re.IGNORECASE)
    for candidate in (swapped, *_versions(_DATE.sub("", swapped))):
        if candidate != model and known(candidate):
            return candidate
    return None


def _versions(name: str) -> Iterator[str]:
    """The name, and older ones of it: families are not renewed all at once."""
    yield name
    last = _LAST_NUMBER.search(name)
    if last is not None:
        for number in range(min(int(last[0]), _NEWEST) - 1, -1, -1):
            yield f"{name[: last.start()]}{number}{name[last.end() :]}"
