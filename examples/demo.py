"""`./dev demo`: a model goes from a workstation to a device; a bad model and four attacks do not.

Every part is the real one, on this machine's loopback: keys, fleet server, device agent, inference server. Nothing
needs root, nothing is left behind, also after Ctrl-C. Not here: showing commands (stage.py), the model (bearing/).
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

from stage import Stage

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

EXAMPLES: Final = Path(__file__).resolve().parent
TMPFS: Final = Path("/dev/shm")  # noqa: S108 - the directory made in it is private
AGENT: Final = ("edgeseal-agent", "--config", "agent.toml")
REFUSED, NOT_AUTHORISED = 3, 4
FOLLOWS_WITHIN: Final = 30.0  # seconds that edgeseal-serve has to follow a switch


@dataclass(frozen=True)
class Places:
    """Where things of this run are."""

    work: Path
    models: Path
    on_disk: bool


def main() -> None:
    """Tell the story from beginning to end."""
    started = time.monotonic()
    signal.signal(signal.SIGTERM, _ended)
    signal.signal(signal.SIGHUP, _ended)
    try:
        with ExitStack() as stack:
            places = stack.enter_context(_places())
            stage = stack.enter_context(Stage(places.work, python_path=EXAMPLES))
            _play(stage, places)
    except KeyboardInterrupt:
        raise SystemExit("\ndemo: interrupted; servers are stopped, files removed") from None
    print(f"\nThat took {time.monotonic() - started:.0f} s. Servers are stopped, files removed.")
    print("Next: docs/guides/publish-a-model.md")


def _play(stage: Stage, places: Places) -> None:
    stage.say(
        "A plant's machines are watched by small computers that hear from a vibration whether a bearing is damaged.\n"
        "The engineer who trains that model sits elsewhere. This is how it gets to a device, signed, encrypted and\n"
        "never older than what is there, through a server that can hold it back but cannot change it."
    )
    train(stage)
    make_keys(stage)
    url = start_fleet(stage)
    to = ("--to", url)
    enrol(stage, places, to)
    publish_first(stage, to)
    served = install_first(stage, places)
    stage.run("edgeseal", "bundle", "export", "b1", "--repo", "repo", "--device", "press-7", *to, "--out", "usb")
    publish_second(stage, to)
    refuse_tampered_chunk(stage)
    install_second(stage, served)
    refuse_bad_model(stage, to, served)
    refuse_old_metadata(stage)
    refuse_wrong_key(stage, to)
    refuse_revoked_device(stage, to, served)


# The story, chapter by chapter ---------------------------------------------------------------------------------------


def train(stage: Stage) -> None:
    """Make release 1."""
    stage.chapter("A model that does a real job")
    stage.say(
        "Vibration of healthy and damaged bearings, from their geometry; speed, load and noise vary. A network\n"
        "learns to tell inner race, outer race and ball from healthy. Nothing is downloaded."
    )
    stage.run("python", "-m", "bearing.train", "--out", "model-1.onnx")


def make_keys(stage: Stage) -> None:
    """Three people for the root, two of whom suffice; one key to list models, one to publish this one."""
    stage.chapter("Keys: three people, any two of whom decide")
    stage.say("ML-DSA-65 (FIPS 204) keys in files. Your own get a passphrase; these live for a minute.")
    stage.export("EDGESEAL_KEYS", "keys")
    for name in ("alice", "bob", "carol", "targets", "publisher"):
        stage.run("edgeseal", "key", "new", name, "--no-passphrase")
    stage.say("And the secret from which chunk keys are made. It never leaves the workstation:")
    stage.run("edgeseal", "key", "new", "bearing-family", "--kind", "family", "--no-passphrase")


def start_fleet(stage: Stage) -> str:
    """Make a server and a repository that says whom devices may believe; return the server's address."""
    stage.chapter("A fleet server, and the signed list of what may be installed")
    url = f"http://127.0.0.1:{_free_port()}"
    stage.run("edgeseal", "fleet", "init", "--data", "fleet", "--url", url)
    roots = [word for name in ("alice", "bob", "carol") for word in ("--root-key", name)]
    rules = ("--threshold", "2", "--targets-key", "targets")
    stage.run("edgeseal", "repo", "init", "repo", "--fleet", "fleet/public.json", *roots, *rules)
    stage.run("edgeseal", "repo", "stage", "repo", "--model", "bearing", "--publisher-key", "publisher")
    stage.say("Each signs with their own key; in life on their own machine, hours apart.")
    for name in ("alice", "bob", "targets", "publisher"):
        stage.run("edgeseal", "repo", "sign", "repo", "--key", name)
    stage.run("edgeseal", "repo", "status", "repo")
    stage.run("edgeseal", "fleet", "trust", "--data", "fleet", _root(stage))
    stage.export("EDGESEAL_TOKEN_FILE", "fleet/admin.token")
    listen = url.removeprefix("http://")
    stage.serve("edgeseal", "fleet", "serve", "--data", "fleet", "--listen", listen, ready="fleet.ready")
    stage.run("edgeseal", "repo", "publish", "repo", "--to", url)
    return url


def enrol(stage: Stage, places: Places, to: tuple[str, ...]) -> None:
    """Give a device its identity: the private key is made on it and stays there."""
    stage.chapter("A device joins")
    if places.on_disk:
        stage.say(
            "[yellow]No tmpfs to write to: decrypted models go to a disk here, which a device refuses by default."
        )
    (places.work / "agent.toml").write_text(_agent_config(places))
    stage.say("Its private key is made on the device. What travels is a request, and a grant sealed to that key.")
    stage.run(*AGENT, "enrol", "request", "--out", "dev1.request")
    names = ("--name", "press-7", "--group", "line-1")
    root = ("--fleet", "fleet/public.json", "--root", _root(stage))
    stage.run("edgeseal", "device", "enrol", "dev1.request", *names, *root, *to, "--out", "press-7.grant")
    stage.run(*AGENT, "enrol", "accept", "press-7.grant")


def publish_first(stage: Stage, to: tuple[str, ...]) -> None:
    """Cut, encrypt, sign and upload release 1, and say who shall run it."""
    stage.chapter("Release 1")
    stage.say("First, sixteen signals that every device must get right before it serves this release:")
    _record(stage, 1, "first")
    _build(stage, 1)
    _publish(stage, 1, to)
    stage.run("edgeseal", "fleet", "assign", "bearing", "1", "--group", "line-1", *to)


def install_first(stage: Stage, places: Places) -> str:
    """Let the device fetch it, serve it and ask it; return where it is served."""
    stage.chapter("The device installs it and answers")
    stage.say(
        "One pass: metadata verified, key released to this device alone, chunks fetched, decrypted to memory, probed."
    )
    stage.run(*AGENT, "update")
    where = ("--models", places.models, "--listen", "127.0.0.1:0", "--status-file", "serve.json")
    served = stage.serve("edgeseal-serve", *where, ready="serve.ready")
    _wait_for_release(stage, served, 1)
    stage.say("Any client of the Open Inference Protocol can ask. Signals it never saw, its answers beside the truth:")
    stage.run("python", "-m", "bearing.ask", served, "--count", "12")
    return served


def publish_second(stage: Stage, to: tuple[str, ...]) -> None:
    """Fit the head to a second plant and publish that."""
    stage.chapter("Release 2: a small change")
    stage.say("A second plant is noisier and its housings ring higher. Only the network's last layer learns that.")
    stage.run("python", "-m", "bearing.train", "--out", "model-2.onnx", "--from", "model-1.onnx")
    _record(stage, 2, "second")
    _build(stage, 2)
    _publish(stage, 2, to)
    stage.run("edgeseal", "fleet", "assign", "bearing", "2", "--group", "line-1", *to)


def refuse_tampered_chunk(stage: Stage) -> None:
    """Flip a bit of each new chunk on the server; mend them afterwards."""
    stage.chapter("Refused: a tampered chunk")
    honest = {chunk: chunk.read_bytes() for chunk in _new_chunks(stage)}
    stage.say(
        f"Somebody who controls the server flips a bit in each of the {len(honest)} chunks that are new in release 2."
    )
    for chunk, data in honest.items():
        chunk.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    stage.run(*AGENT, "update", expect=REFUSED)
    for chunk, data in honest.items():
        chunk.write_bytes(data)
    stage.say("Release 1 goes on serving. The bits are put back.")


def install_second(stage: Stage, served: str) -> None:
    """Install release 2 while callers ask without a pause, and show what it cost."""
    stage.chapter("Release 2 arrives: only what changed is fetched, and no caller notices")
    stage.say(
        "The device watches a release after the switch (here five seconds, a minute unless configured): one that\n"
        "crashes, errs or slows down gives way to the one before. Callers ask all the while."
    )
    with stage.meanwhile("python", "-m", "bearing.load", served, until="stop.load"):
        done = stage.ask(*AGENT, "update")
        _wait_for_release(stage, served, 2)
    (two,) = done["installed"]
    fetched, size = two["bytes_fetched"], two["stored_size"]
    stage.say(f"    fetched [bold]{fetched:,}[/] of {size:,} bytes: {fetched / size:.2%} of the model")
    stage.run("python", "-m", "bearing.ask", served, "--plant", "second", "--count", "12")


def refuse_bad_model(stage: Stage, to: tuple[str, ...], served: str) -> None:
    """Publish a model that loads and answers, and is wrong: well signed, and refused by the device all the same."""
    stage.chapter("Refused: a bad model")
    stage.say(
        "An engineer converts the model carelessly. It loads, its shapes are right, it is signed and assigned. The\n"
        "signals that release 2 had to get right travel with it. The device tries them in a process that serves nobody:"
    )
    stage.run("python", "-m", "bearing.spoil", "model-2.onnx", "--out", "model-3.onnx")
    _build(stage, 3)
    _publish(stage, 3, to)
    stage.run("edgeseal", "fleet", "assign", "bearing", "3", "--group", "line-1", *to)
    stage.run(*AGENT, "update", expect=REFUSED)
    stage.say("Release 2 goes on answering; this device will not try those bytes again. The operator takes it back:")
    stage.run("edgeseal", "fleet", "assign", "bearing", "2", "--group", "line-1", *to)
    stage.run("python", "-m", "bearing.ask", served, "--plant", "second", "--count", "4")


def refuse_old_metadata(stage: Stage) -> None:
    """Offer the disk that was made when release 1 was the newest."""
    stage.chapter("Refused: rolled-back metadata")
    stage.say(
        "The disk `usb` was exported before release 2. Every signature on it is genuine, but what it says is older\n"
        "than what this device has accepted. Whoever plugs it in wants release 1 back:"
    )
    stage.run(*AGENT, "install", "usb", expect=REFUSED)


def refuse_wrong_key(stage: Stage, to: tuple[str, ...]) -> None:
    """Try to publish with a good key that nobody delegated to: with the tools, then around them."""
    stage.chapter("Refused: a wrong key")
    stage.say("Mallory has stolen the server's token and makes a key. But neither root nor targets ever named it:")
    stage.run("edgeseal", "key", "new", "mallory", "--no-passphrase")
    _build(stage, 4)
    keys = ("--key", "mallory", "--family", "bearing-family")
    stage.run("edgeseal", "bundle", "publish", "b4", "--repo", "repo", *keys, *to, expect=NOT_AUTHORISED)
    stage.say("So they go around the tools, sign the next list of releases themselves and send it. The server checks:")
    stage.run("python", "-m", "forge", "repo", "--model", "bearing", "--key", "mallory", *to, expect=REFUSED)


def refuse_revoked_device(stage: Stage, to: tuple[str, ...], served: str) -> None:
    """Revoke the device: no key is ever released to it again; what runs goes on."""
    stage.chapter("Refused: a revoked device")
    stage.say("The device's card is copied by a thief. The operator revokes it: copy and original get no further key.")
    stage.run("edgeseal", "device", "revoke", "press-7", "--reason", "card copied", *to)
    stage.run(*AGENT, "update", "--report", expect=NOT_AUTHORISED)
    stage.say("The line does not stop: what is in memory keeps answering until the device is replaced.")
    stage.run("python", "-m", "bearing.ask", served, "--plant", "second", "--count", "4")
    stage.run(*AGENT, "status")


# Small parts ---------------------------------------------------------------------------------------------------------


def _record(stage: Stage, release: int, plant: str) -> None:
    """Record what a release answers to signals of a plant: its acceptance vectors."""
    samples, limits = f"samples-{release}.npz", ("--top1", "--latency-ms", "250")
    stage.run("python", "-m", "bearing.samples", "--plant", plant, "--out", samples)
    words = ("--inputs", samples, *limits, "--out", f"accept-{release}.json")
    stage.run("edgeseal", "accept", "record", f"model-{release}.onnx", *words)


def _build(stage: Stage, release: int) -> None:
    """Build bundle b<release>, with the bundle before as a hint of what to share."""
    model = f"model-{min(release, 3)}.onnx"
    what = ("--model", "bearing", "--release", str(release), "--family", "bearing-family")
    accept = ("--accept", f"accept-{min(release, 2)}.json")
    previous = ("--previous", f"b{release - 1}") if release > 1 else ()
    stage.run("edgeseal", "bundle", "build", model, *what, *accept, "--out", f"b{release}", *previous)


def _publish(stage: Stage, release: int, to: tuple[str, ...]) -> None:
    keys = ("--key", "publisher", "--family", "bearing-family")
    stage.run("edgeseal", "bundle", "publish", f"b{release}", "--repo", "repo", *keys, *to)


def _root(stage: Stage) -> str:
    """First root of the repository: before it is published where it is staged, then under its number."""
    found = [
        p for p in ("repo/published/metadata/1.root.json", "repo/staged/root.json") if (stage.directory / p).exists()
    ]
    if not found:
        raise SystemExit("demo: `edgeseal repo` has written no root.json")
    return found[0]


def _new_chunks(stage: Stage) -> list[Path]:
    """Return the chunks on the server that release 2 has and release 1 has not."""
    first, second = ({p.name for p in (stage.directory / b / "chunks").rglob("*") if p.is_file()} for b in ("b1", "b2"))
    directory = stage.directory / "fleet" / "objects" / "chunks"
    return [directory / name[:2] / name for name in sorted(second - first)]


def _wait_for_release(stage: Stage, served: str, release: int) -> None:
    import urllib3

    deadline = time.monotonic() + FOLLOWS_WITHIN
    while time.monotonic() < deadline:
        answer = urllib3.request("GET", f"{served}/v2/models/bearing", retries=False)
        if answer.status == 200 and str(release) in answer.json().get("versions", []):  # noqa: PLR2004 - HTTP
            return
        time.sleep(0.1)
    raise SystemExit(f"demo: release {release} is not served; see {stage.directory}")


def _agent_config(places: Places) -> str:
    lines = [
        "[device]",
        'serial = "PRESS-7"',
        "[paths]",
        f'state = "{places.work / "device"}"',
        f'models = "{places.models}"',
        "[runtime]",
        'adapter = "serve"',
        f'status_file = "{places.work / "serve.json"}"',
        "watch_seconds = 5",
        f"allow_disk = {str(places.on_disk).lower()}",
    ]
    return "\n".join(lines) + "\n"


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port


@contextmanager
def _places() -> Iterator[Places]:
    """Make a working directory and one in memory for decrypted models; remove both, whatever happens."""
    on_disk = not _is_tmpfs(TMPFS)
    with ExitStack() as stack:
        work = _directory(stack, None, "edgeseal-demo-")
        models = _directory(stack, None if on_disk else TMPFS, f"{work.name}-")
        yield Places(work, models / "models", on_disk)


def _directory(stack: ExitStack, parent: Path | None, prefix: str) -> Path:
    made = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    stack.callback(shutil.rmtree, made, ignore_errors=True)
    return made


def _is_tmpfs(directory: Path) -> bool:
    """Whether a directory is in memory and ours to write to."""
    mounts = Path("/proc/mounts").read_text().splitlines()
    in_memory = any(line.split()[1:3] == [str(directory), "tmpfs"] for line in mounts)
    return in_memory and os.access(directory, os.W_OK)


def _ended(signum: int, _frame: FrameType | None) -> NoReturn:
    """End like Ctrl-C does, so that everything is cleaned up."""
    raise SystemExit(f"demo: ended by {signal.Signals(signum).name}; servers are stopped, files removed")


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    main()
