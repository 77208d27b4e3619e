"""A finding of the doctor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "note", "warning", "error"]
"""error: something asked for does not work. warning: something is not counted or not priced. note: worth knowing."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What was looked at and how it is; `hint` says what to do about it."""

    part: str
    level: Level
    text: str
    hint: str = ""
