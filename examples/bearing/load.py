"""Ask a served model without a pause, until the file `--until` appears; then say what the callers saw.

python -m bearing.load http://127.0.0.1:8000 --until stop.load
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import urllib3

from .network import INPUT
from .spectra import FEATURES

CALLERS = 2


class Caller(threading.Thread):
    """One client with one connection that stays open."""

    def __init__(self, url: str, until: Path) -> None:
        """Ask `url` until the file `until` is there."""
        super().__init__()
        self._url, self._until = url, until
        self.answers: Counter[str] = Counter()
        self.failed: list[str] = []
        tensor = {"name": INPUT, "shape": [1, FEATURES], "datatype": "FP32", "data": [0.0] * FEATURES}
        self._body = json.dumps({"inputs": [tensor]}).encode()

    def run(self) -> None:
        """Count answers by the release that gave them, and keep every failure."""
        pool = urllib3.PoolManager(retries=False, timeout=30)
        while not self._until.exists():
            try:
                answer: Any = pool.request("POST", self._url, body=self._body)
                if answer.status == 200:  # noqa: PLR2004 - HTTP
                    self.answers[answer.json()["model_version"]] += 1
                else:
                    self.failed.append(f"status {answer.status}")
            except urllib3.exceptions.HTTPError as e:
                self.failed.append(type(e).__name__)
            time.sleep(0.002)


def main() -> None:
    """Ask, then sum up."""
    wanted = _arguments()
    started = time.monotonic()
    callers = [Caller(f"{wanted.url}/v2/models/{wanted.model}/infer", wanted.until) for _ in range(CALLERS)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    answers = sum((c.answers for c in callers), Counter())
    failed = [f for c in callers for f in c.failed]
    per_second = answers.total() / (time.monotonic() - started)
    by = ", ".join(f"{n:,} by release {release}" for release, n in sorted(answers.items()))
    print(f"{answers.total():,} answers ({by}), {per_second:.0f} a second, {len(failed)} failed")
    sys.exit(f"failed: {failed[:3]}" if failed else 0)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bearing.load", description="Ask a served model without a pause.")
    parser.add_argument("url", help="where edgeseal-serve answers, as http://127.0.0.1:8000")
    parser.add_argument("--model", default="bearing", help="name of the model (default: %(default)s)")
    parser.add_argument("--until", type=Path, required=True, help="ends when this file appears")
    return parser.parse_args()


if __name__ == "__main__":
    main()
