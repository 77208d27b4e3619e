"""Tags of calls (session, task, tenant, user, agent, feature …), kept in contextvars and W3C baggage."""

from __future__ import annotations

from otel_tokens.context.declare import tags
from otel_tokens.context.frames import configure, current_tags, process_tags
from otel_tokens.context.threads import TagsExecutor, carry

__all__ = ["TagsExecutor", "carry", "configure", "current_tags", "process_tags", "tags"]
