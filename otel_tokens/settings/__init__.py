"""Settings: keyword > environment (`OTEL_TOKENS_*`) > file (`otel-tokens.yaml`), as one frozen `Settings`."""

from __future__ import annotations

from otel_tokens.settings.entry import Entry
from otel_tokens.settings.load import default_ledger, load_settings, refuse, unknown_variables
from otel_tokens.settings.schema import SETTINGS, HostRow, Setting, Settings
from otel_tokens.settings.yaml import read_yaml

__all__ = [
    "SETTINGS",
    "Entry",
    "HostRow",
    "Setting",
    "Settings",
    "default_ledger",
    "load_settings",
    "read_yaml",
    "refuse",
    "unknown_variables",
]
