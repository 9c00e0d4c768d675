"""The programs and tables of the two runtime guides, taken from the page and run against the real thing."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.unit import runtime_world as world

from edgeseal.device import config
from edgeseal.errors import TemporaryError
from edgeseal.runtime.contract import Candidate, make_adapter

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgeseal.runtime.repository import ModelRepository

pytestmark = pytest.mark.unit
ROOT = Path(__file__).parents[2]
SERVE = (ROOT / "docs" / "guides" / "serve.md").read_text()
BRING = (ROOT / "docs" / "guides" / "bring-your-own-runtime.md").read_text()


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


@pytest.fixture
def models() -> Iterator[ModelRepository]:
    with world.repository() as found:
        yield found


def publish(models: ModelRepository, release: int) -> Candidate:
    return world.publish(models, "bearing", release, float(release))


# serve.md -------------------------------------------------------------------------------------------------------------


def test_the_client_of_the_guide_gets_an_answer(models: ModelRepository, tmp_path: Path) -> None:
    for extra in ("onnxruntime", "uvicorn", "tritonclient"):
        pytest.importorskip(extra, reason="pip install 'edgeseal[onnx,serve,test]'")
    (program,) = blocks(SERVE, "python")
    (tmp_path / "ask.py").write_text(program)
    publish(models, 8)
    models.switch("bearing", 8)
    with world.serving(models) as server:
        words = [sys.executable, str(tmp_path / "ask.py"), server.address]
        done = subprocess.run(words, capture_output=True, text=True, timeout=100, check=False)
        assert (done.returncode, done.stdout.strip()) == (0, "8 [[ 9. 10. 11. 12.]]"), done.stderr
        body = re.findall(r"infer -d '([^']+)'", SERVE)[0]
        assert set(json.loads(body)["inputs"][0]) == {"name", "datatype", "shape", "data"}


def test_the_guide_lists_every_status_that_a_request_can_get() -> None:
    runtime = ROOT / "agent" / "edgeseal" / "runtime"
    source = "".join((runtime / name).read_text() for name in ("app.py", "answer.py"))
    possible = {int(n) for n in re.findall(r"(?:RefusedRequestError|_error)\(\s*(\d{3}),", source)} | {200}
    listed = {int(n) for n in re.findall(r"^\| (\d{3}) \|", SERVE, re.MULTILINE)}
    assert listed == possible | {405}  # the last is the router's own


# bring-your-own-runtime.md --------------------------------------------------------------------------------------------


def test_every_adapter_has_a_configuration_that_makes_it(models: ModelRepository) -> None:
    kinds = set()
    for block in blocks(BRING, "toml"):
        runtime = config.parse(block.encode(), name="guide").runtime
        kinds.add(runtime.adapter)
        made = make_adapter(
            runtime.adapter,
            repository=models,
            command=runtime.command,
            unit=runtime.unit,
            url=runtime.url,
            probe=False,
        )
        assert made.name == runtime.adapter
    listed = set(re.findall(r"^\| `([\w-]+)` \|", BRING, re.MULTILINE))
    assert listed - kinds == {"serve"}  # which has a guide of its own


def test_the_program_that_follows_the_link(models: ModelRepository) -> None:
    (program,) = (b for b in blocks(BRING, "python") if "def release" in b)
    found: dict[str, Any] = {}
    exec(program, found)  # noqa: S102 - the guide's own text
    current = models.root / "bearing" / "current"
    assert found["release"](current) is None
    publish(models, 7)
    models.switch("bearing", 7)
    assert found["release"](current) == models.path("bearing", 7)


def test_the_object_that_a_command_is_given(models: ModelRepository, tmp_path: Path) -> None:
    (shown,) = blocks(BRING, "json")
    told = tmp_path / "told"
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\ncat > {told}\n")
    program.chmod(0o755)
    adapter = make_adapter("exec", repository=models, command=[str(program)], probe=False)
    publish(models, 7)
    models.switch("bearing", 7)
    adapter.activate(publish(models, 8))
    text = json.loads(told.read_text().replace(str(models.root), "/run/edgeseal/models"))
    assert text == json.loads(shown)


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    """The guide's command, with a place of the test's own."""
    (text,) = (b for b in blocks(BRING, "python") if "told" in b)
    program = tmp_path / "hand-over"
    program.write_text(text.replace("/run/inference", str(tmp_path)).replace("/usr/bin/python3", sys.executable))
    program.chmod(0o755)
    return [str(program), "--line", "3"]


def test_the_command_of_the_guide(models: ModelRepository, tmp_path: Path, command: list[str]) -> None:
    adapter = make_adapter("exec", repository=models, command=command, probe=False)
    (tmp_path / "busy").touch()
    with pytest.raises(TemporaryError, match="not now: the line is running"):
        adapter.prepare(publish(models, 7))
    (tmp_path / "busy").unlink()
    assert adapter.health("bearing", 7) is None  # no runtime has counted anything yet
    for release in (7, 8):
        candidate = publish(models, release)
        adapter.prepare(candidate)
        adapter.activate(candidate)
        if release == 7:
            adapter.commit(candidate)
    assert (tmp_path / "model").read_text() == str(models.path("bearing", 8))
    counted = {"directory": str(models.path("bearing", 8)), "requests": 9, "errors": 1, "instance": os.getpid()}
    (tmp_path / "counted").write_text(json.dumps(counted))
    health = adapter.health("bearing", 8)
    assert health is not None
    assert (health.serving, health.requests, health.errors) == (True, 9, 1)
    adapter.rollback(candidate)
    assert (tmp_path / "model").read_text() == str(models.path("bearing", 7))
