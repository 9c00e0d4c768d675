"""The stick's modules under CPython and under real MicroPython (WebAssembly build): every answer is the same."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from tests.unit import stick_portable
from tests.unit.repl_board import VM, needs_vm

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
MODULES = {
    **{f"/edgeseal/stick/{p.name}": p for p in (ROOT / "agent/edgeseal/stick").glob("*.py")},
    **{f"/qrng/{p.name}": p for p in (ROOT / "firmware/qrng_stick/qrng").glob("*.py")},
}
STICK = ROOT / "tests/vectors/stick"
CASES: dict[str, Any] = {
    p.stem: json.loads(p.read_text("utf-8")) for p in STICK.glob("*.json") if p.stem.startswith(("frame-", "broken-"))
}
REQUESTS = json.loads((STICK / "requests.json").read_text("utf-8"))


def _run(tmp_path: Path, program: str, modules: dict[str, Path]) -> subprocess.CompletedProcess[str]:
    """Run a program in MicroPython with the stick's modules on its path."""
    main = tmp_path / "program.py"
    main.write_text(program, "utf-8")
    files = [f"{target}={source}" for target, source in {**modules, "/program.py": main}.items()]
    command = ["node", str(HERE / "micropython.mjs"), str(VM), *files]
    return subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)


def _comparison(tmp_path: Path, modules: dict[str, Path]) -> subprocess.CompletedProcess[str]:
    for name, value in (("cases", CASES), ("requests", REQUESTS)):
        (tmp_path / f"{name}.json").write_text(json.dumps(value), "utf-8")
    data = {f"/{n}.json": tmp_path / f"{n}.json" for n in ("cases", "requests")}
    program = """
import json
from stick_portable import lines
for line in lines(json.load(open("/cases.json")), json.load(open("/requests.json"))):
    print(line)
"""
    return _run(tmp_path, program, {**modules, **data, "/stick_portable.py": HERE / "stick_portable.py"})


def test_both_pythons_give_the_same_answers(tmp_path: Path) -> None:
    needs_vm()
    here = list(stick_portable.lines(CASES, REQUESTS))
    done = _comparison(tmp_path, MODULES)
    assert done.returncode == 0, done.stderr[-2000:]
    there = done.stdout.splitlines()
    assert len(here) > 150
    for ours, theirs in zip(here, there, strict=True):
        group = ours.split(" ", 1)[0]
        assert json.loads(theirs.removeprefix(group)) == json.loads(ours.removeprefix(group)), group


def test_the_comparison_notices_a_module_that_differs(tmp_path: Path) -> None:
    """Negative control: one constant of one module changed on MicroPython's side only."""
    needs_vm()
    changed = tmp_path / "health.py"
    source = MODULES["/edgeseal/stick/health.py"].read_text("utf-8")
    assert "_SIGMA_TOLERANCE = 0.2 " in source
    changed.write_text(source.replace("_SIGMA_TOLERANCE = 0.2 ", "_SIGMA_TOLERANCE = 0.0001 "), "utf-8")
    done = _comparison(tmp_path, {**MODULES, "/edgeseal/stick/health.py": changed})
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines() != list(stick_portable.lines(CASES, REQUESTS))


def test_a_machine_without_viper_gets_the_plain_loops(tmp_path: Path) -> None:
    """The WebAssembly build has no native emitter: importing loops_viper there is a SyntaxError."""
    needs_vm()
    done = _run(tmp_path, "from qrng import loops, loops_plain\nprint(loops.scan is loops_plain.scan)", MODULES)
    assert done.stdout.strip() == "True", done.stderr[-2000:]
