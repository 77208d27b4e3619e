"""Attributes put onto a span at once, against the SDK's own way."""

from __future__ import annotations

from typing import Any

import pytest
from opentelemetry.attributes import BoundedAttributes
from opentelemetry.sdk import trace as sdk
from opentelemetry.sdk.trace import SpanLimits, TracerProvider
from opentelemetry.trace import INVALID_SPAN

from otel_tokens.telemetry.writing import set_attributes

VALUES = {"a": 1, "b": 0.5, "c": "words", "d": True, "e": ("stop", "length"), "f": ""}
LIMITS = {
    "none": SpanLimits(),
    "few": SpanLimits(max_span_attributes=4),
    "as many": SpanLimits(max_span_attributes=7),
    "no attributes": SpanLimits(max_span_attributes=0),
    "short": SpanLimits(max_span_attribute_length=3),
    "unset": SpanLimits(max_span_attributes=SpanLimits.UNSET, max_span_attribute_length=SpanLimits.UNSET),
}


def started(limits: SpanLimits | None = None) -> Any:
    return TracerProvider(span_limits=limits).get_tracer("t").start_span("s", attributes={"a": 0, "z": "first"})


@pytest.mark.parametrize("name", LIMITS)
def test_the_span_is_as_the_sdk_would_have_made_it(name: str) -> None:
    ours, theirs = started(LIMITS[name]), started(LIMITS[name])
    set_attributes(ours, VALUES)
    theirs.set_attributes(VALUES)
    assert dict(ours.attributes) == dict(theirs.attributes)
    assert ours.dropped_attributes == theirs.dropped_attributes


def test_values_are_not_examined_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the installed SDK the short way is the one that is gone."""
    span = started()
    monkeypatch.setattr(BoundedAttributes, "_set_items", None)
    set_attributes(span, VALUES)
    assert dict(span.attributes) == {"z": "first", **VALUES}


def test_what_has_ended_stays_as_it_is() -> None:
    span = started()
    span.end()
    set_attributes(span, VALUES)
    assert dict(span.attributes) == {"a": 0, "z": "first"}


def test_the_span_is_held_meanwhile() -> None:
    """As by the SDK: an exporter reads the attributes of a span that has ended without a lock."""
    span, held = started(), []

    class Watched(dict[str, Any]):
        def update(self, *more: Any, **named: Any) -> None:
            held.append(span._lock.locked())
            super().update(*more, **named)

    span._attributes._dict = Watched(span._attributes._dict)
    set_attributes(span, VALUES)
    assert held == [True]


def test_a_span_with_ways_of_its_own_is_asked() -> None:
    asked: list[Any] = []

    class Own(sdk._Span):
        def set_attributes(self, attributes: Any) -> None:
            asked.append(attributes)

    of_a_kind, watched = started(), started()
    of_a_kind.__class__ = Own
    watched.set_attributes = asked.append
    for span in (of_a_kind, watched, INVALID_SPAN):
        set_attributes(span, VALUES)
    assert asked == [VALUES, VALUES]
    assert dict(watched.attributes) == dict(of_a_kind.attributes) == {"a": 0, "z": "first"}


def test_an_sdk_that_looks_different() -> None:
    span = started()
    del span._attributes.max_value_len
    span._attributes._set_items = (seen := {}).update
    set_attributes(span, VALUES)
    assert seen == VALUES
