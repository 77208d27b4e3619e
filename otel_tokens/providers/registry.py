"""The list of providers: ours, and those that other packages declare under `otel_tokens.providers`."""

from __future__ import annotations

import os
import sys
from functools import lru_cache

from otel_tokens.providers import anthropic, openai
from otel_tokens.providers.spec import Endpoint, Provider
from otel_tokens.safely import safely

BUILT_IN: tuple[Provider, ...] = (openai.PROVIDER, anthropic.PROVIDER)
ENTRY_POINT_GROUP = "otel_tokens.providers"


@lru_cache(maxsize=1)
def providers() -> tuple[Provider, ...]:
    """All known providers, built-in ones first. One that cannot be loaded is reported and left out."""
    if not _others_declared():
        return BUILT_IN
    from importlib.metadata import entry_points

    loaded = [safely(f"provider {point.name}", point.load) for point in entry_points(group=ENTRY_POINT_GROUP)]
    return BUILT_IN + tuple(item for item in loaded if isinstance(item, Provider))


def sdk_names() -> tuple[str, ...]:
    """The SDKs that are patched, as settings name them."""
    return tuple(dict.fromkeys(provider.sdk for provider in providers()))


def _others_declared() -> bool:
    """Whether an installed package names the group; most environments have none. Reads the files itself:
    importlib.metadata loads email, zipfile and more, which takes longer than the rest of `instrument()`."""
    group = ENTRY_POINT_GROUP.encode()
    for folder in dict.fromkeys(sys.path):
        try:
            with os.scandir(folder or ".") as entries:
                found = [entry.path for entry in entries if entry.name.endswith((".dist-info", ".egg-info"))]
        except NotADirectoryError:  # a zip file: only importlib.metadata can look into it
            return True
        except OSError:
            continue
        for place in found:
            try:
                with open(f"{place}/entry_points.txt", "rb") as file:  # noqa: PTH123 (pathlib takes longer to load)
                    if group in file.read():
                        return True
            except OSError:  # most have none
                continue
    return False


@lru_cache(maxsize=4096)
def route(sdk: str, url: str) -> Endpoint | None:
    """The billed endpoint that a POST to `url` (path or absolute, with or without query) reaches, or None."""
    path = url.partition("?")[0].rstrip("/")
    best: Endpoint | None = None
    for provider in providers():
        if provider.sdk == sdk:
            for endpoint in provider.endpoints:
                if path.endswith(endpoint.path) and (best is None or len(endpoint.path) > len(best.path)):
                    best = endpoint
    return best


def endpoint_named(name: str) -> Endpoint | None:
    """The endpoint of that name ("openai.chat"), or None."""
    return next((e for provider in providers() for e in provider.endpoints if e.name == name), None)
