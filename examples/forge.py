"""What a thief of the fleet server's token would do: sign the list of releases with a key of their own and send it.

    python -m forge repo --model bearing --key mallory --to URL

The honest tools refuse to sign with a key that nobody named, so this goes around them. The server refuses.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from tuf.api.metadata import Metadata, Targets

from edgeseal.errors import EdgesealError
from edgeseal_host.fleet.client import FleetClient
from edgeseal_host.keys import KeyDirectory
from edgeseal_host.repository.layout import RepositoryDirectory
from edgeseal_host.repository.metadata import role_of
from edgeseal_host.repository.verify import Publication


def forged(repo: Path, role: str, keys: KeyDirectory, key: str) -> Publication:
    """Return the next version of a published role, signed with the wrong key."""
    current = RepositoryDirectory(repo).current(role)
    if current is None:
        raise SystemExit(f"{repo} has published no {role}")
    metadata = Metadata[Targets].from_bytes(current)
    metadata.signed.version += 1
    metadata.sign(keys.signer(key, None))
    return Publication(roles={role: metadata.to_bytes()})


def main() -> None:
    """Forge, send, and print what the server says."""
    wanted = _arguments()
    keys = KeyDirectory(Path(os.environ["EDGESEAL_KEYS"]))
    token = Path(os.environ["EDGESEAL_TOKEN_FILE"]).read_text().strip()
    try:
        FleetClient(wanted.to, token=token).publish(forged(wanted.repo, role_of(wanted.model), keys, wanted.key))
    except EdgesealError as e:
        print(f"error: {e.message}" + (f"\nhint: {e.hint}" if e.hint else ""), file=sys.stderr)
        raise SystemExit(e.exit_code) from None
    print("the forged list is published")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m forge", description="Send a forged list of releases.")
    parser.add_argument("repo", type=Path, help="a copy of the repository: it is public")
    parser.add_argument("--model", required=True, help="whose list is forged")
    parser.add_argument("--key", required=True, help="the thief's key")
    parser.add_argument("--to", required=True, metavar="URL", help="the fleet server")
    return parser.parse_args()


if __name__ == "__main__":
    main()
