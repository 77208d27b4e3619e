"""The contract tests on older SDK majors, each in an environment of its own. Run by `make matrix`.

The newest releases are covered by `make test`; here are the majors before them, whose HTTP layers differ.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENTS = {
    "openai-2-anthropic-1": ("openai>=2,<3", "anthropic>=1,<2"),
    "anthropic-0": ("openai>=2,<3", "anthropic>=0.100,<1"),
}
NEEDED = (
    "pytest",
    "pytest-timeout",
    "pytest-xdist",
    "hypothesis",
    "botocore",
    "boto3",
    "google-auth",
    "redis",
    "opentelemetry-distro",
)


def run(*command: str, **environ: str) -> int:
    """Run a command in the project's root; its exit code."""
    return subprocess.run(command, cwd=ROOT, env={**os.environ, **environ}, check=False).returncode


def prepare(folder: Path, sdks: tuple[str, ...]) -> Path:
    """An environment with these SDKs and the project; its interpreter."""
    python = folder / "bin" / "python"
    wanted = "\n".join((*sdks, *NEEDED, (ROOT / "pyproject.toml").read_text()))
    stamp = folder / ".ready"
    if stamp.is_file() and stamp.read_text() == wanted:
        return python
    packages = ("-e", f"{ROOT}[redis]", *sdks, *NEEDED)
    if shutil.which("uv"):
        steps = (
            ("uv", "venv", "-q", "--allow-existing", "--python", sys.executable, str(folder)),
            ("uv", "pip", "install", "-q", "--python", str(python), *packages),
        )
    else:
        steps = (
            (sys.executable, "-m", "venv", str(folder)),
            (str(python), "-m", "pip", "install", "-q", *packages),
        )
    for step in steps:
        if code := run(*step):
            sys.exit(code)
    stamp.write_text(wanted)
    return python


def main() -> int:
    """Run the matrix; non-zero if any environment fails."""
    failed: list[str] = []
    for name, sdks in ENVIRONMENTS.items():
        python = prepare(ROOT / ".matrix" / name, sdks)
        print(f"--- {name}: {', '.join(sdks)}", flush=True)
        if run(str(python), "-m", "pytest", "-n", "2", "--dist", "worksteal", "tests/contract", "tests/capture"):
            failed.append(name)
    if failed:
        print(f"failed: {', '.join(failed)}")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
