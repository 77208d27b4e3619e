"""Other instrumentors of the same SDKs: which there are, and taking them off (`foreign: own`)."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from typing import Any

from otel_tokens.safely import safely

logger = logging.getLogger("otel_tokens")

INSTRUMENTORS = {
    "opentelemetry.instrumentation.openai": "OpenAIInstrumentor",
    "opentelemetry.instrumentation.openai_v2": "OpenAIInstrumentor",
    "opentelemetry.instrumentation.anthropic": "AnthropicInstrumentor",
    "opentelemetry.instrumentation.genai.openai": "OpenAIInstrumentor",
    "opentelemetry.instrumentation.genai.anthropic": "AnthropicInstrumentor",
    "openinference.instrumentation.openai": "OpenAIInstrumentor",
    "openinference.instrumentation.anthropic": "AnthropicInstrumentor",
    "openlit.instrumentation.openai": "OpenAIInstrumentor",
    "openlit.instrumentation.anthropic": "AnthropicInstrumentor",
}
"""Other instrumentors of the same SDKs, by module."""
LOGFIRE = "logfire"
"""Has functions instead of instrumentors, and marks what they have wrapped."""
SDKS = ("openai", "anthropic")


def foreign_instrumentors() -> list[str]:
    """The modules of other LLM instrumentors that this process has imported."""
    return [name for name in INSTRUMENTORS if name in sys.modules]


def take_off() -> list[str]:
    """Take the other instrumentors off the SDKs; returns the modules of those that were on."""
    present = foreign_instrumentors()
    taken = {name for name in present if _uninstrumented(name)}
    if present or LOGFIRE in sys.modules:
        taken.update(safely("take off", _take_off_rest, present) or ())
    return sorted(taken)


def _uninstrumented(module: str) -> bool:
    try:
        instrumentor: Any = getattr(sys.modules[module], INSTRUMENTORS[module])()
        if not getattr(instrumentor, "is_instrumented_by_opentelemetry", False):
            return False
        instrumentor.uninstrument()
    except Exception as error:  # theirs, whatever it is
        logger.warning("could not take %s off: %s", module, error)
        return False
    return True


def _take_off_rest(present: list[str]) -> set[str]:
    taken: set[str] = set()
    for kind in _classes():
        taken.update(_unwrapped(kind, present))
        if _logfire_unwrapped(kind):
            taken.add(LOGFIRE)
    return taken


def _classes() -> Iterator[Any]:
    """The SDKs' classes, without those of their types, of which there are thousands."""
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in SDKS and ".types" not in name:
            for held in list(getattr(module, "__dict__", {}).values()):
                # Not isinstance, which would make an SDK's lazy modules load.
                if issubclass(type(held), type) and held.__module__ == name:
                    yield held


def _unwrapped(kind: Any, theirs: list[str]) -> Iterator[str]:
    """Take what is left of `theirs` off a class: OpenLLMetry and OpenLIT do not undo all that they have wrapped."""
    import wrapt  # is there: they wrap by it

    own: dict[str, Any] = dict(kind.__dict__)
    for name, held in own.items():
        inner, found = held, ""
        while issubclass(type(inner), wrapt.FunctionWrapper) and (by := _whose(inner, theirs)):
            inner, found = inner.__wrapped__, by
        if found:
            setattr(kind, name, inner)
            yield found


def _whose(wrapped: Any, theirs: list[str]) -> str | None:
    module = getattr(getattr(wrapped, "_self_wrapper", None), "__module__", None) or ""
    return next((name for name in theirs if module == name or module.startswith(f"{name}.")), None)


def _logfire_unwrapped(kind: Any) -> bool:
    """Put a class's `request` back. The marks stay: Logfire's context manager needs them when it ends."""
    own: dict[str, Any] = dict(kind.__dict__)
    found = own.get("_original_request_method") if own.get("_is_instrumented_by_logfire") else None
    if found is None or getattr(own.get("request"), "__wrapped__", None) is not found:
        return False
    kind.request = found
    return True
