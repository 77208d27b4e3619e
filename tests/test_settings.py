"""Settings: precedence, every converter, and mistakes of every kind with file, line, key and what is right."""

from __future__ import annotations

import dataclasses
import logging
import os
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

import otel_tokens
from otel_tokens import conventions
from otel_tokens.assemble import examined_sdks
from otel_tokens.errors import ConfigError
from otel_tokens.providers import registry
from otel_tokens.providers.spec import Provider
from otel_tokens.settings import (
    SETTINGS,
    Entry,
    HostRow,
    Settings,
    default_ledger,
    load_settings,
    read_yaml,
    unknown_variables,
)

HOME = {"HOME": "/home/someone"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(folder: Path, text: str | bytes, name: str = "otel-tokens.yaml") -> Path:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def mistakes(folder: Path, text: str | bytes, env: dict[str, str] | None = None, **keywords: object) -> list[str]:
    write(folder, text)
    with pytest.raises(ConfigError) as caught:
        load_settings(env=env or {}, **keywords)
    return [str(problem) for problem in caught.value.problems or (caught.value,)]


# ---- the table


def test_each_setting_is_one_row_of_the_table():
    names = [field.name for field in dataclasses.fields(Settings) if field.name not in ("sources", "problems")]
    assert [setting.name for setting in SETTINGS] == names
    for setting in SETTINGS:
        assert setting.doc.endswith(".")
        assert setting.type
        assert setting.default == getattr(Settings(), setting.name)
        assert setting.env in (None, f"OTEL_TOKENS_{setting.name.upper()}")


def test_semconv_and_aliases_come_from_the_vocabulary():
    rows = {setting.name: setting for setting in SETTINGS}
    assert rows["semconv"].allowed == conventions.SEMCONV_MODES
    assert set(rows["cost_aliases"].allowed) == set(conventions.COST_ALIASES)


def test_settings_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().enabled = False  # type: ignore[misc]


# ---- where they come from


def test_without_file_and_variables_all_is_default(folder: Path):
    assert load_settings(env={}) == Settings()
    assert load_settings(env={}).sources == {}


def test_no_file_means_no_yaml(folder: Path):
    code = (
        "import sys, otel_tokens.settings as s; s.load_settings();"
        "assert 'yaml' not in sys.modules and 'difflib' not in sys.modules"
    )
    env = {key: value for key, value in os.environ.items() if not key.startswith("OTEL_TOKENS_")}
    env["PYTHONPATH"] = str(Path(__file__).parents[1])
    subprocess.run([sys.executable, "-c", code], check=True, env=env, cwd=folder)


LAYERED = {
    "semconv": ("1.41", "both", "latest"),
    "label_limit": ("7", "8", "9"),
    "estimate": ("expected", "upper", "expected"),
    "metric_attributes": ("[a]", "b", ["c"]),
    "flush_timeout": ("0.25", "0.5", 0.75),
}
MEANS = {
    "semconv": ("1.41", "both", "latest"),
    "label_limit": (7, 8, 9),
    "estimate": ("expected", "upper", "expected"),
    "metric_attributes": (("a",), ("b",), ("c",)),
    "flush_timeout": (0.25, 0.5, 0.75),
}


@given(st.dictionaries(st.sampled_from(sorted(LAYERED)), st.sets(st.integers(0, 2), min_size=1)))
@hypothesis_settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_keyword_wins_over_environment_wins_over_file(folder: Path, layers: dict[str, set[int]]):
    write(folder, "".join(f"{name}: {LAYERED[name][0]}\n" for name, where in layers.items() if 0 in where))
    env = {f"OTEL_TOKENS_{name.upper()}": LAYERED[name][1] for name, where in layers.items() if 1 in where}
    keywords = {name: LAYERED[name][2] for name, where in layers.items() if 2 in where}
    settings = load_settings(env=env, **keywords)
    for name in LAYERED:
        if name in layers:
            top = max(layers[name])
            assert getattr(settings, name) == MEANS[name][top]
            source = settings.sources[name]
            assert source.startswith("otel-tokens.yaml:") if top == 0 else source in ("keyword", *env)
        else:
            assert getattr(settings, name) == getattr(Settings(), name)


def test_nothing_said_is_not_given(folder: Path):
    write(folder, "semconv:\nlabel_limit: ~\n")
    assert load_settings(env={"OTEL_TOKENS_SEMCONV": "", "OTEL_TOKENS_ENABLED": " "}, ledger=None).semconv == "latest"


def test_the_default_arguments_of_instrument_do_not_hide_the_file(folder: Path):
    write(folder, "budgets:\n- name: daily\n")
    assert len(load_settings(env={}, budgets=(), ledger=None).budgets) == 1
    assert load_settings(env={}, budgets=[]).budgets == ()


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "\ufeff", "null\n", "{}"])
def test_an_empty_file_is_fine(folder: Path, text: str):
    write(folder, text)
    assert load_settings(env={}) == dataclasses.replace(Settings(), config="otel-tokens.yaml")


def test_the_file_can_be_named(folder: Path):
    write(folder, "label_limit: 1")
    second = write(folder, "label_limit: 2", "second.yaml")
    write(folder, "label_limit: 3", "third.yaml")
    env = {"OTEL_TOKENS_CONFIG": "third.yaml"}
    assert load_settings(env={}).label_limit == 1
    assert load_settings(env=env).label_limit == 3
    assert load_settings(second, env=env).label_limit == 2
    assert load_settings(str(second), env=env).config == str(second)
    assert load_settings(False, env=env).label_limit == 200
    assert load_settings(env={"OTEL_TOKENS_CONFIG": "off"}).config is None


def test_the_other_suffix_is_not_overlooked(folder: Path):
    write(folder, "label_limit: 4", "otel-tokens.yml")
    assert load_settings(env={}).label_limit == 4


def test_standard_variables_are_asked_after_ours(folder: Path):
    env = {"OTEL_EXPORTER_PROMETHEUS_PORT": "9999", "OTEL_EXPORTER_PROMETHEUS_HOST": "0.0.0.0"}
    settings = load_settings(env=env)
    assert (settings.prometheus_host, settings.prometheus_port) == ("0.0.0.0", 9999)
    assert load_settings(env={**env, "OTEL_TOKENS_PROMETHEUS_PORT": "8"}).prometheus_port == 8


# ---- what the values mean

FULL = """
enabled: yes
semconv: 1.41                 # a number for YAML
metric_attributes: [tenant, feature]
label_limit: 1_000
cost_aliases: [operation.cost, llm.cost.total]
token_histograms: true
include_usage: off
foreign: OWN
disabled_sdks: anthropic
prometheus: false
prometheus_port: 0
otlp_endpoint: http://localhost:4318
ledger: state/ledger.db
ledger_max_age_days: 90
ledger_max_bytes: 500MB
prices_file: prices.yaml
propagate_tags: [tenant]
store: redis://:secret@cache:6379/0
store_fail: closed
store_timeout: 0.25
unpriced: tokens
thresholds: [100, 50%, 99.5]
flush_timeout: 1
live: false
hosts:
  - match: LLM.corp.example
    provider: openai
    path: v1/
    free: yes
  - {match: "*.gpu.example:8000", provider: vllm, include_usage: true}
prices:
  - model: gpt-5
    input: 1.100000000000000000001
    from: 2026-01-31
  - model: other
    input: 0
budgets:
  - name: daily
    usd: 20.00
    hour: 06:30
guard:
  presets:
    question: {tokens: 10000}
"""


def test_every_kind_of_value(folder: Path):
    write(folder, FULL)
    s = load_settings(env={})
    assert s.enabled is True
    assert s.semconv == "1.41"
    assert s.metric_attributes == ("tenant", "feature")
    assert s.label_limit == 1000
    assert s.cost_aliases == ("operation.cost", "llm.cost.total")
    assert s.include_usage is False
    assert s.foreign == "own"
    assert s.disabled_sdks == ("anthropic",)
    assert s.prometheus is False
    assert s.prometheus_port == 0
    assert s.ledger == "state/ledger.db"
    assert s.ledger_max_age_days == 90.0
    assert s.ledger_max_bytes == 500_000_000
    assert s.store == "redis://:secret@cache:6379/0"
    assert s.thresholds == (50.0, 99.5, 100.0)
    assert s.live is False
    assert s.hosts == (
        HostRow("llm.corp.example", "openai", "/v1", free=True),
        HostRow("*.gpu.example:8000", "vllm", include_usage=True),
    )
    lines = FULL.splitlines()
    first, second = s.prices
    assert first.value == {"model": "gpt-5", "input": Decimal("1.100000000000000000001"), "from": "2026-01-31"}
    assert lines[int(first.where("input").split(":")[1]) - 1].strip().startswith("input: 1.1")
    assert lines[int(second.where().split(":")[1]) - 1].strip() == "- model: other"
    assert second.value["input"] == 0
    (budget,) = s.budgets
    assert budget.value == {"name": "daily", "usd": Decimal("20.00"), "hour": "06:30"}
    assert str(budget.value["usd"]) == "20.00"
    assert s.guard is not None
    assert s.guard.value == {"presets": {"question": {"tokens": 10000}}}
    error = s.guard.error("is too small", "presets", "question", "tokens")
    assert error.key == "guard.presets.question.tokens"
    assert lines[int((error.where or "").split(":")[1]) - 1].strip() == "question: {tokens: 10000}"


def test_paths_in_a_file_are_relative_to_it(folder: Path):
    (folder / "etc").mkdir()
    path = write(folder / "etc", "ledger: l.db\nprices_file: ~/p.yaml\n", "c.yaml")
    settings = load_settings(path, env=HOME)
    assert settings.ledger == str(folder / "etc" / "l.db")
    assert settings.prices_file == os.path.expanduser("~/p.yaml")
    assert load_settings(False, env={"OTEL_TOKENS_LEDGER": "l.db"}).ledger == "l.db"


@pytest.mark.parametrize("word", ["1", "true", "ON", "yes"])
def test_the_ledger_at_its_default_place(folder: Path, word: str):
    env = {**HOME, "OTEL_TOKENS_LEDGER": word}
    assert load_settings(env=env).ledger == "/home/someone/.local/state/otel-tokens/ledger.db"
    assert load_settings(env={**env, "XDG_STATE_HOME": "/s"}).ledger == "/s/otel-tokens/ledger.db"
    assert load_settings(env={**env, "XDG_STATE_HOME": "relative"}).ledger == default_ledger(HOME)
    assert load_settings(env=HOME, ledger=True).ledger == default_ledger(HOME)


@pytest.mark.parametrize("word", ["0", "false", "off", "none", "No"])
def test_no_ledger(folder: Path, word: str):
    write(folder, "ledger: true")
    assert load_settings(env={**HOME, "OTEL_TOKENS_LEDGER": word}).ledger is False
    assert load_settings(env=HOME, ledger=False).ledger is False
    assert load_settings(False, env={}).ledger is None


@pytest.mark.parametrize(
    ("text", "size"),
    [("500MB", 500_000_000), ("1.5 GiB", 1_610_612_736), ("10k", 10_000), ("7", 7), ("2B", 2), ("1TB", 10**12)],
)
def test_sizes(folder: Path, text: str, size: int):
    assert load_settings(env={"OTEL_TOKENS_LEDGER_MAX_BYTES": text}).ledger_max_bytes == size


def test_entries_given_in_python_may_be_objects(folder: Path):
    thing = object()
    settings = load_settings(env={}, budgets=[thing, {"name": "x"}], guard={"a": 1}, hosts=[HostRow("h", "openai")])
    assert settings.budgets[0].value is thing
    assert str(settings.budgets[1].error("is wrong", "name")) == "keyword: budgets[1].name: is wrong"
    assert settings.hosts == (HostRow("h", "openai"),)


# ---- mistakes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\nsemconv: lates", "otel-tokens.yaml:2: semconv: 'lates' is not one of latest, 1.41, both; did you mean 'la"),
        ("semcov: latest", "otel-tokens.yaml:1: semcov: is not a setting; did you mean 'semconv'?"),
        ("Ledger: x", "otel-tokens.yaml:1: Ledger: is not a setting; did you mean 'ledger'?"),
        ("config: x", "otel-tokens.yaml:1: config: is not a setting"),
        ("1: x", "otel-tokens.yaml:1: 1: is not a setting; known: enabled"),
        ("enabled: maybe", "otel-tokens.yaml:1: enabled: 'maybe' is neither true nor false"),
        ("enabled: 2", "otel-tokens.yaml:1: enabled: 2 is neither true nor false"),
        ("label_limit: 1.5", "otel-tokens.yaml:1: label_limit: 1.5 is not a whole number of at least 1"),
        ("label_limit: 0", "otel-tokens.yaml:1: label_limit: 0 is out of range; it must be a number of at least 1"),
        ("label_limit: true", "otel-tokens.yaml:1: label_limit: true is not a whole number of at least 1"),
        ("prometheus_port: 70000", "prometheus_port: 70000 is out of range; it must be a number from 0 to 65535"),
        ("flush_timeout: .nan", "otel-tokens.yaml:1: flush_timeout: nan is not a number of at least 0"),
        ("flush_timeout: .inf", "otel-tokens.yaml:1: flush_timeout: infinity is not a number of at least 0"),
        ("flush_timeout: soon", "otel-tokens.yaml:1: flush_timeout: 'soon' is not a number of at least 0"),
        ("ledger_max_bytes: 5 apples", "ledger_max_bytes: '5 apples' is not a size; write a number of bytes, or 500MB"),
        ("ledger_max_bytes: -1", "ledger_max_bytes: -1 is out of range"),
        ("ledger: 7", "otel-tokens.yaml:1: ledger: 7 is neither a path, nor true (the default place), nor false"),
        ("ledger: [a]", "otel-tokens.yaml:1: ledger: ['a'] is not a path"),
        ("metric_attributes: {a: 1}", "metric_attributes: {'a': 1} is not a list; write [a, b], or a, b"),
        ("metric_attributes:\n - ok\n - Not Ok", "otel-tokens.yaml:3: metric_attributes[1]: 'Not Ok' is not a name"),
        ("cost_aliases:\n- operation.costs", "otel-tokens.yaml:2: cost_aliases[0]: 'operation.costs' is not one of"),
        ("cost_aliases: gen_ai.usage.cost, gen_ai.usage.cost.amount", "cost_aliases: gen_ai.usage.cost and"),
        ("thresholds: [0.7]", "otel-tokens.yaml:1: thresholds[0]: 0.7 is not a per cent from 1 to 1000; write 70"),
        ("thresholds: [high]", "otel-tokens.yaml:1: thresholds[0]: 'high' is not a per cent"),
        ("store: reddis://x", "otel-tokens.yaml:1: store: 'reddis://x' is not a store; use one of memory, sqlite:///path"),
        ("store: http://u:hunter2@x", "store: 'http://***@x' is not a store"),
        ("otlp_endpoint: localhost", "otel-tokens.yaml:1: otlp_endpoint: 'localhost' is not a URL; write http://host:4318"),
        ("prometheus_host: ''", "otel-tokens.yaml:1: prometheus_host: '' is not a text"),
        ("prices: 5", "otel-tokens.yaml:1: prices: is not a list; begin each entry with '- '"),
        ("prices:\n - a: 1\n - gpt", "otel-tokens.yaml:3: prices[1]: 'gpt' is not a mapping"),
        ("budgets:\n  daily: 5", "otel-tokens.yaml:1: budgets: is not a list"),
        ("guard: [1]", "otel-tokens.yaml:1: guard: [1] is not a mapping"),
        ("hosts: x", "otel-tokens.yaml:1: hosts: is not a list; begin each host with '- match: …'"),
        ("hosts: [x]", "otel-tokens.yaml:1: hosts[0]: 'x' is not a mapping such as {match: "),
        ("hosts:\n- provider: openai", "otel-tokens.yaml:2: hosts[0]: `match` is missing"),
        ("hosts:\n- match: a", "otel-tokens.yaml:2: hosts[0]: says nothing about the host; add provider, free or"),
        ("hosts:\n- match: a\n  provder: x", "otel-tokens.yaml:3: hosts[0].provder: is not known; allowed: match, "),
        ("hosts:\n- match: http://a/\n  free: true", "otel-tokens.yaml:2: hosts[0].match: 'http://a/' is not a host"),
        ("hosts:\n- match: a\n  free: perhaps", "otel-tokens.yaml:3: hosts[0].free: 'perhaps' is neither true nor"),
        ("hosts:\n- match: a\n  provider: My Vendor", "hosts[0].provider: 'My Vendor' is not a provider's name"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_named_with_file_line_key_and_what_is_right(folder: Path, text: str, message: str):
    (problem,) = mistakes(folder, text)
    assert message in problem


BOMB = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n" for before, name in zip("abcde", "bcdef", strict=True)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n- b", "otel-tokens.yaml:1: must be a mapping of settings"),
        ("just words", "otel-tokens.yaml:1: must be a mapping of settings"),
        ("a: [1,\nb: 2", "otel-tokens.yaml:2: is not valid YAML: "),
        ("enabled: true\n\tlive: true", "otel-tokens.yaml:2: a tab cannot indent; use spaces"),
        ("enabled: true\nenabled: false", "otel-tokens.yaml:2: enabled: is given twice (first on line 1)"),
        ("guard:\n  a: 1\n  b: 2\n  a: 3", "otel-tokens.yaml:4: guard.a: is given twice (first on line 2)"),
        ("enabled: true\n---\nlive: true", "otel-tokens.yaml:2: a second document begins here; only one is allowed"),
        (b"enabled: true\n# caf\xe9\n", "otel-tokens.yaml:2: is not UTF-8 (byte 0xe9); save it as UTF-8"),
        ("enabled: true".encode("utf-16"), "otel-tokens.yaml:1: is not UTF-8"),
        ("enabled: true\nstore: a\x07b", "otel-tokens.yaml:2: has a control character (0x07)"),
        ("guard: !!python/object:os.system {}", "otel-tokens.yaml:1: guard: the tag tag:yaml.org,2002:python/object"),
        ("guard: !secret x", "guard: the tag !secret is not supported"),
        ("guard: &a {b: *a}", "otel-tokens.yaml:1: guard.b: an alias must not contain itself"),
        ("? [a]\n: b", "otel-tokens.yaml:1: a key must be plain text"),
        ("guard: *nowhere", "otel-tokens.yaml:1: is not valid YAML: found undefined alias"),
        ("guard: " + "[" * 100_000, "otel-tokens.yaml: is nested too deeply"),
        ("guard:\n " + "- " * 100_000, "otel-tokens.yaml: is nested too deeply"),
        (
            BOMB,
            "otel-tokens.yaml: its aliases unfold to too many values",
        ),
        ("x" * 8_000_001, "otel-tokens.yaml: is larger than 8 MB"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_configuration(folder: Path, text: str | bytes, message: str):
    assert message in mistakes(folder, text)[0]


def test_all_mistakes_of_all_places_are_reported_at_once(folder: Path):
    problems = mistakes(
        folder,
        "semconv: x\nlive: y\nlive: y\nhosts:\n- match: ''\n  free: z\n- 5\n",
        {"OTEL_TOKENS_FOREIGN": "alien", "OTEL_TOKENS_LABEL_LIMIT": "many"},
        estimate=7,
        nonsense=1,
    )
    assert [problem.split(": ")[0:2] for problem in problems] == [
        ["otel-tokens.yaml:3", "live"],
        ["otel-tokens.yaml:1", "semconv"],
        ["otel-tokens.yaml:2", "live"],
        ["otel-tokens.yaml:5", "hosts[0].match"],
        ["otel-tokens.yaml:6", "hosts[0].free"],
        ["otel-tokens.yaml:7", "hosts[1]"],
        ["OTEL_TOKENS_FOREIGN", "foreign"],
        ["OTEL_TOKENS_LABEL_LIMIT", "label_limit"],
        ["keyword", "estimate"],
        ["keyword", "nonsense"],
    ]
    with pytest.raises(ConfigError) as caught:
        load_settings(env={"OTEL_TOKENS_FOREIGN": "alien", "OTEL_TOKENS_LABEL_LIMIT": "many"}, estimate=7, nonsense=1)
    assert str(caught.value) == "10 problems in the configuration:" + "".join(f"\n  {line}" for line in problems)


def test_files_that_cannot_be_read(folder: Path):
    (folder / "d").mkdir()
    with pytest.raises(ConfigError, match=r"^d: is a directory; give the path of a YAML file$"):
        load_settings("d", env={})
    with pytest.raises(ConfigError, match=r"^no.yaml: there is no such file$"):
        load_settings("no.yaml", env={})
    with pytest.raises(ConfigError, match=r"^no.yaml: there is no such file \(named by OTEL_TOKENS_CONFIG\)$"):
        load_settings(env={"OTEL_TOKENS_CONFIG": "no.yaml"})
    with pytest.raises(ConfigError, match=r"cannot be read: embedded null byte"):
        load_settings("a\0b", env={})
    write(folder, "", "file")
    with pytest.raises(ConfigError, match=r"^file/x.yaml: cannot be read: Not a directory$"):
        load_settings("file/x.yaml", env={})
    with pytest.raises(ConfigError, match=r"keyword: config: 5 is not a path"):
        load_settings(5, env={})  # type: ignore[arg-type]
    (folder / "otel-tokens.yaml").symlink_to("nowhere")  # never "no budget" because a link broke
    with pytest.raises(ConfigError, match=r"otel-tokens.yaml: there is no such file"):
        load_settings(env={})


def test_a_mistake_in_a_variable_names_the_variable(folder: Path):
    with pytest.raises(ConfigError) as caught:
        load_settings(env={"OTEL_TOKENS_SEMCONV": "2.0"})
    assert str(caught.value) == "OTEL_TOKENS_SEMCONV: semconv: '2.0' is not one of latest, 1.41, both"
    assert (caught.value.where, caught.value.key) == ("OTEL_TOKENS_SEMCONV", "semconv")
    with pytest.raises(ConfigError, match=r"^OTEL_EXPORTER_PROMETHEUS_PORT: prometheus_port: 'x' is not a whole"):
        load_settings(env={"OTEL_EXPORTER_PROMETHEUS_PORT": "x"})


def test_a_variable_that_looks_like_ours_is_mentioned(folder: Path, caplog: pytest.LogCaptureFixture):
    env = {"OTEL_TOKENS_SEMCOV": "both", "OTEL_TOKENS_STRICT": "1", "OTEL_TOKENS_QQQQ": "1"}
    with caplog.at_level(logging.WARNING, "otel_tokens"):
        assert load_settings(env=env).semconv == "latest"
    assert [record.getMessage() for record in caplog.records] == [
        "otel_tokens does not know the environment variable OTEL_TOKENS_SEMCOV; did you mean 'OTEL_TOKENS_SEMCONV'?"
    ]
    assert dict(unknown_variables(env)) == {
        "OTEL_TOKENS_SEMCOV": "; did you mean 'OTEL_TOKENS_SEMCONV'?",
        "OTEL_TOKENS_QQQQ": "",
    }


def test_mistakes_can_be_ignored(folder: Path, caplog: pytest.LogCaptureFixture):
    write(folder, "on_config_error: ignore\nsemconv: x\nlabel_limit: 3\n")
    with caplog.at_level(logging.WARNING, "otel_tokens"):
        settings = load_settings(env={})
    assert (settings.semconv, settings.label_limit) == ("latest", 3)
    assert [problem.key for problem in settings.problems] == ["semconv"]
    assert "otel-tokens.yaml:2: semconv: 'x' is not one of" in caplog.text
    write(folder, "a: [")
    assert load_settings(env={"OTEL_TOKENS_ON_CONFIG_ERROR": "ignore"}).problems
    with pytest.raises(ConfigError):
        load_settings(env={})


def test_an_object_that_raises_is_a_mistake_too(folder: Path):
    class Odd:
        def __str__(self) -> str:
            raise RuntimeError("boom")

    with pytest.raises(ConfigError, match=r"keyword: semconv: cannot be read: RuntimeError: boom"):
        load_settings(env={}, semconv=Odd())


@given(st.dictionaries(st.sampled_from([s.name for s in SETTINGS if s.name != "config"]), st.text(max_size=20)))
@hypothesis_settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_odd_text_in_variables_is_read_or_refused(folder: Path, texts: dict[str, str]):
    try:
        load_settings(env={**HOME, **{f"OTEL_TOKENS_{name.upper()}": text for name, text in texts.items()}})
    except ConfigError as error:
        for problem in error.problems or (error,):
            assert problem.where
            assert problem.where.startswith("OTEL_TOKENS_")
            assert problem.key


# ---- YAML


@given(st.binary(max_size=200) | st.text(alphabet="ab:- \n\t[]{}&*!#|>'\"?,%@1.", max_size=80).map(str.encode))
@hypothesis_settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_read_or_refused(folder: Path, data: bytes):
    path = write(folder, data)
    try:
        read_yaml(path)
    except ConfigError as error:
        assert str(path) in str(error)  # noqa: PT017 (most texts are fine)


def test_numbers_keep_their_digits_and_words_stay_words(folder: Path):
    entry = read_yaml(
        write(folder, "[0.1, 1e-6, 2.50, -3, 0x10, 12:30, no, 'true', \"1\", 2026-01-01, 1.2.3, ~, TRUE, +.5, 007]")
    )
    assert [repr(value) for value in entry.value] == [
        "Decimal('0.1')", "Decimal('0.000001')", "Decimal('2.50')", "-3", "16", "'12:30'", "'no'", "'true'", "'1'",
        "'2026-01-01'", "'1.2.3'", "None", "True", "Decimal('0.5')", "7",
    ]  # fmt: skip


def test_aliases_and_merged_mappings(folder: Path):
    entry = read_yaml(
        write(folder, "base: &base {a: 1, b: 2}\nlist: [*base, *base]\none:\n  <<: *base\n  b: 3\n  c: {d: 4}\n")
    )
    assert entry.value["list"] == [{"a": 1, "b": 2}] * 2
    assert entry.value["one"] == {"a": 1, "b": 3, "c": {"d": 4}}
    assert entry.where("one", "c", "d").endswith(":6")


def test_an_entry_knows_its_nearest_place(folder: Path):
    entry = read_yaml(write(folder, "a:\n  - b: 1\n    c:\n      - 2\n"), shown="shown.yaml")
    inner = entry.child("a").child(0)
    assert inner.where() == "shown.yaml:2"
    assert inner.where("c", 0) == "shown.yaml:4"
    assert inner.where("missing") == "shown.yaml:2"
    assert str(inner.error("is odd", "c", 0)) == "shown.yaml:4: a[0].c[0]: is odd"
    assert [child.value for child in inner.children()] == [1, [2]]
    assert list(Entry(5, "x").children()) == []


def test_json_is_yaml(folder: Path):
    assert read_yaml(write(folder, '{"a": [1, 2.5, null, {"b": "c"}]}', "x.json")).value == {
        "a": [1, Decimal("2.5"), None, {"b": "c"}]
    }


@pytest.mark.parametrize("name", ["budgets", "hosts", "prices", "guard"])
def test_a_variable_for_what_only_a_file_can_say_is_a_mistake(name: str) -> None:
    """Passed over, it would look like a budget that is in force."""
    with pytest.raises(ConfigError, match=f"OTEL_TOKENS_{name.upper()}.*otel-tokens.yaml"):
        load_settings(config=False, env={f"OTEL_TOKENS_{name.upper()}": "5USD"})


# ---- names that another room knows


def told(caught: pytest.ExceptionInfo[ConfigError]) -> list[str]:
    return [str(problem) for problem in caught.value.problems or (caught.value,)]


@pytest.mark.parametrize("place", ["keyword", "OTEL_TOKENS_DISABLED_SDKS", "otel-tokens.yaml:2"])
def test_sdks_that_nobody_knows(folder: Path, monkeypatch: pytest.MonkeyPatch, place: str):
    """A misspelt one would go on being metered, and nobody would know."""
    monkeypatch.delenv("OTEL_TOKENS_DISABLED_SDKS", raising=False)
    keywords = {}
    if place == "keyword":
        keywords = {"disabled_sdks": ["openai", "antropic", "cohere"]}
    elif place.startswith("OTEL"):
        monkeypatch.setenv(place, "openai,antropic,cohere")
    else:
        write(folder, "semconv: both\ndisabled_sdks: [openai, antropic, cohere]\n")
    with pytest.raises(ConfigError) as caught:
        otel_tokens.instrument(**keywords)
    assert told(caught) == [
        f"{place}: disabled_sdks: 'antropic' is not one of openai, anthropic; did you mean 'anthropic'?",
        f"{place}: disabled_sdks: 'cohere' is not one of openai, anthropic",
    ]


def test_sdks_that_nobody_knows_beside_another_mistake():
    with pytest.raises(ConfigError) as caught:
        otel_tokens.instrument(config=False, disabled_sdks="opnai", budgets=[{"name": "x", "usd": "much"}])
    assert [problem.partition(": ")[0] for problem in told(caught)] == ["keyword", "budgets"]


def test_sdks_that_nobody_knows_can_be_ignored(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING, logger="otel_tokens"):
        otel_tokens.instrument(config=False, on_config_error="ignore", disabled_sdks="opnai")
        otel_tokens.uninstrument()
    assert "keyword: disabled_sdks: 'opnai' is not one of openai, anthropic; did you mean 'openai'?" in caplog.text


def test_sdks_of_other_packages_are_known(monkeypatch: pytest.MonkeyPatch):
    theirs = Provider("acme", "acme", "acme", "acme", (), (), ("1.0", "1.0"))
    monkeypatch.setattr(registry, "providers", lambda: (*registry.BUILT_IN, theirs))
    assert examined_sdks(load_settings(False, env={}, disabled_sdks="acme, openai")) == []
    (problem,) = examined_sdks(load_settings(False, env={}, disabled_sdks="acne"))
    assert problem.reason == "'acne' is not one of openai, anthropic, acme; did you mean 'acme'?"
