"""The station's role: hello, checks, challenge, grant, receipt, lock (docs/spec/provisioning.md §5).

Nothing leaves before the book has kept it: the offer before the grant, `provisioned` before the lock. A dialogue that
begins anew, for whatever reason, ends with the same identity as the one it replaces.
"""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING

from edgeseal.provisioning.conversation import BYTES_PER_SECOND, PATIENCE, Conversation
from edgeseal.provisioning.machine import Machine
from edgeseal.provisioning.messages import FORMAT, HOST_ENTROPY_LENGTH, Hello, Identity, Kind
from edgeseal.provisioning.offer import Offer, Provisioned, make_offer, pack
from edgeseal.provisioning.transcript import CHALLENGE_LENGTH
from edgeseal.provisioning.verdict import Code, RefusalError

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgeseal.enrolment import Request
    from edgeseal.provisioning.messages import Refused
    from edgeseal.provisioning.offer import Book, Order


class Station(Conversation):
    """Provisions the device at the other end of one line. `result` is there once the device has confirmed."""

    def __init__(
        self,
        order: Order,
        book: Book,
        *,
        random: Callable[[int], bytes],
        clock: Callable[[], float],
        rate: float = BYTES_PER_SECOND,
        patience: float = PATIENCE,
    ) -> None:
        """`random` makes PSK, k_rng, challenge and nonces: the station's own generator."""
        self._order = order
        self._book = book
        self.identity: Identity | None = None
        self.result: Provisioned | None = None
        self._offer: Offer | None = None
        super().__init__(random=random, clock=clock, owner=order.station_id, rate=rate, patience=patience)

    def _machine_for_session(self) -> Machine:
        return Machine(carried=self._order.carried)

    def _opening(self, nonce: bytes) -> tuple[Kind, bytes]:
        order = self._order
        entropy = self._random(HOST_ENTROPY_LENGTH)
        hello = Hello(FORMAT, order.batch, order.suite, order.policy, order.station_id, nonce, entropy, order.carried)
        return Kind.HELLO, hello.to_bytes()

    def _reply(self, kind: Kind, body: bytes) -> tuple[Kind, bytes] | None:
        match kind:
            case Kind.IDENTITY:
                self._transcript.absorb(kind, body)
                return self._identified(body)
            case Kind.PROOF:
                self._transcript.check_tag(b"proof", body)
                self._transcript.absorb(kind, body)
                return self._grant()
            case Kind.CONFIRM:
                return self._confirmed(body)
            case _:  # LOCKED: the table lets nothing else through
                self._transcript.check_tag(b"locked", body)
                self._locked()
                return None

    def _identified(self, body: bytes) -> tuple[Kind, bytes] | None:
        identity = Identity.from_bytes(body)
        self.identity = identity
        self._check(identity)
        if self._order.carried:
            return self._grant()
        c = self._random(CHALLENGE_LENGTH)
        return Kind.CHALLENGE, self._transcript.challenge(identity.key, c)

    def _check(self, identity: Identity) -> None:
        """Refuse what the order rules out. Raises RefusalError."""
        order, asked = self._order, identity.asked
        if asked.suite != order.suite:
            raise RefusalError(
                Code.SUITE, f"the device made a key of suite {asked.suite}; the batch wants {order.suite}"
            )
        names = hardware_names(asked)
        if order.hardware and names.isdisjoint(order.hardware):
            wanted = " or ".join(order.hardware)
            raise RefusalError(
                Code.WRONG_BOARD, f"this board is {asked.hardware or 'unknown'}; the batch is for {wanted}"
            )
        if order.policy == "require" and not identity.entropy.hardware:
            lines = "; ".join(identity.entropy.sources) or "no source"
            raise RefusalError(Code.UNHEALTHY, f"the key was made without a healthy noise source ({lines})")

    def _grant(self) -> tuple[Kind, bytes]:
        identity = self.identity
        assert identity is not None  # noqa: S101 - the machine lets no grant come before an identity
        admitted = self._book.admit(identity)
        if isinstance(admitted, Offer):
            offer = self._resumed(admitted, identity)
        elif identity.provisioned:
            raise RefusalError(
                Code.PROVISIONED, "this device has an identity that this station's journal does not know"
            )
        else:
            offer = make_offer(self._order, admitted, identity, random=self._random)
            self._book.granted(offer, identity)
        self._offer = offer
        if self._order.carried:
            return Kind.GRANT, offer.sealed
        return Kind.GRANT, self._transcript.lock(b"grant", pack(self._order, offer).to_bytes())

    def _resumed(self, offer: Offer, identity: Identity) -> Offer:
        """Check that an offer made before is for this device and this batch. Raises RefusalError."""
        asked = identity.asked
        if not hmac.compare_digest(offer.kid, identity.key.kid) or offer.serial != asked.serial:
            raise RefusalError(Code.KEY_SEEN, f"{asked.serial} shows the key that was given to {offer.serial} before")
        if offer.root != self._order.root_digest:
            raise RefusalError(
                Code.OPERATOR,
                f"{offer.device} was granted another TUF root than this batch has",
                remedy="finish it with the batch file it was begun with",
            )
        return offer

    def _confirmed(self, body: bytes) -> tuple[Kind, bytes] | None:
        offer, identity = self._offer, self.identity
        assert offer is not None  # noqa: S101 - the machine lets no confirmation come before a grant
        assert identity is not None  # noqa: S101
        if self._order.carried:
            self.result = Provisioned(offer, identity, carried=True)
            self._book.provisioned(self.result)
            self._pass(f"{offer.device}: the grant is made")
            return None
        receipt = self._transcript.unlock(b"confirm", body)
        if not offer.accepts(receipt):
            raise RefusalError(Code.NO_RECEIPT, f"{offer.device} confirmed, but not this grant")
        self._transcript.absorb(Kind.CONFIRM, body)
        self.result = Provisioned(offer, identity, again=identity.provisioned)
        self._book.provisioned(self.result)
        return Kind.LOCK, self._transcript.tag(b"lock")

    def _locked(self) -> None:
        assert self.result is not None  # noqa: S101 - set before LOCK was sent
        self._book.locked(self.result)
        self._pass(f"{self.result.offer.device} is provisioned")

    def _refused(self, refused: Refused) -> None:
        """Take a locked device for what the book says it is: a station may be killed before it hears of the lock."""
        if refused.code == Code.LOCKED and (self.result or self._book.finished(refused.serial)):
            self._pass(f"{refused.serial} is provisioned and locked")
        else:
            super()._refused(refused)


def hardware_names(asked: Request) -> set[str]:
    """Return the names of the hardware in a request."""
    return {name.strip() for name in asked.hardware.split(",") if name.strip()}
