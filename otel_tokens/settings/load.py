"""Finds the settings: keyword > environment > file, and reports every mistake of all three at once."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, NoneType
from typing import Any, Literal, NamedTuple

from otel_tokens.errors import ConfigError
from otel_tokens.settings.convert import convert
from otel_tokens.settings.entry import Entry
from otel_tokens.settings.given import NO, Given, Wrong, nearest, shown
from otel_tokens.settings.schema import ENV_PREFIX, SETTINGS, Setting, Settings
from otel_tokens.settings.yaml import parse_file

logger = logging.getLogger("otel_tokens")

DEFAULT_FILES = ("otel-tokens.yaml", "otel-tokens.yml")
KEYWORD = "keyword"
OTHER_VARIABLES = (ENV_PREFIX + "STRICT", ENV_PREFIX + "RUN")
"""Variables of ours that are no settings."""

_BY_NAME = {setting.name: setting for setting in SETTINGS}
_VARIABLES = tuple(setting.env for setting in SETTINGS if setting.env) + OTHER_VARIABLES


def load_settings(
    config: str | Path | Literal[False] | None = None, env: Mapping[str, str] | None = None, **keywords: Any
) -> Settings:
    """All settings. A keyword of None or (), an empty variable and an empty key of the file count as not given.

    `config` is the file (False or "off": none). Without it OTEL_TOKENS_CONFIG names the file ("off": none), else
    `otel-tokens.yaml` in the current directory is read if it is there. `env` replaces `os.environ`.

    Raises one `ConfigError` that lists every mistake with its file and line, variable or keyword. With
    `on_config_error = ignore` mistakes are logged and kept in `Settings.problems`, and defaults take their place.
    """
    loader = _Loader(os.environ if env is None else env)
    loader.read_file(config)
    loader.read_environment()
    loader.read_keywords(keywords)
    return loader.settings()


def default_ledger(env: Mapping[str, str] | None = None) -> str:
    """Where the ledger is when nobody says: `$XDG_STATE_HOME/otel-tokens/ledger.db`, else below ~/.local/state.

    Raises ValueError when there is no home directory.
    """
    env = os.environ if env is None else env
    state = env.get("XDG_STATE_HOME") or ""
    if not os.path.isabs(state):  # noqa: PTH117 — the specification says to ignore a relative one
        home = env.get("HOME") or os.path.expanduser("~")  # noqa: PTH111 (Path.home() raises)
        if not os.path.isabs(home):  # noqa: PTH117
            raise ValueError("there is no home directory; give the ledger's path")
        state = os.path.join(home, ".local", "state")  # noqa: PTH118
    return os.path.join(state, "otel-tokens", "ledger.db")  # noqa: PTH118


def refuse(problems: Sequence[ConfigError], on_config_error: str) -> None:
    """Raise one `ConfigError` with all problems, if there are any; with "ignore" they are logged instead."""
    if problems and on_config_error != "ignore":
        raise ConfigError.combined(problems)
    for problem in problems:
        logger.warning("otel_tokens ignores a mistake in its configuration: %s", problem)


def unknown_variables(env: Mapping[str, str] | None = None) -> Iterator[tuple[str, str]]:
    """Variables that begin like ours and are none: (name, "; did you mean …" or "")."""
    for name in os.environ if env is None else env:
        if name.startswith(ENV_PREFIX) and name not in _VARIABLES:
            yield name, nearest(name, _VARIABLES, cutoff=0.9)


class _Found(NamedTuple):
    value: Any
    source: str


class _Loader:
    """Collects the values and problems of the three places; later ones win."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self.env = env
        self.found: dict[str, _Found] = {}
        self.problems: list[ConfigError] = []

    def settings(self) -> Settings:
        """What was found. Raises `ConfigError` for what was wrong, unless that is to be ignored."""
        refuse(self.problems, self._value("on_config_error"))
        return Settings(
            **{name: found.value for name, found in self.found.items()},
            sources=MappingProxyType({name: found.source for name, found in self.found.items()}),
            problems=tuple(self.problems),
        )

    def _value(self, name: str) -> Any:
        return self.found[name].value if name in self.found else _BY_NAME[name].default

    # ---- file

    def read_file(self, config: str | Path | Literal[False] | None) -> None:
        """Take the values of the configuration file, if there is one."""
        if not isinstance(config, (str, os.PathLike, NoneType)) and config is not False:
            self.problems.append(ConfigError(f"{shown(config)} is not a path", where=KEYWORD, key="config"))
            return
        path, source = self._choose_file(config)
        if path is None:
            return
        try:
            entry, problems = parse_file(path)
        except ConfigError as error:
            if source not in (KEYWORD, ""):  # who named the file is part of the mistake
                error = ConfigError(f"{error.reason} (named by {source})", where=error.where)
            self.problems.append(error)
            return
        self.problems += problems
        self.found["config"] = _Found(str(path), source or "default")
        if not isinstance(entry.value, dict | None):
            self.problems.append(entry.error("must be a mapping of settings, one `name: value` per line"))
            return
        for child in entry.children():
            self._take_from_file(str(child.path[-1]), child, str(Path(path).parent))

    def _choose_file(self, config: str | Path | Literal[False] | None) -> tuple[str | Path | None, str]:
        if config is False:
            return None, KEYWORD
        if config:
            none = str(config).lower() in NO
            return (None if none else os.path.expanduser(config)), KEYWORD  # noqa: PTH111 (Path.expanduser raises)
        named = self.env.get(ENV_PREFIX + "CONFIG", "").strip()
        if named:
            return (None if named.lower() in NO else os.path.expanduser(named)), ENV_PREFIX + "CONFIG"  # noqa: PTH111
        for name in DEFAULT_FILES:
            if os.path.lexists(name):
                return name, ""
        return None, ""

    def _take_from_file(self, name: str, entry: Entry, folder: str) -> None:
        setting = _BY_NAME.get(name)
        if setting is None or name == "config":
            hint = (
                nearest(name.lower(), tuple(_BY_NAME)) or f"; known: {', '.join(n for n in _BY_NAME if n != 'config')}"
            )
            self.problems.append(entry.error(f"is not a setting{hint}"))
        elif entry.value is not None:
            self._take(setting, Given(entry, folder if folder != "." else "", self._default_ledger), entry.where())

    # ---- environment and keywords

    def read_environment(self) -> None:
        """Take the values of the environment variables."""
        for setting in SETTINGS:
            for variable in (setting.env, setting.fallback_env):
                text = self.env.get(variable, "").strip() if variable and setting.name != "config" else ""
                if text:
                    given = Given(Entry(text, variable or "", (setting.name,)), "", self._default_ledger)
                    self._take(setting, given, variable or "")
                    break
            variable = ENV_PREFIX + setting.name.upper()
            if setting.env is None and self.env.get(variable, "").strip():
                # Passed over, it would look like a budget that is in force.
                reason = f"is a {setting.type}, which a variable cannot hold; write it in {DEFAULT_FILES[0]}"
                self.problems.append(ConfigError(reason, where=variable, key=setting.name))
        for name, hint in unknown_variables(self.env):
            if hint:  # one that resembles none of ours is someone else's affair
                logger.warning("otel_tokens does not know the environment variable %s%s", name, hint)

    def read_keywords(self, keywords: Mapping[str, Any]) -> None:
        """Take the values given in Python."""
        for name, value in keywords.items():
            entry = Entry(value, KEYWORD, (name,))
            setting = _BY_NAME.get(name)
            if setting is None:
                self.problems.append(entry.error(f"is not a setting{nearest(name.lower(), tuple(_BY_NAME))}"))
            elif value is not None and value != ():
                self._take(setting, Given(entry, "", self._default_ledger), KEYWORD)

    def _take(self, setting: Setting, given: Given, source: str) -> None:
        try:
            self.found[setting.name] = _Found(convert(setting, given), source)
        except Wrong as wrong:
            self.problems += [given.entry.error(message, *path) for path, message in wrong.items]
        except Exception as error:  # an object of the user's may raise anything when it is looked at
            self.problems.append(given.entry.error(f"cannot be read: {type(error).__name__}: {error}"))

    def _default_ledger(self) -> str:
        try:
            return default_ledger(self.env)
        except ValueError as error:
            raise Wrong(str(error)) from None
