"""Imports genai-prices without the HTTP client that it brings along for its updater.

The import runs beside the application's own. openai 2.x looks into `sys.modules` for a half-imported httpx2 and
falls over it, in the caller's hands; and an HTTP client is nothing that prices need. The updater stays reachable:
it is imported when somebody asks genai-prices for it.
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
    """For a thread that takes the name in the moment before it is put right."""

    def call(*args: Any, **keywords: Any) -> Any:
        return getattr(import_module(UPDATER), name)(*args, **keywords)

    return call


def _missing(name: str) -> Any:
    """genai_prices' names that were left out: imported when they are used."""
    if name in _NAMES or name == "update_prices":
        module = import_module(UPDATER)
        return module if name == "update_prices" else getattr(module, name)
    raise AttributeError(f"module {PACKAGE!r} has no attribute {name!r}")
