"""Hands a model over to a server with the Open Inference Protocol's model-repository extension, by HTTP.

The server (Triton in explicit mode, MLServer) looks at the same model repository; after the link is switched it is told
to load, and asked whether the model is ready. Loading fails there without harm: such servers go on with what they
had (Triton: "Model Management", explicit mode). Paths: Open Inference Protocol v2, `v2/repository/models/NAME/load`.
"""

from __future__ import annotations

import http.client
import json
import time
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from edgeseal.errors import UsageError
from edgeseal.runtime.adapters import Link
from edgeseal.runtime.contract import ActivationError, Candidate, Health

if TYPE_CHECKING:
    from edgeseal.runtime.probe import Limits
    from edgeseal.runtime.repository import ModelRepository

LOAD_SECONDS: Final = 300.0  # a large model from memory takes a minute on a small board
_ASK_SECONDS: Final = 5.0
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
        """Switch, let the server load, and ask whether it is ready."""
        super().activate(candidate)
        self._repository_call(candidate.model, "load")
        if not self._ready(candidate.model):
            raise ActivationError(f"{self._url} says it has loaded {candidate.model}, but not that it is ready")

    def health(self, model: str, release: int) -> Health | None:
        """Return whether the server says that the model is ready; None if it does not answer."""
        try:
            return Health(instance=0, serving=self._ready(model) and self._repository.current(model) == release)
        except ActivationError:
            return None

    def rollback(self, candidate: Candidate) -> None:
        """Switch back, then let the server load what is there now, or unload if there is nothing."""
        super().rollback(candidate)
        there = self._repository.current(candidate.model) is not None
        self._repository_call(candidate.model, "load" if there else "unload")

    def _repository_call(self, model: str, what: str) -> None:
        status, body = self._ask("POST", f"/v2/repository/models/{model}/{what}", b"{}", LOAD_SECONDS)
        if status != _OK:
            raise ActivationError(f"{self._url} did not {what} {model}: HTTP {status}: {_reason(body)}")

    def _ready(self, model: str) -> bool:
        return self._ask("GET", f"/v2/models/{model}/ready", None, _ASK_SECONDS)[0] == _OK

    def _ask(self, method: str, path: str, body: bytes | None, seconds: float) -> tuple[int, bytes]:
        """Return status and body, within `seconds` for all of it. Raises ActivationError."""
        kind = http.client.HTTPSConnection if self._parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(self._parts.hostname or "", self._parts.port, timeout=seconds)
        ends = time.monotonic() + seconds
        try:
            connection.request(method, self._parts.path.rstrip("/") + path, body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            return answer.status, _read(answer, ends)
        except (OSError, http.client.HTTPException) as e:
            raise ActivationError(f"{self._url} does not answer: {str(e) or type(e).__name__}") from e
        finally:
            connection.close()


def _read(answer: http.client.HTTPResponse, ends: float) -> bytes:
    """Read what matters of an answer; a server that dribbles is cut off."""
    body = bytearray()
    while len(body) < _MAX_ANSWER and time.monotonic() < ends:
        piece = answer.read1(_MAX_ANSWER - len(body))
        if not piece:
            break
        body += piece
    return bytes(body)


def _reason(body: bytes) -> str:
    """Return the server's words: the protocol's {"error": text}, or what came instead."""
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        answer = None
    found = answer.get("error") if isinstance(answer, dict) else None
    text = found if isinstance(found, str) else body.decode("utf-8", "replace")
    return " ".join(text.split())[:300] or "no reason given"
