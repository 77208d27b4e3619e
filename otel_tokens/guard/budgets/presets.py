"""Budgets by name: the shipped numbers for tasks, sessions, days, operations and task types; and the detector. Data.

A preset is a list of entries as they would stand in `budgets:`. `{preset: question, usd: 0.20}` takes one and
changes it: what the user says wins.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

OVERDRAFT: Mapping[str, Any] = MappingProxyType({"tokens": 5000, "usd": "0.10"})
"""`grace: true`: enough to finish a file write, a commit or a pending external call."""

THRESHOLDS = (70, 90, 100)
STANDARD_THRESHOLDS: Mapping[int, tuple[str, ...]] = MappingProxyType(
    {70: ("log", "event", "downgrade"), 90: ("log", "event", "clamp"), 100: ("log", "event", "pause")}
)
"""`thresholds: standard`: a cheaper model, then shorter answers, then wait for a person."""

PAUSE_SECONDS = 600
SLOW_SECONDS = 1

TASK_TYPES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "question": {"tokens": 10_000, "seconds": "2 min", "usd": "0.10"},
        "change": {"tokens": 50_000, "seconds": "15 min", "usd": "0.50"},
        "bug_fix": {"tokens": 80_000, "seconds": "30 min", "usd": "0.80"},
        "feature": {"tokens": 150_000, "seconds": "60 min", "usd": "1.50"},
        "architecture": {"tokens": 100_000, "seconds": "30 min", "usd": "1.00"},
    }
)
TIERS: Mapping[str, int] = MappingProxyType({"*opus*": 50_000, "*sonnet*": 200_000, "*haiku*": 500_000})
"""Tokens per session by tier of model, dearest first."""

_COMPLEXITY: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "simple": {"tokens": 20_000, "seconds": "5 min"},
        "moderate": {"tokens": 50_000, "seconds": "30 min"},
        "complex": {"tokens": 150_000, "seconds": "60 min"},
    }
)


def _typed(tag: str, value: str, limits: Mapping[str, Any]) -> dict[str, Any]:
    return {"name": f"{tag}:{value}", "per": "task", "match": {tag: value}, "grace": True, **limits}


def _session_tiers() -> list[dict[str, Any]]:
    return [
        {"name": f"session:{pattern.strip('*')}", "per": "session", "match": {"model": pattern}, "tokens": tokens}
        for pattern, tokens in TIERS.items()
    ]


PRESETS: Mapping[str, list[dict[str, Any]]] = MappingProxyType(
    {
        "task": [{"name": "task", "per": "task", "tokens": 100_000, "usd": "1.00", "seconds": "30 min", "grace": True}],
        "session": [{"name": "session", "per": "session", "tokens": 500_000}],
        "session_tiers": _session_tiers(),
        "day": [{"name": "day", "window": "day", "usd": "20.00", "weekend": {"usd": "5.00"}}],
        "call": [{"name": "call", "per": "call", "seconds": "5 min"}],
        "operations": [
            {"name": "operations", "per": "task", "operations": {"file_edit": 50, "shell": 100, "dangerous": 10}}
        ],
        "task_types": [_typed("task_type", name, limits) for name, limits in TASK_TYPES.items()],
        "complexity": [_typed("complexity", name, limits) for name, limits in _COMPLEXITY.items()],
        **{name: [_typed("task_type", name, limits)] for name, limits in TASK_TYPES.items()},
        **{name: [_typed("complexity", name, limits)] for name, limits in _COMPLEXITY.items()},
    }
)

# Ordered: the first type with the most hits wins, so the more specific ones come first.
_KEYWORDS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "bug_fix": (
            r"bugs?", r"fix(?:es|ed|ing)?", r"debug\w*", r"crash\w*", "broken", r"regress\w*", "traceback",
            "stack ?trace", "exceptions?", r"fail\w*",
        ),
        "architecture": (
            r"architect\w*", r"design (?:doc\w*|a|the)", "system design", r"refactor\w*", r"migrat\w*",
            r"restructur\w*", "trade-?offs?",
        ),
        "feature": (
            "features?", r"implement\w*", "build", "add(?:ing)? (?:a|an|support|new)", "create",
            "new (?:endpoint|page|screen|command)",
        ),
        "change": (
            r"chang\w*", r"renam\w*", r"updat\w*", r"adjust\w*", r"tweak\w*", r"edit\w*", r"remov\w*", r"delet\w*",
            "mov(?:e|ing)", "bump",
        ),
        "question": (
            "what", "why", "how", "when", "where", "which", "who", r"explain\w*", "does", "is there", "can you tell",
        ),
    }
)  # fmt: skip
_PATTERNS = {
    name: re.compile(rf"(?<!\w)(?:{'|'.join(words)})(?!\w)", re.IGNORECASE) for name, words in _KEYWORDS.items()
}
_ASKS = re.compile(r"\s*(?:what|why|how|when|where|which|who|explain|does|is|are)\b", re.IGNORECASE)


def detect(text: str) -> str | None:
    """The task type that the words of a task's description suggest, or None.

    For the application's own description of a task (`tags(task_type=detect(title))`), never for messages.
    Only the first 2,000 characters are looked at.
    """
    head = text[:2000]
    asks = head.rstrip().endswith("?")
    if asks and _ASKS.match(head):
        return "question"
    hits = {name: len(pattern.findall(head)) for name, pattern in _PATTERNS.items()}
    asks = asks or hits.pop("question") > 0
    hits.pop("question", None)
    best = max(hits, key=lambda name: hits[name])
    if hits[best]:
        return best
    return "question" if asks else None
