"""Raw captures in exactly the layouts that NIST's SP800-90B_EntropyAssessment reads, with a record of how they came.

    sequential   NAME.bin: a million consecutive samples, one in the low bits of each byte (ea_non_iid)
    restarts     NAME.bin: a thousand samples after each of a thousand restarts, one restart after the other: the row
                 dataset of SP 800-90B §3.1.4.1 (ea_restart); NAME.columns.bin: the column dataset, transposed

NAME.json beside them says which device, which bits, when, and the SHA-256. Nothing is tested, left out or conditioned
here: a capture of a broken source must show that it is broken. The tool reads at most 8 bits a sample; of wider samples
8 bits are kept, which can only lower the estimate. A sequence with a gap is no sequence: it is begun again. Captures
are not keys: samples that were written to a disk never go into the pool.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from edgeseal import __version__
from edgeseal.durable import fsync_directory, write_atomic
from edgeseal.entropy.drivers.base import Hung
from edgeseal.errors import TemporaryError, UsageError
from edgeseal.stick import frame

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edgeseal.entropy.drivers.base import Driver, Reading

FORMAT: Final = 1
SAMPLES: Final = 1_000_000
RESTARTS: Final = 1000
DISCARDED: Final = 16  # first samples after opening: an ADC's first results are stale
READ_TIMEOUT: Final = 1.0  # seconds
_HUNG_READS: Final = 5  # in a row
_GAPS: Final = 5  # times a sequence is begun again
_BYTE: Final = 8
_FLAGS: Final = {
    frame.RCT_ALARM: "rct alarm",
    frame.APT_ALARM: "apt alarm",
    frame.OVERRUN: "overrun",
    frame.SATURATED: "saturated",
    frame.CAL_INVALID: "calibration invalid",
    frame.SIMULATED: "simulated",
}


@dataclass(frozen=True, slots=True)
class Plan:
    """What to capture: `rows` is None for one sequence of `columns` samples, else the number of restarts.

    `shift`: the lowest bit that is kept of samples wider than 8 bits.
    """

    columns: int = SAMPLES
    rows: int | None = None
    shift: int = 0

    def __post_init__(self) -> None:
        """Refuse what is no capture."""
        if self.columns < 1 or (self.rows is not None and self.rows < 1) or not 0 <= self.shift <= _BYTE:
            raise UsageError("a capture has at least one sample and one restart, and a shift of 0 to 8 bits")


@dataclass(frozen=True, slots=True)
class Files:
    """The names of one capture's files."""

    data: Path
    columns: Path
    record: Path
    part: Path  # a capture of restarts that is not finished

    @staticmethod
    def named(name: Path) -> Files:
        """Return the files for NAME or NAME.bin."""
        stem = name.with_suffix("") if name.suffix == ".bin" else name
        of = [stem.with_name(stem.name + end) for end in (".bin", ".columns.bin", ".json", ".bin.part")]
        return Files(*of)

    def refuse_overwrite(self, *, resume: bool) -> None:
        """Raise UsageError if something is there that this capture would replace, or nothing can be written there."""
        if not self.data.parent.is_dir() or not os.access(self.data.parent, os.W_OK):
            raise UsageError(f"{self.data.parent} is no directory that this user may write to")
        taken = [f for f in (self.data, self.columns) if f.exists()]
        if taken:
            raise UsageError(f"{taken[0]} is there already", hint="a capture is never overwritten: choose another name")
        if self.part.exists() and not resume:
            raise UsageError(f"{self.part} is a capture that was interrupted", hint="--resume goes on, or remove it")
        if not self.part.exists() and (resume or self.record.exists()):
            what = f"there is no {self.part} to go on with" if resume else f"{self.record} is there already"
            raise UsageError(what, hint="choose another name" if not resume else "leave --resume out")


def capture(
    opener: Callable[[], Driver],
    name: Path,
    plan: Plan,
    *,
    resume: bool = False,
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> dict[str, Any]:
    """Capture from the device that `opener` opens (once for each restart); return the record, as in NAME.json.

    `progress` is told (what, bytes done, bytes in all). Raises UsageError, the driver's errors, TemporaryError for a
    device that loses samples all the time.
    """
    files = Files.named(name)
    files.refuse_overwrite(resume=resume)
    if plan.rows is None:
        if resume:
            raise UsageError("a sequence cannot be resumed: its samples would not be consecutive")
        return _sequential(opener, files, plan, progress)
    return _restarts(opener, files, plan, progress)


def kept(bits: int, shift: int) -> tuple[int, int]:
    """Return width and shift of what is kept of samples of that many bits.

    Raises UsageError for a shift beyond them.
    """
    if bits <= _BYTE and shift:
        raise UsageError(f"samples of {bits} bits are kept whole", hint="leave --shift out")
    if shift + _BYTE > bits > _BYTE:
        raise UsageError(f"8 bits from bit {shift} are more than a sample of {bits} bits has")
    return min(bits, _BYTE), shift


class _Stream:
    """The consecutive samples of one open device, reduced to bytes."""

    def __init__(self, driver: Driver, shift: int) -> None:
        self._driver = driver
        self.width, self._shift = kept(driver.symbols.bits, shift)
        self._mask = (1 << self.width) - 1
        self._next: int | None = None
        self.first: int | None = None  # number of the first sample, when the device counts
        self.flags = 0

    def take(self, count: int, tell: Callable[[int], None]) -> bytearray | None:
        """Return `count` consecutive samples after the discarded ones; None if some were lost on the way."""
        out = bytearray()
        while len(out) < count + DISCARDED:
            reading = self._read()
            if not self._follows(reading):
                return None
            out += self._reduced(reading)
            tell(max(0, min(count, len(out) - DISCARDED)))
        if self.first is not None:
            self.first += DISCARDED
        return out[DISCARDED : DISCARDED + count]

    def _read(self) -> Reading:
        for attempt in range(_HUNG_READS):
            try:
                return self._driver.read(timeout=READ_TIMEOUT)
            except Hung:
                if attempt == _HUNG_READS - 1:
                    raise
        raise AssertionError  # the loop returns or raises

    def _follows(self, reading: Reading) -> bool:
        self.flags |= reading.flags
        if reading.first is None:
            return True
        follows = self._next in (None, reading.first)
        self.first = reading.first if self.first is None else self.first
        self._next = reading.first + len(reading.samples)
        return follows

    def _reduced(self, reading: Reading) -> bytes:
        if isinstance(reading.samples, bytes) and self.width == _BYTE:
            return reading.samples
        return bytes([sample >> self._shift & self._mask for sample in reading.samples])


def _sequential(
    opener: Callable[[], Driver], files: Files, plan: Plan, progress: Callable[[str, int, int], None]
) -> dict[str, Any]:
    started = _now()
    driver = opener()
    try:
        data, begun_again = None, -1
        while data is None:
            begun_again += 1
            if begun_again > _GAPS:
                raise TemporaryError(
                    f"samples were lost {begun_again} times: no {plan.columns:,} came one after the other",
                    hint="is this machine busy, or the stick behind a slow hub?",
                )
            stream = _Stream(driver, plan.shift)
            data = stream.take(plan.columns, lambda done: progress("capture", done, plan.columns))
        about = _about(driver, stream, plan) | {"first_sample": stream.first, "begun_again": begun_again}
    finally:
        driver.close()
    write_atomic(files.data, bytes(data))
    about |= {"flags": _flags(stream.flags), "started": started, "ended": _now(), "complete": True}
    return _finish(files, about | {"files": {files.data.name: hashlib.sha256(data).hexdigest()}})


def _restarts(
    opener: Callable[[], Driver], files: Files, plan: Plan, progress: Callable[[str, int, int], None]
) -> dict[str, Any]:
    assert plan.rows is not None  # noqa: S101 - the caller asked
    total = plan.rows * plan.columns
    about: dict[str, Any] | None = _interrupted(files, plan)
    with open(os.open(files.part, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600), "ab") as f:
        done = f.tell() // plan.columns
        f.truncate(done * plan.columns)  # a row that was cut short is taken again
        flags = 0
        for row in range(done, plan.rows):
            data, here, seen = _one_restart(opener, plan)
            if about is None:
                about = here | {"started": _now(), "flags": [], "complete": False}
                write_atomic(files.record, _json(about))
            _refuse_another(about, here, files)
            flags |= seen
            f.write(data)
            f.flush()
            progress("restarts", (row + 1) * plan.columns, total)
        os.fsync(f.fileno())
    assert about is not None  # noqa: S101 - at least one row was made, now or before
    return _finish_restarts(files, plan, about | {"flags": sorted({*about["flags"], *_flags(flags)})})


def _one_restart(opener: Callable[[], Driver], plan: Plan) -> tuple[bytes, dict[str, Any], int]:
    """Return one row, what it came from, and the flags that the device set."""
    for _ in range(_GAPS + 1):
        driver = opener()
        try:
            stream = _Stream(driver, plan.shift)
            data = stream.take(plan.columns, lambda _: None)
            if data is not None:
                return bytes(data), _about(driver, stream, plan), stream.flags
        finally:
            driver.close()
    raise TemporaryError(f"samples were lost after {_GAPS + 1} restarts in a row")


def _interrupted(files: Files, plan: Plan) -> dict[str, Any] | None:
    """Return the record of the capture that is gone on with, None for a new one.

    Raises UsageError if it was another plan.
    """
    if not files.part.exists() or not files.part.stat().st_size:
        return None
    try:
        about = json.loads(files.record.read_bytes())
        same = about["layout"] == _layout(plan) and about["shift"] == plan.shift
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise UsageError(f"{files.record} does not describe {files.part}", hint="remove both, begin again") from None
    if not same:
        raise UsageError(f"{files.part} was begun with other numbers: {about['layout']}, shift {about['shift']}")
    return dict(about)


def _refuse_another(about: dict[str, Any], here: dict[str, Any], files: Files) -> None:
    """Raise UsageError if the device is not the one that the capture was begun with."""
    for key in ("kind", "serial", "vid", "pid"):
        if about["device"].get(key) != here["device"].get(key):
            raise UsageError(
                f"{files.part} was begun with {about['device'].get('kind')} {about['device'].get('serial')}, "
                f"this is {here['device'].get('kind')} {here['device'].get('serial')}",
                hint="one capture is of one device",
            )


def _finish_restarts(files: Files, plan: Plan, about: dict[str, Any]) -> dict[str, Any]:
    rows = files.part.read_bytes()
    columns = b"".join(rows[i :: plan.columns] for i in range(plan.columns))
    write_atomic(files.columns, columns)
    files.part.rename(files.data)
    fsync_directory(files.data.parent)
    hashes = {files.data.name: rows, files.columns.name: columns}
    about |= {"files": {name: hashlib.sha256(data).hexdigest() for name, data in hashes.items()}}
    return _finish(files, about | {"ended": _now(), "complete": True})


def _finish(files: Files, about: dict[str, Any]) -> dict[str, Any]:
    write_atomic(files.record, _json(about))
    return about


def _about(driver: Driver, stream: _Stream, plan: Plan) -> dict[str, Any]:
    """Return where samples come from, as the driver declares it."""
    symbols, profile = driver.symbols, driver.profile
    return {
        "format": FORMAT,
        "by": f"edgeseal-agent {__version__}",
        "host": f"{os.uname().sysname} {os.uname().release} {os.uname().machine}",
        "layout": _layout(plan),
        "width": stream.width,
        "shift": plan.shift,
        "sample_bits": symbols.bits,
        "claim": symbols.claim,
        "raw": symbols.raw,
        "discarded": DISCARDED,
        "restart": None if plan.rows is None else "device closed and opened again, not unplugged",
        "source_class": profile.source_class,
        "evidence": profile.evidence,
        "device": asdict(driver.describe()),
    }


def _layout(plan: Plan) -> dict[str, Any]:
    if plan.rows is None:
        return {"kind": "sequential", "samples": plan.columns}
    return {"kind": "restarts", "restarts": plan.rows, "samples": plan.columns}


def _flags(flags: int) -> list[str]:
    return sorted(name for bit, name in _FLAGS.items() if flags & bit)


def _json(about: dict[str, Any]) -> bytes:
    return json.dumps(about, indent=2, ensure_ascii=False).encode() + b"\n"


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
