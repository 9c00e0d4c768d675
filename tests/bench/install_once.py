"""One install step in a process of its own: open the table, decrypt and check every chunk, write, flush."""

from __future__ import annotations

import sys
from pathlib import Path

from edgeseal.contentkey import check_commitment
from edgeseal.install import stored_table, unpack
from edgeseal.manifest import Manifest
from edgeseal.store import ObjectStore

if __name__ == "__main__":
    bundle, out = Path(sys.argv[1]), Path(sys.argv[2])
    manifest = Manifest.from_bytes((bundle / "manifest.cbor").read_bytes())
    ck = (bundle / "ck").read_bytes()
    check_commitment(ck, manifest.ck_commitment, manifest.model, manifest.release)
    store = ObjectStore(bundle)
    out.mkdir()
    table = stored_table(manifest, ck=ck, store=store)
    unpack(table, suite=manifest.suite, store=store, directory=out, workers=2, progress=lambda _: None, durable=True)
