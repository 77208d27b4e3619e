"""Providers that other packages declare: found without the weight of importlib.metadata where there are none."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

CODE = "from otel_tokens.providers.registry import providers; import sys; print([p.sdk for p in providers()])"
POINTS = "[otel_tokens.providers]\nacme = acme_metering:PROVIDER\n"
MODULE = """
from dataclasses import replace
from otel_tokens.providers.openai import PROVIDER as OPENAI
PROVIDER = replace(OPENAI, sdk="acme", package="acme")
"""


def run(code: str, *paths: Path) -> str:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([*map(str, paths), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "zip"])
def test_a_declared_provider_is_found(tmp_path: Path, packed: bool) -> None:
    files = {
        "acme_metering.py": MODULE,
        "acme-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: acme\nVersion: 1.0\n",
        "acme-1.0.dist-info/entry_points.txt": POINTS,
    }
    place = tmp_path / ("acme.zip" if packed else "site")
    if packed:
        with zipfile.ZipFile(place, "w") as archive:
            for name, text in files.items():
                archive.writestr(name, text)
    else:
        for name, text in files.items():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_text(text)
    assert run(CODE, place) == "['openai', 'anthropic', 'acme']"


def test_nothing_heavy_is_loaded_to_find_none() -> None:
    code = f"import sys; before = set(sys.modules); {CODE}; print('importlib.metadata' in set(sys.modules) - before)"
    assert run(code).splitlines() == ["['openai', 'anthropic']", "False"]
