"""The tags in force: a chain of frames in one ContextVar, and their copies in W3C baggage.

Leaving never uses a ContextVar token: a token is bound to the Context it was made in, and generators and async
generators are often closed in another one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextvars import ContextVar
from types import MappingProxyType
from typing import TypeAlias

from opentelemetry import baggage, context

from otel_tokens.conventions import NAMESPACE

MAX_LENGTH = 256
"""Longest value of a tag, in characters."""
MAX_INCOMING = 16
"""Most tags taken from the baggage of another service."""

SHORTEN_EVERY = 256

Carried: TypeAlias = dict[str, object]
"""Tag name -> its value in W3C baggage, None where there is none."""


class Frame:
    """The tags in force; below it what they were before `owner` changed them, and the baggage it replaced."""

    __slots__ = ("added", "before", "depth", "ended", "owner", "parent", "removed", "tags")

    def __init__(
        self,
        owner: object,
        parent: Frame | None,
        added: Mapping[str, str] = MappingProxyType({}),
        removed: Iterable[str] = (),
        before: Mapping[str, object] = MappingProxyType({}),
    ) -> None:
        merged = {**parent.tags, **added} if parent is not None else {}
        for name in removed:
            merged.pop(name, None)
        self.tags: Mapping[str, str] = MappingProxyType(merged)
        self.owner = owner
        self.parent = parent
        self.ended = False
        self.depth = 0 if parent is None else parent.depth + 1
        self.added = added
        self.removed = removed
        self.before = before


_ROOT = Frame(None, None)
_frame: ContextVar[Frame] = ContextVar("otel_tokens_tags", default=_ROOT)
_process: dict[str, str] = {}  # the tags of every call of this process
_keys: dict[str, str] = {}  # tag name -> its key in W3C baggage, for the tags that may travel


def configure(propagate: Sequence[str] = ()) -> None:
    """Let the tags named in `propagate`, and no others, travel between services as W3C baggage."""
    global _keys
    _keys = {name: f"{NAMESPACE}.{name}" for name in propagate}


def process_tags(tags: Mapping[str, str]) -> None:
    """Put `tags` on every call of this process, whatever its thread; all other tags win over them."""
    global _process
    _process = dict(tags)


def current_tags() -> Mapping[str, str]:
    """The tags in force here; those set in this process win over those that came in from another service."""
    tags = _frame.get().tags
    if _process:  # merged here and not in the frames: code may be inside of some when they are set
        tags = MappingProxyType({**_process, **tags})
    return _with_incoming(tags) if _keys else tags


def _with_incoming(tags: Mapping[str, str]) -> Mapping[str, str]:
    carried = baggage.get_all()
    if not carried:
        return tags
    incoming: dict[str, str] = {}
    for name, key in _keys.items():
        value = carried.get(key)
        if name not in tags and isinstance(value, str) and len(value) <= MAX_LENGTH and value.isprintable():
            incoming[name] = value
            if len(incoming) == MAX_INCOMING:
                break
    return MappingProxyType({**incoming, **tags}) if incoming else tags


def push(owner: object, added: Mapping[str, str], removed: Iterable[str] = ()) -> None:
    """Put tags on top of those in force, until `pop(owner)`."""
    before = _carry({name: added.get(name) for name in (*added, *removed)}) if _keys else {}
    frame = Frame(owner, _frame.get(), added, removed, before)
    if frame.depth % SHORTEN_EVERY == 0:
        _shorten(frame)
    _frame.set(frame)


def _shorten(frame: Frame) -> None:
    """Cut the chain below the first frame that has ended: no code here returns to what is below it.

    Without this a task that starts its successor under its own tags, which starts the next …, keeps them all.
    """
    depth = 0
    below = frame.parent
    while below is not None and not below.ended:
        depth += 1
        below = below.parent
    if below is not None:
        below.parent = None
        frame.depth = depth + 1


def pop(owner: object) -> None:
    """End the innermost tags of `owner`. There are none when their generator is closed in another Context."""
    above: list[Frame] = []
    frame = _frame.get()
    while frame.owner is not owner:
        if frame.parent is None:
            return
        above.append(frame)
        frame = frame.parent
    frame.ended = True
    below = frame.parent or _ROOT
    before = dict(frame.before)
    for upper in reversed(above):  # left out of order: what was put on top stays
        inherited = {name: before.pop(name) for name in upper.before if name in before}
        below = Frame(upper.owner, below, upper.added, upper.removed, {**upper.before, **inherited})
    _frame.set(below)
    _carry(before)


class Steps:
    """The tags of one generator: in force during each step of its body, out of sight of its consumer between."""

    __slots__ = ("_added", "_carried", "_inner", "_outer", "_outer_carried", "_removed")

    def __init__(self, added: Mapping[str, str], removed: Iterable[str]) -> None:
        self._added = added
        self._removed = removed
        self._inner: Frame | None = None
        self._outer = _ROOT
        self._carried: Carried = {}
        self._outer_carried: Carried = {}

    def __enter__(self) -> None:
        self._outer = _frame.get()
        if _keys:
            carried = baggage.get_all()
            self._outer_carried = {name: carried.get(key) for name, key in _keys.items()}
        if self._inner is None:
            push(self, self._added, self._removed)
        else:
            _frame.set(self._inner)
            _carry(self._carried)

    def __exit__(self, *_: object) -> None:
        self._inner = _frame.get()
        _frame.set(self._outer)
        self._carried = _carry(self._outer_carried)


def _carry(values: Mapping[str, object]) -> Carried:
    """Set (None: remove) the baggage entries of these tags; returns what they were before.

    Attached without ever being detached by token: detaching in another Context is what logs "Failed to detach
    context". Everything else in the OpenTelemetry context stays as it is now.
    """
    before: Carried = {}
    if not values:
        return before
    now = changed = context.get_current()
    for name, value in values.items():
        key = _keys.get(name)
        if key is None:
            continue
        before[name] = baggage.get_baggage(key, now)
        if before[name] == value:
            continue
        changed = baggage.remove_baggage(key, changed) if value is None else baggage.set_baggage(key, value, changed)
    if changed is not now:
        context.attach(changed)
    return before
