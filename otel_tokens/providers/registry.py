"""The list of providers: ours, and those that other packages declare under `otel_tokens.providers`."""

from __future__ import annotations

from functools import lru_cache

from otel_tokens.providers import anthropic, openai
from otel_tokens.providers.spec import Endpoint, Provider
from otel_tokens.safely import safely

BUILT_IN: tuple[Provider, ...] = (openai.PROVIDER, anthropic.PROVIDER)
ENTRY_POINT_GROUP = "otel_tokens.providers"


@lru_cache(maxsize=1)
def providers() -> tuple[Provider, ...]:
    """All known providers, built-in ones first. A foreign one that cannot be loaded is reported and left out."""
    from importlib.metadata import entry_points  # loads email, zipfile …: not on `import otel_tokens`

    loaded = [safely(f"provider {point.name}", point.load) for point in entry_points(group=ENTRY_POINT_GROUP)]
    return BUILT_IN + tuple(item for item in loaded if isinstance(item, Provider))


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
