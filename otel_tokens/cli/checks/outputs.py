"""Where results go: OTLP, /metrics, the ledger, the store of the budgets."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import urlopen

from otel_tokens import conventions as c
from otel_tokens.cli.checks.finding import Finding
from otel_tokens.errors import ConfigError, LedgerError
from otel_tokens.guard.store.base import StoreError
from otel_tokens.reports.text import are, counted
from otel_tokens.settings import Settings, default_ledger
from otel_tokens.text import shown_url

_WAIT = 2.0  # seconds for an answer
_PORTS = {"http": 80, "https": 443}
_MANY = 8
_HINT = "pip install 'otel-tokens[grpc]', or set OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf"


def check(settings: Settings) -> Iterator[Finding]:
    """All outputs that are asked for."""
    yield from _otlp(settings)
    yield from _prometheus(settings)
    yield from _ledger(settings)
    yield from _store(settings)


# ---- OTLP


def _otlp(settings: Settings) -> Iterator[Finding]:
    part = "OTLP"
    if os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        yield Finding(part, "warning", "OTEL_SDK_DISABLED is true: nothing is exported")
    endpoints: dict[str, str] = {}
    for signal in ("TRACES", "METRICS"):
        for source, value in (
            (f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT", os.environ.get(f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT")),
            ("otlp_endpoint", settings.otlp_endpoint),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")),
        ):
            if value:
                endpoints.setdefault(value, source)
                break
    if not endpoints:
        yield Finding(part, "note", "no endpoint is set: nothing is sent")
    elif _lacks_grpc(settings):
        yield Finding(part, "error", "gRPC is asked for and its package is not installed: nothing is sent", _HINT)
    for endpoint, source in endpoints.items():
        yield _reach(endpoint, source)


def _lacks_grpc(settings: Settings) -> bool:
    from otel_tokens.telemetry.setup import lacks_grpc  # loads the SDK of OpenTelemetry

    return lacks_grpc(settings)


def _reach(endpoint: str, source: str) -> Finding:
    shown = f"{shown_url(endpoint)} ({source})"
    try:
        parts = urlsplit(endpoint if "://" in endpoint else f"http://{endpoint}")
        host, port = parts.hostname, parts.port or _PORTS.get(parts.scheme, 4317)
        if not host:
            raise ValueError("no host")
        socket.create_connection((host, port), _WAIT).close()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        return Finding("OTLP", "error", f"{shown} cannot be reached: {reason}", "is the collector running?")
    return Finding("OTLP", "ok", f"{shown} answers")


# ---- Prometheus


def _prometheus(settings: Settings) -> Iterator[Finding]:
    part = "Prometheus"
    host, port = settings.prometheus_host, settings.prometheus_port
    address = f"{host}:{port}"
    if settings.prometheus is False:
        yield Finding(part, "note", "/metrics is off (prometheus: false)")
    elif port == 0 or _is_free(host, port):
        when = "" if settings.prometheus else ", where nothing else exports metrics"
        yield Finding(part, "ok", f"{address} is free for /metrics{when}")
    elif _is_ours(host, port):
        yield Finding(part, "ok", f"{address} is served by an otel-tokens process now")
    else:
        hint = "set prometheus_port (OTEL_TOKENS_PROMETHEUS_PORT, otel-tokens run --port)"
        level = "error" if settings.prometheus else "warning"
        yield Finding(part, level, f"{address} is taken by another program, /metrics cannot be served", hint)


def _is_free(host: str, port: int) -> bool:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        with socket.create_server(address[:2], family=family):
            return True
    except (OSError, OverflowError):
        return False


def _is_ours(host: str, port: int) -> bool:
    name = c.BUILD_INFO.name.replace(".", "_")
    near = "127.0.0.1" if host in ("", "0.0.0.0", "::") else host  # noqa: S104 (compared, not bound)
    try:
        with urlopen(f"http://{near}:{port}/metrics", timeout=_WAIT) as answer:
            return name in answer.read(1_000_000).decode(errors="replace")
    except HTTPError as error:
        error.close()
        return False
    except (OSError, ValueError):
        return False


# ---- ledger


def _ledger(settings: Settings) -> Iterator[Finding]:
    from otel_tokens.ledger.audit import audit

    part = "ledger"
    try:
        path = Path(settings.ledger or default_ledger()).expanduser()
    except ValueError as error:
        yield Finding(part, "error", str(error))
        return
    if settings.ledger is False:
        yield Finding(part, "note", "off (ledger: false)")
        return
    asked = "" if settings.ledger else ", used by otel-tokens run"
    if not path.exists():
        problem = _not_writable(path)
        if problem:
            yield Finding(part, "error", f"{path} cannot be made: {problem}")
        else:
            yield Finding(part, "note", f"{path} is not there yet{asked}")
        return
    try:
        findings = audit(path)
        yield from _unpriced(str(path))
    except LedgerError as error:
        yield Finding(part, "error", str(error))
        return
    for found in findings:
        yield Finding(part, "error" if found.severity == "error" else "warning", f"{path}: {found.message}")
    if not any(found.severity == "error" for found in findings):
        yield Finding(part, "ok", f"{path} is sound, {_size(path)}{asked}")


def _unpriced(path: str) -> Iterator[Finding]:
    from otel_tokens.ledger.query import aggregate

    calls: dict[tuple[str, str, str], int] = {}
    unpriced = {"cost_status": "unpriced"}
    for key, _, sums in aggregate(path, ("server_address", "provider", "model"), where=unpriced):
        if sums.counts["unpriced"]:
            host, provider, model = map(str, key)
            calls[host, provider, model] = calls.get((host, provider, model), 0) + sums.counts["unpriced"]
    ordered = sorted(calls.items(), key=lambda item: -item[1])
    for (host, provider, model), count in ordered[:_MANY]:
        if provider == host:
            hint = "say who bills there under `hosts:`, or give a price under `prices:`"
            text = f"{host}: nobody known bills there; {counted(count, 'call')} of {model} {are(count)} unpriced"
        else:
            hint = f"otel-tokens prices {model} --provider {provider}"
            text = f"{host} ({provider}): {counted(count, 'call')} of {model} {are(count)} unpriced"
        yield Finding("prices", "warning", text, hint)
    if len(ordered) > _MANY:
        more = len(ordered) - _MANY
        yield Finding("prices", "warning", f"{more} more {'model is' if more == 1 else 'models are'} unpriced")


def _size(path: Path) -> str:
    size = sum(part.stat().st_size for part in (path, Path(f"{path}-wal")) if part.exists())
    return f"{size / 1e6:.1f} MB"


def _not_writable(path: Path) -> str:
    place = next((parent for parent in path.parents if parent.exists()), None)
    if place is None or not place.is_dir():
        return f"{place} is no folder"
    return "" if os.access(place, os.W_OK | os.X_OK) else f"{place} is not writable"


# ---- budgets


def _store(settings: Settings) -> Iterator[Finding]:
    if not settings.budgets:
        return
    from otel_tokens.cli.budgets.place import opened

    part = "budgets"
    if settings.store in ("memory", "memory://"):
        yield Finding(part, "note", "are kept in memory: each process has its own, and a restart forgets them")
        return
    try:
        with opened(None, None, settings.config or "off") as place:
            place.store.rows(limit=1)
            yield Finding(part, "ok", f"{shown_url(place.address)} answers")
    except StoreError as error:
        yield Finding(
            part, "error", f"the store does not answer: {error}", f"then the guard fails {settings.store_fail}"
        )
    except ConfigError as error:
        yield Finding(part, "error", str(error))
