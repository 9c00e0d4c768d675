"""From the configuration's list of sources to sources: which attached devices each of them may be.

    "edgeseal-qrng"            any device of this kind          "qcicada:/dev/ttyUSB0"   the device at this serial port
    "chaoskey:AB12"            the one with this serial number  "file:/lab/capture.bin"  a recording, in the lab only

Only what is listed is ever opened: serial ports of unknown devices are not written to, and nothing is loaded for USB
before the first scan.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Final

from edgeseal.errors import UsageError
from edgeseal.stick.mac import KEY_LENGTH

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from edgeseal.entropy.drivers.base import Found
    from edgeseal.entropy.reader import Attached
    from edgeseal.entropy.records import Records

_MAX_KEYS: Final = 65_536


def attach(
    entries: Sequence[str],
    *,
    records: Records,
    lab: bool = False,
    stick_keys: Path | None = None,
    retry_failed: float | None = None,
) -> list[Attached]:
    """Return one source per entry; none is started.

    Raises UsageError for keys that cannot be read, and for a recording outside the lab.
    """
    if not entries:
        return []
    if recordings := [e for e in entries if e.startswith("file:") and not lab]:
        raise UsageError(
            f"entropy.sources: {recordings[0]} is a recording, which whoever has the file can repeat",
            hint="recordings are for the lab: entropy.lab = true, never on a device that makes keys",
        )
    from edgeseal.entropy.drivers.base import Options
    from edgeseal.entropy.reader import Attached

    options = Options(lab=lab, stick_keys=keys(stick_keys) if stick_keys else {})
    return [
        Attached(entry, scanner(entry), options=options, records=records, retry_failed=retry_failed)
        for entry in dict.fromkeys(entries)
    ]


def scanner(entry: str) -> Callable[[], Sequence[Found]]:
    """Return the function that looks for the devices that `entry` names."""
    kind, _, which = entry.partition(":")

    def scan() -> Sequence[Found]:
        from edgeseal.entropy.drivers import detect

        if kind == "file":
            from edgeseal.entropy.drivers.base import Symbols

            return [detect.recording(Path(which), Symbols(bits=12, claim=4.0, raw=True))]
        probe = [which] if kind == "qcicada" and which.startswith("/") else []
        found = detect.scan(probe=probe)
        return [f for f in found if f.profile.name == kind and which in ("", f.description.serial, f.description.path)]

    return scan


def keys(path: Path) -> Mapping[str, bytes]:
    """Return the keys of paired sticks: TOML lines `"serial" = "key in hex"` in a file that is its owner's alone.

    Raises UsageError that names the serial number, never a key.
    """
    try:
        if path.stat().st_mode & 0o077:
            raise UsageError(f"{path}: entropy.stick_keys can be read by others", hint=f"chmod 600 {path}")
        document = tomllib.loads(path.read_bytes()[:_MAX_KEYS].decode())
    except OSError as e:
        raise UsageError(f"{path}: entropy.stick_keys cannot be read: {e.strerror}") from None
    except ValueError:
        raise UsageError(f"{path}: entropy.stick_keys is not TOML", hint='lines of "serial" = "key in hex"') from None
    return {serial.lower(): _key(path, serial, text) for serial, text in document.items()}


def _key(path: Path, serial: str, text: object) -> bytes:
    if isinstance(text, str) and re.fullmatch(r"(?:[0-9a-fA-F]{2})+", text) and len(text) == 2 * KEY_LENGTH:
        return bytes.fromhex(text)
    raise UsageError(f"{path}: entropy.stick_keys: the key of {serial} is not {KEY_LENGTH} bytes in hex")
