"""The ledger's tables, and how an older file becomes today's."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator

APPLICATION_ID = 0x6F746B6E
"""Marks the file as ours ("otkn"), so that another program's database is never touched."""

# Step n turns a file of version n into one of version n + 1; a new file takes them all. History is appended: a
# step that was released is never edited. Amounts are text (exact decimals), counts are integers.
_CALLS = """
CREATE TABLE calls(
    seq INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    started REAL, duration REAL, outcome TEXT,
    session TEXT, task TEXT, tenant TEXT, user TEXT, agent TEXT, feature TEXT,
    provider TEXT, endpoint TEXT, operation TEXT, model TEXT, response_model TEXT,
    origin TEXT, input INTEGER DEFAULT 0, output INTEGER DEFAULT 0,
    cache_read INTEGER DEFAULT 0, cache_write INTEGER DEFAULT 0, reasoning INTEGER DEFAULT 0, total INTEGER,
    currency TEXT, cost_status TEXT, cost_source TEXT, price_version TEXT, price_rule TEXT,
    cost_total TEXT, cost_input TEXT, cost_cache_read TEXT, cost_cache_write TEXT, cost_output TEXT, cost_other TEXT,
    cost_local TEXT, cost_provider TEXT, reported_cost TEXT,
    error_type TEXT, missing_reason TEXT, decision TEXT,
    service_tier TEXT, speed TEXT, geo TEXT, server_address TEXT, server_port INTEGER,
    sdk TEXT, stream INTEGER DEFAULT 0, request_tier TEXT, max_output INTEGER, choices INTEGER DEFAULT 1,
    free INTEGER DEFAULT 0,
    response_id TEXT, finish_reasons TEXT,
    first_chunk REAL, chunks INTEGER DEFAULT 0, attempts INTEGER DEFAULT 1,
    trace_id TEXT, span_id TEXT, pid INTEGER, host TEXT,
    cache_write_5m INTEGER DEFAULT 0, cache_write_30m INTEGER DEFAULT 0,
    cache_write_1h INTEGER DEFAULT 0, cache_write_12h INTEGER DEFAULT 0,
    input_text INTEGER DEFAULT 0, input_audio INTEGER DEFAULT 0,
    input_image INTEGER DEFAULT 0, input_video INTEGER DEFAULT 0,
    cache_read_text INTEGER DEFAULT 0, cache_read_audio INTEGER DEFAULT 0,
    cache_read_image INTEGER DEFAULT 0, cache_read_video INTEGER DEFAULT 0,
    output_text INTEGER DEFAULT 0, output_audio INTEGER DEFAULT 0,
    output_image INTEGER DEFAULT 0, output_video INTEGER DEFAULT 0,
    web_searches INTEGER DEFAULT 0, web_fetches INTEGER DEFAULT 0,
    components TEXT, component_input INTEGER DEFAULT 0, component_output INTEGER DEFAULT 0,
    reported TEXT, flags TEXT, tags TEXT
);
CREATE INDEX calls_session ON calls(session) WHERE session IS NOT NULL;
CREATE INDEX calls_task ON calls(task) WHERE task IS NOT NULL;
"""
# What retention takes away stays in `totals`, so that cumulative counters never go down.
_TOTALS = """
CREATE TABLE totals(key TEXT PRIMARY KEY, sums TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE meta(key TEXT PRIMARY KEY, value) WITHOUT ROWID;
INSERT INTO meta VALUES('ledger', lower(hex(randomblob(16))));
INSERT INTO meta VALUES('pruned_through', 0);
"""
# What the application asked for, where the guard put a cheaper model in its place.
_ASKED_MODEL = "ALTER TABLE calls ADD COLUMN asked_model TEXT"
# The terms asked for, beside `request_tier`.
_ASKED_TERMS = "ALTER TABLE calls ADD COLUMN request_speed TEXT; ALTER TABLE calls ADD COLUMN request_geo TEXT"
# See summary.py.
_SUMMARY = """
CREATE TABLE kinds(
    kind INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, sums BLOB NOT NULL,
    model TEXT, response_model TEXT, asked_model TEXT, provider TEXT, operation TEXT, endpoint TEXT, outcome TEXT,
    error_type TEXT, service_tier TEXT, server_address TEXT, server_port INTEGER, sdk TEXT, origin TEXT,
    missing_reason TEXT, cost_status TEXT, cost_source TEXT, currency TEXT, decision TEXT, cost_total INTEGER
);
CREATE TABLE by_time(
    bucket INTEGER, kind INTEGER, sums BLOB NOT NULL, PRIMARY KEY(bucket, kind)
) WITHOUT ROWID;
CREATE TABLE by_tag(
    tag TEXT, bucket INTEGER, value, kind INTEGER, sums BLOB NOT NULL, PRIMARY KEY(tag, bucket, value, kind)
) WITHOUT ROWID;
CREATE TABLE spans(bucket INTEGER PRIMARY KEY, first INTEGER NOT NULL, last INTEGER NOT NULL);
CREATE TABLE places(
    tag TEXT, value TEXT, first INTEGER NOT NULL, last INTEGER NOT NULL, PRIMARY KEY(tag, value)
) WITHOUT ROWID;
CREATE TABLE odd(seq INTEGER PRIMARY KEY);
INSERT INTO meta VALUES('summed', 0), ('edits', 0), ('edits_summed', 0);
CREATE TRIGGER calls_changed AFTER UPDATE ON calls BEGIN
    UPDATE meta SET value = value + 1 WHERE key = 'edits';
END;
CREATE TRIGGER calls_deleted AFTER DELETE ON calls BEGIN
    UPDATE meta SET value = value + 1 WHERE key = 'edits';
END;
"""
# `places` does their work, and without them a row is written in three quarters of the time. Only a new file drops them
# at once: with millions of rows it takes seconds, so the reader that completes the summary does it.
DROP_INDEXES = ("DROP INDEX IF EXISTS calls_session", "DROP INDEX IF EXISTS calls_task")
MIGRATIONS: tuple[str, ...] = (_CALLS, _TOTALS, _ASKED_MODEL, _ASKED_TERMS, _SUMMARY)
VERSION = len(MIGRATIONS)


def statements(script: str) -> Iterator[str]:
    """The statements of a script."""
    statement = ""
    for piece in script.split(";"):
        statement += f"{piece};"
        if sqlite3.complete_statement(statement):  # the body of a trigger has semicolons, too
            yield statement
            statement = ""
