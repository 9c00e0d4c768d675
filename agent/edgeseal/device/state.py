"""What the agent remembers: for each model the release that serves, the one before, those that failed; contacts.

Two checksummed slots; a power cut costs at most the last change. Nothing secret: `status` reads it without a key.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Annotated, Final, Literal

import msgspec

from edgeseal import cbor
from edgeseal.errors import IncompatibleError, IntegrityError
from edgeseal.slots import NoneSoundError, TwoSlots

if TYPE_CHECKING:
    from pathlib import Path

FORMAT: Final = 1
MAX_LENGTH: Final = 2 * 2**20
MAX_FAILED: Final = 4  # per model: enough to say why, small enough for a report
_SEQUENCE: Final = 8
_DIGEST: Final = 32

Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class Gate(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What the acceptance gate found of a release on this device: times in ms, memory in MiB, `at` in Unix seconds.

    `cases` were answered within tolerance; `open` names what the kernel did not let the probe give up.
    """

    at: Count
    cases: Count
    load_ms: float
    latency_ms: float | None
    memory_mb: float
    open: list[str] = []

    def text(self) -> str:
        """Return the figures for a person."""
        latency = "" if self.latency_ms is None else f", {self.latency_ms:.3g} ms"
        missing = f"; not confined: {', '.join(self.open)}" if self.open else ""
        cases = "1 case" if self.cases == 1 else f"{self.cases} cases"
        return f"{cases}{latency}, {self.memory_mb:.0f} MiB, loaded in {self.load_ms:.0f} ms{missing}"


class Shadowed(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What came of running live requests on a release before it took over. `skipped` says why nothing was measured.

    Of `compared` answers `differing` were not alike, `errors` more failed; `dropped` copies found it busy. For each
    output (at most eight) name, mean and largest relative difference, part of classes that agree. `ratio`: new time
    to old.
    """

    seconds: Count = 0
    compared: Count = 0
    differing: Count = 0
    errors: Count = 0
    dropped: Count = 0
    crashes: Count = 0
    ratio: float | None = None
    outputs: list[tuple[str, float, float, float | None]] = []
    skipped: str = ""

    def text(self) -> str:
        """Return the figures for a person."""
        if self.skipped:
            return f"not tried in the shadow: {self.skipped}"
        parts = [f"{self.compared} answers compared in {self.seconds} s, {self.differing} differ"]
        parts += [f"{self.errors} failed"] if self.errors else []
        parts += [f"{self.dropped} copies dropped"] if self.dropped else []
        parts += [f"{self.crashes} crashes"] if self.crashes else []
        for name, mean, _, top1 in self.outputs[:1]:
            parts.append(f"{name} is off by {mean:.1%} on average")
            parts += [f"{top1:.1%} of classes agree"] if top1 is not None else []
        return ", ".join(parts + ([f"{self.ratio:.2g} times as long"] if self.ratio is not None else []))


class Installed(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A release on this device: its signed manifest as it came, and when it was activated (Unix seconds).

    `gate` is None where the probe is off, `shadow` where shadow mode is; `watched` are the seconds it was watched after
    the switch.
    """

    release: Count
    manifest: bytes
    activated_at: Count
    gate: Gate | None = None
    watched: Count = 0
    shadow: Shadowed | None = None


def gate_words(installed: Installed) -> str:
    """Return the figures of the gate, and how watch and shadow went, in at most 128 characters."""
    watched = f"; watched {installed.watched} s" if installed.watched else ""
    shadow = installed.shadow
    if shadow is not None:
        measured = f"shadowed: {shadow.differing} of {shadow.compared} differ"
        watched += f"; no shadow: {shadow.skipped}" if shadow.skipped else f"; {measured}"
    figures = installed.gate.text() if installed.gate else ""
    return (figures + watched).removeprefix("; ")[:128]


class Failed(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A release that must not be tried again on this device until its bytes or the policy change.

    `policy` is the digest of the settings it failed under, empty for a decision that settings do not change. `served`
    says that it had taken over and was rolled back.
    """

    release: Count
    manifest_sha256: bytes
    reason: str
    policy: bytes = b""
    at: Count = 0
    served: bool = False


class Counts(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What a runtime had counted of a release when its watch began; `instance` tells one start of it from another."""

    instance: Count
    requests: Count
    errors: Count
    nan: Count
    crashes: Count


class Trial(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The journal of a switch: written before each step, so that a kill in any of them is resumed or undone.

    probing       nothing but files in memory
    shadowing     it runs copies of live requests beside the release before, which alone answers
    switching     the link may or may not point at it
    watching      it serves on trial since `since`; the release before is still unpacked
    committing    it has proved itself; what rollback would need may be gone
    undoing       it failed, and the reason is among the failures; the release before is being given back
    interrupted   undone after a kill; `attempts` counts those
    """

    release: Count
    manifest: bytes
    step: Literal["probing", "shadowing", "switching", "watching", "committing", "undoing", "interrupted"]
    attempts: Count
    since: Count
    boot: str
    previous: Count | None = None
    gate: Gate | None = None
    budget_ms: float = 0.0
    counts: Counts | None = None
    shadow: Shadowed | None = None


class Model(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One model: `floor` is the lowest release that may still be installed; `trial` a switch that is not over."""

    current: Installed | None = None
    previous: Installed | None = None
    failed: list[Failed] = []
    floor: Count = 0
    trial: Trial | None = None

    def has_failed(self, manifest: bytes, policy: bytes) -> Failed | None:
        """Return why this very manifest was not activated before under this policy, None if it was not tried."""
        digest = hashlib.sha256(manifest).digest()
        return next((f for f in self.failed if f.manifest_sha256 == digest and f.policy in {b"", policy}), None)

    def with_failure(
        self, release: int, manifest: bytes, reason: str, *, policy: bytes = b"", at: int = 0, served: bool = False
    ) -> Model:
        """Return the model with one more failure, newest first."""
        new = Failed(release, hashlib.sha256(manifest).digest(), reason[:400], policy, at, served)
        others = [f for f in self.failed if f.manifest_sha256 != new.manifest_sha256]
        return msgspec.structs.replace(self, failed=[new, *others][:MAX_FAILED])


class State(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Everything remembered. Times in Unix seconds by this device's clock; `poll` and `report` in seconds.

    `settled` is the version of the timestamp under which the last pass got to its end; `told` is the problem that the
    fleet was told of last, empty once it knows that it is over; `sources_failed` are the failed noise sources it knows.
    """

    format: int = FORMAT
    models: dict[str, Model] = {}
    checked_in_at: Count = 0
    refreshed_at: Count = 0
    poll_seconds: Count = 0
    report_seconds: Count = 0
    revoked: bool = False
    report_due: bool = True
    last_error: str = ""
    settled: Count = 0
    told: str = ""
    sources_failed: str = ""

    def model(self, name: str) -> Model:
        """Return what is known of a model."""
        return self.models.get(name, Model())

    def with_model(self, name: str, model: Model) -> State:
        """Return the state with one model changed."""
        return msgspec.structs.replace(self, models={**self.models, name: model})


class StateFile:
    """The state in two slots, `state.0` and `state.1`."""

    def __init__(self, directory: Path) -> None:
        """Nothing is read or written before the first call."""
        self._slots = TwoSlots(directory, "state", wrap=_wrap, unwrap=_unwrap)

    def read(self) -> State:
        """Return the newest sound state, an empty one if there is none.

        Raises NoneSoundError if both copies are damaged, IncompatibleError for a newer format.
        """
        try:
            slot = self._slots.read()
        except NoneSoundError as e:
            raise NoneSoundError(e.message, hint="the next pass builds it anew: edgeseal-agent update") from e
        if slot is None:
            return State()
        state = cbor.decode_map(slot.payload, State, max_length=MAX_LENGTH, what="agent state")
        if state.format != FORMAT:
            raise IncompatibleError(f"agent state of format {state.format}; this version reads {FORMAT}")
        return state

    def write(self, state: State) -> State:
        """Make `state` durable and return it."""
        self._slots.write(cbor.encode(cbor.to_map(state)))
        return state

    def start_anew(self, state: State, *, now: int) -> None:
        """Put `state` in the place of copies that are both damaged; `now` in Unix seconds.

        The service has read states of higher numbers than 1 and would take this one for an older copy. There are fewer
        writes than seconds, so the time is a number that none has reached.
        """
        self._slots.write(cbor.encode(cbor.to_map(state)), everywhere=True, after=now)


def _wrap(sequence: int, payload: bytes) -> bytes:
    body = sequence.to_bytes(_SEQUENCE, "big") + payload
    return body + hashlib.sha256(body).digest()


def _unwrap(data: bytes) -> tuple[int, bytes]:
    body = data[:-_DIGEST]
    if len(body) < _SEQUENCE or hashlib.sha256(body).digest() != data[-_DIGEST:]:
        raise IntegrityError("the checksum does not match", hint="the card is damaged")
    return int.from_bytes(body[:_SEQUENCE], "big"), body[_SEQUENCE:]
