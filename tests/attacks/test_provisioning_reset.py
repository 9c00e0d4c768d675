"""Factory resets nobody authorised, and floods: what a stranger on the cable could cost a device."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any

import pytest
from tests.attacks.cable import Impostor, Middle, recorded, refusal
from tests.unit.line_world import SIGNER, STRANGER, Line, public

from edgeseal.provisioning import CONTEXT, Code, Destroyed, wire
from edgeseal.provisioning.messages import Authorisation, Kind, cut, frame
from edgeseal.smp import Op, Packet, encode_lines

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.unit


# Factory reset --------------------------------------------------------------------------------------------------------


def authorised(line: Line, change: Callable[[Middle, bytes], bytes]) -> tuple[int, Middle]:
    """Ask for a reset and answer the device's nonce with what `change` makes of it; returns the refusal."""
    middle = Middle(line)
    reset = line.reset()
    line.link.run(reset, middle, until=lambda: bool(middle.said))
    body = change(middle, middle.dialogue._transcript.th)
    return refusal(middle.dialogue._respond(frame(Kind.AUTHORISE, body))), middle


def test_replayed_authorisation_does_not_reset_again() -> None:
    line = Line()
    recorded(line)
    kept: list[bytes] = []

    def tap(kind: Kind, body: bytes) -> bytes:
        kept.extend([body] if kind is Kind.AUTHORISE else [])
        return body

    middle = Middle(line, down=tap)
    reset = line.reset()
    line.link.run(reset, middle, until=lambda: reset.verdict is not None)
    assert line.home.identity is None
    assert line.provision().passed
    code, _ = authorised(line, lambda _m, _th: kept[0])
    assert code == Code.AUTHORISATION
    assert line.home.identity is not None


def test_authorisation_for_another_device() -> None:
    a, b = Line(), Line()
    recorded(a)
    recorded(b)
    stolen: list[bytes] = []

    def steal(_middle: Middle, th: bytes) -> bytes:
        stolen.append(th)
        return b"\xa0"

    authorised(a, steal)
    signature = SIGNER.sign(stolen[0], CONTEXT)
    code, _ = authorised(b, lambda _m, _th: Authorisation(public(SIGNER), signature).to_bytes())
    assert code == Code.AUTHORISATION
    assert b.home.identity is not None


@pytest.mark.parametrize(
    ("signer", "shown", "context"),
    [(STRANGER, SIGNER, CONTEXT), (STRANGER, STRANGER, CONTEXT), (SIGNER, SIGNER, b""), (SIGNER, STRANGER, CONTEXT)],
)
def test_authorisations_that_are_none(signer: Any, shown: Any, context: bytes) -> None:
    """A stranger's signature, a stranger's key, a signature made for something else."""
    line = Line()
    recorded(line)
    made = lambda _m, th: Authorisation(public(shown), signer.sign(th, context)).to_bytes()  # noqa: E731
    assert authorised(line, made)[0] == Code.AUTHORISATION
    assert line.home.identity is not None


def test_claim_of_destruction_without_the_receipt() -> None:
    """A device that only says so does not get another one's identity taken off the books."""
    a, b = Line(), Line()
    recorded(a)
    b.book = a.book
    (kid,) = a.book.offers

    def respond(message: bytes) -> bytes:
        assert cut(message)[0] is Kind.RESET
        return frame(Kind.DESTROYED, Destroyed(kid, bytes(32)).to_bytes())

    reset = b.reset()
    b.link.run(reset, Impostor(b, respond), until=lambda: reset.verdict is not None)
    assert reset.verdict is not None
    assert reset.verdict.code is Code.IMPOSTOR


# Floods ---------------------------------------------------------------------------------------------------------------


def test_a_flood_of_beginnings_costs_a_device_no_memory() -> None:
    line = Line()
    device = line.boot()
    for i in range(300):
        line.link.now += 20
        body = {"s": i.to_bytes(12, "big"), "n": 0, "o": 0, "l": 1_000_000, "h": bytes(8), "d": bytes(96)}
        device.feed(encode_lines(Packet(Op.WRITE, wire.GROUP, wire.PUT, body).to_bytes()))
    inbox = device._dialogue._inbox
    assert inbox._incoming is not None
    assert inbox._incoming.length == 1_000_000
    assert len(device.outgoing()) <= 2 * 65_536
    line.link.now += 20
    assert line.provision(device=device).passed


def test_grant_that_is_a_bomb_is_refused_before_it_is_inflated() -> None:
    line = Line()
    bomb = zlib.compress(bytes(200_000_000), 9)

    def huge(*_: Any) -> bytes:
        return bomb

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edgeseal.provisioning.offer.zlib.compress", huge)
        verdict = line.provision()
    assert verdict.code is Code.MALFORMED
    assert line.home.identity is None
