"""The device's secrets at rest: its identity and the content keys it holds (docs/spec/session.md §14).

    KEK = Extract("edgeseal/at-rest", file secret ‖ systemd credential, if there is one)
    slot = "ESKS" ‖ u8 format ‖ u8 inputs ‖ u64 sequence ‖ Lock(KEK, label ‖ header, CBOR)

Lock needs no nonce, so an SD card restored to an older state never makes two messages share a key. An older identity is
not detected here but by the fleet server's counter (session.md §8). Without secure boot, whoever holds card and
credential has what the device has; the answer to that is revocation.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

from edgeseal import cbor
from edgeseal.durable import fsync_directory, sweep, write_atomic
from edgeseal.errors import FormatError, IncompatibleError, IntegrityError, NotAuthorisedError, UsageError
from edgeseal.keystore_records import FORMAT, ContentKey, ContentKeys, Pending, Provenance, StoredIdentity, decode
from edgeseal.session.messages import lock, u64, unlock
from edgeseal.slots import NoneSoundError, TwoSlots
from edgeseal.suite import extract

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from edgeseal.session.device import Identity

__all__ = ["FORMAT", "ContentKey", "KeyStore", "Pending", "Provenance", "systemd_credential"]

MAGIC: Final = b"ESKS"
SECRET_LENGTH: Final = 32
CREDENTIAL_NAME: Final = "edgeseal.at-rest"
MAX_CREDENTIAL: Final = 4096
_HEADER_LENGTH: Final = len(MAGIC) + 2 + 8
_WITH_CREDENTIAL: Final = 1
_ENROL_AGAIN: Final = "if the card is worn out replace it; then enrol this device again (edgeseal-agent enrol request)"
_LOCK_SUITE: Final = 1  # ChaCha20-Poly1305: no AES instructions needed

Key: TypeAlias = tuple[str, int]  # model and release


def systemd_credential() -> bytes | None:
    """Return the credential systemd passed to this service, None if there is none."""
    directory = os.environ.get("CREDENTIALS_DIRECTORY")
    path = Path(directory, CREDENTIAL_NAME) if directory else None
    if path is None or not path.exists():
        return None
    data = path.read_bytes()
    if not SECRET_LENGTH <= len(data) <= MAX_CREDENTIAL:
        raise UsageError(
            f"systemd credential {CREDENTIAL_NAME} has {len(data)} bytes; "
            f"{SECRET_LENGTH} to {MAX_CREDENTIAL} are needed"
        )
    return data


class KeyStore:
    """Secrets of one device in one directory. One process at a time: the caller holds the agent's lock."""

    def __init__(self, directory: Path, *, credential: bytes | None = None) -> None:
        """Nothing is read or written before the first call."""
        self._directory = directory
        self._secret = directory / "secret"
        self._credential = credential
        self._identity = self._slots("identity")
        self._pending = self._slots("pending")
        self._keys = self._slots("keys")
        self._provenance = self._slots("provenance")

    # Enrolment ---------------------------------------------------------------------------------------------------

    def create(self, draw: Callable[[str, int], bytes]) -> None:
        """Make the file secret if this directory has none yet.

        Raises IntegrityError if it is missing beside what was sealed under it.
        """
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self._secret.exists():
            return
        if any(self._directory.glob("identity.*")):
            raise _lost_secret(self._secret)
        write_atomic(self._secret, draw("at-rest secret", SECRET_LENGTH), mode=0o400)
        fsync_directory(self._directory.parent)

    def pending(self) -> Pending | None:
        """Return the key pair that waits for its grant."""
        slot = self._pending.read()
        return None if slot is None else decode(slot.payload, Pending, "pending enrolment")

    def keep_pending(self, suite: int, seed: bytes, sources: Sequence[str], *, hardware: int = 0) -> None:
        """Make a fresh key pair durable before its public half is shown to anybody."""
        pending = Pending(FORMAT, suite, seed, list(sources), hardware)
        self._pending.write(cbor.encode(cbor.to_map(pending)))

    def enrol(self, identity: Identity, *, k_rng: bytes, sources: dict[str, list[str]]) -> None:
        """Make an identity durable, then forget the pending key pair it was made from."""
        self._write_identity(identity, k_rng, sources)
        self._pending.remove()

    def sweep(self) -> None:
        """Finish an `enrol` that the power cut between its two steps, and remove what killed writes left."""
        if not self._directory.exists():
            return
        sweep(self._directory)
        if self.enrolled() and any(self._directory.glob("pending.[01]")):
            self._pending.remove()
            fsync_directory(self._directory)

    # Manufacturing line ------------------------------------------------------------------------------------------

    def provenance(self) -> Provenance | None:
        """Return which station provisioned this device, None if it was enrolled by hand."""
        slot = self._provenance.read()
        return None if slot is None else decode(slot.payload, Provenance, "provenance")

    def keep_provenance(self, provenance: Provenance) -> None:
        """Make it durable; the identity that is written next makes it count."""
        self._provenance.write(cbor.encode(cbor.to_map(provenance)), everywhere=True)

    def destroy(self) -> None:
        """Make every secret unreadable, durably: first the file secret that all of them are sealed under.

        What a flash card's controller keeps of overwritten blocks is out of anybody's reach but the card maker's; the
        answer to a thief with a laboratory is revocation. May be repeated after a crash.
        """
        if not self._directory.exists():
            return
        if self._secret.exists():
            self._secret.chmod(0o600)
            with self._secret.open("r+b") as f:
                f.write(bytes(SECRET_LENGTH))
                f.flush()
                os.fsync(f.fileno())
            self._secret.unlink()
            fsync_directory(self._directory)
        for slots in (self._identity, self._pending, self._keys, self._provenance):
            slots.remove()
        for path in self._directory.iterdir():
            path.unlink()
        fsync_directory(self._directory)

    # Identity ----------------------------------------------------------------------------------------------------

    def enrolled(self) -> bool:
        """Whether there is an identity at all, sound or not; needs no key."""
        return any(self._directory.glob("identity.[01]"))

    def identity(self) -> Identity:
        """Return the identity.

        Raises NotAuthorisedError before enrolment, IntegrityError if it is damaged or sealed under another secret.
        """
        return self._stored().identity()

    def k_rng(self) -> bytes:
        """Return the provisioning host's contribution to this device's randomness."""
        return self._stored().k_rng

    def sources(self) -> dict[str, list[str]]:
        """Return the record of sources of every seed, by key id."""
        return dict(self._stored().sources)

    def save(self, identity: Identity, *, sources: dict[str, list[str]] | None = None) -> None:
        """Make a changed identity durable before returning; `sources` adds the record of a new seed."""
        stored = self._stored()
        self._write_identity(identity, stored.k_rng, {**stored.sources, **(sources or {})})

    # Content keys ------------------------------------------------------------------------------------------------

    def content_keys(self) -> dict[Key, ContentKey]:
        """Return the content keys held, by (model, release).

        Raises NoneSoundError if they are lost; `keep_content_keys` may then be given what the fleet grants again.
        """
        slot = self._keys.read()
        if slot is None:
            return {}
        keys = decode(slot.payload, ContentKeys, "content keys").keys
        return {(k.model, k.release): k for k in keys}

    def keep_content_keys(self, keys: Iterable[ContentKey]) -> None:
        """Hold exactly these keys; no copy of any other remains."""
        new = {(k.model, k.release): k for k in keys}
        try:
            held = self.content_keys()
        except NoneSoundError:
            held = None
        if new != held:
            message = ContentKeys(FORMAT, [new[k] for k in sorted(new)])
            everywhere = held is None or bool(held.keys() - new.keys())
            self._keys.write(cbor.encode(cbor.to_map(message)), everywhere=everywhere)

    # Sealing -----------------------------------------------------------------------------------------------------

    def _stored(self) -> StoredIdentity:
        try:
            slot = self._identity.read()
        except NoneSoundError as e:
            raise NoneSoundError(e.message, hint=e.hint or _ENROL_AGAIN) from e
        if slot is None:
            raise NotAuthorisedError(
                "this device is not enrolled",
                hint="edgeseal-agent enrol request, then edgeseal-agent enrol accept with the fleet's grant",
            )
        return decode(slot.payload, StoredIdentity, "identity")

    def _write_identity(self, identity: Identity, k_rng: bytes, sources: dict[str, list[str]]) -> None:
        stored = StoredIdentity.make(identity, k_rng=k_rng, sources=sources)
        self._identity.write(cbor.encode(cbor.to_map(stored)))

    def _slots(self, name: str) -> TwoSlots:
        label = name.encode()
        return TwoSlots(
            self._directory,
            name,
            wrap=lambda sequence, payload: self._seal(label, sequence, payload),
            unwrap=lambda data: self._open(label, data),
        )

    def _seal(self, label: bytes, sequence: int, payload: bytes) -> bytes:
        with_credential = self._credential is not None
        header = MAGIC + bytes([FORMAT, _WITH_CREDENTIAL * with_credential]) + u64(sequence)
        return header + lock(_LOCK_SUITE, self._kek(with_credential), label + header, payload)

    def _open(self, label: bytes, data: bytes) -> tuple[int, bytes]:
        header = data[:_HEADER_LENGTH]
        if len(header) < _HEADER_LENGTH or not header.startswith(MAGIC):
            raise FormatError(f"sealed {label.decode()} is truncated or not ours")
        if header[4] != FORMAT:
            raise IncompatibleError(f"sealed {label.decode()} has format {header[4]}; this version reads {FORMAT}")
        with_credential = bool(header[5] & _WITH_CREDENTIAL)  # sealed before there was one: the next write adds it
        payload = unlock(_LOCK_SUITE, self._kek(with_credential), label + header, data[_HEADER_LENGTH:])
        return int.from_bytes(header[6:], "big"), payload

    def _kek(self, with_credential: bool) -> bytes:  # noqa: FBT001 - private, one line above and one below
        if with_credential and self._credential is None:
            raise IntegrityError(
                f"this device's secrets were sealed with the systemd credential {CREDENTIAL_NAME}, which is missing",
                hint="start the agent through its systemd unit, or run the command with systemd-run and the credential",
            )
        try:
            secret = self._secret.read_bytes()
        except FileNotFoundError:
            raise _lost_secret(self._secret) from None
        if len(secret) != SECRET_LENGTH:
            raise IntegrityError(
                f"the at-rest secret has {len(secret)} bytes, not {SECRET_LENGTH}", hint="enrol this device anew"
            )
        return extract(b"edgeseal/at-rest", secret + ((self._credential or b"") if with_credential else b""))


def _lost_secret(path: Path) -> IntegrityError:
    return IntegrityError(
        f"{path} is missing, and without it the identity beside it cannot be opened",
        hint="restore it from where it was moved to, or remove the state directory and enrol this device anew",
    )
