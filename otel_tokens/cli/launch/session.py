"""What one `otel-tokens run` tells the Python processes below it, in one environment variable, and they to it."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

# The bootstrap reads the first two parts of the variable, without json: `sdks`, `folder`.
VARIABLE = "OTEL_TOKENS_RUN"
SEPARATOR = "\x1f"

State = Literal["seen", "on", "missing", "failed", "lost"]
"""A Python process: started; metered; of an environment without otel_tokens; not metered because of a fault; with so
many records that its ledger could not keep."""


@dataclass(frozen=True, slots=True)
class Session:
    """One run. `tag` and `id` mark its calls: a run inside a run has a tag of its own and keeps the outer ones.

    `folder` is private to the run and gone after it. `tags` are on every call, `budget` is a cap for all calls
    together ("5USD") or None, `sdks` are the packages whose import starts the metering.
    """

    id: str
    folder: str
    tag: str = "run"
    tags: Mapping[str, str] = field(default_factory=dict[str, str])
    budget: str | None = None
    sdks: tuple[str, ...] = ()

    def to_env(self) -> str:
        """As the value of the variable."""
        return SEPARATOR.join([",".join(self.sdks), self.folder, json.dumps(asdict(self))])

    def note(self, words: str) -> None:
        """Add a note about this process, as the bootstrap does; the run may be over by now."""
        with contextlib.suppress(OSError), Path(self.folder, "notes").open("a", encoding="utf-8") as notes:
            notes.write(words.replace("\n", " ") + "\n")

    def notes(self) -> list[tuple[State, str]]:
        """What the processes noted so far: a state, and a Python or a reason."""
        found: list[tuple[State, str]] = []
        with contextlib.suppress(OSError):
            text = Path(self.folder, "notes").read_text("utf-8", errors="replace")
            for line in text.splitlines():
                state, _, words = line.partition(" ")
                if state in ("seen", "on", "missing", "failed", "lost"):
                    found.append((state, words))
        return found


def current(env: Mapping[str, str] | None = None) -> Session | None:
    """The run that this process belongs to, or None."""
    text = (os.environ if env is None else env).get(VARIABLE, "").rpartition(SEPARATOR)[2]
    try:
        raw: Any = json.loads(text)
        raw["sdks"] = tuple(raw["sdks"])
        return Session(**raw)
    except (ValueError, TypeError, KeyError):
        return None
