"""Many attributes onto a span at once.

The SDK's `Span.set_attributes` examines every value and copies it twice, about 1 us each, and a call has 25. Ours are
of the types that OpenTelemetry allows, so they are put where the SDK would put them. That takes private names of the
SDK; where anything is not as known (another kind of span, a limit on lengths or numbers, an SDK newer than ours)
`Span.set_attributes` is called after all.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from opentelemetry.attributes import BoundedAttributes
from opentelemetry.trace import Span

_SDK_ATTRIBUTES: Any = BoundedAttributes  # untyped: its parts that are used here are private


@cache
def _sdk_method() -> object:
    from opentelemetry.sdk.trace import Span as SdkSpan  # only asked with a span of the SDK's at hand

    return SdkSpan.set_attributes


def set_attributes(span: Span, attributes: Mapping[str, Any]) -> None:
    """`span.set_attributes(attributes)`, for values of str, bool, int, float, and tuples of them."""
    found: Any = span
    held: Any = getattr(found, "_attributes", None)
    if type(held) is _SDK_ATTRIBUTES and getattr(found.set_attributes, "__func__", None) is _sdk_method():
        try:
            with found._lock, held._lock:  # as the SDK takes them: nobody ends the span meanwhile, or reads half of it
                room = held.maxlen is None or len(held._dict) + len(attributes) <= held.maxlen
                if room and held.max_value_len is None and not held._immutable:  # which it is once the span has ended
                    held._dict.update(attributes)
                    return
        except AttributeError:
            pass
    span.set_attributes(attributes)
