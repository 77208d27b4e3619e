"""Writes the tables of the documentation that say what the code says: `python docs/generate.py`.

A page marks such a part by `<!-- generated: NAME -->` and `<!-- end -->`; everything between is replaced.
tests/docs compares the committed pages with what this makes.
"""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import click
from attributes import ON_EVENTS, ON_METRICS, ON_SPANS

from otel_tokens import conventions as c
from otel_tokens.cli.group import cli
from otel_tokens.guard.budgets.presets import PRESETS, STANDARD_THRESHOLDS
from otel_tokens.ledger.dimensions import DIMENSIONS
from otel_tokens.ledger.rows import COLUMNS
from otel_tokens.pricing.shipped import PRICE_LISTS
from otel_tokens.providers.hosts import LOCAL_PORTS, TABLE
from otel_tokens.providers.registry import BUILT_IN
from otel_tokens.settings import SETTINGS, Setting

DOCS = Path(__file__).resolve().parent
PAGES = (DOCS.parent / "README.md", *sorted(DOCS.glob("*.md")))
_PART = re.compile(r"(<!-- generated: (?P<name>[^>]+) -->\n).*?(<!-- end -->)", re.DOTALL)

# Metric → when it is there, unless always.
WHEN = {
    c.TOKENS_INPUT.name: "`latest`, `both`",
    c.TOKENS_OUTPUT.name: "`latest`, `both`",
    c.TOKENS_CACHE_READ.name: "`latest`, `both`",
    c.TOKENS_CACHE_WRITE.name: "`latest`, `both`",
    c.TOKENS_REASONING.name: "`latest`, `both`",
    c.DURATION.name: "`latest`, `both`",
    c.OPERATION_DURATION.name: "embeddings; all calls in `1.41`, `both`",
    c.FIRST_CHUNK.name: "`latest`, `both`; streams",
    c.PER_CHUNK.name: "`chunk_histogram`, in `latest`, `both`; streams",
    c.CALL_INPUT_TOKENS.name: "`token_histograms`, in `latest`, `both`",
    c.CALL_OUTPUT_TOKENS.name: "`token_histograms`, in `latest`, `both`",
    c.TOKEN_USAGE_141.name: "`1.41`, `both`",
    c.FIRST_CHUNK_141.name: "`1.41`, `both`; streams",
    c.PER_CHUNK_141.name: "`chunk_histogram`, in `1.41`, `both`; streams",
    c.CALL_COST.name: "`cost_histogram`",
    c.BUDGET_COST_LIMIT.name: "with budgets",
    c.BUDGET_COST_USED.name: "with budgets",
    c.BUDGET_TOKEN_LIMIT.name: "with budgets",
    c.BUDGET_TOKEN_USED.name: "with budgets",
    c.BUDGET_USAGE_RATIO.name: "with budgets",
    c.BUDGET_DECISIONS.name: "with budgets",
}
_UNITS = {"s": "_seconds", "USD": "_USD"}


def metrics() -> list[c.Metric]:
    """All metrics, in the order of conventions.py."""
    return [value for value in vars(c).values() if isinstance(value, c.Metric)]


def prometheus_name(metric: c.Metric) -> str:
    """The metric's name in Prometheus."""
    suffix = "_total" if metric.kind == "counter" else ""
    return metric.name.replace(".", "_") + _UNITS.get(metric.unit, "") + suffix


def table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    heads = list(heads)
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


# ---- the parts ---------------------------------------------------------------------------------------------------
def settings() -> str:
    """Every setting."""
    return table(
        ("Setting", "Variable", "Type", "Default", "Meaning"),
        (
            (f"`{row.name}`", f"`{row.env}`" if row.env else "only in the file and in Python", row.type, _default(row),
             row.doc + (f" Also read: `{row.fallback_env}`." if row.fallback_env else ""))
            for row in SETTINGS
        ),
    )  # fmt: skip


def _default(row: Setting) -> str:
    value = row.default
    if value is None or value == ():
        return "none" if value == () else "not set"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{', '.join(f'{item:g}' for item in value)}`" if isinstance(value, tuple) else f"`{value}`"


def metric_table() -> str:
    """Every metric."""
    return table(
        ("Metric", "In Prometheus", "Kind, unit", "When", "Meaning"),
        (
            (f"`{m.name}`", f"`{prometheus_name(m)}`", f"{m.kind}, `{m.unit}`", WHEN.get(m.name, "always"),
             m.description)
            for m in metrics()
        ),
    )  # fmt: skip


def attributes(rows: dict[str, str]) -> str:
    """Attributes and what they mean."""
    return table(("Attribute", "Meaning"), ((f"`{name}`", words) for name, words in rows.items()))


def hosts() -> str:
    """Who bills where."""
    by: dict[str, list[str]] = {}
    for row in TABLE:
        place = row.host + (row.path and f"{row.path}")
        by.setdefault(row.provider, []).append(f"`{place}`")
    for port, name in LOCAL_PORTS.items():
        by.setdefault(name, []).append(f"a local server on port {port}")
    return table(
        ("Provider", "Prices known", "Hosts"),
        (
            (f"`{name}`", "yes" if name in PRICE_LISTS else "", ", ".join(dict.fromkeys(by[name])))
            for name in sorted(by)
        ),
    )


def sdks() -> str:
    """The SDKs and the versions that the tests run on."""
    return table(
        ("SDK", "Tested", "What is counted"),
        (
            (f"`{p.distribution}`", f"{p.tested[0]} to {p.tested[1]}", ", ".join(f"`{e.path}`" for e in p.endpoints))
            for p in BUILT_IN
        ),
    )


def presets() -> str:
    """The budgets that have a name already."""
    rows: list[tuple[str, str]] = []
    for name, budgets in PRESETS.items():
        rows.append((f"`{name}`", "<br>".join(_budget(row) for row in budgets)))
    return table(("Preset", "Budgets"), rows)


def _budget(row: dict[str, Any]) -> str:
    return "`{" + ", ".join(f"{key}: {_yaml(value)}" for key, value in row.items()) + "}`"


def _yaml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_yaml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) and set(value) & set("*:") else str(value)


def standard() -> str:
    """What `thresholds: standard` does."""
    return table(
        ("At", "Actions"), ((f"{at} %", ", ".join(f"`{a}`" for a in do)) for at, do in STANDARD_THRESHOLDS.items())
    )


def dimensions() -> str:
    """What a report can be split by."""
    return _listed(DIMENSIONS)


def columns() -> str:
    """The columns of the ledger."""
    return _listed(COLUMNS)


def _listed(names: Iterable[str]) -> str:
    return textwrap.fill(", ".join(f"`{name}`" for name in names) + ".", 120, break_on_hyphens=False) + "\n"


def command(path: str) -> str:
    """The options of one command."""
    found: Any = cli
    ctx = click.Context(cli, info_name="otel-tokens")
    for word in path.split():
        found = found.get_command(ctx, word)
        ctx = click.Context(found, info_name=word, parent=ctx)
    rows = [record for p in found.params if isinstance(p, click.Option) and (record := p.get_help_record(ctx))]
    usage = found.get_usage(ctx).removeprefix("Usage: ")
    text = f"```text\n{' '.join(usage.split())}\n```\n\n"
    return text + (table(("Option", "Meaning"), ((f"`{name}`", words) for name, words in rows)) if rows else "")


PARTS: dict[str, Callable[[], str]] = {
    "settings": settings,
    "metrics": metric_table,
    "attributes of spans": lambda: attributes(ON_SPANS),
    "attributes of metrics": lambda: attributes(ON_METRICS),
    "attributes of events": lambda: attributes(ON_EVENTS),
    "hosts": hosts,
    "sdks": sdks,
    "presets": presets,
    "standard thresholds": standard,
    "dimensions": dimensions,
    "columns": columns,
}


def part(name: str) -> str:
    """The text of one generated part."""
    return command(name.removeprefix("command ")) if name.startswith("command ") else PARTS[name]()


def renewed(page: str) -> str:
    """A page with its generated parts made anew."""
    return _PART.sub(lambda found: f"{found[1]}{part(found['name'])}{found[3]}", page)


def stale() -> Iterator[Path]:
    """The pages that are not what they should be."""
    return (page for page in PAGES if renewed(page.read_text("utf-8")) != page.read_text("utf-8"))


def main() -> None:
    """Write what has changed, and say so."""
    for page in list(stale()):
        page.write_text(renewed(page.read_text("utf-8")), "utf-8")
        sys.stdout.write(f"{page.name}\n")


if __name__ == "__main__":
    main()
