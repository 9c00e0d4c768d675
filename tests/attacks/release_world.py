"""A device whose edgeseal-serve is asked without a pause while its agent takes releases: all real, on one machine.

Release 1 is the good classifier of `bad_models`; whatever a test publishes comes with acceptance vectors that were
recorded from it, through the real build, signed metadata, X1 and update pass.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import socket
import tempfile
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from tests.attacks import bad_models
from tests.unit.agent_world import FS, MODEL, Device, Fleet, Published, make_writable
from tests.unit.runtime_world import Serve, until

from edgeseal.device import update
from edgeseal.runtime import serve_status
from edgeseal.runtime.vectors import Tensor
from edgeseal_host import accept
from edgeseal_host.build import build_bundle
from edgeseal_host.bundle import bundle_content_key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from edgeseal.device.state import Model

GOOD = 1
BUDGET_MS = 20.0
BUDGET_MIB = 64
RATE = 50.0  # requests a second
DECLARED = {
    "inputs": {"x": ["FP32", [-1, bad_models.WIDTH]]},
    "outputs": {"y": ["FP32", [-1, bad_models.CLASSES]]},
}


@dataclass(frozen=True)
class Answer:
    """One answer: HTTP status (0: the connection was lost), release, error text, whether the values are right."""

    at: float
    status: int
    release: int = 0
    said: str = ""
    right: bool = False


@dataclass
class Load:
    """A client that asks at RATE over one connection; `mark` gives the first feature of request n."""

    address: str
    mark: Callable[[int], float] = lambda _: bad_models.VECTOR_MARK
    answers: list[Answer] = field(default_factory=list)
    _done: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def since(self, start: int, *, release: int | None = None) -> list[Answer]:
        return [a for a in self.answers[start:] if release is None or a.release == release]

    def wait_for(self, what: Callable[[Answer], bool], times: int, words: str) -> None:
        """Wait for that many more answers of a kind."""
        start = len(self.answers)
        until(lambda: sum(map(what, self.answers[start:])) >= times, words)

    def _run(self) -> None:
        rng, number = np.random.default_rng(3), 0
        connection = http.client.HTTPConnection(self.address, timeout=60)
        while not self._done.wait(1 / RATE):
            x = rng.normal(size=(1, bad_models.WIDTH)).astype(np.float32)
            x[0, 0] = self.mark(number)
            number += 1
            self.answers.append(_ask(connection, x))
        connection.close()


def _ask(connection: http.client.HTTPConnection, x: Any) -> Answer:
    tensor = {"name": "x", "datatype": "FP32", "shape": list(x.shape), "data": x.reshape(-1).tolist()}
    try:
        connection.request("POST", f"/v2/models/{MODEL}/infer", json.dumps({"inputs": [tensor]}))
        connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        got = connection.getresponse()
        document = json.loads(got.read())
    except (OSError, http.client.HTTPException, ValueError) as e:
        connection.close()
        return Answer(time.monotonic(), 0, said=repr(e))
    if got.status != http.client.OK:
        return Answer(time.monotonic(), got.status, said=document["error"])
    right = np.allclose(document["outputs"][0]["data"], bad_models.answer(x)[0], rtol=1e-3, atol=1e-4)
    return Answer(time.monotonic(), got.status, int(document["model_version"]), right=right)


@dataclass
class World:
    """Fleet, device, server and load; `status_file` is where the server says how it does."""

    fleet: Fleet
    device: Device
    status_file: Path
    tests: object
    serve: Serve = field(init=False)
    load: Load = field(init=False)

    def publish(self, release: int, write: Callable[[Path], None], **settings: Any) -> Published:
        """Build a release whose files `write` makes beside the path it is given; list and serve it."""
        source = self.fleet.directory / f"source-{release}"
        source.mkdir()
        write(source / "model.onnx")
        bundle = self.fleet.directory / f"bundle-{release}"
        vectors = {**self.tests, **settings} if isinstance(self.tests, dict) else None
        manifest = build_bundle(
            [source],
            model=MODEL,
            release=release,
            suite=1,
            family_secret=FS,
            out=bundle,
            tests=vectors,
            requirements=DECLARED,
        )
        objects = [p for kind in ("tables", "chunks") for p in (bundle / kind).rglob("*") if p.is_file()]
        files = {str(p.relative_to(bundle)): p.read_bytes() for p in objects}
        made = Published(manifest, (bundle / "manifest.cbor").read_bytes(), bundle_content_key(bundle, FS), files)
        self.fleet.releases[release] = made
        self.fleet.repository.files.update(files)
        self.fleet.repository.add_release(MODEL, release, made.data)
        return made

    def configure(self, **runtime: Any) -> None:
        """Write the agent's configuration: a short watch, and what `runtime` says."""
        common = {"adapter": "serve", "status_file": str(self.status_file), "activate_seconds": 60}
        short = {"watch_seconds": 1, "probe": True, "probe_memory_mb": 256}
        self.device.write_config(runtime={**common, **short, **runtime})

    def update(self, release: int) -> list[str]:
        """Assign a release and let the agent do a pass; return its errors."""
        self.fleet.assigned = release
        return [str(e) for e in update.run(self.device.agent(), report=True).errors]

    def model(self) -> Model:
        return self.device.agent().state().model(MODEL)

    def status(self) -> serve_status.ModelStatus:
        found = serve_status.read(self.status_file)
        return found.models.get(MODEL, serve_status.ModelStatus()) if found else serve_status.ModelStatus()

    def counted(self, release: int) -> serve_status.ReleaseStatus:
        return self.status().releases.get(str(release), serve_status.ReleaseStatus())


def recorded(directory: Path) -> object:
    """Let the good model answer three cases; return acceptance vectors as a table holds them."""
    place = directory / "recorded"
    place.mkdir()
    bad_models.classifier(place / "model.onnx")
    rng, cases = np.random.default_rng(5), []
    for _ in range(3):
        x = rng.normal(size=(2, bad_models.WIDTH)).astype("<f4")
        x[:, 0] = bad_models.VECTOR_MARK
        inputs: Mapping[str, Tensor] = {"x": Tensor("FP32", list(x.shape), x.tobytes())}
        cases.append((dict(inputs), dict[str, Tensor]()))
    settings = {"warmup": 2, "latency_ms": BUDGET_MS, "memory_mb": BUDGET_MIB}
    return accept.to_table(accept.record(place, cases, settings))


def start_serve(made: World, *more: str) -> Serve:
    """Start edgeseal-serve beside the agent."""
    return Serve(made.device.models, "--status-file", str(made.status_file), "--threads", "1", *more)


@contextmanager
def world(
    directory: Path,
    releases: Mapping[int, tuple[Callable[[Path], None], Mapping[str, Any]]],
    *,
    start: Callable[[World], Serve] = start_serve,
) -> Iterator[World]:
    """A device that serves release 1 under load; `releases` are listed, none is assigned yet."""
    place = Path(tempfile.mkdtemp(prefix="edgeseal-test-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))
    fleet = Fleet.make(directory)
    device = Device(fleet, directory / "device", place / "models")
    device.directory.mkdir()
    made = World(fleet, device, directory / "status.json", recorded(directory))
    made.publish(GOOD, bad_models.classifier)
    for number, (write, settings) in releases.items():
        made.publish(number, write, **settings)
    fleet.repository.publish()
    try:
        with fleet.serving():
            made.configure()
            device.enrol()
            assert made.update(GOOD) == []
            made.serve = start(made)
            with _ended(made.serve), Load(made.serve.address) as load:
                made.load = load
                load.wait_for(lambda a: a.right, 3, "release 1 answers")
                yield made
    finally:
        make_writable(place)
        shutil.rmtree(place)


@contextmanager
def _ended(server: Serve) -> Iterator[None]:
    try:
        yield
    finally:
        server.process.kill()
        server.process.wait()
