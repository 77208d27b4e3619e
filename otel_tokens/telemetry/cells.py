"""The cells in which totals are kept: one per series or family of series, numbers only ever added to."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from otel_tokens import conventions as names
from otel_tokens.telemetry.labels import Labels
from otel_tokens.values import COST_PARTS, EXACT, Cost, Usage

ZERO = Decimal(0)

exact_sum = EXACT.add
exact_difference = EXACT.subtract

UNKNOWN = "unknown"
MODALITIES = ("text", "image", "audio")
SPLIT_FIELDS = {
    field: tuple((f"{field}_{modality}", modality) for modality in MODALITIES)
    for field in ("input", "output", "cache_read")
}


class Count:
    """One series with one number."""

    __slots__ = ("attributes", "value")

    def __init__(self, labels: Labels) -> None:
        self.attributes: dict[str, Any] = dict(labels)
        self.value = 0


class TokenCell:
    """The provider's tokens of one label set. `split` holds, per field, the tokens of known modality."""

    __slots__ = (
        "attributes",
        "cache_read",
        "cache_write",
        "inference",
        "input",
        "output",
        "points",
        "reasoning",
        "split",
    )

    def __init__(self, labels: Labels) -> None:
        self.attributes: dict[str, Any] = dict(labels)
        self.inference = self.attributes.get(names.OPERATION) in names.INFERENCE_OPERATIONS
        self.input = self.output = self.cache_read = self.cache_write = self.reasoning = 0
        self.split: dict[str, dict[str, int]] = {}
        self.points: dict[str, dict[str, Any]] = {}

    def add(self, usage: Usage) -> None:
        """Add all of a usage that the provider reported."""
        self.input += usage.input
        self.output += usage.output
        self.cache_read += usage.cache_read
        self.cache_write += usage.cache_write
        self.reasoning += usage.reasoning
        if (
            usage.input_text
            or usage.input_image
            or usage.input_audio
            or usage.output_text
            or usage.output_image
            or usage.output_audio
        ):
            self._add_split(usage, ("input", "output", "cache_read"))

    def add_input(self, usage: Usage) -> None:
        """Add the input side only: the output is not the provider's number."""
        self.input += usage.input
        self.cache_read += usage.cache_read
        self.cache_write += usage.cache_write
        self._add_split(usage, ("input", "cache_read"))

    def _add_split(self, usage: Usage, fields: tuple[str, ...]) -> None:
        for field in fields:
            # The remainder is shown as unknown and must not become negative.
            room: int = getattr(usage, field)
            for name, modality in SPLIT_FIELDS[field]:
                part = min(getattr(usage, name), room)
                if part > 0:
                    room -= part
                    split = self.split.setdefault(field, {})
                    split[modality] = split.get(modality, 0) + part

    def values(self, field: str) -> list[tuple[dict[str, Any], int]]:
        """The points of one field: its modalities and the remainder, which add up to the total."""
        total: int = getattr(self, field)
        split = self.split.get(field)
        if not split:
            return [(self._point(UNKNOWN), total)]
        found = [(self._point(modality), value) for modality, value in split.items()]
        found.append((self._point(UNKNOWN), total - sum(split.values())))
        return found

    def _point(self, modality: str) -> dict[str, Any]:
        point = self.points.get(modality)
        if point is None:
            point = self.points[modality] = {**self.attributes, names.TOKEN_MODALITY: modality}
        return point


class CostCell:
    """The money of one label set, per component, exact."""

    __slots__ = ("attributes", "cache_read", "cache_write", "input", "other", "output", "points")

    def __init__(self, labels: Labels) -> None:
        self.attributes: dict[str, Any] = dict(labels)
        self.input = self.cache_read = self.cache_write = self.output = self.other = ZERO
        self.points: dict[str, dict[str, Any]] = {}

    def add(self, cost: Cost, total: Decimal) -> None:
        """Add a known cost. What has no component (a provider states only a total) goes to `other`."""
        if cost.input is None or cost.output is None or cost.other is None:
            self._add_partly(cost, total)
            return
        if cost.input:
            self.input = exact_sum(self.input, cost.input)
        if cost.cache_read:
            self.cache_read = exact_sum(self.cache_read, cost.cache_read)
        if cost.cache_write:
            self.cache_write = exact_sum(self.cache_write, cost.cache_write)
        if cost.output:
            self.output = exact_sum(self.output, cost.output)
        if cost.other:
            self.other = exact_sum(self.other, cost.other)

    def _add_partly(self, cost: Cost, total: Decimal) -> None:
        parts = {part: value for part in COST_PARTS if (value := getattr(cost, part)) is not None}
        rest = total
        for value in parts.values():
            rest = exact_difference(rest, value)
        if rest < 0:  # the parts do not belong to this total
            parts, rest = {}, total
        parts["other"] = exact_sum(parts.get("other", ZERO), rest)
        for part, value in parts.items():
            setattr(self, part, exact_sum(getattr(self, part), value))

    def values(self) -> list[tuple[dict[str, Any], Decimal]]:
        """The points, one per component; `other` only once there was some."""
        return [(self._point(part), value) for part in COST_PARTS if (value := getattr(self, part)) or part != "other"]

    def _point(self, part: str) -> dict[str, Any]:
        point = self.points.get(part)
        if point is None:
            point = self.points[part] = {**self.attributes, names.TOKEN_TYPE: part}
        return point
