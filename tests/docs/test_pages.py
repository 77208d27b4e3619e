"""The pages hold together: links, generated parts, and every word of the interface is explained."""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import otel_tokens
from otel_tokens import conventions
from otel_tokens.assemble_guard import GUARD_OPTIONS
from otel_tokens.cli.group import COMMANDS
from otel_tokens.cli.group import cli as commands
from otel_tokens.errors import BudgetExceededError
from otel_tokens.guard.budgets.budget import KEYS
from otel_tokens.guard.budgets.presets import PRESETS
from otel_tokens.guard.budgets.thresholds import KINDS
from otel_tokens.pricing.card import RATE_NAMES
from otel_tokens.providers.registry import BUILT_IN
from otel_tokens.providers.spec import Endpoint, Provider
from otel_tokens.reports.text import COUNTED
from otel_tokens.settings import SETTINGS, HostRow
from otel_tokens.settings.load import OTHER_VARIABLES
from otel_tokens.values import Cost, CostStatus, Origin, Outcome, Record

ROOT = Path(__file__).parents[2]

# The public face: nothing joins or leaves it unnoticed.
PUBLIC = {
    "instrument", "uninstrument", "tags", "normalise", "price", "guard", "report",
    "Usage", "Cost", "Record", "Budget", "Guard", "Report", "PricingProcessor", "OtelTokensInstrumentor",
    "OtelTokensError", "BudgetExceededError", "ConfigError",
}  # fmt: skip


def test_public_names(pages: dict[str, Any]) -> None:
    assert set(otel_tokens.__all__) == PUBLIC
    assert all(getattr(otel_tokens, name) is not None for name in PUBLIC)
    table = pages["docs/python-api.md"].text.partition("\n## ")[0]
    shown = set(re.findall(r"`(\w+)[(`]", "".join(line.split("|")[1] for line in table.splitlines() if "|" in line)))
    assert shown == PUBLIC


def test_links(page: Any, pages: dict[str, Any]) -> None:
    for link in page.links():
        if link.startswith(("http://", "https://")):
            continue
        file, _, anchor = link.partition("#")
        target = (page.path.parent / file).resolve() if file else page.path
        assert target.exists(), link
        if anchor:
            assert anchor in pages[str(target.relative_to(ROOT))].anchors(), link


def test_every_page_is_linked_from_the_readme(pages: dict[str, Any]) -> None:
    linked = {link.partition("#")[0] for link in pages["README.md"].links()}
    assert {name for name in pages if name.startswith("docs/")} <= linked


def test_generated_parts_are_current(generator: ModuleType) -> None:
    assert [page.name for page in generator.stale()] == [], "run: python docs/generate.py"


def test_every_setting_variable_that_is_named_exists(page: Any) -> None:
    known = {row.env for row in SETTINGS} | set(OTHER_VARIABLES)
    named = set(re.findall(r"OTEL_TOKENS_[A-Z0-9_]*[A-Z0-9]", page.text))
    assert named <= known


def test_every_make_target_that_is_named_exists(page: Any) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"^make ([a-z]+)", page.text, re.MULTILINE)) | set(re.findall(r"`make ([a-z]+)`", page.text))
    assert named <= targets


def test_every_word_of_the_interface_is_on_its_page(pages: dict[str, Any], generator: ModuleType) -> None:
    fields = {kind: [f.name for f in dataclasses.fields(kind)] for kind in (HostRow, Endpoint, Provider, Record, Cost)}
    for name, words in {
        "docs/guard.md": [*KEYS, *KINDS, *PRESETS],
        "docs/settings.md": [*GUARD_OPTIONS, *fields[HostRow]],
        "docs/tokens-and-cost.md": [*RATE_NAMES, *get_args(Origin), *get_args(CostStatus), *price_keys()],
        "docs/capture.md": [*get_args(Outcome)],
        "docs/ledger.md": [*COUNTED],
        "docs/cli.md": [*COMMANDS, *budget_commands()],
        "docs/providers.md": [*fields[Endpoint], *fields[Provider]],
        "docs/python-api.md": fields[Record],
    }.items():
        text = pages[name].text
        missing = [
            word for word in words if not re.search(rf"[`{{ ,.]{word}[`:}} ,(=]|^## {word}$", text, re.MULTILINE)
        ]
        assert not missing, (name, missing)


def budget_commands() -> list[str]:
    group: Any = commands.get_command(Any, "budget")  # type: ignore[arg-type]
    return list(group.commands)


def price_keys() -> list[str]:
    from otel_tokens.errors import ConfigError
    from otel_tokens.pricing.rules import parse_rules

    try:
        parse_rules([{"model": "m", "inputt": 1}], "here")
    except ConfigError as error:
        return [word.strip() for word in str(error).rpartition("allowed: ")[2].split(",")]
    raise AssertionError("a key that is not known has to be refused")


def test_every_attribute_is_described(generator: ModuleType) -> None:
    described = {*generator.ON_SPANS, *generator.ON_METRICS, *generator.ON_EVENTS}
    others = {conventions.NAMESPACE, conventions.BUDGET_EXCEEDED_EVENT, conventions.BUDGET_THRESHOLD_EVENT,
              conventions.COST_PART_PREFIX, conventions.TAG_PREFIX, conventions.SCOPE,
              conventions.OTHER_LABEL, conventions.SERVICE_INSTANCE}  # fmt: skip
    constants = {value for name, value in vars(conventions).items() if name.isupper() and isinstance(value, str)}
    in_tables = {
        value
        for table in (conventions.USAGE_MODALITY, conventions.USAGE_TTL, conventions.TAGS)
        for value in table.values()
    } | {*conventions.COST_ALIASES}
    private = {value for name, value in vars(conventions).items() if name.startswith("_") and isinstance(value, str)}
    assert (constants | in_tables) - others - private - described == set()


def test_the_readme_names_the_tested_versions(pages: dict[str, Any]) -> None:
    for provider in BUILT_IN:
        assert provider.tested[1] in pages["README.md"].text


def test_the_error_has_the_facts_that_are_told(pages: dict[str, Any]) -> None:
    error = BudgetExceededError("")
    for name in ("budget", "scope", "unit", "limit", "used", "reserved", "requested", "resets_at"):
        assert hasattr(error, name)
        assert f"`{name}`" in pages["docs/guard.md"].text


def test_no_file_names_this_machine_or_a_registry() -> None:
    # In parts, so that this file does not name them itself.
    words = (
        "/wo" + "rk/",
        "/tm" + "p/v/",
        "/ro" + "ot/",
        "py" + "pi.org",
        "python" + "hosted.org",
        "regis" + "try.npmjs",
    )
    skipped = {".git", ".venv", ".matrix", "__pycache__", "build", "dist", "node_modules"}
    found: list[str] = []
    for folder, folders, files in os.walk(ROOT):
        folders[:] = [name for name in folders if name not in skipped and not name.endswith(("_cache", ".hypothesis"))]
        for name in files:
            path = Path(folder, name)
            if path.suffix in (".db", ".pyc", ".db-wal", ".db-shm") or name == ".git":  # a file, in a worktree
                continue
            text = path.read_text("utf-8", errors="ignore")
            found += [f"{path.relative_to(ROOT)}: {word}" for word in words if word in text]
    assert found == []
