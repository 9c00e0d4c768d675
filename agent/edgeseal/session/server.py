"""The fleet server's side of X1: open, decide in one transaction, answer (docs/spec/session.md §7).

The server keeps no session state. What it must remember lies behind `Registry`; SQL and in-memory registries implement
the same few methods, and the order of checks is here, once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias, TypeVar

from edgeseal.errors import EdgesealError
from edgeseal.session.messages import (
    CTR_LIMIT,
    KEY_UNKNOWN,
    KID_LENGTH,
    M1_PREFIX,
    NO_QKD,
    PSK_LENGTH,
    QKD_KEY_LENGTH,
    REFUSED,
    Flags,
    Header,
    Reply,
    Status,
    build_reply,
    length_fits,
    rekeyed_psk,
    reply_keys,
    request_base,
    request_lock,
    t,
    th0,
    u64,
    unlock,
    unpad,
)
from edgeseal.suite import SUITES, PrivateKey, PublicKey

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

COUNTER_WINDOW: Final = 1_048_576  # furthest a counter may jump: bounds what one forged jump can burn
REKEY_ANSWER_LENGTH: Final = 32
# Integers: inverting an IntFlag drops unknown bits, and each operation on one costs microseconds.
REKEY: Final = int(Flags.REKEY)
RESYNCED: Final = int(Flags.RESYNCED)
KNOWN_FLAGS: Final = REKEY | RESYNCED

logger = logging.getLogger(__name__)

Ring: TypeAlias = Mapping[tuple[int, bytes], PrivateKey]  # (suite, kid) -> key


def ring(keys: list[PrivateKey]) -> dict[tuple[int, bytes], PrivateKey]:
    """Index private keys as `exchange` looks them up."""
    return {(key.suite.number, key.public.kid): key for key in keys}


@dataclass(frozen=True, slots=True)
class Row:
    """One key generation of one device, as a registry returns it."""

    device: str
    kid: bytes
    suite: int
    public: bytes
    psk: bytes
    pending: bool
    needs_qkd: bool = False


class Transaction(Protocol):
    """One serializable registry transaction; leaving it by an exception rolls everything back."""

    def revoked(self, row: Row) -> bool:
        """Whether the device is revoked."""

    def advance(self, row: Row, *, ctr: int, tag: bytes, lowest: int, resynced: bool) -> bool:
        """Conditionally store counter and tag; count an alarm if `resynced`.

        True only if lowest <= stored ctr < ctr, the device is not revoked and the generation still exists: one
        conditional UPDATE, so of parallel duplicates exactly one succeeds.
        """

    def counter(self, row: Row) -> tuple[int, bytes]:
        """Return stored (ctr, 16-byte tag or empty)."""

    def promote(self, row: Row) -> None:
        """Make a pending generation current and delete the former one."""

    def add_pending(self, row: Row, *, suite: int, public: bytes, psk: bytes) -> bool:
        """Store a pending generation of the row's device, replacing its earlier pending one.

        False, changing nothing, if `public` is known for any other generation.
        """


Tx = TypeVar("Tx", bound=Transaction)
Tx_co = TypeVar("Tx_co", bound=Transaction, covariant=True)


class Registry(Protocol[Tx_co]):
    """Where devices are known."""

    def find(self, kid_d: bytes) -> Row | None:
        """Return the generation with that key id."""

    def transaction(self) -> AbstractContextManager[Tx_co]:
        """Begin a serializable transaction."""


Handler: TypeAlias = Callable[[Tx, Row, bytes], tuple[Status, bytes]]
"""Answers an accepted request in its transaction; idempotent in content, because a lost reply makes it run again."""


class RefusalError(Exception):
    """The request gets a two-byte error answer: `answer`."""

    def __init__(self, answer: bytes) -> None:
        """Say nothing else: everybody may ask."""
        self.answer = answer


@dataclass(frozen=True, slots=True)
class Opened:
    """A request whose sender has proved to hold the PSK."""

    row: Row
    header: Header
    ephemeral: PublicKey
    flags: int
    body: bytes
    qkd_key: bytes
    th1: bytes


def exchange(
    m1: bytes,
    *,
    ring: Ring,
    registry: Registry[Tx],
    handler: Handler[Tx],
    now: int,
    random: Callable[[int], bytes],
    qkd: Callable[[bytes], bytes | None] = lambda _: None,
) -> bytes:
    """Answer one request: M2, or one of the two error answers.

    `now` is server time in Unix seconds; `random(n)` gives n bytes; `qkd(id)` a 32-byte key once. An exception of the
    handler or registry passes through after the transaction was rolled back: the transport answers "try again".
    """
    try:
        opened = open_request(m1, ring=ring, registry=registry, random=random, qkd=qkd)
    except RefusalError as e:
        return e.answer
    with registry.transaction() as tx:
        status, body = decide(tx, opened, handler, random)
    return answer(opened, Reply(status, now, body))


def open_request(
    m1: bytes,
    *,
    ring: Ring,
    registry: Registry[Tx],
    random: Callable[[int], bytes],
    qkd: Callable[[bytes], bytes | None],
) -> Opened:
    """Do steps 1 to 3 of session.md §7: everything before the transaction.

    Raises RefusalError. With `decide` and `answer` it is `exchange`, in three parts for a server that lets many
    requests share one commit.
    """
    suite, key = _server_key(m1, ring)
    th0_ = th0(key.public)
    try:
        header, header_bytes, locked = Header.cut(suite, key.open(th0_, m1[M1_PREFIX:]))
        row = registry.find(header.kid_d)
        if row is None or row.suite != suite:
            row = _nobody(suite, random)
        prk1, ad = request_lock(row.psk, th0_, row.public, header_bytes)
        plain = unpad(unlock(suite, prk1, ad, locked))
        ephemeral = PublicKey(suite, header.e_public)
    except EdgesealError:
        raise RefusalError(REFUSED) from None
    if not plain or not 0 < header.ctr < CTR_LIMIT:
        raise RefusalError(REFUSED)
    qkd_key = _qkd_key(row, header.qkd_id, qkd)
    return Opened(row, header, ephemeral, plain[0], plain[1:], qkd_key, t(b"reply", th0_, m1))


def _server_key(m1: bytes, ring: Ring) -> tuple[int, PrivateKey]:
    """Step 1: type, suite, exact length, then the key id; only the last has an answer of its own."""
    if len(m1) < M1_PREFIX or m1[0] != 1 or m1[1] not in SUITES or not length_fits(len(m1), request_base(m1[1])):
        raise RefusalError(REFUSED)
    key = ring.get((m1[1], m1[2 : 2 + KID_LENGTH]))
    if key is None:
        raise RefusalError(KEY_UNKNOWN)
    return m1[1], key


def _nobody(suite: int, random: Callable[[int], bytes]) -> Row:
    """Stand in for an unknown device, so that it costs the same work and gets the same answer as a wrong PSK."""
    return Row("", b"", suite, random(SUITES[suite].public_length), random(PSK_LENGTH), pending=False)


def _qkd_key(row: Row, qkd_id: bytes, qkd: Callable[[bytes], bytes | None]) -> bytes:
    if qkd_id == NO_QKD:
        if row.needs_qkd:
            raise RefusalError(REFUSED)
        return b""
    key = qkd(qkd_id)
    if key is None or len(key) != QKD_KEY_LENGTH:
        raise RefusalError(REFUSED)
    return key


def decide(tx: Tx, opened: Opened, handler: Handler[Tx], random: Callable[[int], bytes]) -> tuple[Status, bytes]:
    """Step 4, inside the transaction, in the order the specification proves; returns what `answer` seals."""
    row, ctr = opened.row, opened.header.ctr
    if tx.revoked(row):
        return Status.REVOKED, b""
    resynced = bool(opened.flags & RESYNCED)
    if not tx.advance(row, ctr=ctr, tag=opened.th1[:16], lowest=ctr - COUNTER_WINDOW, resynced=resynced):
        last, tag = tx.counter(row)
        return Status.STALE, u64(last) + tag.ljust(16, b"\x00")
    if row.pending:
        tx.promote(row)
    if opened.flags & ~KNOWN_FLAGS:
        return Status.DENIED, b""
    if opened.flags & REKEY:
        return _rekey(tx, opened, random)
    return handler(tx, row, opened.body)


def _rekey(tx: Transaction, opened: Opened, random: Callable[[int], bytes]) -> tuple[Status, bytes]:
    """Section 9: store a pending generation and answer the 32 bytes its PSK is made with."""
    try:
        public = PublicKey(opened.body[0] if opened.body else 0, opened.body[1:])
    except EdgesealError:
        return Status.DENIED, b""
    x = random(REKEY_ANSWER_LENGTH)
    psk = rekeyed_psk(opened.row.psk, opened.th1, x)
    if not tx.add_pending(opened.row, suite=public.suite.number, public=public.raw, psk=psk):
        return Status.DENIED, b""
    return Status.OK, x


def answer(opened: Opened, reply: Reply) -> bytes:
    """Step 5: seal the reply. It must not leave before the transaction is on stable storage."""
    suite, row = opened.row.suite, opened.row
    prk2 = reply_keys(row.psk, opened.header.s1, opened.qkd_key, opened.th1)
    try:
        return build_reply(
            suite=suite,
            prk2=prk2,
            th1=opened.th1,
            ephemeral=opened.ephemeral,
            device=_loaded(suite, row.public),
            reply=reply,
        )
    except EdgesealError:
        logger.warning("x1: device %s has a key that cannot be sealed to", row.device)
        return REFUSED


@lru_cache(maxsize=4096)
def _loaded(suite: int, public: bytes) -> PublicKey:
    """Load a registered key; it was checked when it was enrolled, so only the cost of loading is saved here."""
    return PublicKey(suite, public)
