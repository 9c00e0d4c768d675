"""One refresh in a process of its own: what the harnesses beside this file cut the power of, kill and starve.

python -m tests.sim.refresh_once DIRECTORY ROOT URL NOW     exit code of the error, as the agent's would be
python -m tests.sim.refresh_once … --errors FILE            the same in a child, each time it is asked: see `injected`
"""

from __future__ import annotations

import sys
from pathlib import Path

from tests.sim import forking

from edgeseal.errors import EdgesealError
from edgeseal.trust import HttpFetcher, Trust


def main(words: list[str], provisioned: bytes) -> int:
    """Refresh; the reason of a failure goes to standard error."""
    directory, _, url, now = words
    trust = Trust(
        Path(directory),
        bootstrap=provisioned,
        fetcher=HttpFetcher(url),
        clock=lambda: float(now),
    )
    try:
        trust.refresh()
    except EdgesealError as e:
        print(f"{type(e).__name__}: {e}", file=sys.stderr)  # noqa: T201 - for the harness
        return e.exit_code
    return 0


if __name__ == "__main__":
    if "--errors" in sys.argv:
        import edgeseal.trust.refresh  # noqa: F401 - imported before the harness looks

        *words, _, errors = sys.argv[1:]
        root = Path(words[1]).read_bytes()  # not of the step: an agent has it in its state directory
        forking.serve(lambda: main(words, root), errors)
    else:
        sys.exit(main(sys.argv[1:], Path(sys.argv[2]).read_bytes()))
