"""Imports genai-prices without the HTTP client that it brings along for its updater.

The import runs beside the application's own imports. openai 2.x looks into `sys.modules` and fails in the caller's code
if it finds a half-imported httpx2. Prices need no HTTP client. The updater can still be used: it is imported when
genai-prices is asked for it.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

PACKAGE = "genai_prices"
UPDATER = "genai_prices.update_prices"
CLIENT = "httpx2"
_NAMES = ("UpdatePrices", "wait_prices_updated_sync", "wait_prices_updated_async")


def import_prices() -> ModuleType:
    """The package genai_prices."""
    if PACKAGE in sys.modules or CLIENT in sys.modules:
        return import_module(PACKAGE)
    stand_in = ModuleType(UPDATER)
    for name in _NAMES:
        setattr(stand_in, name, _late(name))
    sys.modules[UPDATER] = stand_in
    try:
        package = import_module(PACKAGE)
    finally:
        if sys.modules.get(UPDATER) is stand_in:
            del sys.modules[UPDATER]
    for name in (*_NAMES, "update_prices"):
        vars(package).pop(name, None)
    vars(package)["__getattr__"] = _missing
    return package


def _late(name: str) -> Any:
    """Stands in for a name until it is imported, for a thread that reads it meanwhile."""

    def call(*args: Any, **keywords: Any) -> Any:
        return getattr(import_module(UPDATER), name)(*args, **keywords)

    return call


def _missing(name: str) -> Any:
    """genai_prices' names that were left out: imported when they are used."""
    if name in _NAMES or name == "update_prices":
        module = import_module(UPDATER)
        return module if name == "update_prices" else getattr(module, name)
    raise AttributeError(f"module {PACKAGE!r} has no attribute {name!r}")
