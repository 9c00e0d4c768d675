"""The inference library reports to its maker by default; through edgeseal it keeps no identifier to report under."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

pytest.importorskip("onnxruntime", reason="pip install 'edgeseal[onnx]'")
pytestmark = pytest.mark.unit


def _left_behind(code: str, home: Path) -> list[str]:
    """Names of files that a fresh process leaves in its own home and temporary directory."""
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(home), "TMPDIR": str(home), "PYTHONDONTWRITEBYTECODE": "1"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, timeout=60)
    return sorted(str(p.relative_to(home)) for p in home.rglob("*") if p.is_file())


def test_the_engine_keeps_no_telemetry_session(tmp_path: Path) -> None:
    assert _left_behind("import edgeseal.runtime.engine_onnx", tmp_path) == []


def test_the_doctor_keeps_no_telemetry_session(tmp_path: Path) -> None:
    code = (
        "from edgeseal.device import config, doctor\n"
        "from edgeseal.device.agent import Agent\n"
        "print(doctor._engine(Agent(config.Config())))"
    )
    assert _left_behind(code, tmp_path) == []


def test_the_library_by_itself_would(tmp_path: Path) -> None:
    # Negative control: a version without telemetry makes the tests above say nothing.
    if not _left_behind("import onnxruntime", tmp_path):
        pytest.skip("this onnxruntime has no telemetry")
