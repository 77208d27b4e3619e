"""The declaration of a budget: limits, scope, window, enforcement. It is checked when it is made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from decimal import Decimal
from typing import Any, Literal, cast

from otel_tokens.errors import ConfigError
from otel_tokens.guard.budgets import presets
from otel_tokens.guard.budgets.fields import Condition, DeclaredLimit, derive
from otel_tokens.guard.budgets.ladder import Rung
from otel_tokens.guard.budgets.mistakes import Mistake, check, one_of
from otel_tokens.guard.budgets.thresholds import Threshold
from otel_tokens.guard.budgets.windows import Window
from otel_tokens.settings.entry import dotted

Amount = int | float | str | Decimal
Enforce = Literal["hard", "soft", "observe"]
Clock = Literal["wall", "calls"]
Fail = Callable[..., ConfigError]
"""Makes the error of a mistake: (message, *steps down to the value)."""


@dataclass(frozen=True, slots=True)
class Budget:
    """A limit on what calls may use. Several limits under one name are kept apart but admitted together.

    What: `usd`, `tokens` (input and output), `input_tokens`, `output_tokens`, `calls`, `seconds` (or "30 min"),
    `operations` (a number for all, or {"file_edit": 50}). Whose: `per` a tag, model or provider, or several of
    them: each value has the whole budget; calls without the tag share one scope; "call" limits each call.
    `match`: only these calls, {"model": "*opus*"}. When: `window` ("day", "1d", "rolling 24h" …), `timezone`,
    `reset_hour` (6 or "06:30"), `week_start`; `weekend` and `on` give other limits on weekdays. How hard:
    `enforce` hard (refuse), soft (act, never refuse) or observe (only count); `thresholds` with actions; `ladder`
    of models; `grace` for critical sections (True: 5,000 tokens, 0.10 USD); `wait` up to so many seconds for
    budget instead of refusing; `estimate` upper or expected. `clock`: seconds are wall time since the scope began
    (default without a window) or the summed time of calls. `forget` a scope unused for so long.

    Raises ConfigError for what makes no sense.
    """

    name: str
    usd: Amount | None = None
    tokens: Amount | None = None
    input_tokens: Amount | None = None
    output_tokens: Amount | None = None
    calls: Amount | None = None
    seconds: Amount | None = None
    operations: Amount | Mapping[str, Amount] | None = None
    per: str | Sequence[str] = ()
    match: Mapping[str, str | Sequence[str]] = field(default_factory=dict[str, str | Sequence[str]])
    window: str | None = None
    rolling: bool = False
    timezone: str = "UTC"
    reset_hour: int | str = 0
    week_start: str = "monday"
    weekend: Mapping[str, Any] | None = None
    on: Mapping[str, Mapping[str, Any]] | None = None
    enforce: Enforce = "hard"
    thresholds: object = None
    ladder: object = None
    grace: bool | Mapping[str, Amount] | None = None
    wait: Amount | None = None
    estimate: Literal["upper", "expected"] | None = None
    clock: Clock | None = None
    forget: Amount | None = None

    limits: tuple[DeclaredLimit, ...] = field(init=False, repr=False, compare=False)
    scope_keys: tuple[str, ...] = field(init=False, repr=False, compare=False)
    conditions: tuple[Condition, ...] = field(init=False, repr=False, compare=False)
    span: Window | None = field(init=False, repr=False, compare=False)
    marks: tuple[Threshold, ...] | None = field(init=False, repr=False, compare=False)
    rungs: tuple[Rung, ...] = field(init=False, repr=False, compare=False)
    wait_seconds: float = field(init=False, repr=False, compare=False)
    wall: bool = field(init=False, repr=False, compare=False)
    keep_ms: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        try:
            derived = derive({key: getattr(self, key) for key in KEYS})
        except Mistake as error:
            raise ConfigError(error.message, where=f"Budget({self.name!r})", key=dotted(error.steps)) from None
        for key, value in derived.items():
            object.__setattr__(self, key, value)


_DEFAULTS: dict[str, Any] = {f.name: {} if f.name == "match" else f.default for f in fields(Budget) if f.init}
KEYS = tuple(f.name for f in fields(Budget) if f.init)
"""What may be said of a budget, in YAML and in Python."""


def budgets_from(value: object, fail: Fail | None = None) -> list[Budget]:
    """The budgets of one entry of `budgets:` (a mapping; a preset may stand for several).

    `fail(message, *steps)` makes the ConfigError that says file, line and key. Raises ConfigError.
    """
    try:
        rows = _rows(value)
        for row in rows:
            derive({**_DEFAULTS, **row})
    except Mistake as error:
        raise (fail or _fail)(error.message, *error.steps) from None
    return [Budget(**row) for row in rows]


def _fail(message: str, *steps: str | int) -> ConfigError:
    return ConfigError(message, where="budgets", key=dotted(steps) or None)


def _rows(value: object) -> list[dict[str, Any]]:
    if not isinstance(value, Mapping):
        raise Mistake("a budget is a mapping such as {name: daily, usd: 5, window: day}")
    given = {str(key): item for key, item in cast("Mapping[object, Any]", value).items()}
    for key in given:
        with Mistake.at(key):
            one_of(key, (*KEYS, "preset"), "key")
    chosen = given.pop("preset", None)
    if chosen is None:
        check("name" in given, "a budget needs a name")
        return [given]
    with Mistake.at("preset"):
        rows = presets.PRESETS[one_of(chosen, presets.PRESETS, "preset")]
        check(len(rows) == 1 or "name" not in given, f"{chosen} makes {len(rows)} budgets, which keep their names")
    return [{**row, **given} for row in rows]
