"""Every setting, once: name, type, default, meaning. The docs and `--help` are made from these rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from otel_tokens.conventions import COST_ALIASES, SEMCONV_MODES
from otel_tokens.errors import ConfigError
from otel_tokens.settings.entry import Entry

Kind = Literal[
    "bool", "int", "float", "bytes", "text", "choice", "names", "aliases", "percents",
    "path", "ledger", "store", "endpoint", "hosts", "entries", "entry",
]  # fmt: skip

TYPE_NAMES: dict[Kind, str] = {
    "bool": "true | false",
    "int": "whole number",
    "float": "number",
    "bytes": "bytes, or 500MB, 2GiB …",
    "text": "text",
    "choice": "one of",
    "names": "list of names",
    "aliases": "list of attribute names",
    "percents": "list of per cents",
    "path": "path",
    "ledger": "path | true | false",
    "store": "memory | sqlite:///path | redis://…",
    "endpoint": "URL",
    "hosts": "list of mappings",
    "entries": "list of mappings",
    "entry": "mapping",
}
_ONLY_IN_FILES: frozenset[Kind] = frozenset({"hosts", "entries", "entry"})
ENV_PREFIX = "OTEL_TOKENS_"


class Setting(NamedTuple):
    """One row of the table of settings.

    `env` is its environment variable, `fallback_env` a variable of OpenTelemetry that is asked next; None when
    there is none. `minimum` and `maximum` bound numbers.
    """

    name: str
    kind: Kind
    default: Any
    doc: str
    allowed: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    fallback_env: str | None = None

    @property
    def env(self) -> str | None:
        """The environment variable, or None for what only a file (or Python) can say."""
        return None if self.kind in _ONLY_IN_FILES else ENV_PREFIX + self.name.upper()

    @property
    def type(self) -> str:
        """The type in words, with the allowed values of a choice."""
        return " | ".join(self.allowed) if self.kind == "choice" else TYPE_NAMES[self.kind]


@dataclass(frozen=True, slots=True)
class HostRow:
    """One row of `hosts:` — who bills at a host of the user's own.

    `match` is `host`, `*.suffix` or `host:port` in lower case; `path` limits the row to URLs below it.
    `provider` None keeps what the built-in table says. `free` means its calls cost nothing. `include_usage` is
    whether the host takes `stream_options.include_usage`, None when not known.
    """

    match: str
    provider: str | None = None
    path: str = ""
    free: bool = False
    include_usage: bool | None = None


def row(kind: Kind, default: Any, doc: str, **more: Any) -> Any:
    """A field of `Settings` together with its row of the table."""
    return field(default=default, metadata={"kind": kind, "doc": doc, **more})


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings, checked. `None` means "not said": whoever uses the setting decides.

    `sources` says where each setting that is not a default comes from ("keyword", a variable's name, a file with
    its line). `problems` is what was ignored because of `on_config_error: ignore`.
    """

    config: str | None = row(
        "path", None, "Configuration file; default: otel-tokens.yaml in the current directory, `off` for none."
    )
    enabled: bool = row("bool", True, "Whether otel_tokens does anything at all.")
    on_config_error: Literal["raise", "ignore"] = row(
        "choice", "raise", "What a mistake in the configuration does.", allowed=("raise", "ignore")
    )
    # ---- capture
    disabled_sdks: tuple[str, ...] = row("names", (), "SDKs that are not patched, by provider name: openai, anthropic.")
    foreign: Literal["coexist", "own"] = row(
        "choice",
        "coexist",
        "Spans of other instrumentations: leave them and add ours to them, or suppress them.",
        allowed=("coexist", "own"),
    )
    include_usage: bool = row("bool", True, "Ask OpenAI chat streams for usage when the caller did not.")
    hosts: tuple[HostRow, ...] = row(
        "hosts", (), "Who bills at which host: match, provider, path, free, include_usage."
    )
    # ---- tags
    propagate_tags: tuple[str, ...] = row(
        "names", (), "Tags that W3C baggage carries to other services, and takes from them."
    )
    metric_attributes: tuple[str, ...] = row("names", (), "Tags that become attributes of the otel_tokens.* metrics.")
    # ---- telemetry
    semconv: str = row("choice", "latest", "Which names of the GenAI conventions to emit.", allowed=SEMCONV_MODES)
    label_limit: int = row(
        "int", 200, "Distinct values a metric attribute may have; further ones become __other__.", minimum=1
    )
    cost_aliases: tuple[str, ...] = row(
        "aliases", (), "Other attributes that carry a call's cost as well.", allowed=COST_ALIASES
    )
    token_histograms: bool = row("bool", False, "Histograms of input and output tokens per call.")
    cost_histogram: bool = row("bool", False, "Histogram of the cost per call.")
    chunk_histogram: bool = row("bool", False, "Histogram of the time between the chunks of a stream.")
    prometheus: bool = row("bool", False, "Serve /metrics for Prometheus.")
    prometheus_host: str = row(
        "text", "127.0.0.1", "Address to serve /metrics on.", fallback_env="OTEL_EXPORTER_PROMETHEUS_HOST"
    )
    prometheus_port: int = row(
        "int",
        9464,
        "Port to serve /metrics on; 0 takes a free one.",
        minimum=0,
        maximum=65535,
        fallback_env="OTEL_EXPORTER_PROMETHEUS_PORT",
    )
    otlp_endpoint: str | None = row(
        "endpoint", None, "Where to send OTLP; default: the OTEL_EXPORTER_OTLP_* variables."
    )
    flush_timeout: float = row("float", 2.0, "Seconds that the flush at exit may take.", minimum=0)
    live: bool | None = row("bool", None, "Live line on stderr under `run`; default: when it is a terminal.")
    # ---- ledger
    ledger: str | Literal[False] | None = row(
        "ledger", None, "File of the ledger; true: the default place; default: on under `run`, else off."
    )
    ledger_max_age_days: float | None = row(
        "float", None, "Rows older than this are deleted; default: kept.", minimum=0
    )
    ledger_max_bytes: int | None = row("bytes", None, "Size above which the oldest rows are deleted.", minimum=0)
    # ---- prices
    prices: tuple[Entry, ...] = row("entries", (), "Prices of your own, per million tokens; they win.")
    prices_file: str | None = row("path", None, "A file with a `prices:` list.")
    # ---- guard
    budgets: tuple[Entry, ...] = row("entries", (), "The budgets.")
    guard: Entry | None = row("entry", None, "Further options of the guard.")  # noqa: RUF009 (a field)
    store: str | None = row(
        "store", None, "Where budgets are kept; default: a file beside the ledger if it is on, else memory."
    )
    store_fail: Literal["local", "open", "closed"] = row(
        "choice",
        "local",
        "Without its store a process goes on by what it last knew, lets all calls through, or refuses them.",
        allowed=("local", "open", "closed"),
    )
    offline_share: float = row(
        "float",
        0.1,
        "Part of its limit (0 to 1) that an account has without its store if the process has not seen it yet.",
        minimum=0,
        maximum=1,
    )
    store_timeout: float = row("float", 0.5, "Seconds a call waits for the store at most.", minimum=0)
    estimate: Literal["upper", "expected"] = row(
        "choice", "upper", "What a call is expected to use before it runs.", allowed=("upper", "expected")
    )
    unpriced: Literal["block", "sibling", "tokens"] = row(
        "choice",
        "block",
        "A call of a model without a price, under a budget of money.",
        allowed=("block", "sibling", "tokens"),
    )
    thresholds: tuple[float, ...] = row("percents", (70.0, 90.0, 100.0), "Per cents of a budget that are announced.")

    sources: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}), compare=False)
    problems: tuple[ConfigError, ...] = field(default=(), compare=False)


SETTINGS: tuple[Setting, ...] = tuple(
    Setting(name=f.name, default=f.default, **f.metadata) for f in fields(Settings) if "kind" in f.metadata
)
"""All settings, in the order of the documentation."""
