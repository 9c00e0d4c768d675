"""Other people's ways to do an install's job with one file: check who made it, decrypt, write, flush.

Only what is installed is measured, and nothing is installed for it. What each of them does of the job:

    age_minisign  minisign -V, age -d (X25519, ChaCha20-Poly1305)         signature and encryption
    gpg           gpg --decrypt with a passphrase (AES-256, its own MDC)  encryption, integrity; no signature
    rauc_verity   rauc extract of a "verity" bundle                       signature and hash tree, no encryption
    rauc_crypt    rauc extract of a "crypt" bundle                        signature, hash tree, AES-256
    swupdate      swupdate -i of a signed image with AES-256-CBC          signature, SHA-256 and encryption
    casync        casync extract of an index with its chunk store         chunk hashes only

`rauc install` and mounted bundles need root, a D-Bus service and dm-verity. `rauc extract` does the same checks in user
space; a crypt bundle then takes the way through a temporary file. After a measurement the file that came out is
compared with the model: a peer that did nothing would be fast.
"""

from __future__ import annotations

import filecmp
import hashlib
import os
import shutil
import subprocess
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

from tests.bench.measured import cost, in_turn

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from tests.bench.measured import Cost

ROUNDS: Final = 3
_AES: Final = "6f" * 32
_IV: Final = "a5" * 16


@dataclass(frozen=True)
class Job:
    """What a peer is asked to do: `command` makes `out` of `sealed`, which lies on the disk."""

    command: str
    sealed: Path
    out: Path


@dataclass(frozen=True)
class Peer:
    """A peer: the programs it needs, and how its input is made (work directory, model file)."""

    name: str
    needs: tuple[str, ...]
    prepare: Callable[[Path, Path], Job]

    def missing(self) -> list[str]:
        """Return the programs that are not installed."""
        return [program for program in self.needs if not shutil.which(program)]


def measure(work: Path, model: Path, ours: Mapping[str, Callable[[], Cost]]) -> dict[str, object]:
    """Return the CPU and wall time of `ours` (by the prefix of their names) as ratios to each installed peer's.

    Each peer runs in turn with ours, so that both meet the same disturbances. Also: which peers are not installed, and
    which failed and why.
    """
    out: dict[str, object] = {}
    absent = []
    for peer in PEERS:
        if missing := peer.missing():
            absent.append(f"{peer.name} ({', '.join(missing)})")
            continue
        place = work / peer.name
        place.mkdir()
        try:
            out |= _ratios(peer.name, peer.prepare(place, model), model, ours)
        except (RuntimeError, subprocess.CalledProcessError) as e:
            out[f"peer_failed_{peer.name}"] = str(e)[:300]
        shutil.rmtree(place, ignore_errors=True)  # 1 GiB each
    out["peers_not_installed"] = ", ".join(absent) or "none"
    return out


def run(job: Job) -> Cost:
    """Do a job once and return what it cost. Raises RuntimeError if the peer refuses."""
    if job.out.is_dir():
        shutil.rmtree(job.out)
    job.out.unlink(missing_ok=True)
    return cost(["sh", "-c", job.command])


def _ratios(name: str, job: Job, model: Path, ours: Mapping[str, Callable[[], Cost]]) -> dict[str, object]:
    theirs, *costs = in_turn(partial(run, job), *ours.values(), rounds=ROUNDS)
    made = job.out / model.name if job.out.is_dir() else job.out
    if not filecmp.cmp(made, model, shallow=False):
        raise RuntimeError(f"{made.name} is not the model")
    out: dict[str, object] = {}
    for prefix, our in zip(ours, costs, strict=True):
        out[f"{prefix}cpu_ratio_to_{name}"] = round(our.cpu / theirs.cpu, 2)
        out[f"{prefix}wall_ratio_to_{name}"] = round(our.wall / theirs.wall, 2)
    return out


def _age(work: Path, model: Path) -> Job:
    identity, sealed, plain = work / "age.key", work / "model.age", work / "plain"
    secret, public = work / "minisign.key", work / "minisign.pub"
    _do("age-keygen", "-o", identity)
    recipient = _do("age-keygen", "-y", identity).strip()
    _do("age", "-r", recipient, "-o", sealed, model)
    _do("minisign", "-G", "-W", "-p", public, "-s", secret)
    _do("minisign", "-S", "-s", secret, "-m", sealed)
    command = f"minisign -V -p {public} -m {sealed} && age -d -i {identity} -o {plain} {sealed} && sync {plain}"
    return Job(command, sealed, plain)


def _gpg(work: Path, model: Path) -> Job:
    home, sealed, plain, passphrase = work / "home", work / "model.gpg", work / "plain", work / "passphrase"
    home.mkdir(mode=0o700)
    passphrase.write_text("bench")
    words = f"gpg --homedir {home} --batch --yes --quiet --pinentry-mode loopback --passphrase-file {passphrase}"
    end = f"gpgconf --homedir {home} --kill all"
    _do("sh", "-c", f"{words} --compress-algo none -o {sealed} --symmetric {model} && {end}")
    return Job(f"{words} -o {plain} --decrypt {sealed} && sync {plain} && {end}", sealed, plain)


def _rauc_verity(work: Path, model: Path) -> Job:
    certificate, _, bundle = _rauc_bundle(work, model, "verity")
    return _rauc_job(work, f"--keyring {certificate}", bundle)


def _rauc_crypt(work: Path, model: Path) -> Job:
    certificate, key, bundle = _rauc_bundle(work, model, "crypt")
    sealed = work / "sealed.raucb"
    _do("rauc", "--keyring", certificate, "encrypt", "--to", certificate, bundle, sealed)
    bundle.unlink()
    return _rauc_job(work, f"--keyring {certificate} --key {key}", sealed)


def _rauc_bundle(work: Path, model: Path, kind: str) -> tuple[Path, Path, Path]:
    """Make a signed bundle whose file system holds the model as it is; return certificate, key and bundle."""
    certificate, key = _certificate(work)
    content, bundle = work / "content", work / "bundle.raucb"
    content.mkdir()
    os.link(model, content / model.name)
    manifest = f"[update]\ncompatible=bench\nversion=1\n[bundle]\nformat={kind}\n[image.model]\nfilename={model.name}\n"
    (content / "manifest.raucm").write_text(manifest)
    signed = ["rauc", "--cert", certificate, "--key", key, "--mksquashfs-args=-noI -noD -noF -noX -no-progress"]
    _do(*signed, "bundle", content, bundle)
    return certificate, key, bundle


def _rauc_job(work: Path, options: str, sealed: Path) -> Job:
    out = work / "extracted"
    return Job(f"TMPDIR={work} rauc {options} extract {sealed} {out} && sync {out}/*", sealed, out)


def _swupdate(work: Path, model: Path) -> Job:
    certificate, key = _certificate(work)
    image, description, secret, sealed = work / "image", work / "sw-description", work / "aes.key", work / "model.swu"
    out = work / "plain"
    _do("openssl", "enc", "-aes-256-cbc", "-K", _AES, "-iv", _IV, "-in", model, "-out", image)
    with image.open("rb") as f:
        sha256 = hashlib.file_digest(f, "sha256").hexdigest()
    entry = f'filename = "image"; path = "{out}"; type = "rawfile"; sha256 = "{sha256}"; ivt = "{_IV}";'
    entry += " encrypted = true; installed-directly = true;"
    text = f'software = {{ version = "1"; hardware-compatibility: [ "1" ]; files: ( {{ {entry} }} ); }}\n'
    description.write_text(text)
    signature = ["-out", f"{description}.sig", "-outform", "DER", "-nosmimecap", "-binary"]
    _do("openssl", "cms", "-sign", "-in", description, "-signer", certificate, "-inkey", key, *signature)
    secret.write_text(f"{_AES} {_IV}\n")
    names = "sw-description\\nsw-description.sig\\nimage\\n"
    _do("sh", "-c", f"cd {work} && printf '{names}' | cpio --quiet -o -H crc > {sealed}")
    image.unlink()
    return Job(f"swupdate -l 1 -H bench:1 -k {certificate} -K {secret} -i {sealed} && sync {out}", sealed, out)


def _casync(work: Path, model: Path) -> Job:
    store, index, out = work / "store", work / "model.caibx", work / "plain"
    _do("casync", "make", f"--store={store}", index, model)
    return Job(f"casync extract --store={store} --seed-output=no {index} {out} && sync {out}", store, out)


def _certificate(work: Path) -> tuple[Path, Path]:
    """Make a self-signed certificate; return it and its key."""
    certificate, key = work / "cert.pem", work / "key.pem"
    subject = ["-subj", "/CN=bench", "-days", "2"]
    _do("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", certificate, *subject)
    return certificate, key


def _do(*words: object) -> str:
    """Run one step of the preparation and return what it printed."""
    return subprocess.run([str(w) for w in words], check=True, capture_output=True, text=True).stdout


PEERS: Final = (
    Peer("age_minisign", ("age", "age-keygen", "minisign"), _age),
    Peer("gpg", ("gpg", "gpgconf"), _gpg),
    Peer("rauc_verity", ("rauc", "mksquashfs", "unsquashfs", "openssl"), _rauc_verity),
    Peer("rauc_crypt", ("rauc", "mksquashfs", "unsquashfs", "openssl"), _rauc_crypt),
    Peer("swupdate", ("swupdate", "cpio", "openssl"), _swupdate),
    Peer("casync", ("casync",), _casync),
)
