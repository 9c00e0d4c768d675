"""Write the agent's start-up known answers from the X1 vectors: `python tests/vectors/make_selftest.py`."""

from __future__ import annotations

import json
from pathlib import Path

from edgeseal import cbor

HERE = Path(__file__).parent
TARGET = HERE.parent.parent / "agent/edgeseal/session/selftest.cbor"


def known_answers() -> bytes:
    """Return the first exchange of each suite as selftest.py reads it."""
    cases: list[cbor.Value] = []
    for suite in json.loads((HERE / "x1.json").read_text())["suites"]:
        first = suite["exchanges"][0]
        fields = ("device_seed", "e_seed", "psk", "m1", "m2", "body", "reply_body")
        cases.append([suite["suite"], bytes.fromhex(suite["server_seed"]), *(bytes.fromhex(first[f]) for f in fields)])
    return cbor.encode(cases)


if __name__ == "__main__":
    TARGET.write_bytes(known_answers())
