"""The benchmark's peers do the job that they are measured at, and refuse a file that somebody has changed."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from tests.bench import peers
from tests.bench.measured import Cost
from tests.bench.peers import PEERS, Job, Peer

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.sim
SIZE = 300_000


@pytest.fixture(params=PEERS, ids=lambda p: p.name)
def prepared(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Job]:
    peer: Peer = request.param
    if missing := peer.missing():
        pytest.skip(f"needs {', '.join(missing)} (the bench measures what is installed and installs nothing)")
    model = tmp_path / "model.bin"
    model.write_bytes(os.urandom(SIZE))
    (tmp_path / "peer").mkdir()
    return model, peer.prepare(tmp_path / "peer", model)


def made(job: Job, model: Path) -> bytes:
    return (job.out / model.name if job.out.is_dir() else job.out).read_bytes()


def test_peer_gives_the_model_back_as_often_as_it_is_asked(prepared: tuple[Path, Job]) -> None:
    model, job = prepared
    for _ in range(2):
        assert peers.run(job).wall > 0
        assert made(job, model) == model.read_bytes()


def test_peer_refuses_what_was_changed(prepared: tuple[Path, Job]) -> None:
    """A peer that checks nothing would be a floor and no peer."""
    _, job = prepared
    sealed = max(job.sealed.rglob("*.cacnk"), key=lambda p: p.stat().st_size) if job.sealed.is_dir() else job.sealed
    data = bytearray(sealed.read_bytes())
    data[len(data) // 2] ^= 1
    sealed.write_bytes(data)
    with pytest.raises(RuntimeError, match="exit code"):
        peers.run(job)


def test_a_peer_that_fails_or_lies_is_said_and_the_others_are_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def honest(work: Path, model: Path) -> Job:
        return Job(f"cp {model} {work}/out", model, work / "out")

    def liar(work: Path, model: Path) -> Job:
        return Job(f"head -c 10 {model} > {work}/out", model, work / "out")

    def broken(work: Path, model: Path) -> Job:
        return Job("exit 7", model, work / "out")

    every = [("honest", honest), ("liar", liar), ("broken", broken)]
    chosen = [Peer(name, ("cp",), prepare) for name, prepare in every]
    monkeypatch.setattr(peers, "PEERS", [*chosen, Peer("absent", ("no-such-program",), honest)])
    model = tmp_path / "model.bin"
    model.write_bytes(os.urandom(2**20))
    found = peers.measure(tmp_path, model, {"": lambda: Cost(1.0, 1.0, 1.0), "suite_2_": lambda: Cost(2.0, 2.0, 1.0)})
    assert {"cpu_ratio_to_honest", "suite_2_wall_ratio_to_honest", "peer_failed_liar", "peer_failed_broken"} < set(
        found
    )
    assert "exit code 7" in str(found["peer_failed_broken"])
    assert found["peers_not_installed"] == "absent (no-such-program)"
    assert list(tmp_path.iterdir()) == [model]
