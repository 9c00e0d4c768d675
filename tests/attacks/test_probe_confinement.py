"""What the process that tries a model can still reach: its release, the system's libraries, nothing else."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("onnxruntime", reason="pip install 'edgeseal[onnx]'")

from tests.unit import onnx_models

from edgeseal.device.trial import _gate
from edgeseal.runtime import child, confine
from edgeseal.runtime.contract import Candidate
from edgeseal.runtime.probe import Limits, probe

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

pytestmark = pytest.mark.unit

TRIES = """
import ctypes, errno, json, os, socket, sys
from pathlib import Path
from edgeseal.runtime import confine
release, secret, closed = map(Path, sys.argv[1:4])
BEFORE
confined = confine.files([release])
def how(step):
    try:
        step()
    except OSError as e:
        return errno.errorcode[e.errno]
    return "done"
def connect(family, address):
    with socket.socket(family) as s:
        s.connect(address)
print(json.dumps({
    "confined": [confined.network, confined.files],
    "release": how((release / "model.onnx").read_bytes),
    "secret": how(secret.read_bytes),
    "list": how(lambda: os.listdir(secret.parent)),
    "passwd": how(Path("/etc/passwd").read_bytes),
    "agent": how(Path(f"/proc/{os.getppid()}/environ").read_bytes),
    "write release": how(lambda: (release / "model.onnx").open("r+b")),
    "write beside": how(lambda: (release / "new").open("wb")),
    "make": how(lambda: (release / "d").mkdir()),
    "remove": how((release / "model.onnx").unlink),
    "rename": how(lambda: (release / "model.onnx").rename(release / "other")),
    "link out": how(lambda: (release / "link").symlink_to(secret)),
    "program": how(lambda: os.execv("/bin/true", ["true"])),
    "tcp": how(lambda: connect(socket.AF_INET, ("127.0.0.1", int(sys.argv[4])))),
    "truncate": how(lambda: os.truncate(release / "model.onnx", 0)),
}))
"""
PROGRAM = '"program": how(lambda: os.execv("/bin/true", ["true"])),'  # where it is not refused, nothing follows it


def tried(release: Path, secret: Path, *, before: str = "", script: str = TRIES, port: int = 9) -> dict[str, object]:
    words = [sys.executable, "-I", "-c", script.replace("BEFORE", before), str(release), str(secret), "-", str(port)]
    ended = child.run(words, stdin=b"", seconds=60, environment={"PATH": "/usr/bin", "LANG": "C.UTF-8"})
    assert ended.code == 0, ended.stderr.decode()
    found: dict[str, object] = json.loads(ended.stdout)
    return found


@pytest.fixture
def release(tmp_path: Path) -> Path:
    return onnx_models.linear(tmp_path / "m" / "1" / "model.onnx").parent


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "keys" / "identity"
    path.parent.mkdir()
    path.write_bytes(b"the device's key")
    return path


@pytest.mark.skipif(
    confine.libc.syscall(444, None, 0, 1) < 4, reason="needs a kernel with Landlock 4 (Linux 6.7) switched on"
)
def test_only_the_release_and_the_libraries_can_be_read(release: Path, secret: Path) -> None:
    found = tried(release, secret)
    assert found.pop("confined") == [True, True]
    assert found.pop("release") == "done"
    assert set(found.values()) == {"EACCES"}, found


OWN = """
import sys
from pathlib import Path
from edgeseal.runtime import confine, probe_worker
release, grown = Path(sys.argv[1]), bytearray(64 * 2**20)
del grown
high = probe_worker._used("VmHWM")
confine.files([release])
print(high, probe_worker._start_of_peak(), probe_worker._used("VmHWM"))
"""


def test_a_confined_process_can_still_reset_its_peak_of_memory(release: Path) -> None:
    """From version 3 on Landlock took the right to truncate, and the gate counted what was gone before the model."""
    words = [sys.executable, "-I", "-c", OWN, str(release)]
    ended = child.run(words, stdin=b"", seconds=60, environment={"PATH": "/usr/bin", "LANG": "C.UTF-8"})
    high, now, peak = (int(word) for word in ended.stdout.split())
    assert high > now + 48 * 2**20  # negative control: there was something to forget
    assert peak < high - 48 * 2**20


def test_without_confinement_the_same_steps_succeed(release: Path, secret: Path) -> None:
    """Negative control: what is refused above is refused by the confinement."""
    script = TRIES.replace("confined = confine.files([release])", "confined = confine.Confined(False, False)")
    found = tried(release, secret, script=script.replace(PROGRAM, ""))
    assert {found[k] for k in ("secret", "list", "passwd", "write beside", "make", "link out", "remove")} == {"done"}
    assert found["tcp"] == "ECONNREFUSED"


def test_a_kernel_without_landlock_is_said_so(release: Path, secret: Path) -> None:
    """A filter answers ENOSYS, as an older kernel does."""
    before = "class Old:\n    def syscall(self, *_): return -1\nconfine.libc = Old()"
    found = tried(release, secret, before=before, script=TRIES.replace(PROGRAM, ""))
    assert found["confined"] == [False, False]
    assert found["secret"] == "done"


@pytest.mark.parametrize(
    ("confined", "open_"),
    [
        ({"network": True, "files": True}, []),
        ({"network": False, "files": True}, ["network"]),
        ({"network": False, "files": False}, ["files", "network"]),
    ],
)
def test_the_verdict_says_what_was_open(confined: Mapping[str, bool], open_: list[str]) -> None:
    gate = _gate({"cases": 1, "confined": confined}, 7)
    assert gate is not None
    assert gate.open == open_
    assert ("not confined" in gate.text()) == bool(open_)


def test_a_probe_tells_how_it_was_confined(release: Path) -> None:
    found = probe(Candidate("m", 1, release, None), Limits(60, 256))
    landlock = confine.libc.syscall(444, None, 0, 1) >= 1
    assert found["confined"]["files"] is landlock
    assert set(found["confined"]) == {"network", "files"}
