"""Every way to name a Redis: TLS, sockets, Sentinels, clusters; and the loops it is used from."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from otel_tokens.guard.store.base import Slot, StoreError
from otel_tokens.guard.store.redis.protocol import bulk
from otel_tokens.guard.store.redis.store import RedisStore

TTL = 60_000
S = (Slot("b|t|", "b", "tokens", "", 1000), Slot("c|t|x", "c", "tokens", "x=1", 1000))


def works(url: str, prefix: str = "otel-tokens") -> None:
    """From a thread and from a loop, against the same budgets."""
    store = RedisStore(url, timeout=30, prefix=prefix)
    for name in ("one", "two"):
        assert store.admit(name, S, [5, 5], TTL).granted
        store.settle(name, S, [4, 4])

    async def in_a_loop() -> None:
        assert (await store.aadmit("three", S, [5, 5], TTL)).granted
        await store.asettle("three", S, [4, 4])
        assert await store.aread(S) == [(12, 0, 1000), (12, 0, 1000)]
        await store.aclose()

    asyncio.run(in_a_loop())
    store.close()


def command(port: int, *words: str | int) -> str:
    with socket.create_connection(("127.0.0.1", port), timeout=30) as link:
        link.sendall(b"*%d\r\n" % len(words) + b"".join(map(bulk, words)))
        return link.recv(65536).decode()


def eventually(check: Callable[[], bool], seconds: float = 300) -> None:
    """A server that starts, or changes its role, drops its connections: it is asked again."""
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(OSError, StoreError):
            if check():
                return
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_unix_socket(make_redis, tmp_path: Path) -> None:
    make_redis("--unixsocket", str(tmp_path / "r.sock"))
    works(f"unix://{tmp_path / 'r.sock'}?db=3")


def test_user_password_and_database(make_redis) -> None:
    server = make_redis()
    command(server.port, "ACL", "SETUSER", "guard", "on", ">p@ss word", "~*", "+@all")
    works(f"redis://guard:p%40ss%20word@127.0.0.1:{server.port}/2")
    assert "db2:" in command(server.port, "INFO", "keyspace")


def test_tls(make_redis, tmp_path: Path, free_port: int) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl: apt-get install openssl")
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    words = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    names = ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)]
    subprocess.run(["openssl", *words, *names], check=True, capture_output=True)
    files = ["--tls-cert-file", str(cert), "--tls-key-file", str(key), "--tls-ca-cert-file", str(cert)]
    make_redis("--tls-port", str(free_port), "--tls-auth-clients", "no", *files)
    works(f"rediss://127.0.0.1:{free_port}?ssl_ca_certs={cert}")
    with pytest.raises(StoreError, match=r"(?i)certificate.verify.failed"):
        RedisStore(f"rediss://127.0.0.1:{free_port}", timeout=30).read(S)


def offset(port: int, name: str) -> int:
    """How far a server's replication has come."""
    lines = command(port, "INFO", "replication").splitlines()
    return int(next(line for line in lines if line.startswith(f"{name}:")).partition(":")[2])


@pytest.fixture
def sentinel(make_redis, tmp_path: Path, new_port: Callable[[], int]) -> Iterator[tuple[int, list[Any]]]:
    """The port of a Sentinel; the master and the replica it watches."""
    servers = [make_redis("--repl-diskless-sync-delay", "0") for _ in range(2)]
    ports = [server.port for server in servers]
    command(ports[1], "REPLICAOF", "127.0.0.1", ports[0])
    eventually(lambda: "master_link_status:up" in command(ports[1], "INFO", "replication"))
    port = new_port()
    settings = tmp_path / "sentinel.conf"
    settings.write_text(
        f"port {port}\nbind 127.0.0.1\nsentinel monitor the-master 127.0.0.1 {ports[0]} 1\n"
        "sentinel down-after-milliseconds the-master 60000\nrequirepass sentinels\n"
    )
    program = shutil.which("redis-server") or ""
    with (tmp_path / "sentinel.log").open("wb") as log:
        process = subprocess.Popen([program, str(settings), "--sentinel"], stdout=log, stderr=log)

    def knows_both() -> bool:
        with socket.create_connection(("127.0.0.1", port), timeout=30) as link:
            link.sendall(b"AUTH sentinels\r\nSENTINEL REPLICAS the-master\r\n")
            time.sleep(0.02)
            return str(ports[1]) in link.recv(65536).decode()

    eventually(knows_both)
    yield port, servers
    process.kill()
    process.wait(300)


def test_sentinels_and_a_failover(sentinel: tuple[int, list[Any]], free_port: int) -> None:
    port, (master, replica) = sentinel
    url = f"redis+sentinel://127.0.0.1:{free_port},127.0.0.1:{port}/the-master/1?sentinel_password=sentinels"
    works(url)
    store = RedisStore(url, timeout=30)
    assert store.read(S)[0] == (12, 0, 1000)
    written = offset(master.port, "master_repl_offset")
    eventually(lambda: offset(replica.port, "slave_repl_offset") >= written)
    assert "db1:" in command(replica.port, "INFO", "keyspace")

    def told_to_fail_over() -> bool:
        with socket.create_connection(("127.0.0.1", port), timeout=30) as link:
            # It looks at its replicas every 10 s, where it cannot be told to hurry.
            link.sendall(b"AUTH sentinels\r\nSENTINEL DEBUG info-period 100\r\nSENTINEL FAILOVER the-master\r\n")
            with link.makefile("rb") as answers:
                *_, answer = [answers.readline() for _ in range(3)]
            return answer == b"+OK\r\n" or b"INPROG" in answer

    eventually(told_to_fail_over)
    eventually(lambda: "role:master" in command(replica.port, "INFO", "replication"))
    master.kill()

    eventually(lambda: store.admit("after", S, [1, 1], TTL).granted)
    eventually(lambda: store.read(S)[0] == (12, 1, 1000))
    store.close()
    with pytest.raises(StoreError, match="the-other"):
        RedisStore(url.replace("the-master", "the-other"), timeout=30).read(S)


def test_a_cluster(make_redis) -> None:
    """All budgets of a prefix live in one slot; whichever node the URL names, the right one is found."""
    nodes = [make_redis("--cluster-enabled", "yes", "--cluster-config-file", f"n{n}.conf") for n in range(2)]
    command(nodes[0].port, "CLUSTER", "ADDSLOTSRANGE", 0, 8191)
    command(nodes[1].port, "CLUSTER", "ADDSLOTSRANGE", 8192, 16383)
    command(nodes[0].port, "CLUSTER", "MEET", "127.0.0.1", nodes[1].port)
    eventually(lambda: all("cluster_state:ok" in command(node.port, "CLUSTER", "INFO") for node in nodes))
    eventually(lambda: all("connected" in command(node.port, "CLUSTER", "NODES") for node in nodes))
    for node in nodes:
        for prefix in ("a", "b", "c"):
            works(node.url, f"{prefix}-{node.port}")
    assert all(int(command(node.port, "DBSIZE")[1:]) > 0 for node in nodes), "the prefixes should be on both"


def in_a_fresh_process(code: str) -> tuple[int, str, str]:
    """Run with every warning an error; what it left on stderr matters too."""
    root = str(Path(__file__).parents[3])
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "PYTHONPATH": root},
    )
    return done.returncode, done.stdout, done.stderr


def test_loops_come_and_go_without_a_warning(redis_url: str) -> None:
    code = f"""
import asyncio, gc, threading
from otel_tokens.guard.store.base import Slot
from otel_tokens.guard.store.redis.store import RedisStore
S = (Slot("b|t|", "b", "tokens", "", 10**6),)
store = RedisStore({redis_url!r}, timeout=30, prefix="loops")

async def some(name, close):
    await asyncio.gather(*(store.aadmit(f"{{name}}-{{n}}", S, [1], 60000) for n in range(30)))
    task = asyncio.ensure_future(store.aread(S))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    left = asyncio.ensure_future(store.aread(S))  # cancelled by the end of the loop
    await asyncio.sleep(0)
    if close:
        await store.aclose()

for n in range(4):
    asyncio.run(some(f"loop-{{n}}", close=n % 2))
    gc.collect()
threads = [threading.Thread(target=lambda n=n: asyncio.run(some(f"thread-{{n}}", False))) for n in range(3)]
[t.start() for t in threads]
[t.join() for t in threads]
gc.collect()
assert store.read(S)[0][1] == 7 * 30, store.read(S)
assert len(store._loops) == 0
store.close()
"""
    assert in_a_fresh_process(code) == (0, "", "")


def test_redis_is_imported_only_when_it_is_used() -> None:
    code = """
import sys
from otel_tokens.guard.store.open import open_store
open_store("memory", timeout=1)
print([name for name in sys.modules if name.split(".")[0] in {"redis", "ssl", "asyncio.sslproto"} ])
"""
    status, stdout, _ = in_a_fresh_process(code)
    assert status == 0
    assert "'redis'" not in stdout


def test_without_the_package_the_error_names_the_extra() -> None:
    code = """
import sys
sys.modules["redis"] = None
from otel_tokens.errors import ConfigError
from otel_tokens.guard.store.open import open_store
try:
    open_store("redis://localhost", timeout=1)
except ConfigError as error:
    print(error)
"""
    status, stdout, stderr = in_a_fresh_process(code)
    assert (status, stderr) == (0, "")
    assert "pip install 'otel-tokens[redis]'" in stdout
