"""A steady load on edgeseal-serve from a process of its own: `python -m tests.bench.swap_load ADDRESS RATE CLIENTS`.

Requests are due at fixed times, whatever the answers do; a time counts from when its request was due, so that a stall
is seen by every request that it holds up. Runs until standard input ends, then writes one line of JSON for each
request: [when it was due, seconds, what was wrong or ""]. Times are of time.monotonic, which all processes share.
"""

from __future__ import annotations

import http.client
import itertools
import json
import socket
import sys
import threading
import time
from typing import Final

MODEL: Final = "m"
WIDTH: Final = 4
_BODY: Final = json.dumps(
    {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, WIDTH], "data": [0] * WIDTH}]}
).encode()

Answer = tuple[float, float, str]


def client(address: str, first: float, every: float, done: threading.Event) -> list[Answer]:
    """Ask over one keep-alive connection, once every so many seconds."""
    found: list[Answer] = []
    connection = _Connection(address, timeout=30)
    for number in itertools.count():
        due = first + number * every
        time.sleep(max(0.0, due - time.monotonic()))
        if done.is_set():
            break
        wrong = _ask(connection)
        found.append((due, time.monotonic() - due, wrong))
    connection.close()
    return found


class _Connection(http.client.HTTPConnection):
    """Sends at once: head and body are two writes, and the kernel would hold the second back."""

    def connect(self) -> None:
        super().connect()
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _ask(connection: http.client.HTTPConnection) -> str:
    """Send one request; return what was wrong with the answer, release n answers n."""
    try:
        connection.request("POST", f"/v2/models/{MODEL}/infer", _BODY)
        answer = connection.getresponse()
        text = answer.read()
    except (OSError, http.client.HTTPException) as e:
        connection.close()
        return repr(e)
    if answer.status != http.client.OK:
        return f"{answer.status}: {text[:200].decode()}"
    document = json.loads(text)
    if [float(document["model_version"])] * WIDTH != document["outputs"][0]["data"]:
        return f"release {document['model_version']} answered {document['outputs'][0]['data']}"
    return ""


def main(address: str, rate: float, clients: int) -> None:
    """Load until standard input ends."""
    done, answers = threading.Event(), list[list[Answer]]()
    start = time.monotonic() + 0.1

    def run(number: int) -> None:
        answers.append(client(address, start + number / rate, clients / rate, done))

    threads = [threading.Thread(target=run, args=[n]) for n in range(clients)]
    for thread in threads:
        thread.start()
    sys.stdin.read()
    done.set()
    for thread in threads:
        thread.join()
    for answer in sorted(itertools.chain(*answers)):
        sys.stdout.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]))
