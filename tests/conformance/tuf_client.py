"""Client under test for theupdateframework/tuf-conformance: its command line protocol over `edgeseal.trust`.

    tuf_client.py --metadata-dir D init ROOT
    tuf_client.py --metadata-url U --metadata-dir D refresh
    tuf_client.py --metadata-url U --metadata-dir D --target-name P [--target-name P …] --target-dir T
                  --target-base-url B download

Exit 0 or 1. D receives unversioned, byte-identical copies of the committed metadata (`root.json`, `timestamp.json`, …);
our own state lies in `D/state`, which does not end in `.json`. The suite signs with other algorithms too, so this
script, and nothing else, opens the allow-list.

Run the suite with: make dev && pytest tuf_conformance --entrypoint "…/python …/tests/conformance/tuf_client.py"
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from edgeseal.errors import EdgesealError, RefusedError
from edgeseal.trust import HttpFetcher, Trust
from edgeseal.trust.rules import Algorithms

if TYPE_CHECKING:
    from collections.abc import Mapping

ANYTHING = Algorithms(offline=None, online=None)
_ROOT = "provisioned-root"


def main() -> int:
    """Run one command; the reason of a failure goes to standard error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--metadata-dir", type=Path, required=True)
    parser.add_argument("--metadata-url")
    parser.add_argument("--target-name", action="append", default=[])
    parser.add_argument("--target-dir", type=Path)
    parser.add_argument("--target-base-url")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("init").add_argument("root", type=Path)
    commands.add_parser("refresh")
    commands.add_parser("download")
    args = parser.parse_args()
    try:
        {"init": init, "refresh": refresh, "download": download}[args.command](args)
    except (EdgesealError, OSError) as e:
        print(f"tuf_client: {type(e).__name__}: {e}", file=sys.stderr)  # noqa: T201 - a script for a terminal
        return 1
    return 0


def init(args: argparse.Namespace) -> None:
    """Take the provisioned root; it is verified by the first refresh."""
    root = args.root.read_bytes()
    (args.metadata_dir / _ROOT).write_bytes(root)
    (args.metadata_dir / "root.json").write_bytes(root)


def refresh(args: argparse.Namespace) -> tuple[Trust, Mapping[str, EdgesealError]]:
    """Refresh, fetching the roles responsible for the targets asked for; show what is trusted even after a failure.

    Returns which of the targets cannot be looked up, and why.
    """
    trust = Trust(
        args.metadata_dir / "state",
        bootstrap=(args.metadata_dir / _ROOT).read_bytes(),
        fetcher=HttpFetcher(args.metadata_url, metadata=args.metadata_url, targets=args.target_base_url),
        algorithms=ANYTHING,
    )
    try:
        result = trust.refresh(models=(), paths=args.target_name)
    finally:
        _show(trust, args.metadata_dir)
    return trust, result.refused


def download(args: argparse.Namespace) -> None:
    """Refresh, then fetch each target that is not in the target directory already."""
    trust, refused = refresh(args)
    for name in args.target_name:
        if name in refused:
            raise refused[name]
        path = args.target_dir / quote(name, "")
        info = trust.target(name)
        if info is None:
            raise RefusedError(f"{name} is not listed")
        if not path.exists() or not info.matches(path.read_bytes()):
            path.write_bytes(trust.fetch_target(name))


def _show(trust: Trust, directory: Path) -> None:
    for name, data in trust.files().items():
        (directory / name).write_bytes(data)


if __name__ == "__main__":
    sys.exit(main())
