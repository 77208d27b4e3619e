"""Record ↔ row: the columns of `calls`, how a record is written and read back. Money is text, never a float.

Everything of a record is kept but the request's attributes: they are telemetry, not accounting, and
parameters such as stop sequences are text of the application.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from decimal import Context, Decimal, Inexact, InvalidOperation
from functools import lru_cache
from itertools import compress
from operator import attrgetter, ne
from typing import Any

from otel_tokens.values import COST_PARTS, EMPTY, TOKEN_FIELDS, Call, Component, Cost, Record, Usage

EXACT = Context(prec=400, traps=[Inexact, InvalidOperation])
"""Adds any amounts the ledger holds without rounding (see `_MAX_EXPONENT`), and raises rather than round others."""

# No amount of money is outside 1e±100; what is (a provider may report anything) is refused, so that sums stay exact.
_MAX_EXPONENT = 100
_MAX_DIGITS = 150
_MAX_INT = 2**63 - 1

NAMED_TAGS = ("session", "task", "tenant", "user", "agent", "feature")
"""The tags with a column of their own; all others are in `tags`, as JSON."""

# Column → where its value is on a record. These every row has …
_ALWAYS: dict[str, str] = {
    "id": "call.id",
    "started": "call.started",
    "duration": "duration",
    "outcome": "outcome",
    "provider": "call.provider",
    "endpoint": "call.endpoint",
    "operation": "call.operation",
    "model": "call.model",
    "sdk": "call.sdk",
    "origin": "usage.origin",
    "input": "usage.input",
    "output": "usage.output",
    "currency": "cost.currency",
    "cost_status": "cost.status",
    "cost_source": "cost.source",
    "price_version": "cost.version",
    "price_rule": "cost.rule",
}
# … and these are left out when they have the column's default: each value costs a tenth of a microsecond to bind, a
# None thrice that.
_MAYBE: dict[str, tuple[str, Any]] = {
    "session": ("", None),
    "task": ("", None),
    "tenant": ("", None),
    "user": ("", None),
    "agent": ("", None),
    "feature": ("", None),
    "tags": ("", None),
    "first_chunk": ("first_chunk", None),
    "error_type": ("error_type", None),
    "response_model": ("response_model", None),
    "service_tier": ("service_tier", None),
    "speed": ("speed", None),
    "geo": ("geo", None),
    "response_id": ("response_id", None),
    "missing_reason": ("missing_reason", None),
    "chunks": ("chunks", 0),
    "attempts": ("attempts", 1),
    "trace_id": ("trace_id", None),
    "span_id": ("span_id", None),
    "decision": ("decision", None),
    "server_address": ("call.server_address", None),
    "server_port": ("call.server_port", None),
    "stream": ("call.stream", False),
    "request_tier": ("call.service_tier", None),
    "request_speed": ("call.speed", None),
    "request_geo": ("call.geo", None),
    "max_output": ("call.max_output", None),
    "choices": ("call.choices", 1),
    "free": ("call.free", False),
    "asked_model": ("call.asked_model", None),
    "total": ("usage.total", None),
    **{name: (f"usage.{name}", 0) for name in TOKEN_FIELDS if name not in _ALWAYS},
}
_MONEY: dict[str, str] = {
    "cost_total": "cost.total",
    **{f"cost_{part}": f"cost.{part}" for part in COST_PARTS},
    "cost_local": "cost.local_total",
    "cost_provider": "cost.provider_total",
    "reported_cost": "usage.reported_cost",
}
_PACKED = ("reported", "flags", "finish_reasons", "components", "component_input", "component_output")
_PLACE = ("pid", "host")

_TAGS = (*NAMED_TAGS, "tags")
_MAYBE_PLAIN = {name: path for name, (path, _) in _MAYBE.items() if path}
_FIRST = (*_ALWAYS, *_PLACE)
_THEN = (*_TAGS, *_MAYBE_PLAIN, *_MONEY, *_PACKED)
_DEFAULTS: tuple[Any, ...] = (
    *(default for _, default in _MAYBE.values()),
    *(None for _ in _MONEY),
    *(0 if name.startswith("component_") else None for name in _PACKED),
)
COLUMNS: tuple[str, ...] = (*_FIRST, *_THEN)
SELECT = f"SELECT {', '.join(COLUMNS)} FROM calls"  # noqa: S608  # made of the names above


def _of(room: str) -> Callable[[Any], tuple[Any, ...]]:
    """Gets the fields of _MAYBE_PLAIN that a part of the record has: "call", "usage", "" for the record itself."""
    paths = [path.rpartition(".") for path in _MAYBE_PLAIN.values()]
    return attrgetter(*(name for part, _, name in paths if part == room))


_always_of = attrgetter(*_ALWAYS.values())
_of_record, _of_call, _of_usage = _of(""), _of("call"), _of("usage")  # in the order of _MAYBE; one getter is slower
_money_of = attrgetter(*_MONEY.values())

Row = tuple[str, tuple[Any, ...]]
"""A statement that inserts one row, and its parameters; the first is the call's id."""


@lru_cache(maxsize=1024)  # in practice a handful: each kind of call has its own set of columns
def _insert(chosen: bytes) -> str:
    names = (*_FIRST, *compress(_THEN, chosen))
    # Not INSERT OR IGNORE, which would also drop rows for reasons other than being there already.
    return f"INSERT INTO calls({', '.join(names)}) VALUES({', '.join('?' * len(names))}) ON CONFLICT(id) DO NOTHING"


def encode(record: Record, place: tuple[int, str]) -> Row:
    """How to insert a record; `place` is the process's (pid, host)."""
    call, usage, tags = record.call, record.usage, record.call.tags
    rest = (
        *(_tags(tags) if tags else _NO_TAGS),
        *_of_record(record),
        *_of_call(call),
        *_of_usage(usage),
        *[None if amount is None else _text(amount) for amount in _money_of(record)],
        _names(usage.reported) if usage.reported else None,
        _names(usage.flags) if usage.flags else None,
        _names(record.finish_reasons) if record.finish_reasons else None,
        *(_components(usage.components) if usage.components else _NO_COMPONENTS),
    )
    chosen = bytes(map(ne, rest, _DEFAULTS))
    return _insert(chosen), (*_always_of(record), *place, *compress(rest, chosen))


def repaired(row: Row) -> Row:
    """The row with what SQLite cannot hold replaced: too large integers, broken text, foreign types."""
    return row[0], tuple(_repair(value) for value in row[1])


def decode(row: tuple[Any, ...]) -> Record:
    """The record of a row of COLUMNS. Raises ValueError or TypeError when somebody else changed it."""
    get = dict(zip(COLUMNS, row, strict=True))
    call = Call(
        id=get["id"],
        provider=get["provider"],
        endpoint=get["endpoint"],
        operation=get["operation"],
        model=get["model"],
        started=get["started"] or 0.0,
        sdk=get["sdk"],
        stream=bool(get["stream"]),
        server_address=get["server_address"],
        server_port=get["server_port"],
        max_output=get["max_output"],
        choices=get["choices"],
        service_tier=get["request_tier"],
        speed=get["request_speed"],
        geo=get["request_geo"],
        free=bool(get["free"]),
        asked_model=get["asked_model"],
        tags=_tags_of(get),
    )
    usage = Usage(
        **{name: get[name] for name in TOKEN_FIELDS},
        total=get["total"],
        reported_cost=_amount(get["reported_cost"]),
        origin=get["origin"],
        reported=frozenset(_list(get["reported"])),
        flags=tuple(_list(get["flags"])),
        components=tuple(_component(part) for part in _list(get["components"])),
    )
    cost = Cost(
        total=_amount(get["cost_total"]),
        **{part: _amount(get[f"cost_{part}"]) for part in COST_PARTS},
        currency=get["currency"],
        status=get["cost_status"],
        source=get["cost_source"],
        version=get["price_version"],
        rule=get["price_rule"],
        local_total=_amount(get["cost_local"]),
        provider_total=_amount(get["cost_provider"]),
    )
    return Record(
        call=call,
        usage=usage,
        cost=cost,
        finish_reasons=tuple(_list(get["finish_reasons"])),
        **{name: get[name] for name in _RECORD_FIELDS},
    )


_RECORD_FIELDS = tuple(
    name for name in COLUMNS if name in (_ALWAYS.get(name), _MAYBE_PLAIN.get(name))
)  # fields of Record


def _tags_of(get: Mapping[str, Any]) -> Mapping[str, str]:
    tags = {name: get[name] for name in NAMED_TAGS if get[name] is not None}
    own = get["tags"]
    if own is not None:
        tags.update(json.loads(own))
    return tags or EMPTY


def _text(amount: Decimal) -> str | None:
    text = str(amount)
    if len(text) <= _MAX_EXPONENT and "E" not in text and text[0].isdigit():
        return text  # an ordinary one
    if -_MAX_EXPONENT <= amount.adjusted() <= _MAX_EXPONENT and len(text) <= _MAX_DIGITS and amount.is_finite():
        return text
    return "0" if amount == 0 else None


def _amount(text: str | None) -> Decimal | None:
    return None if text is None else money(text)


def money(text: str) -> Decimal:
    """The amount that a money column holds. Raises ValueError when it holds something else."""
    try:
        amount = Decimal(text)
        fits = amount.is_finite() and abs(amount.adjusted()) <= _MAX_EXPONENT and len(text) <= _MAX_DIGITS
    except (ArithmeticError, TypeError) as error:
        raise ValueError(f"not an amount: {text!r:.40}") from error
    if not fits:
        raise ValueError(f"not an amount: {text!r:.40}")
    return amount


@lru_cache(maxsize=512)  # the same few names come with every call
def _dump_names(names: tuple[str, ...]) -> str:
    return json.dumps(names)


def _names(names: Iterable[str]) -> str:
    return _dump_names(tuple(sorted(names)) if isinstance(names, frozenset) else tuple(names))


def _list(text: str | None) -> list[Any]:
    return [] if text is None else json.loads(text)


_NO_COMPONENTS = (None, 0, 0)
_NO_TAGS: tuple[None, ...] = (None,) * (len(NAMED_TAGS) + 1)


def _tags(tags: Mapping[str, str]) -> tuple[str | None, ...]:
    named = tuple([tags.get(name) for name in NAMED_TAGS])
    if len(tags) == len(NAMED_TAGS) - named.count(None):
        return (*named, None)
    own = {str(key): str(value) for key, value in tags.items() if key not in NAMED_TAGS}
    return (*named, json.dumps(own, sort_keys=True))


def _components(parts: tuple[Component, ...]) -> tuple[str, int, int]:
    """JSON of the parts, and their input and output tokens (which the call's own totals do not contain)."""
    return (
        json.dumps([{"kind": p.kind, "model": p.model, "usage": _pack(p.usage), "calls": p.calls} for p in parts]),
        sum(part.usage.input for part in parts),
        sum(part.usage.output for part in parts),
    )


def _pack(usage: Usage) -> dict[str, Any]:
    packed: dict[str, Any] = {name: count for name in TOKEN_FIELDS if (count := getattr(usage, name))}
    packed["origin"] = usage.origin
    if usage.total is not None:
        packed["total"] = usage.total
    if usage.reported_cost is not None:
        packed["reported_cost"] = _text(usage.reported_cost)
    if usage.reported:
        packed["reported"] = sorted(usage.reported)
    if usage.flags:
        packed["flags"] = usage.flags
    if usage.components:
        packed["components"] = json.loads(_components(usage.components)[0])
    return packed


def _component(part: dict[str, Any]) -> Component:
    packed: dict[str, Any] = dict(part["usage"])
    if packed.get("reported_cost") is not None:
        packed["reported_cost"] = money(packed["reported_cost"])
    packed["reported"] = frozenset(packed.get("reported", ()))
    packed["flags"] = tuple(packed.get("flags", ()))
    packed["components"] = tuple(_component(inner) for inner in packed.get("components", ()))
    return Component(part["kind"], part["model"], Usage(**packed), part.get("calls", 0))


def _repair(value: Any) -> Any:
    if value is None or isinstance(value, float):
        return value
    if isinstance(value, int):
        return max(-_MAX_INT, min(_MAX_INT, value))
    return str(value).encode("utf-8", "replace").decode("utf-8")
