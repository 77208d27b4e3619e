"""Errors of this library. Each carries its facts as attributes, so that callers need not parse messages."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

from otel_tokens.text import printable


class OtelTokensError(Exception):
    """Base of every error this library raises.

    `str(error)` is one line: names and tags in it may come from anybody. Attributes hold them as they are.
    """

    def __str__(self) -> str:
        return printable(super().__str__())


class ConfigError(OtelTokensError):
    """A setting is wrong. `where` is the file with its line, the environment variable or the keyword.

    `problems` has every single mistake when one error reports several (see `combined`), else it is empty.
    """

    def __init__(
        self,
        message: str,
        *,
        where: str | None = None,
        key: str | None = None,
        problems: tuple[ConfigError, ...] = (),
    ) -> None:
        self.where = where
        self.key = key
        self.reason = message
        self.problems = problems
        place = ": ".join(part for part in (where, key) if part)
        super().__init__(f"{place}: {message}" if place else message)

    def __str__(self) -> str:
        """One line, or a heading and one line for each of `problems`."""
        if not self.problems:
            return super().__str__()
        lines = "".join(f"\n  {problem}" for problem in self.problems)
        return f"{len(self.problems)} problems in the configuration:{lines}"

    @classmethod
    def combined(cls, problems: Sequence[ConfigError]) -> ConfigError:
        """One error that reports all of `problems`, one line each; a single problem is returned as it is."""
        if len(problems) == 1:
            return problems[0]
        return cls(f"{len(problems)} problems in the configuration", problems=tuple(problems))


class LedgerError(OtelTokensError):
    """The ledger cannot be opened, read or migrated. `path` is its file."""

    def __init__(self, message: str, *, path: str | None = None) -> None:
        self.path = path
        super().__init__(f"{path}: {message}" if path else message)


class BudgetExceededError(OtelTokensError):
    """A call was refused, or a stream cut, by a budget. Nothing was sent for a refused call.

    `limit`, `used`, `reserved` and `requested` are in `unit` (USD, tokens, calls, seconds or an operation's
    name); `resets_at` is unix time in seconds, or None for a budget without a window.
    """

    def __init__(
        self,
        message: str,
        *,
        budget: str = "",
        scope: str = "",
        unit: str = "",
        limit: Decimal | None = None,
        used: Decimal | None = None,
        reserved: Decimal | None = None,
        requested: Decimal | None = None,
        resets_at: float | None = None,
    ) -> None:
        self.budget = budget
        self.scope = scope
        self.unit = unit
        self.limit = limit
        self.used = used
        self.reserved = reserved
        self.requested = requested
        self.resets_at = resets_at
        super().__init__(message)
