"""`otel-tokens run`: the program is metered, and otherwise as if it had been started directly."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

PYTHON = sys.executable
BOOTSTRAP = Path(__file__).parents[2] / "otel_tokens/cli/bootstrap"


# ---- as if started directly


def test_exit_code_and_streams_pass_through(workshop: Any) -> None:
    code = "import sys; print(sys.stdin.read()[::-1], end=''); print('oops', file=sys.stderr); sys.exit(7)"
    done = workshop.run(PYTHON, "-c", code, typed="abc", options=["--quiet"])
    assert (done.returncode, done.stdout, done.stderr) == (7, "cba", "oops\n")


@pytest.mark.parametrize("stderr", ["closed", "nobody reads it", "full"])
def test_the_exit_code_does_not_depend_on_where_the_report_goes(workshop: Any, stderr: str) -> None:
    name = workshop.program("chat(); os._exit(int(sys.argv[1]))")
    shown = {"closed": "2>&-", "nobody reads it": "2>&1 >/dev/null | true", "full": "2>/dev/full"}[stderr]
    command = f"{PYTHON} -m otel_tokens run --ledger {workshop.ledger} {PYTHON} {name}"
    for code in (0, 3):
        script = f'{command} {code} {shown}; echo "${{PIPESTATUS[0]}}"'
        done = subprocess.run(["bash", "-c", script], cwd=workshop.folder, env=workshop.env, capture_output=True)
        assert done.stdout.split()[-1] == str(code).encode()
    assert len(workshop.records) == 2


def test_a_program_that_is_not_python_runs_too(workshop: Any) -> None:
    done = workshop.run("sh", "-c", "echo $0 $1; exit 3", "a b", "c")
    assert (done.returncode, done.stdout) == (3, "a b c\n")
    assert "no Python process took part" in done.stderr


def test_options_after_the_command_are_its_own(workshop: Any) -> None:
    done = workshop.run("echo", "--quiet", "--help", "-x", options=["--quiet"])
    assert done.stdout == "--quiet --help -x\n"
    assert workshop.run("--", "echo", "--budget", options=["--quiet"]).stdout == "--budget\n"


def test_open_files_pass_through(workshop: Any) -> None:
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)
    with os.fdopen(reader) as pipe:
        done = workshop.run("sh", "-c", f"echo hello >/dev/fd/{writer}", pass_fds=[writer])
        os.close(writer)
        assert (done.returncode, pipe.read()) == (0, "hello\n")


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        (["no-such-command"], 127, "no-such-command: command not found"),
        (["./nowhere/x"], 127, "./nowhere/x: no such file"),
        (["./app.py"], 126, "try: otel-tokens run python ./app.py"),
        (["."], 126, ".: cannot be executed"),
    ],
)
def test_what_cannot_be_started_is_one_line(workshop: Any, command: list[str], code: int, words: str) -> None:
    workshop.program("")
    done = workshop.run(*command)
    assert (done.returncode, done.stdout) == (code, "")
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_script_without_a_first_line_is_run_by_the_shell(workshop: Any) -> None:
    script = workshop.folder / "script"
    script.write_text("echo from $0; exit 4\n")
    script.chmod(0o755)
    done = workshop.run("./script", options=["-q"])
    assert (done.returncode, done.stdout) == (4, "from ./script\n")


def test_without_a_command_it_explains_itself(workshop: Any) -> None:
    done = workshop("run")
    assert done.returncode == 2
    assert "otel-tokens run python app.py" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_signal_that_ends_the_program_ends_us(workshop: Any) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL, signal.SIGINT, signal.SIGSEGV):
        done = workshop.run("sh", "-c", f"kill -{int(number)} $$")
        assert done.returncode == -number, number


SLEEPER = """
import signal, time
def caught(number, frame):
    print("caught", signal.Signals(number).name, flush=True)
    sys.exit(40)
for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"):
    signal.signal(getattr(signal, name), caught)
ready()
while True:
    time.sleep(0.05)
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"])
def test_signals_are_handed_on(workshop: Any, name: str) -> None:
    process = workshop.start_program(SLEEPER)
    process.send_signal(getattr(signal, name))
    out, err = process.communicate(timeout=300)
    assert (process.returncode, out) == (40, f"caught {name}\n")
    assert "Traceback" not in err


def test_an_ignored_signal_stays_ignored(workshop: Any) -> None:
    # As under nohup: ignored on entry, so the program starts with it ignored, and so do we.
    code = "import signal; ready(); print(signal.getsignal(signal.SIGHUP).name, sys.stdin.readline(), flush=True)"
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        process = workshop.start_program(code)
    finally:
        signal.signal(signal.SIGHUP, before)
    process.send_signal(signal.SIGHUP)
    out, _ = process.communicate("go on", timeout=300)
    assert (process.returncode, out) == (0, "SIG_IGN go on\n")


def test_signal_settings_are_the_usual_ones(workshop: Any) -> None:
    code = (
        "import signal; print(signal.pthread_sigmask(signal.SIG_BLOCK, ()), signal.getsignal(signal.SIGINT).__name__)"
    )
    assert workshop.run(PYTHON, "-c", code).stdout == "set() default_int_handler\n"
    # Python ignores SIGPIPE for itself; programs below us must not inherit that.
    done = workshop.run("sh", "-c", "yes | head -n1; echo $PIPESTATUS", options=["-q"])
    assert (done.stdout.splitlines()[0], done.stderr) == ("y", "")


# ---- metered


def test_calls_are_counted_priced_and_reported(workshop: Any) -> None:
    done = workshop.run_program("chat(3); print('done')", options=["--report-json", "report.json"])
    assert (done.returncode, done.stdout) == (0, "done\n")
    records = workshop.records
    assert [record.call.model for record in records] == ["gpt-5.4"] * 3
    cost = sum((record.cost.total for record in records if record.cost.total is not None), Decimal(0))
    assert cost > 0
    report = json.loads((workshop.folder / "report.json").read_text())
    assert (report["total"]["calls"], Decimal(report["total"]["cost"])) == (3, cost)
    assert report["rows"][0]["key"] == {"model": "gpt-5.4"}
    assert re.search(r"gpt-5\.4 +3 ", done.stderr)
    assert stat.S_IMODE(workshop.ledger.stat().st_mode) == 0o600


def test_only_the_calls_of_this_run_are_reported(workshop: Any) -> None:
    workshop.run_program("chat(2)")
    done = workshop.run_program("chat(1)", options=["--report-json", "r.json"])
    assert json.loads((workshop.folder / "r.json").read_text())["total"]["calls"] == 1
    assert len(workshop.records) == 3
    identity = re.search(r"report --run (\S+)", done.stderr)
    assert identity
    again = workshop("report", "--run", identity[1], "--ledger", str(workshop.ledger), "--json")
    assert json.loads(again.stdout)["total"]["calls"] == 1


def test_tags_are_on_every_call(workshop: Any) -> None:
    code = """
    import threading
    from otel_tokens.context import tags
    with tags(team="red", agent="a"):
        chat()  # the SDK is imported inside of tags
    thread = threading.Thread(target=chat)
    thread.start()
    thread.join()
    """
    workshop.run_program(code, options=["--tag", "team=blue", "--tag", "tenant=acme"])
    first, second = workshop.records
    assert first.tags["run"] == second.tags["run"]
    assert (first.tags["team"], first.tags["tenant"], first.tags["agent"]) == ("red", "acme", "a")
    assert (second.tags["team"], second.tags["tenant"]) == ("blue", "acme")


def test_without_a_ledger_there_is_a_report_and_no_file(workshop: Any) -> None:
    done = workshop("run", "--no-ledger", "--report-json", "r.json", PYTHON, workshop.program("chat()"))
    assert json.loads((workshop.folder / "r.json").read_text())["total"]["calls"] == 1
    assert re.search(r"gpt-5\.4 +1 ", done.stderr)
    assert not list(workshop.folder.rglob("ledger.db*"))


def test_the_ledger_of_the_configuration_is_used(workshop: Any) -> None:
    workshop.config.write_text(workshop.config.read_text() + "ledger: from-config.db\n")
    code = "os.makedirs('elsewhere'); os.chdir('elsewhere'); chat()"
    workshop("run", PYTHON, workshop.program(code))
    assert (workshop.folder / "from-config.db").exists()


def test_quiet_says_nothing_and_the_default_ledger_is_the_users(workshop: Any) -> None:
    done = workshop("run", "-q", PYTHON, workshop.program("chat()"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (workshop.folder / "state/otel-tokens/ledger.db").exists()  # the user's own, where nobody says


def test_no_call_is_said_with_its_reason(workshop: Any) -> None:
    assert "no LLM call was recorded" in workshop.run_program("import openai").stderr
    assert "imported openai or anthropic" in workshop.run_program("pass").stderr
    off = workshop.run_program("chat()", env={"OTEL_TOKENS_ENABLED": "false"})
    assert "switched off" in off.stderr
    assert "-I, -E and -S" in workshop.run(PYTHON, "-I", "-c", "pass").stderr


def test_a_lost_budget_store_does_not_take_the_report_along(workshop: Any) -> None:
    # Without the store a tenth of a limit is there: 4 calls.
    budgets = "\nstore: redis://127.0.0.1:1/0\nbudgets:\n  - {name: a, calls: 40}\n"
    workshop.config.write_text(workshop.config.read_text() + budgets)
    done = workshop.run_program("for _ in range(3):\n    chat()", env={"OTEL_TOKENS_FLUSH_TIMEOUT": "1"})
    assert done.returncode == 0
    assert "Calls by model" in done.stderr
    assert "the budgets cannot be read: Redis at 127.0.0.1:1" in done.stderr
    assert "the budget store does not answer: each process goes on by what it last knew" in done.stderr


def test_records_that_the_ledger_could_not_keep_are_said(workshop: Any) -> None:
    code = """
    import resource
    chat()
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
    chat(3)
    """
    done = workshop.run_program(code)
    assert done.returncode == 0
    assert "not in the report, as the ledger could not keep them: 3 records" in done.stderr
    assert len(workshop.records) == 1


def test_python_modules_and_test_runners(workshop: Any) -> None:
    workshop.program("chat()", "module.py")
    assert workshop.run(PYTHON, "-W", "error", "-m", "module", options=["-q"]).stderr == ""
    workshop.program("def test_it():\n    chat()\n", "test_calls.py")
    done = workshop.run(PYTHON, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_calls.py")
    assert (done.returncode, len(workshop.records)) == (0, 2), done.stdout


def test_multiprocessing_adds_up(workshop: Any) -> None:
    """The other ways to start children are in tests/e2e/test_processes.py."""
    code = """
    import multiprocessing
    if __name__ == "__main__":
        chat()
        context = multiprocessing.get_context("spawn")
        workers = [context.Process(target=chat, args=(3,)) for _ in range(2)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
            assert worker.exitcode == 0
    """
    done = workshop.run_program(code, options=["--report-json", "r.json"])
    assert done.returncode == 0, done.stderr
    assert len(workshop.records) == 7
    assert json.loads((workshop.folder / "r.json").read_text())["total"]["calls"] == 7


def test_children_of_other_programs_add_up(workshop: Any) -> None:
    code = """
    import subprocess
    if __name__ == "__main__":
        pid = os.fork()
        if not pid:  # forked before there was anything to meter
            chat()
            os._exit(0)
        subprocess.run(["sh", "-c", f"{sys.executable} -c 'import app; app.chat(2)'"], check=True)
        os.waitpid(pid, 0)
    """
    done = workshop.run_program(code, options=["--report-json", "r.json"])
    assert done.returncode == 0, done.stderr
    assert len({record.tags["run"] for record in workshop.records}) == 1
    assert json.loads((workshop.folder / "r.json").read_text())["total"]["calls"] == 3


def test_a_killed_program_has_its_calls_in_the_ledger(workshop: Any) -> None:
    process = workshop.start_program("chat(2); ready(); chat(1); os.kill(os.getpid(), 9)")
    _, err = process.communicate(timeout=300)
    assert process.returncode == -9
    assert len(workshop.records) == 3
    assert re.search(r"gpt-5\.4 +3 ", err)


def test_an_application_that_instruments_itself_keeps_its_own_settings(workshop: Any) -> None:
    code = """
    import otel_tokens
    seen = []
    otel_tokens.instrument(on_record=seen.append)
    chat()
    print(len(seen), seen[0].tags["run"] != "")
    """
    done = workshop.run_program(code)
    assert done.stdout == "1 True\n"
    assert len(workshop.records) == 1


def test_a_run_inside_a_run_counts_for_both(workshop: Any) -> None:
    name = workshop.program("chat()")
    inner = [*map(str, [PYTHON, "-m", "otel_tokens.cli", "run", "-q", "--report-json", "inner.json", PYTHON, name])]
    workshop.run("sh", "-c", f"{' '.join(inner)}; {PYTHON} {name}", options=["--report-json", "outer.json"])
    calls = [json.loads((workshop.folder / f"{n}.json").read_text())["total"]["calls"] for n in ("inner", "outer")]
    assert calls == [1, 2]


# ---- a guest


def test_the_bootstrap_leaves_the_stage(workshop: Any) -> None:
    code = """
    import json
    ours = [path for path in sys.path if path.endswith("bootstrap")]
    loaded = {name.partition(".")[0] for name in sys.modules}
    print(json.dumps([ours, sorted(loaded & {"click", "opentelemetry", "openai", "otel_tokens", "wrapt", "yaml"})]))
    """
    assert json.loads(workshop.run_program(code).stdout) == [[], []]


def test_a_hidden_sitecustomize_is_run(workshop: Any) -> None:
    hidden = workshop.folder / "hidden"
    hidden.mkdir()
    (hidden / "sitecustomize.py").write_text("import os\nWHO = 'theirs'\nos.environ['SEEN'] = __name__\n")
    paths = os.pathsep.join([str(hidden), workshop.env["PYTHONPATH"]])
    code = "import sitecustomize; print(sitecustomize.WHO, os.environ['SEEN']); chat()"
    done = workshop.run_program(code, env={"PYTHONPATH": paths})
    assert done.stdout == "theirs sitecustomize\n"
    assert len(workshop.records) == 1


def test_a_broken_hidden_sitecustomize_fails_as_without_us(workshop: Any) -> None:
    hidden = workshop.folder / "hidden"
    hidden.mkdir()
    (hidden / "sitecustomize.py").write_text("raise RuntimeError('broken')\n")
    paths = os.pathsep.join([str(hidden), workshop.env["PYTHONPATH"]])
    done = workshop.run_program("chat(); print('on')", env={"PYTHONPATH": paths}, options=["-q"])
    assert (done.returncode, done.stdout) == (0, "on\n")
    assert "RuntimeError: broken" in done.stderr
    assert len(workshop.records) == 1


def test_a_python_without_otel_tokens_runs_and_is_named(workshop: Any) -> None:
    hide = "sys.path[:] = [path for path in sys.path if not os.path.exists(os.path.join(path, 'otel_tokens'))]"
    (workshop.folder / "bare").mkdir()
    workshop.program(hide, "bare/sitecustomize.py", "import os, sys\n")
    bare = f"PYTHONPATH={BOOTSTRAP}{os.pathsep}{workshop.folder}/bare {PYTHON} -c 'print(1)'"
    done = workshop.run("sh", "-c", bare)
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr
    assert f"{PYTHON} has no otel_tokens" in done.stderr
    assert "Traceback" not in done.stderr


# ---- mistakes end before the program begins


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--port", "99999"], "--port"),
        (["--tag", "nonsense"], "name=value"),
        (["--tag", "Bad=1"], "cannot name a tag"),
        (["--budget", "5 bananas"], "5USD"),
        (["--budget", "0USD"], "allows nothing"),
        (["--otlp", "not a url"], "otlp_endpoint"),
        (["--config", "nowhere.yaml"], "nowhere.yaml"),
        (["--no-ledger", "--ledger", "x"], "exclude each other"),
        (["--report-json", "no/such/folder/x.json"], "no folder"),
        (["--bugdet", "5USD"], "--budget"),
    ],
)
def test_mistakes_are_one_line(workshop: Any, options: list[str], words: str) -> None:
    done = workshop("run", *options, "touch", "begun")
    assert done.returncode == 2
    assert words in done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert not (workshop.folder / "begun").exists()


def test_mistakes_in_the_file_name_their_line(workshop: Any) -> None:
    workshop.config.write_text("ledger: x.db\nlabel_limit: many\n")
    done = workshop("run", "touch", "begun")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "otel-tokens.yaml:2" in done.stderr
    assert not (workshop.folder / "begun").exists()


def test_a_mistake_in_the_guards_options_is_found_before_the_program_begins(workshop: Any) -> None:
    workshop.config.write_text("guard:\n  colour: red\n")
    done = workshop("run", "touch", "begun")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "otel-tokens.yaml:2: guard.colour: unknown option; allowed: lease_seconds" in done.stderr
    assert not (workshop.folder / "begun").exists()
