"""Write the provisioning vectors, `tests/vectors/provisioning/*.json`: `python tests/vectors/make_provisioning.py`.

An independent station (and, to know what to expect, device): of docs/spec/provisioning.md and session.md it knows the
pages, of edgeseal nothing. HPKE takes its coins from the library, so a new run gives new bytes; everything else comes
from labels.

One file is one case, played against a fresh device:

    what       one line for a person
    suite, key_seed, nonces, serial, hardware, agent, board, entropy     who the device is and what it draws
    calls      [[message of the station, answer expected], …], hex; an answer "refused N" is any REFUSED with code N
    grant      what the device holds at the end, if anything: name, psk, k_rng, url, time floor, SHA-384 of the root
    lines      the first PUT of the first message as it stands on the line, session and sequence number 1
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cbor2
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM1024PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

HERE = Path(__file__).parent / "provisioning"
V = b"edgeseal/provisioning/1"
X1 = b"edgeseal/x1"
AEADS: dict[int, type[ChaCha20Poly1305 | AESGCM]] = {1: ChaCha20Poly1305, 2: AESGCM}
KEMS = {1: hpke.KEM.MLKEM768_X25519, 2: hpke.KEM.MLKEM1024}
HPKE_AEADS = {1: hpke.AEAD.CHACHA20_POLY1305, 2: hpke.AEAD.AES_256_GCM}
ROOT = json.dumps({"signed": {"_type": "root"}, "signatures": [{"sig": "ab" * 400}]}).encode()
TIME_FLOOR = 1_790_000_000
URL = "https://fleet.example"
BATCH = "2026-11-a"
BOARD = ["b8:27:eb:12:34:56", "275048534431364760ff1d", "0002-3333", "c03115"]
SERIAL, HARDWARE, AGENT = "100000003d1d1c36", "raspberrypi,4-model-b", "0.1.0"
STATION_SEED = hashlib.sha256(b"station").digest()


def drawn(label: str, length: int = 32) -> bytes:
    return hashlib.shake_256(label.encode()).digest(length)


def t(version: bytes, *parts: bytes) -> bytes:
    return hashlib.sha384(b"".join(len(p).to_bytes(4, "big") + p for p in (version, *parts))).digest()


def mac(key: bytes, message: bytes) -> bytes:
    return hmac.digest(key, message, "sha384")


def expand(prk: bytes, info: bytes, n: int = 48) -> bytes:
    return mac(prk, info + b"\x01")[:n]


def lock(suite: int, prk: bytes, ad: bytes, message: bytes) -> bytes:
    n = mac(expand(prk, b"n"), t(X1, b"n", ad, message))[:32]
    return n + AEADS[suite](expand(prk, b"k" + n, 32)).encrypt(bytes(12), message, ad)


def numbered(*values: Any) -> bytes:
    return cbor2.dumps(dict(enumerate(values)), canonical=True)


@dataclass
class Key:
    """A device's key pair."""

    suite: int
    seed: bytes
    public: bytes = b""
    private: Any = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.suite == 1:
            expanded = hashlib.shake_256(self.seed).digest(96)
            ml = MLKEM768PrivateKey.from_seed_bytes(expanded[:64])
            x = X25519PrivateKey.from_private_bytes(expanded[64:])
            self.public = ml.public_key().public_bytes_raw() + x.public_key().public_bytes_raw()
            self.private = hpke.MLKEM768X25519PrivateKey(ml, x)
        else:
            self.private = MLKEM1024PrivateKey.from_seed_bytes(self.seed)
            self.public = self.private.public_key().public_bytes_raw()

    @property
    def kid(self) -> bytes:
        return t(X1, b"kid", bytes([self.suite]), self.public)[:16]

    def seal(self, info: bytes, message: bytes) -> bytes:
        suite = hpke.Suite(KEMS[self.suite], hpke.KDF.HKDF_SHA384, HPKE_AEADS[self.suite])
        return suite.encrypt(message, self.private.public_key(), info)


class Dialogue:
    """Both ends of one dialogue, written down as it goes."""

    def __init__(self, suite: int, name: str) -> None:
        self.suite, self.name = suite, name
        self.signer = MLDSA65PrivateKey.from_seed_bytes(STATION_SEED)
        self.station = self.signer.public_key().public_bytes_raw()
        self.pin = t(V, b"station", self.station)
        self.key = Key(suite, drawn(f"{name} device seed", {1: 32, 2: 64}[suite]))
        self.entropy = ["mix", 1, ["os: getrandom", "stick: quantum, evidence vendor"], []]
        self.nonces: list[bytes] = []
        self.calls: list[list[str]] = []
        self.psk, self.k_rng = drawn(f"{name} psk"), drawn(f"{name} k_rng")
        self.held: dict[str, Any] | None = None
        self.th = self.prk = self.receipt = b""

    def begin(self) -> None:
        self.th = t(V, b"begin")

    def absorb(self, kind: str, body: bytes) -> None:
        self.th = t(V, kind.encode(), self.th, body)

    def tag(self, label: bytes) -> bytes:
        return mac(expand(self.prk, label), self.th)[:32]

    def call(self, number: int, body: bytes, answer: tuple[int, bytes] | str) -> None:
        text = answer if isinstance(answer, str) else (bytes([answer[0]]) + answer[1]).hex()
        self.calls.append([(bytes([number]) + body).hex(), text])

    def hello(self, *, policy: str = "mix", carried: bool = False, again: bool = False, answer: str = "") -> None:
        self.begin()
        label = f"{self.name} {len(self.calls)}"
        head = (
            1,
            BATCH,
            self.suite,
            policy,
            self.pin[:16],
            drawn(label + " hello"),
            drawn(label + " host", 64),
            carried,
        )
        body = numbered(*head)
        self.absorb("HELLO", body)
        if answer:
            self.call(1, body, answer)
            return
        nonce = drawn(label + " device nonce")
        self.nonces.append(nonce)
        request = numbered(1, self.suite, self.key.public, SERIAL, HARDWARE, AGENT, self.entropy[2])
        identity = numbered(1, again, request, BOARD, self.entropy, nonce)
        self.absorb("IDENTITY", identity)
        self.call(1, body, (2, identity))

    def challenge(self, key: Key | None = None, *, answer: str = "") -> None:
        c = drawn(f"{self.name} {len(self.calls)} c")
        sealed = (key or self.key).seal(t(V, b"challenge", self.th), c)
        self.absorb("CHALLENGE", sealed)
        self.prk = mac(self.th, c)
        proof = self.tag(b"proof")
        self.absorb("PROOF", proof)
        self.call(3, sealed, answer or (4, proof))

    def sealed_grant(self) -> bytes:
        root = hashlib.sha384(ROOT).digest()
        grant = numbered(1, "press-7", self.suite, self.psk, self.k_rng, URL, root, TIME_FLOOR)
        return b"\x01" + self.key.kid + self.key.seal(t(X1, b"grant", self.key.public), grant)

    def package(self, sealed: bytes, *, root: bytes = ROOT, pin: bytes | None = None) -> bytes:
        return numbered(sealed, zlib.compress(root, 9), pin or self.pin, "line 1", BATCH, {"root": 1})

    def grant(self, sealed: bytes, *, package: bytes | None = None, answer: str = "") -> bytes:
        body = lock(self.suite, expand(self.prk, b"grant"), self.th, package or self.package(sealed))
        self.absorb("GRANT", body)
        self.receipt = mac(t(V, b"receipt", self.key.public, sealed), self.psk)[:32]
        confirm = lock(self.suite, expand(self.prk, b"confirm"), self.th, self.receipt)
        self.absorb("CONFIRM", confirm)
        self.call(5, body, answer or (6, confirm))
        if not answer:
            root = hashlib.sha384(ROOT).hexdigest()
            self.held = {
                "device": "press-7",
                "psk": self.psk.hex(),
                "k_rng": self.k_rng.hex(),
                "url": URL,
                "time_floor": TIME_FLOOR,
                "root_sha384": root,
                "receipt": self.receipt.hex(),
                "commitment": t(V, b"commitment", self.receipt).hex(),
            }
        return body

    def lock(self, tag: bytes | None = None, *, answer: str = "") -> None:
        tag = tag or self.tag(b"lock")
        self.absorb("LOCK", tag)
        self.call(7, tag, answer or (8, self.tag(b"locked")))

    def reset(self, *, answer: str = "") -> None:
        self.begin()
        label = f"{self.name} {len(self.calls)}"
        body = numbered(1, self.pin[:16], drawn(label + " reset"))
        self.absorb("RESET", body)
        if answer:
            self.call(9, body, answer)
            return
        self.nonces.append(drawn(label + " reset nonce"))
        answered = numbered(self.key.kid, SERIAL, self.nonces[-1])
        self.absorb("RESET_NONCE", answered)
        self.call(9, body, (10, answered))

    def authorise(self, signer: MLDSA65PrivateKey | None = None, *, answer: str = "") -> None:
        signer = signer or self.signer
        signature = signer.sign(self.th, b"edgeseal factory reset")
        body = numbered(signer.public_key().public_bytes_raw(), signature)
        self.call(11, body, answer or (12, numbered(self.key.kid, self.receipt)))
        if not answer:
            self.held = None

    def save(self, what: str) -> None:
        first = bytes.fromhex(self.calls[0][0])
        session = self.pin[:4] + drawn(f"{self.name} 0 hello")[:8]
        about = {
            "what": what,
            "suite": self.suite,
            "key_seed": self.key.seed.hex(),
            "nonces": [n.hex() for n in self.nonces],
            "serial": SERIAL,
            "hardware": HARDWARE,
            "agent": AGENT,
            "board": BOARD,
            "entropy": self.entropy,
            "calls": self.calls,
            "grant": self.held,
            "lines": first_lines(session, first) if first[0] == 1 else None,
        }
        HERE.mkdir(exist_ok=True)
        (HERE / f"{self.name}.json").write_text(json.dumps(about, indent=1) + "\n")


def first_lines(session: bytes, message: bytes) -> str:
    check = hashlib.sha384(message).digest()[:8]
    fields = {"s": session, "n": 0, "o": 0, "l": len(message), "h": check, "d": message[:768]}
    body = cbor2.dumps(fields, canonical=True)
    packet = bytes([0x0A, 0]) + len(body).to_bytes(2, "big") + (64).to_bytes(2, "big") + bytes([1, 1]) + body
    framed = (len(packet) + 2).to_bytes(2, "big") + packet + binascii.crc_hqx(packet, 0).to_bytes(2, "big")
    text = base64.b64encode(framed).decode()
    pieces = [text[i : i + 120] for i in range(0, len(text), 120)]
    return "".join(("\x04\x14" if i else "\x06\x09") + piece + "\n" for i, piece in enumerate(pieces))


def good(suite: int, name: str) -> Dialogue:
    d = Dialogue(suite, name)
    d.hello()
    d.challenge()
    return d


def good_cases() -> None:
    for suite in (1, 2):
        d = good(suite, f"suite-{suite}")
        d.grant(d.sealed_grant())
        d.lock()
        d.save(f"a whole dialogue in suite {suite}")

    d = good(1, "confirmed-again")
    sealed = d.sealed_grant()
    d.grant(sealed)
    d.hello(again=True)
    d.challenge()
    d.grant(sealed)
    d.lock()
    d.hello(answer="refused 6")
    d.save("a second dialogue confirms the same grant from state, then nothing after the lock")

    d = good(1, "factory-reset")
    d.grant(d.sealed_grant())
    d.lock()
    d.reset()
    d.authorise(MLDSA65PrivateKey.from_seed_bytes(bytes(32)), answer="refused 10")
    d.reset()
    d.authorise()
    d.save("the pinned station resets, another one does not")


def broken_beginnings() -> None:
    d = Dialogue(1, "broken-carried")
    d.hello(carried=True, answer="refused 1")
    d.save("a device on a line is no file")

    d = Dialogue(1, "broken-challenge-for-another-device")
    d.hello()
    d.challenge(Key(1, bytes(32)), answer="refused 7")
    d.save("the challenge is sealed to another device's key")

    d = good(1, "broken-challenge-replayed")
    old = bytes.fromhex(d.calls[1][0])
    d.hello()
    d.call(3, old[1:], "refused 7")
    d.save("the challenge of an earlier dialogue with this device")

    d = good(1, "broken-grant-spliced")
    first = d.grant(d.sealed_grant(), answer="-")
    d.calls.pop()
    d.hello()
    d.challenge()
    d.call(5, first, "refused 7")
    d.save("the grant of one dialogue in another one with the same device")


def broken_ends() -> None:
    d = good(1, "broken-other-root")
    d.grant(b"", package=d.package(d.sealed_grant(), root=ROOT + b" "), answer="refused 7")
    d.save("a TUF root that is not the one the sealed grant names")

    d = good(1, "broken-root-bomb")
    d.grant(b"", package=d.package(d.sealed_grant(), root=bytes(3_000_000)), answer="refused 1")
    d.save("a TUF root that inflates beyond 1 MiB")

    d = good(1, "broken-pin-of-another-station")
    d.grant(b"", package=d.package(d.sealed_grant(), pin=bytes(48)), answer="refused 1")
    d.save("the grant pins a station other than the one that said hello")

    d = good(1, "broken-two-grants")
    d.grant(d.sealed_grant())
    d.hello(again=True)
    d.challenge()
    d.grant(d.sealed_grant(), answer="refused 5")
    d.save("a provisioned device is given a second grant")

    d = good(1, "broken-lock-before-grant")
    d.lock(answer="refused 1")
    d.save("a lock has no place before the grant")

    d = good(1, "broken-lock-forged")
    d.grant(d.sealed_grant())
    d.lock(bytes(32), answer="refused 7")
    d.save("a lock from somebody who does not know the challenge")


if __name__ == "__main__":
    good_cases()
    broken_beginnings()
    broken_ends()
