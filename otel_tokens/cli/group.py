"""The command group: loads a command's file when it is asked for, and turns errors into one line and an exit code."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import io
import logging
import os
import sys
from collections.abc import Generator, Sequence
from typing import Any, NoReturn

import click

from otel_tokens.errors import OtelTokensError
from otel_tokens.safely import strict
from otel_tokens.text import printable

COMMANDS = ("run", "demo", "report", "exporter", "prices", "budget", "doctor")
"""In the order of `--help`; each is a module of this package with a click command `command`."""

MISTAKE = 2
"""Exit code of a user's mistake: a wrong option, a wrong setting, a file that is not there."""


def fail(message: str, code: int = MISTAKE) -> NoReturn:
    """One line on stderr, and out."""
    _say(printable(message))
    sys.exit(code)


def _say(message: str, path: str = "otel-tokens") -> None:
    with contextlib.suppress(OSError):  # nobody listens any more; the exit code still speaks
        print(f"{path}: {message}", file=sys.stderr, flush=True)


class _NoReaderError(Exception):
    """The reader of our output has gone: `otel-tokens report | head`. click would make exit code 1 of it."""


@contextlib.contextmanager
def _told_apart() -> Generator[None]:
    try:
        yield
    except BrokenPipeError as error:
        raise _NoReaderError from error
    except SystemExit as error:
        if isinstance(error.__context__, BrokenPipeError):  # rich makes exit code 1 of it as well
            raise _NoReaderError from error
        raise


class Commands(click.Group):
    """Commands by name, imported one at a time: `otel-tokens run` must not pay for the tables of `report`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, in the order of use."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, or None."""
        if cmd_name not in COMMANDS:
            return None
        return importlib.import_module(f"otel_tokens.cli.{cmd_name}").command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click's; a slip of the pen gets the likely name."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            near = difflib.get_close_matches(args[0], COMMANDS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(COMMANDS)}"
            ctx.fail(f"no such command {args[0]!r}; {hint}")
        return super().resolve_command(ctx, args)

    def make_context(  # pyright: ignore[reportIncompatibleMethodOverride]  (as in `main`)
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """As click's; where `--help` is printed."""
        with _told_apart():
            return super().make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        """As click's; where commands print."""
        with _told_apart():
            return super().invoke(ctx)

    def main(  # pyright: ignore[reportIncompatibleMethodOverride]  (what click adds by name is in `extra`)
        self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any
    ) -> Any:
        """As click's, but an error is one line on stderr and never a traceback."""
        extra["standalone_mode"] = False
        _write_any_sign()
        _log_in_lines()
        try:
            code = super().main(args, prog_name, **extra)
        except click.exceptions.NoArgsIsHelpError as error:
            click.echo(error.ctx.get_help() if error.ctx else "")
            code = 0
        except click.ClickException as error:
            _say(printable(_one_line(error)), _path_of(error))
            code = MISTAKE
        except OtelTokensError as error:
            _say(str(error))
            code = MISTAKE
        except (click.Abort, KeyboardInterrupt):
            code = 130  # as a shell says of a command that Ctrl-C ended
        except _NoReaderError:
            for number in (1, 2):  # or the flush at exit complains
                os.dup2(os.open(os.devnull, os.O_WRONLY), number)
            code = 0
        except OSError as error:  # a full disk below `> file`
            _say(printable(f"{error.filename or 'cannot write the output'}: {error.strerror or error}"))
            code = MISTAKE
        except Exception as error:
            if strict():
                raise
            words = printable(f"{type(error).__name__}: {error}")
            _say(f"a fault of otel-tokens: {words} (OTEL_TOKENS_STRICT=1 shows where)")
            code = 70  # EX_SOFTWARE
        sys.exit(code if isinstance(code, int) else 0)


class _Lines(logging.Formatter):
    """Log records as our errors look: one line, no traceback."""

    def format(self, record: logging.LogRecord) -> str:
        return f"otel-tokens: {record.getMessage()}"


def _write_any_sign() -> None:
    """A terminal or a file that is not UTF-8 gets what it cannot show as an escape, not our end."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


def _log_in_lines() -> None:
    logger = logging.getLogger("otel_tokens")
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(_Lines())
        logger.addHandler(handler)
        logger.propagate = False


def _path_of(error: click.ClickException) -> str:
    ctx = getattr(error, "ctx", None)
    return ctx.command_path if ctx is not None else "otel-tokens"


def _one_line(error: click.ClickException) -> str:
    words = " ".join(error.format_message().split()).rstrip(".")
    first = words.partition(" ")[0]
    if first[1:].islower():  # "No such option" → "no such option"; names keep their capitals
        words = words[0].lower() + words[1:]
    return f"{words} (see {_path_of(error)} --help)" if isinstance(error, click.UsageError) else words


def own_version() -> str:
    """The installed version; of a checkout that is not installed, words."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("otel-tokens")
    except PackageNotFoundError:
        return "(not installed)"


def _show_version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value:
        click.echo(f"otel-tokens {own_version()}")
        ctx.exit()


@click.command(
    cls=Commands,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80},
    epilog="""\b
Begin with one of these:
  otel-tokens demo                    see it work, on this machine only
  otel-tokens run python app.py       meter your own program
  otel-tokens report --by model       what it cost
  otel-tokens doctor                  why something is not counted

Settings come from options, OTEL_TOKENS_* variables and otel-tokens.yaml.
""",
)
@click.option(
    "--version", is_flag=True, expose_value=False, is_eager=True, callback=_show_version, help="Show the version."
)
def cli() -> None:
    """Count and price every LLM call of a program, and stop it at a budget.

    `otel-tokens run` meters a program without touching its code; `report` says
    what it used and what that cost.
    """
