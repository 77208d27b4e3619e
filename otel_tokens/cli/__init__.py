"""The command `otel-tokens`: one file per command. Importing this package is cheap, `main()` loads the rest."""

from __future__ import annotations


def main() -> None:
    """Run the command line and leave the process with its exit code."""
    from otel_tokens.cli.group import cli  # click is only for those who type a command

    cli(prog_name="otel-tokens")
