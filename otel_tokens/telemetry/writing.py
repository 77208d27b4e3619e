"""Many attributes onto a span at once.

The SDK's `Span.set_attributes` examines every value and copies it twice, about 1 us each, and a call has 25. Ours are
of the types that OpenTelemetry allows, so they are put where the SDK would put them. That takes private names of the
SDK; where anything is not as known (another kind of span, a limit on lengths or numbers, an SDK newer than ours) the
public way is gone.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from opentelemetry.attributes import BoundedAttributes
from opentelemetry.trace import Span

_KIND: Any = BoundedAttributes


@cache
def _of_the_sdk() -> object:
    from opentelemetry.sdk.trace import Span as SdkSpan  # only asked with a span of the SDK's at hand

    return SdkSpan.set_attributes


def set_attributes(span: Span, attributes: Mapping[str, Any]) -> None:
    """`span.set_attributes(attributes)`, for values of str, bool, int, float, and tuples of them."""
    held: Any = getattr(span, "_attributes", None)
    try:
        if (
            type(held) is _KIND
            and getattr(span.set_attributes, "__func__", None) is _of_the_sdk()
            and not held._immutable  # the span has not ended
            and held.max_value_len is None
            and (held.maxlen is None or len(held._dict) + len(attributes) <= held.maxlen)
        ):
            with held._lock:
                held._dict.update(attributes)
            return
    except AttributeError:
        pass
    span.set_attributes(attributes)
