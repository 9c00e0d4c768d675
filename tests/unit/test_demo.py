"""`./dev demo` as a person runs it: the whole story passes, and nothing stays behind, also when it is interrupted."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("onnx", reason="the demo trains a model: pip install --group demo")

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
DEMO = Path(__file__).parents[2] / "examples" / "demo.py"
TMPFS = Path("/dev/shm")


def _start(tmp_path: Path) -> subprocess.Popen[str]:
    environment: Mapping[str, str] = {**os.environ, "TMPDIR": str(tmp_path), "COLUMNS": "200"}
    words = [sys.executable, str(DEMO)]
    return subprocess.Popen(
        words,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def _directories(tmp_path: Path, demo: subprocess.Popen[str]) -> list[Path]:
    """Wait until the demo has made its directories, on disk and in memory; other demos may run beside it."""
    _wait_until(lambda: _is_there(tmp_path, "model-1.onnx"), demo)
    (work,) = tmp_path.glob("edgeseal-demo-*")
    return [work, *TMPFS.glob(f"{work.name}-*")]


def _processes(directory: Path) -> list[str]:
    """Command lines of processes that work in `directory`."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if (entry / "cwd").readlink().is_relative_to(directory):
                found.append((entry / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return found


def test_the_whole_story_passes_and_leaves_nothing(tmp_path: Path) -> None:
    with _start(tmp_path) as demo:
        directories = _directories(tmp_path, demo)
        output = demo.communicate()[0]
    assert demo.returncode == 0, output
    assert output.count("exit code 3") == 4, output  # tampered chunk, bad model, old metadata, forged list of releases
    assert re.search(r"acceptance vector \d+, output 'probabilities': \d of 1 cases have another top-1", output), output
    assert re.search(r"answers \(.*by release 2\), \d+ a second, 0 failed", output), output
    assert output.count("exit code 4") == 2, output  # a key nobody named, a revoked device
    assert "bytes came that are not it" in output
    assert "timestamp.json goes back" in output
    assert "0 valid of 1 signatures" in output
    assert "the fleet has revoked this device" in output
    assert "answered by release 1 of bearing" in output
    assert "answered by release 2 of bearing" in output
    assert list(tmp_path.iterdir()) == []
    assert len(directories) == 2  # negative control: there was something to remove
    assert not any(directory.exists() for directory in directories)
    assert _processes(tmp_path) == []


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_leaves_nothing(tmp_path: Path, sent: signal.Signals) -> None:
    with _start(tmp_path) as demo:
        directories = _directories(tmp_path, demo)
        _wait_until(lambda: _is_there(tmp_path, "fleet.ready"), demo)
        demo.send_signal(sent)
        output = demo.communicate()[0]
    assert demo.returncode != 0
    assert "files removed" in output
    assert "Traceback" not in output
    assert list(tmp_path.iterdir()) == []
    assert len(directories) == 2  # negative control: there was something to remove
    assert not any(directory.exists() for directory in directories)
    assert _processes(tmp_path) == []


def _is_there(directory: Path, name: str) -> bool:
    """Look for a file below a directory in which others come and go meanwhile, which Path.rglob does not bear."""
    return any(name in files for _, _, files in os.walk(directory))


def _wait_until(true: Callable[[], bool], demo: subprocess.Popen[str]) -> None:
    while not true():
        assert demo.poll() is None, demo.stdout.read() if demo.stdout else ""
        time.sleep(0.05)
