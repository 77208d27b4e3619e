"""`otel-tokens doctor`: what is wrong is found, named and fails; what is sound is said too."""

from __future__ import annotations

import json
import socket
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from otel_tokens.ledger.ledger import Ledger
from otel_tokens.values import Call, Cost, Record, Usage


@pytest.fixture
def doctor(workshop: Any) -> Any:
    """Run the doctor; returns (exit code, findings as "level part: text", everything)."""
    workshop.config.write_text("prometheus: false\n")

    def run(*args: str, process: bool = False, **env: str) -> tuple[int, list[str], dict[str, Any]]:
        done = (workshop if process else workshop.here)("doctor", "--json", *args, env=env)
        assert done.stderr == ""
        found = json.loads(done.stdout)
        assert found["healthy"] is (done.returncode == 0)
        return done.returncode, [f"{f['level']} {f['part']}: {f['text']}" for f in found["findings"]], found

    return run


def some(lines: list[str], start: str, words: str = "") -> str:
    found = [line for line in lines if line.startswith(start) and words in line]
    assert found, "\n".join(lines)
    return found[0]


def test_a_sound_installation(doctor: Any) -> None:
    pytest.importorskip("openai")
    pytest.importorskip("anthropic")
    code, lines, _ = doctor()
    assert code == 0, lines
    for name in ("openai", "anthropic"):
        line = some(lines, f"ok SDKs: {name} ")
        done, of, all_targets = line.rpartition(": ")[2].split()[:3]
        assert (done, of) == (all_targets, "of")
        assert int(done) >= 6
    some(lines, "note OTLP: no endpoint")
    some(lines, "note ledger: ", "is not there yet")


def test_a_missing_target_fails(doctor: Any, workshop: Any) -> None:
    pytest.importorskip("openai")
    # An SDK in which a function that we patch has moved away.
    workshop.program("import openai._base_client as b; del b.SyncAPIClient.request", "sitecustomize.py", "")
    code, lines, _ = doctor(process=True)
    assert code == 1
    some(lines, "error SDKs: openai ", "openai._base_client.SyncAPIClient.request is missing")


def test_a_broken_sdk_fails(doctor: Any, workshop: Any) -> None:
    pytest.importorskip("openai")
    (workshop.folder / "openai.py").write_text("raise RuntimeError('half installed')\n")
    code, lines, _ = doctor(process=True)
    assert code == 1
    some(lines, "error SDKs: openai ", "cannot be imported: RuntimeError: half installed")


def test_settings_have_their_source_and_mistakes_their_line(doctor: Any, workshop: Any) -> None:
    workshop.config.write_text(
        "prometheus: maybe\nlabel_limit: 7\ndisabled_sdks: [antropic]\n"
        "budgets:\n  - {name: daily, usd: 5, window: fortnight}\n"
        "prices:\n  - {model: x, input: cheap}\n"
    )
    code, lines, found = doctor(OTEL_TOKENS_SEMCONV="both", OTEL_TOKENS_LEGDER="x")
    assert code == 1
    some(lines, "error settings: otel-tokens.yaml:1: prometheus")
    some(lines, "error settings: otel-tokens.yaml:3: disabled_sdks", "'antropic' is not one of openai, anthropic")
    some(lines, "error settings: otel-tokens.yaml:5", "window")
    some(lines, "error settings: otel-tokens.yaml:7", "input")
    some(lines, "warning settings: OTEL_TOKENS_LEGDER", "OTEL_TOKENS_LEDGER")
    assert found["settings"]["label_limit"] == {"value": "7", "source": "otel-tokens.yaml:2"}
    assert found["settings"]["semconv"] == {"value": "both", "source": "OTEL_TOKENS_SEMCONV"}


def test_secrets_are_not_shown(doctor: Any) -> None:
    _, _, found = doctor(
        OTEL_TOKENS_STORE="redis://:s3cret@127.0.0.1:1/0", OTEL_EXPORTER_OTLP_ENDPOINT="http://me:s3cret@127.0.0.1:1"
    )
    assert "s3cret" not in json.dumps(found)


def test_a_secret_is_not_shown_of_an_address_without_a_scheme(doctor: Any) -> None:
    for store in ("redis://127.0.0.1:1/0?password=sesame", "redis:/:sesame@127.0.0.1", "redis://:se/same@127.0.0.1:1"):
        _, _, found = doctor(OTEL_TOKENS_STORE=store)
        assert "same" not in json.dumps(found)
    _, lines, _ = doctor(OTEL_EXPORTER_OTLP_ENDPOINT="me:s3cret@127.0.0.1:9")
    assert "***@127.0.0.1:9" in some(lines, "error OTLP")
    assert [line for line in lines if "s3cret" in line] == []


def test_an_unreachable_collector_fails(doctor: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        code, lines, _ = doctor(OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{port}")
        assert code == 0
        some(lines, "ok OTLP: ", "answers")
    code, lines, _ = doctor(OTEL_TOKENS_OTLP_ENDPOINT=f"http://127.0.0.1:{port}")
    assert code == 1
    some(lines, "error OTLP: ", "Connection refused")


def test_grpc_without_its_package_fails(doctor: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        endpoint = f"http://127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.grpc", None)
        code, lines, _ = doctor(OTEL_EXPORTER_OTLP_ENDPOINT=endpoint, OTEL_EXPORTER_OTLP_PROTOCOL="grpc")
        assert code == 1
        some(lines, "error OTLP: ", "gRPC")
        code, _, _ = doctor(OTEL_EXPORTER_OTLP_ENDPOINT=endpoint, OTEL_EXPORTER_OTLP_PROTOCOL="http/protobuf")
        assert code == 0


def test_the_port_of_metrics(doctor: Any, workshop: Any) -> None:
    workshop.config.write_text("prometheus: true\n")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
    code, lines, _ = doctor(OTEL_TOKENS_PROMETHEUS_PORT=port)
    assert code == 0
    some(lines, "ok Prometheus: ", "is free")

    class Other(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(404)

        def log_message(self, *args: Any) -> None:
            return

    with HTTPServer(("127.0.0.1", int(port)), Other) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        code, lines, _ = doctor(OTEL_TOKENS_PROMETHEUS_PORT=port)
        other.shutdown()
    assert code == 1
    some(lines, "error Prometheus: ", "is taken by another program")


def test_the_port_of_metrics_in_our_own_hands(doctor: Any, workshop: Any) -> None:
    workshop.config.write_text("prometheus: true\n")
    exporter = workshop.start("exporter", "--ledger", "x.db", "--port", "0")
    exporter.stderr.readline()
    port = exporter.stderr.readline().rpartition(":")[2].split("/")[0]
    code, lines, _ = doctor(OTEL_TOKENS_PROMETHEUS_PORT=port)
    assert code == 0
    some(lines, "ok Prometheus: ", "served by an otel-tokens process")


def test_the_ledger_and_who_is_unpriced(doctor: Any, workshop: Any) -> None:
    book = Ledger(workshop.ledger)
    for number, host in enumerate(["llm.example", "llm.example", "api.openai.com"]):
        provider = "openai" if host == "api.openai.com" else host
        call = Call(f"c{number}", provider, "openai.chat", "chat", "mystery-1", 1.7e9, server_address=host)
        usage = Usage(input=1, output=1, origin="provider", reported=frozenset({"input", "output"}))
        book.write(Record(call, usage, Cost(), "ok", 0.1))
    book.close()
    code, lines, _ = doctor("--ledger", str(workshop.ledger))
    assert code == 0
    some(lines, "ok ledger: ", "is sound")
    some(lines, "warning prices: llm.example: nobody known bills there; 2 calls of mystery-1")
    some(lines, "warning prices: api.openai.com (openai): 1 call of mystery-1")
    Path(workshop.ledger).write_bytes(b"not a database" * 500)
    for extra in workshop.folder.glob("ledger.db-*"):
        extra.unlink()
    code, lines, _ = doctor("--ledger", str(workshop.ledger))
    assert code == 1
    some(lines, "error ledger: ", "not a ledger")


def test_a_dead_store_fails(doctor: Any, workshop: Any) -> None:
    pytest.importorskip("redis")
    workshop.config.write_text("budgets: [{name: daily, usd: 5}]\nstore: redis://127.0.0.1:1/0\n")
    code, lines, _ = doctor()
    assert code == 1
    some(lines, "error budgets: ", "does not answer")
    some(lines, "ok settings: 1 budget declared")


def test_people_can_read_it(workshop: Any) -> None:
    workshop.config.write_text("ledger: l.db\n")
    done = workshop.here("doctor", env={"OTEL_TOKENS_OTLP_ENDPOINT": "http://127.0.0.1:1"})
    assert done.returncode == 1
    assert "  FAIL  http://127.0.0.1:1 (otlp_endpoint) cannot be reached" in done.stdout
    assert "otel-tokens.yaml:1" in done.stdout
    assert done.stdout.rstrip().endswith("warnings") or "1 failure" in done.stdout
    assert "\x1b" not in done.stdout
