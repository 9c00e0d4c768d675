"""The device's role: one dialogue for all its lines, and one `Device` for each line (docs/spec/provisioning.md §5).

It only ever answers. Its private key opens nothing after the lock; an error ends the session and accepts nothing of it.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import TYPE_CHECKING, Final

from edgeseal import enrolment
from edgeseal.errors import EdgesealError, FormatError, IncompatibleError, IntegrityError, NoSpaceError, TemporaryError
from edgeseal.provisioning import offer, reset, transcript, wire
from edgeseal.provisioning.home import Origin, Stage
from edgeseal.provisioning.inbox import Inbox
from edgeseal.provisioning.machine import Machine, Step
from edgeseal.provisioning.messages import (
    FORMAT,
    NONCE_LENGTH,
    STATION_ID_LENGTH,
    Authorisation,
    Destroyed,
    Hello,
    Identity,
    Kind,
    Package,
    Refused,
    Reset,
    ResetNonce,
    cut,
    frame,
)
from edgeseal.provisioning.transcript import Transcript
from edgeseal.provisioning.verdict import Code, RefusalError
from edgeseal.smp import LineDecoder, Op, OsGroup, Packet, Rc, encode_lines
from edgeseal.smp import os_group as os_numbers
from edgeseal.suite import SUITES, PrivateKey

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgeseal.provisioning.home import Home
    from edgeseal.provisioning.messages import EntropyReport

MAX_OUTGOING: Final = 65_536  # bytes that wait for a line that takes none


class Dialogue:
    """What one device says, on whichever line it is asked. `say` is told every step, for the log."""

    def __init__(
        self,
        home: Home,
        *,
        random: Callable[[int], bytes],
        clock: Callable[[], float],
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        """`random` makes nonces only; keys come from `home`."""
        self._home = home
        self._random = random
        self._say = say
        self._machine = Machine()
        self._transcript = Transcript()
        self._session = b""
        self.locked = False  # by this very dialogue, whatever came after
        self._key: PrivateKey | None = None
        self._hello: Hello | None = None
        self._inbox = Inbox(clock=clock, begin=self._begin, respond=self._respond, over=lambda: self._machine.over)

    @property
    def state(self) -> Step:
        """How far the dialogue of the current session is."""
        return self._machine.step

    def answer(self, request: Packet) -> Packet:
        """Answer a packet of group 64."""
        try:
            if request.command == wire.PUT and request.op is Op.WRITE:
                return self._inbox.put(request)
            if request.command == wire.GET and request.op is Op.READ:
                return self._inbox.get(request)
            if request.command == wire.STATUS and request.op is Op.READ:
                return request.answer(self._status())
        except FormatError as e:
            return request.failure(Rc.INVALID, e.message[:200])
        except (EdgesealError, OSError) as e:
            return request.failure(Rc.UNKNOWN, str(e)[:200])
        return request.failure(Rc.NOT_SUPPORTED)

    def _status(self) -> dict[str, object]:
        home = self._home
        return {"v": FORMAT, "stage": str(home.stage()), "serial": home.serial, "agent": home.agent}

    # Messages ----------------------------------------------------------------------------------------------------

    def _begin(self, session: bytes) -> None:
        self._machine, self._transcript = Machine(), Transcript()
        self._session, self._key, self._hello = session, None, None

    def _respond(self, message: bytes) -> bytes:
        try:
            kind, body = cut(message)
            self._machine.move(kind)
            answer, content = self._handle(kind, body)
        except (EdgesealError, OSError) as e:
            return self._refuse(*_reason(e))
        self._transcript.absorb(answer, content)
        self._say(str(self._machine.move(answer)))
        return frame(answer, content)

    def _handle(self, kind: Kind, body: bytes) -> tuple[Kind, bytes]:
        handlers = {
            Kind.HELLO: self._hello_came,
            Kind.CHALLENGE: self._challenge_came,
            Kind.GRANT: self._grant_came,
            Kind.LOCK: self._lock_came,
            Kind.RESET: self._reset_came,
            Kind.AUTHORISE: self._authorisation_came,
        }
        return handlers[kind](body)  # the machine lets through only what a station may say

    def _refuse(self, code: Code, reason: str) -> bytes:
        self._machine.refuse()
        text = "".join(c if c.isprintable() else "?" for c in reason[:256])
        self._say(f"refused: {text}")
        return frame(Kind.REFUSED, Refused(code, text, self._home.serial).to_bytes())

    def _hello_came(self, body: bytes) -> tuple[Kind, bytes]:
        hello = Hello.from_bytes(body)
        if hello.carried or self._session != session_name(hello.station, hello.nonce):
            raise FormatError("this hello is not for a line, or not for this session")
        stage = self._home.stage()
        if stage is Stage.LOCKED:
            raise RefusalError(Code.LOCKED, "this device is provisioned and locked")
        if stage is Stage.PROVISIONED:
            origin = self._home.origin()
            if origin is None or not hmac.compare_digest(origin.pin[:STATION_ID_LENGTH], hello.station):
                raise RefusalError(Code.PROVISIONED, "this device was provisioned by another station")
            key, report = self._home.own_key()
        else:
            key, report = self._new_key(hello)
        self._transcript.absorb(Kind.HELLO, body)
        self._key, self._hello = key, hello
        home = self._home
        asked = enrolment.Request(
            enrolment.FORMAT, key.suite.number, key.public.raw, home.serial, home.hardware, home.agent, report.sources
        )
        provisioned = stage is Stage.PROVISIONED
        nonce = self._random(NONCE_LENGTH)
        identity = Identity(FORMAT, provisioned, asked.to_bytes(), home.board, report, nonce)
        return Kind.IDENTITY, identity.to_bytes()

    def _new_key(self, hello: Hello) -> tuple[PrivateKey, EntropyReport]:
        if hello.suite not in SUITES:
            raise RefusalError(Code.SUITE, f"this device's edgeseal has no suite {hello.suite}")
        return self._home.new_key(hello.suite, hello.policy, hello.entropy)

    def _challenge_came(self, body: bytes) -> tuple[Kind, bytes]:
        self._transcript.open_challenge(self._held(), body)
        return Kind.PROOF, self._transcript.tag(b"proof")

    def _grant_came(self, body: bytes) -> tuple[Kind, bytes]:
        key, hello = self._held(), self._hello
        package = Package.from_bytes(self._transcript.unlock(b"grant", body))
        if hello is None or not hmac.compare_digest(package.pin[:STATION_ID_LENGTH], hello.station):
            raise FormatError("the grant pins another station than the one that said hello")
        grant = enrolment.Grant.open(key, package.sealed)
        root = offer.unpack_root(package, grant)
        origin = Origin(
            key.public.kid,
            hashlib.sha384(package.sealed).digest(),
            transcript.receipt(key.public.raw, package.sealed, grant.psk),
            package.pin,
        )
        self._keep(key, grant, root, package, origin)
        self._transcript.absorb(Kind.GRANT, body)
        return Kind.CONFIRM, self._transcript.lock(b"confirm", origin.receipt)

    def _keep(self, key: PrivateKey, grant: enrolment.Grant, root: bytes, package: Package, origin: Origin) -> None:
        """Become what the grant says, or find that it has been so for a while."""
        if self._home.stage() is Stage.FRESH:
            self._home.become(key, grant, root, package, origin)
        elif self._home.origin() != origin:
            raise RefusalError(Code.PROVISIONED, "this device has its identity from another grant")

    def _lock_came(self, body: bytes) -> tuple[Kind, bytes]:
        self._transcript.check_tag(b"lock", body)
        self._home.lock()
        self.locked = True
        self._transcript.absorb(Kind.LOCK, body)
        return Kind.LOCKED, self._transcript.tag(b"locked")

    def _held(self) -> PrivateKey:
        assert self._key is not None  # noqa: S101 - the machine lets nothing come before HELLO
        return self._key

    # Factory reset -----------------------------------------------------------------------------------------------

    def _reset_came(self, body: bytes) -> tuple[Kind, bytes]:
        asked = Reset.from_bytes(body)
        if self._session != session_name(asked.station, asked.nonce):
            raise FormatError("this reset is not for this session")
        self._transcript.absorb(Kind.RESET, body)
        if self._home.stage() is Stage.FRESH:
            last = self._home.destroyed()
            if last is None:
                raise RefusalError(Code.NOTHING_HERE, "this device has no identity to destroy")
            return Kind.DESTROYED, last.to_bytes()
        origin = self._home.origin()
        if origin is None:
            raise RefusalError(Code.NO_PIN, "this device was not provisioned by a station: none may reset it")
        return Kind.RESET_NONCE, ResetNonce(origin.kid, self._home.serial, self._random(NONCE_LENGTH)).to_bytes()

    def _authorisation_came(self, body: bytes) -> tuple[Kind, bytes]:
        origin = self._home.origin()
        if origin is None:
            raise RefusalError(Code.NO_PIN, "this device was not provisioned by a station: none may reset it")
        reset.check(Authorisation.from_bytes(body), pin=origin.pin, th=self._transcript.th)
        self._transcript.absorb(Kind.AUTHORISE, body)
        last = Destroyed(origin.kid, origin.receipt)
        self._home.destroy(last)
        self.locked = False
        return Kind.DESTROYED, last.to_bytes()


class Device:
    """One line of a device: bytes in, bytes out. Several lines may share one dialogue."""

    def __init__(self, dialogue: Dialogue, os: OsGroup) -> None:
        """`os` answers group 0."""
        self._dialogue = dialogue
        self._os = os
        self._decoder = LineDecoder()
        self._out = bytearray()

    @property
    def state(self) -> Step:
        """How far the dialogue is."""
        return self._dialogue.state

    def feed(self, data: bytes) -> None:
        """Take any bytes that the line brought, and answer every request among them."""
        for raw in self._decoder.feed(data):
            try:
                request = Packet.from_bytes(raw)
            except FormatError:
                continue
            if request.op.is_request and len(self._out) < MAX_OUTGOING:
                self._out += encode_lines(self._answer(request).to_bytes())

    def outgoing(self) -> bytes:
        """Return what is to be written now."""
        out = bytes(self._out)
        self._out.clear()
        return out

    def _answer(self, request: Packet) -> Packet:
        if request.group == os_numbers.GROUP:
            return self._os.answer(request)
        if request.group == wire.GROUP:
            return self._dialogue.answer(request)
        return request.failure(Rc.NOT_SUPPORTED)


def _reason(error: EdgesealError | OSError) -> tuple[Code, str]:
    """Return the code of an error and what to say of it; never more than its own message, which holds no secret."""
    match error:
        case RefusalError():
            return error.code, error.message
        case FormatError():
            return Code.MALFORMED, error.message
        case IncompatibleError():
            return Code.INCOMPATIBLE, error.message
        case IntegrityError():
            return Code.NOT_OURS, error.message
        case TemporaryError() if not isinstance(error, NoSpaceError):
            return Code.BUSY, error.message
        case _:
            return Code.STORAGE, f"this device cannot keep what it is given: {error}"


def session_name(station: bytes, nonce: bytes) -> bytes:
    """Return the name that a session of this station with this nonce has on the wire."""
    return station[: wire.OWNER_LENGTH] + nonce[: wire.SESSION_LENGTH - wire.OWNER_LENGTH]
