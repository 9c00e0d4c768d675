"""The device's side of X1: counters, STALE, re-key and the former generation (docs/spec/session.md §§8-9).

Sans-IO: `send` carries one message and brings one answer, `save` makes an identity durable before it returns, `draw`
gives fresh bytes from the hedged generator. What is on flash is one `Identity`; what happens to it is decided here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

from edgeseal.errors import EdgesealError, IntegrityError, NotAuthorisedError, TemporaryError
from edgeseal.session.messages import (
    CTR_LIMIT,
    KEY_UNKNOWN,
    S1_LENGTH,
    Flags,
    PendingRequest,
    Reply,
    Status,
)
from edgeseal.session.server import COUNTER_WINDOW, REKEY_ANSWER_LENGTH
from edgeseal.suite import PrivateKey, PublicKey

CEILING_STEP: Final = 15  # one flash write reserves this many further counters
TRIES: Final = 3  # requests per check-in
REFUSALS_BEFORE_FALLBACK: Final = 3  # check-ins refused in a row before the former generation is tried
FORMER_KEPT: Final = 30 * 86_400  # seconds of server time; covers a registry restored from before the re-key
REKEY_AFTER: Final = 365 * 86_400


class ServerKeyUnknownError(TemporaryError):
    """Error answer 1: the server has no such key any more; refresh TUF metadata and use the current one."""


class RefusedByServerError(TemporaryError):
    """Error answer 0 or garbage: an unauthenticated hint; back off with jitter."""


class CounterLostError(EdgesealError):
    """The registry's counter is further ahead than a restored card can explain; a person must look."""


@dataclass(frozen=True, slots=True)
class Generation:
    """One key generation: suite, KEM seed and PSK.

    `accepted_at` is server time of its first accepted request; `provisioned` says that a provisioning host made the PSK
    and may still have a record of it.
    """

    suite: int
    seed: bytes
    psk: bytes
    accepted_at: int | None = None
    provisioned: bool = False

    def __repr__(self) -> str:
        """Suite only; never the secrets."""
        return f"Generation(suite={self.suite}, accepted_at={self.accepted_at})"


@dataclass(frozen=True, slots=True)
class Identity:
    """What a device keeps of X1: every counter <= `ceiling` may have been used."""

    device: str
    current: Generation
    former: Generation | None = None
    ceiling: int = 0
    resynced: bool = False
    refusals: int = 0


Send: TypeAlias = Callable[[bytes], bytes]
Save: TypeAlias = Callable[[Identity], None]
Draw: TypeAlias = Callable[[str, int], bytes]


class Device:
    """One device's X1 role; one request at a time. `identity` is always what `save` was last given."""

    def __init__(self, identity: Identity, *, save: Save, draw: Draw) -> None:
        """Start from the stored identity: the first counter used is above its ceiling."""
        self.identity = identity
        self._save = save
        self._draw = draw
        self._ctr = identity.ceiling

    def check_in(self, body: bytes, *, servers: list[PublicKey], send: Send) -> Reply:
        """Exchange `body` for the server's reply, with at most three requests.

        `servers` are the fleet's session keys in order of preference. The status of the reply is OK, DENIED or REVOKED.
        Raises ServerKeyUnknownError, RefusedByServerError (both unauthenticated), TemporaryError from `send`,
        NotAuthorisedError if no server key of the device's suite is known, CounterLostError.
        """
        try:
            reply = self._dialogue(self.identity.current, body, Flags.NONE, servers, send)[1]
        except RefusedByServerError:
            reply = self._try_former(body, servers, send)
        self._accepted(reply)
        return reply

    def re_key(self, suite: int, seed: bytes, *, servers: list[PublicKey], send: Send) -> Reply:
        """Replace the generation by a new one made from `seed`, keeping the former (session.md §9).

        After an OK the new generation is durable and `identity.current`; the next check-in makes the server drop the
        former. Any failure leaves the current generation valid: re-key again later.
        """
        new = PrivateKey(suite, seed)
        body = bytes([suite]) + new.public.raw
        pending, reply = self._dialogue(self.identity.current, body, Flags.REKEY, servers, send)
        if reply.status is Status.OK:
            if len(reply.body) != REKEY_ANSWER_LENGTH:
                raise IntegrityError("re-key answer is not 32 bytes")
            fresh = Generation(suite, seed, pending.rekeyed_psk(reply.body))
            self._store(replace(self.identity, current=fresh, former=self.identity.current, refusals=0))
        return reply

    def rekey_due(self, now: int) -> bool:
        """Whether to re-key: at first contact, then yearly (`now` is server time)."""
        current = self.identity.current
        if current.accepted_at is None:
            return False  # not yet in touch, or a re-key is waiting for its first accepted request
        return current.provisioned or now - current.accepted_at >= REKEY_AFTER

    def _try_former(self, body: bytes, servers: list[PublicKey], send: Send) -> Reply:
        """After repeated refusals ask with the former generation: the registry may come from an older backup."""
        self._store(replace(self.identity, refusals=self.identity.refusals + 1))
        former = self.identity.former
        if former is None or self.identity.refusals < REFUSALS_BEFORE_FALLBACK:
            raise RefusedByServerError(
                "the fleet server refused this device without saying why",
                hint="unknown device, wrong fleet, or a server under load; trying again later",
            )
        reply = self._dialogue(former, body, Flags.NONE, servers, send)[1]
        self._store(replace(self.identity, current=former, former=None))
        return reply

    def _accepted(self, reply: Reply) -> None:
        """Note the first acceptance of a generation, forget refusals and a former generation past its time."""
        new = replace(self.identity, refusals=0)
        if reply.status is Status.OK:
            if new.current.accepted_at is None:
                new = replace(new, current=replace(new.current, accepted_at=reply.now))
            elif new.former is not None and reply.now - new.current.accepted_at > FORMER_KEPT:
                new = replace(new, former=None)
        if new != self.identity:
            self._store(new)

    def _dialogue(
        self, generation: Generation, body: bytes, flags: Flags, servers: list[PublicKey], send: Send
    ) -> tuple[PendingRequest, Reply]:
        """Send requests until one gets an answer that is not STALE."""
        server = self._server_for(generation.suite, servers)
        private = PrivateKey(generation.suite, generation.seed)
        for _ in range(TRIES):
            request = self._request(server, private, generation.psk, flags, body)
            reply = _opened(request, send(request.m1))
            if reply.status is not Status.STALE:
                if reply.status is Status.OK and request.flags & Flags.RESYNCED:
                    self._store(replace(self.identity, resynced=False))
                return request, reply
            self._stale(request, reply)
        raise TemporaryError(
            f"the fleet server answered STALE {TRIES} times", hint="a second copy of this device may be running"
        )

    def _request(self, server: PublicKey, private: PrivateKey, psk: bytes, flags: Flags, body: bytes) -> PendingRequest:
        flags |= Flags.RESYNCED if self.identity.resynced else Flags.NONE
        return PendingRequest(
            server=server,
            device=private,
            psk=psk,
            e_seed=self._draw("x1 e", private.suite.seed_length),
            s1=self._draw("x1 s1", S1_LENGTH),
            ctr=self._next_counter(),
            flags=flags,
            body=body,
        )

    def _next_counter(self) -> int:
        """Return a counter that was never used, reserving the next ones on flash first (session.md §8 point 4)."""
        self._ctr += 1
        if self._ctr >= CTR_LIMIT:
            raise CounterLostError("the X1 counter is used up", hint="provision this device anew")
        if self._ctr > self.identity.ceiling:
            self._store(replace(self.identity, ceiling=min(self._ctr + CEILING_STEP, CTR_LIMIT - 1)))
        return self._ctr

    def _stale(self, request: PendingRequest, reply: Reply) -> None:
        """Adopt the server's counter if it accepted a request this device does not remember (restored card, clone)."""
        if len(reply.body) != 24:  # noqa: PLR2004 - u64 ctr ‖ tag
            raise IntegrityError("STALE answer without counter and tag")
        last, tag = int.from_bytes(reply.body[:8], "big"), reply.body[8:]
        if last < request.ctr or (last == request.ctr and tag == request.tag):
            return  # this request came twice, or the row just changed
        if last > request.ctr + COUNTER_WINDOW:
            raise CounterLostError(
                f"the fleet server has counter {last}, this device {request.ctr}: too far apart to be an older copy",
                hint="look for a second device with this identity, or enrol this one anew",
            )
        self._store(replace(self.identity, ceiling=max(self.identity.ceiling, last), resynced=True))
        self._ctr = last

    def _server_for(self, suite: int, servers: list[PublicKey]) -> PublicKey:
        for server in servers:
            if server.suite.number == suite:
                return server
        raise NotAuthorisedError(
            f"the fleet has no session key of this device's suite {suite}",
            hint="ask the operator: the suite may have been withdrawn (min_suite)",
        )

    def _store(self, identity: Identity) -> None:
        self._save(identity)
        self.identity = identity


def _opened(request: PendingRequest, answer: bytes) -> Reply:
    if answer == KEY_UNKNOWN:
        raise ServerKeyUnknownError(
            "the fleet server does not know the key this request was made for", hint="refresh metadata and try again"
        )
    try:
        return request.open_reply(answer)
    except EdgesealError:
        raise RefusedByServerError("the fleet server's answer does not open") from None
