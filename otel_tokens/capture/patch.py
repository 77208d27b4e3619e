"""Patching: targets are wrapped when their module is imported, and restored from the same list.

Nothing is imported here: an SDK that the application never imports costs nothing.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from otel_tokens.capture.inplace import InPlace
from otel_tokens.capture.watch import forget_import, when_imported
from otel_tokens.providers.spec import Provider, Target
from otel_tokens.safely import report_fault

logger = logging.getLogger("otel_tokens")

Wrapper = Callable[..., Any]


class OnParent:
    """A wrapper that stands where a function stood."""

    def __init__(self, parent: Any, attribute: str, wrapper: Wrapper) -> None:
        import wrapt  # takes longer to import than all of ours: only once an SDK is there

        self.parent, self.attribute, self.original, self.on = parent, attribute, _own(parent, attribute), True
        # Others may have wrapped this wrapper. The switch makes it do nothing after uninstall.
        self.replacement = wrapt.FunctionWrapper(self.original, wrapper, enabled=lambda: self.on)
        setattr(parent, attribute, self.replacement)

    def holds(self, found: Any) -> bool:
        """Whether `found` is this wrapper, or others' wrappers around it."""
        for _ in range(50):
            if found is self.replacement or found is None:
                break
            found = getattr(found, "__wrapped__", None)
        return found is self.replacement

    def off(self) -> None:
        """Put the function back: the very same object that was there."""
        self.on = False
        if _own(self.parent, self.attribute) is self.replacement:
            setattr(self.parent, self.attribute, self.original)
        else:  # somebody wrapped our wrapper: it stays, and does nothing
            logger.debug("%s.%s is wrapped by others; our wrapper is switched off", self.parent, self.attribute)


@dataclass(frozen=True, slots=True)
class TargetState:
    """What `doctor` shows of a target: patched, missing, or waiting for its import."""

    sdk: str
    target: Target
    state: str


class Patcher:
    """Installs wrappers on targets and takes them off again."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._wrappers: dict[Target, Callable[[str], Wrapper]] = {}
        self._providers: dict[Target, Provider] = {}
        self._patched: list[tuple[Target, OnParent | InPlace]] = []
        self._missing: set[Target] = set()
        self._warned: set[str] = set()

    def install(self, provider: Provider, wrapper: Callable[[str], Wrapper]) -> None:
        """Patch a provider's targets now or when their modules are imported.

        `wrapper(kind)` is asked for what to put around a target when there is one.
        """
        with self._lock:
            for target in provider.targets:
                self._wrappers[target] = wrapper
                self._providers[target] = provider
            modules = dict.fromkeys(target.module for target in provider.targets)
        for module in modules:
            when_imported(module, self.module_imported)

    def uninstall(self) -> None:
        """Put every target back: the very same object that was there."""
        for module in {target.module for target in self._providers}:
            forget_import(module, self.module_imported)
        with self._lock:
            self._wrappers.clear()
            for _, patched in self._patched:
                patched.off()
            self._patched.clear()
            self._missing.clear()

    def states(self) -> list[TargetState]:
        """Every target and what became of it."""
        with self._lock:
            done = {target for target, _ in self._patched}
            return [
                TargetState(
                    provider.sdk,
                    target,
                    "patched" if target in done else "missing" if target in self._missing else "waiting",
                )
                for target, provider in self._providers.items()
            ]

    def module_imported(self, module: ModuleType) -> None:
        """Patch the targets of a module that has just been imported."""
        with self._lock:
            for target, wrapper in list(self._wrappers.items()):
                if target.module == module.__name__:
                    try:
                        self._patch(module, target, wrapper)
                    except Exception as error:  # an SDK that looks different must still import
                        self._missing.add(target)
                        report_fault(f"patching {target.module}.{target.name}", error)

    def _patch(self, module: ModuleType, target: Target, wrapper: Callable[[str], Wrapper]) -> None:
        provider = self._providers[target]
        self._note_version(provider)
        path, _, attribute = target.name.rpartition(".")
        parent: Any = module
        for name in path.split(".") if path else ():
            parent = getattr(parent, name, None)
        original = _own(parent, attribute)
        if any(done == target and patched.holds(original) for done, patched in self._patched):
            return  # unlike in a module that was imported anew
        if original is None:
            self._missing.add(target)
            if not target.optional:
                logger.warning(
                    "%s.%s is not there in this version of %s: calls through it are not counted (otel-tokens doctor)",
                    target.module,
                    target.name,
                    provider.distribution,
                )
            return
        self._patched.append((target, _wrap(target, parent, attribute, wrapper(target.kind))))

    def _note_version(self, provider: Provider) -> None:
        if provider.sdk in self._warned:
            return
        self._warned.add(provider.sdk)
        from importlib.metadata import PackageNotFoundError  # loads email, zipfile …
        from importlib.metadata import version as version_of

        try:
            version = version_of(provider.distribution)
        except PackageNotFoundError:
            return
        if _major(version) > _major(provider.tested[1]):
            logger.warning(
                "%s %s is newer than the tested %s; it is patched all the same (see otel-tokens doctor)",
                provider.distribution,
                version,
                provider.tested[1],
            )


def _own(parent: Any, attribute: str) -> Any:
    """What stands in the object's own dict: getattr would bind functions and find inherited ones."""
    held: dict[str, Any] = getattr(parent, "__dict__", {})
    return held.get(attribute)


def _wrap(target: Target, parent: Any, attribute: str, wrapper: Wrapper) -> OnParent | InPlace:
    """Put a wrapper inside a request function, which others wrap as well, and around any other."""
    if target.kind in ("request", "arequest"):
        try:
            return InPlace(_own(parent, attribute), wrapper)
        except (TypeError, ValueError):
            logger.debug("%s cannot hold a wrapper; it gets one around it", target)
    return OnParent(parent, attribute, wrapper)


def _major(version: str) -> int:
    head = version.partition(".")[0]
    return int(head) if head.isdigit() else 0
