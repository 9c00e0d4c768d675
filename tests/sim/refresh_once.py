"""One refresh in a process of its own: what the harnesses beside this file cut the power of, kill and starve.

python refresh_once.py DIRECTORY ROOT URL NOW        exit code of the error, as the agent's would be
python refresh_once.py --wait …                      the same after one line on standard input
"""

from __future__ import annotations

import sys
from pathlib import Path

from edgeseal.errors import EdgesealError
from edgeseal.trust import HttpFetcher, Trust


def main(words: list[str]) -> int:
    """Refresh; the reason of a failure goes to standard error."""
    directory, root, url, now = words[-4:]
    trust = Trust(
        Path(directory),
        bootstrap=Path(root).read_bytes(),
        fetcher=HttpFetcher(url),
        clock=lambda: float(now),
    )
    if words[0] == "--wait":
        import edgeseal.trust.refresh  # noqa: F401 - imported before the harness looks

        print("ready", flush=True)  # noqa: T201 - the harness waits for this line
        sys.stdin.readline()
    try:
        trust.refresh()
    except EdgesealError as e:
        print(f"{type(e).__name__}: {e}", file=sys.stderr)  # noqa: T201 - for the harness
        return e.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
