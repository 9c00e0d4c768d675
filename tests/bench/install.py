"""Installing 1 GiB: verify, decrypt, write, flush; against the floor (hash, copy, flush) and peers that are installed.

The floor is `openssl dgst -sha256` + `cp` + flush of the same file: what any installer that checks and copies must
do. Peers do what they can of the same job: verify and decrypt one file. Every step is a process of its own; CPU is user
plus system time of it and its children. Best of three, because the disk is shared with the rest of the machine.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.bench.measured import Cost, cost

from edgeseal_host.build import build_bundle

if TYPE_CHECKING:
    from collections.abc import Callable

GIB: Final = 2**30
SIZES: Final = (GIB // 4, GIB)
FS: Final = bytes(range(32))
ROUNDS: Final = 3


def measure() -> dict[str, object]:
    """Return ratios and figures by name."""
    with tempfile.TemporaryDirectory(prefix="edgeseal-bench-") as place:
        work = Path(place)
        out: dict[str, object] = {}
        for size in SIZES:
            model, bundle = _make(work, size)
            ours = _best(partial(_install, work, bundle))
            out[f"peak_rss_mb_{size // 2**20}_mib"] = round(ours.rss_mb, 1)
        floor = _best(lambda: _floor(work, model))
        out |= {
            "size_mib": SIZES[-1] // 2**20,
            "cpu_s": round(ours.cpu, 2),
            "wall_s": round(ours.wall, 2),
            "floor_cpu_s": round(floor.cpu, 2),
            "floor_wall_s": round(floor.wall, 2),
            "cpu_ratio_to_floor": round(ours.cpu / floor.cpu, 2),
            "wall_ratio_to_floor": round(ours.wall / floor.wall, 2),
            "peak_rss_mb": round(ours.rss_mb, 1),
        }
        out |= _peers(work, model, ours.cpu)
    return out


def _best(run: Callable[[], Cost]) -> Cost:
    return min((run() for _ in range(ROUNDS)), key=lambda c: c.cpu)


def _floor(work: Path, model: Path) -> Cost:
    copy = work / "copy"
    copy.unlink(missing_ok=True)
    return cost(["sh", "-c", f"openssl dgst -sha256 {model} && cp {model} {copy} && sync {copy}"])


def _make(work: Path, size: int) -> tuple[Path, Path]:
    model, bundle = work / f"model-{size}.bin", work / f"bundle-{size}"
    with model.open("wb") as f:
        for _ in range(size // 2**20):
            f.write(os.urandom(2**20))
    build_bundle([model], model="bench", release=1, suite=1, family_secret=FS, out=bundle)
    return model, bundle


def _install(work: Path, bundle: Path) -> Cost:
    out = work / "installed"
    shutil.rmtree(out, ignore_errors=True)
    return cost([sys.executable, "-m", "tests.bench.install_once", bundle, out])


def _peers(work: Path, model: Path, ours: float) -> dict[str, object]:
    """Measure whatever of gpg, age and minisign, casync is installed; each verifies or decrypts the same file."""
    out: dict[str, object] = {}
    if shutil.which("gpg"):
        home, sealed = work / "gnupg", work / "model.gpg"
        home.mkdir(mode=0o700)
        gpg = [
            "gpg",
            "--homedir",
            home,
            "--batch",
            "--yes",
            "--quiet",
            "--passphrase-fd",
            "0",
            "--pinentry-mode",
            "loopback",
        ]
        cost([*gpg, "--compress-algo", "none", "-o", sealed, "--symmetric", model], stdin=b"bench\n")
        peer = _best(lambda: cost([*gpg, "-o", work / "plain", "--decrypt", sealed], stdin=b"bench\n"))
        out["cpu_ratio_to_gpg"] = round(ours / peer.cpu, 2)
        subprocess.run(["gpgconf", "--homedir", str(home), "--kill", "all"], check=False, capture_output=True)
    if shutil.which("age") and shutil.which("age-keygen") and shutil.which("minisign"):
        out["cpu_ratio_to_age_minisign"] = round(ours / _age(work, model), 2)
    absent = [name for name in ("rauc", "swupdate", "age", "minisign", "gpg", "casync") if not shutil.which(name)]
    out["peers_not_installed"] = ", ".join(absent) or "none"
    return out


def _age(work: Path, model: Path) -> float:
    identity, sealed = work / "age.key", work / "model.age"
    subprocess.run(["age-keygen", "-o", str(identity)], check=True, capture_output=True)
    recipient = subprocess.run(["age-keygen", "-y", str(identity)], check=True, capture_output=True, text=True).stdout
    subprocess.run(["age", "-r", recipient.strip(), "-o", str(sealed), str(model)], check=True)
    secret, public = work / "minisign.key", work / "minisign.pub"
    subprocess.run(["minisign", "-G", "-W", "-p", str(public), "-s", str(secret)], check=True, capture_output=True)
    subprocess.run(["minisign", "-S", "-s", str(secret), "-m", str(sealed)], check=True, capture_output=True)
    verify = f"minisign -V -p {public} -m {sealed}"
    return _best(lambda: cost(["sh", "-c", f"{verify} && age -d -i {identity} -o {work}/plain {sealed}"])).cpu
