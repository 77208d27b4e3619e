"""SDKs: installed, within the tested range, and every target where it should be. Imports them, as only doctor may."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, entry_points, version
from importlib.util import find_spec
from typing import Any

from otel_tokens.capture.patch import Patcher, TargetState
from otel_tokens.capture.takeoff import INSTRUMENTORS, LOGFIRE
from otel_tokens.cli.checks.finding import Finding
from otel_tokens.providers.registry import providers
from otel_tokens.providers.spec import Provider
from otel_tokens.settings import Settings

PART = "SDKs"


def check(settings: Settings) -> Iterator[Finding]:
    """All SDKs and what else patches them."""
    found = False
    for provider in providers():
        try:
            installed = version(provider.distribution)
        except PackageNotFoundError:
            yield Finding(PART, "note", f"{provider.distribution} is not installed")
            continue
        found = True
        yield from _sdk(provider, installed, settings)
    if not found:
        yield Finding(PART, "warning", "no SDK that can be metered is installed in this Python")
    yield from _foreign(settings)


def _sdk(provider: Provider, installed: str, settings: Settings) -> Iterator[Finding]:
    name = f"{provider.distribution} {installed}"
    if provider.sdk in settings.disabled_sdks:
        yield Finding(PART, "warning", f"{name}: not patched, disabled_sdks names it")
        return
    low, high = provider.tested
    tested = f"tested {low} to {high}"
    states, problem = _patched(provider)
    if problem:
        yield Finding(PART, "error", f"{name} cannot be imported: {problem}")
        return
    needed = [state for state in states if not state.target.optional]
    missing = [state for state in needed if state.state != "patched"]
    for state in missing:
        hint = "calls through it are not counted; update otel-tokens, or report the version"
        yield Finding(PART, "error", f"{name}: {state.target.module}.{state.target.name} is missing", hint)
    if not missing:
        done = sum(state.state == "patched" for state in states)
        yield Finding(PART, "ok", f"{name} ({tested}): {done} of {len(states)} targets can be patched")
    if _numbers(installed) < _numbers(low):
        yield Finding(PART, "warning", f"{name} is older than what is tested ({tested})")
    elif _numbers(installed)[:1] > _numbers(high)[:1]:
        yield Finding(PART, "warning", f"{name} is newer than what is tested ({tested})")
    if provider.native_switch and os.environ.get(provider.native_switch, "").lower() not in ("false", "0"):
        words = "adopted" if settings.foreign == "coexist" else "suppressed"
        yield Finding(PART, "note", f"{provider.distribution} may trace by itself; its spans are {words}")


def _patched(provider: Provider) -> tuple[list[TargetState], str]:
    """Patch for a moment; the state of each target, or why the SDK cannot be imported."""
    patcher = Patcher()
    patcher.install(provider, lambda _: _pass)
    try:
        for module in dict.fromkeys(target.module for target in provider.targets):
            with contextlib.redirect_stderr(io.StringIO()):  # what an SDK says at import is not ours to repeat
                importlib.import_module(module)
        return patcher.states(), ""
    except Exception as error:  # a broken installation may raise anything
        return [], f"{type(error).__name__}: {error}"
    finally:
        patcher.uninstall()


def _pass(wrapped: Any, instance: Any, args: Any, kwargs: Any) -> Any:
    return wrapped(*args, **kwargs)


def _foreign(settings: Settings) -> Iterator[Finding]:
    # To look inside OpenLIT or Logfire would import them.
    names = {module.partition(".")[0] if module.startswith("openlit.") else module for module in INSTRUMENTORS}
    for name in sorted(filter(_is_there, names | {LOGFIRE})):
        words = (
            "its spans stay, ours are added to them" if settings.foreign == "coexist" else "it is taken off the SDKs"
        )
        yield Finding(PART, "note", f"{name} is installed as well: {words} (foreign: {settings.foreign})")
    if not any(point.name == "otel_tokens" for point in entry_points(group="opentelemetry_instrumentor")):
        hint = "otel-tokens run works all the same; reinstall otel-tokens for opentelemetry-instrument"
        yield Finding(PART, "warning", "opentelemetry-instrument does not know otel_tokens", hint)


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def _numbers(text: str) -> tuple[int, ...]:
    numbers: list[int] = []
    for part in text.split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits:
            break
        numbers.append(int(digits))
    return tuple(numbers)
