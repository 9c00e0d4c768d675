"""Hands a model over to a server with the Open Inference Protocol's model-repository extension, by HTTP.

The server (Triton in explicit mode, MLServer) looks at the same model repository; after the link is switched it is told
to load, and asked which version it serves: releases lie in directories named by their number, which is what Triton
takes for the version. Loading fails there without harm: such servers go on with what they had (Triton: "Model
Management", explicit mode). Paths: Open Inference Protocol v2, `v2/models/NAME`, and Triton's repository extension,
`v2/repository/models/NAME/load`.

Nothing the server says is trusted beyond that: answers are cut, redirects are not followed, every call ends in time.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
import time
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from edgeseal.errors import UsageError
from edgeseal.runtime.adapters import Link
from edgeseal.runtime.contract import ActivationError, Candidate, Health

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgeseal.runtime.probe import Limits
    from edgeseal.runtime.repository import ModelRepository

LOAD_SECONDS: Final = 300.0  # a large model from memory takes a minute on a small board
ASK_SECONDS: Final = 5.0
_MAX_ANSWER: Final = 65_536
_OK: Final = 200


class OipHttp(Link):
    """Loads and unloads through `/v2/repository/models/NAME`."""

    def __init__(self, repository: ModelRepository, limits: Limits | None, url: str) -> None:
        """Take the server's address, such as http://127.0.0.1:8000.

        Raises UsageError if it is none.
        """
        super().__init__("oip-http", repository, limits)
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise UsageError(
                "runtime.adapter is 'oip-http', but runtime.url is not an address like http://127.0.0.1:8000"
            )
        self._url, self._parts = url.rstrip("/"), parts

    def activate(self, candidate: Candidate) -> None:
        """Switch, and let the server load; `health` says when it serves."""
        super().activate(candidate)
        self._repository_call(candidate.model, "load")

    def health(self, model: str, release: int) -> Health | None:
        """Return whether the server serves the release, and why it could not load it; None if it does not answer."""
        try:
            serving = self._serves(model, release) and self._repository.current(model) == release
            failed = "" if serving else self._failed(model, release)
        except ActivationError:
            return None
        return Health(instance=0, serving=serving, failed=failed, failed_at=int(time.time()))

    def rollback(self, candidate: Candidate) -> None:
        """Switch back, then let the server load what is there now, or unload if there is nothing."""
        super().rollback(candidate)
        there = self._repository.current(candidate.model) is not None
        self._repository_call(candidate.model, "load" if there else "unload")

    def _repository_call(self, model: str, what: str) -> None:
        status, body = self._ask("POST", f"/v2/repository/models/{model}/{what}", b"{}", LOAD_SECONDS)
        if status != _OK:
            raise ActivationError(f"{self._url} did not {what} {model}: HTTP {status}: {_reason(body)}")

    def _serves(self, model: str, release: int) -> bool:
        """Whether the model is ready, in this release as far as the server's versions tell.

        A server that numbers versions its own way, or not at all, is believed once it is ready; one that lists other
        releases of ours still serves those.
        """
        if self._ask("GET", f"/v2/models/{model}/ready", None, ASK_SECONDS)[0] != _OK:
            return False
        versions = _versions(self._ask("GET", f"/v2/models/{model}", None, ASK_SECONDS))
        ours = {str(r) for r in self._repository.releases(model)}
        return str(release) in versions or not versions & ours

    def _failed(self, model: str, release: int) -> str:
        """Return what the server's repository index says against the release; nothing if it has no such thing."""
        status, body = self._ask("POST", "/v2/repository/index", b"{}", ASK_SECONDS)
        rows = _parsed(body) if status == _OK else None
        for row in rows if isinstance(rows, list) else []:
            if isinstance(row, dict) and (row.get("name"), row.get("version")) == (model, str(release)):
                return _text(row.get("reason")) if row.get("state") == "UNAVAILABLE" else ""
        return ""

    def _ask(self, method: str, path: str, body: bytes | None, seconds: float) -> tuple[int, bytes]:
        """Return status and body, within `seconds` for all of it. Raises ActivationError."""
        kind = http.client.HTTPSConnection if self._parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(self._parts.hostname or "", self._parts.port, timeout=ASK_SECONDS)
        try:
            connection.connect()
            connection.sock.settimeout(seconds)
            with _cut_after(connection.sock, seconds):
                connection.request(method, self._parts.path.rstrip("/") + path, body, _HEADERS)
                answer = connection.getresponse()
                return answer.status, answer.read(_MAX_ANSWER)
        except (OSError, http.client.HTTPException) as e:
            raise ActivationError(
                f"{self._url} does not answer: {str(e) or type(e).__name__}",
                hint="is the server of runtime.url running?",
            ) from e
        finally:
            connection.close()


_HEADERS: Final = {"Content-Type": "application/json"}


@contextlib.contextmanager
def _cut_after(s: socket.socket, seconds: float) -> Iterator[None]:
    """Shut the connection down after `seconds`: a socket's own timeout begins anew with every byte that dribbles in.

    Raises TimeoutError in place of what that looks like to the reader.
    """
    late = threading.Event()

    def cut() -> None:
        late.set()
        with contextlib.suppress(OSError):
            s.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(seconds, cut)
    timer.daemon = True
    timer.start()
    try:
        yield
    except (OSError, http.client.HTTPException):
        if not late.is_set():
            raise
    finally:
        timer.cancel()
    if late.is_set():
        raise TimeoutError(f"no whole answer within {seconds:g} s")


def _versions(answer: tuple[int, bytes]) -> set[str]:
    """Return the versions that a model's metadata list; none if it does not say."""
    document = _json(answer[1]) if answer[0] == _OK else {}
    found = document.get("versions")
    return {v for v in found if isinstance(v, str)} if isinstance(found, list) else set()


def _reason(body: bytes) -> str:
    """Return the server's words: the protocol's {"error": text}, or what came instead."""
    found = _json(body).get("error")
    return _text(found if isinstance(found, str) else body.decode("utf-8", "replace")) or "no reason given"


def _text(said: object) -> str:
    """Return what a server said as one short line, nothing if it is no text."""
    line = " ".join(said.split()) if isinstance(said, str) else ""
    return "".join(c if c.isprintable() else "?" for c in line)[:300]


def _json(body: bytes) -> dict[str, object]:
    document = _parsed(body)
    return document if isinstance(document, dict) else {}


def _parsed(body: bytes) -> object:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None
