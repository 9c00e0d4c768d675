"""Tables and chunks over HTTP: ranges to go on after a broken connection, a deadline, a minimum rate, no redirects.

Objects are public and named by their hash; whoever asked checks it. A captive portal, a cache that ignores ranges and a
server that drips are therefore only nuisances, and each gets a message of its own.
"""

from __future__ import annotations

import contextlib
import re
import threading
import time
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import urllib3
from urllib3.exceptions import HTTPError

from edgeseal.errors import TemporaryError, UsageError
from edgeseal.store import object_name
from edgeseal.watch import Watch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from urllib3.response import BaseHTTPResponse

    from edgeseal.store import Kind

_PIECE: Final = 65_536
_OK: Final = 200
_PARTIAL: Final = 206
_NOT_FOUND: Final = 404
_RANGE: Final = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})")


class HttpObjects:
    """Objects below `<base>/tables/` and `<base>/chunks/`; each thread keeps one connection."""

    def __init__(
        self,
        base: str,
        *,
        deadline: float = 3600,
        silence: float = 20,
        min_rate: float = 1024,
        patience: float = 10,
        ca_file: str | None = None,
    ) -> None:
        """Take the address. Seconds: `deadline` for everything, `silence` between pieces, `patience` before `min_rate`.

        Raises UsageError for something that is not an http(s) address.
        """
        parts = urlsplit(base)
        if parts.username or parts.password:
            raise UsageError(  # without the address: it would show the password
                "the address of an object server must not hold a user name or password",
                hint="objects are public and encrypted; expected http(s)://host[:port]/path",
            )
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query:
            raise UsageError(
                f"{base!r} is not the address of an object server", hint="expected http(s)://host[:port]/path"
            )
        self._base = base.rstrip("/") + "/"
        self._ends = time.monotonic() + deadline
        self._deadline, self._silence, self._min_rate, self._patience = deadline, silence, min_rate, patience
        self._ca_file = ca_file
        self._local = threading.local()

    def fetch(self, kind: Kind, sha256: bytes, *, offset: int, length: int) -> Iterator[bytes]:
        """Yield the object's bytes from `offset` on, never more than `length - offset` and one piece.

        Raises TemporaryError saying what came instead.
        """
        url = self._base + object_name(kind, sha256)
        pools, watch = self._connection()
        # One object is at most a table: what it may take follows from its length and the least rate.
        ends = min(self._ends, time.monotonic() + self._patience + self._silence + (length - offset) / self._min_rate)
        try:
            with watch.until(ends), contextlib.closing(self._ask(pools, url, offset, length)) as response:
                skip = _skipped(response, url, offset, length)
                yield from _body(response, skip, length - offset)
        except (HTTPError, OSError, ValueError) as e:
            raise self._failure(e, watch, url) from e
        if watch.over:
            raise self._too_slow(url)

    def _ask(self, pools: urllib3.PoolManager, url: str, offset: int, length: int) -> BaseHTTPResponse:
        headers = {"Accept-Encoding": "identity", "User-Agent": "edgeseal"}
        if offset:
            headers["Range"] = f"bytes={offset}-{length - 1}"
        left = min(self._silence, self._ends - time.monotonic())
        if left <= 0:
            raise self._too_slow(url)
        return pools.request(
            "GET",
            url,
            headers=headers,
            preload_content=False,
            decode_content=False,
            redirect=False,
            timeout=urllib3.Timeout(left),
        )

    def _connection(self) -> tuple[urllib3.PoolManager, Watch]:
        found: tuple[urllib3.PoolManager, Watch] | None = getattr(self._local, "connection", None)
        if found is None:
            watch = Watch()
            pools = urllib3.PoolManager(num_pools=1, maxsize=1, ca_certs=self._ca_file, retries=False)
            pools.pool_classes_by_scheme = watch.pool_classes()
            found = self._local.connection = (pools, watch)
        return found

    def _failure(self, error: Exception, watch: Watch, url: str) -> TemporaryError:
        if watch.over:
            return self._too_slow(url)
        reason = getattr(error, "reason", None) or error
        return TemporaryError(
            f"{url} could not be fetched: {type(reason).__name__}",
            hint="what has come is kept; the next pass goes on from there",
        )

    def _too_slow(self, url: str) -> TemporaryError:
        return TemporaryError(
            f"{url} came slower than {self._min_rate:.0f} bytes a second, or not within {self._deadline:.0f} s",
            hint="what has come is kept; the next pass goes on from there",
        )


def _skipped(response: BaseHTTPResponse, url: str, offset: int, length: int) -> int:
    """Check the head; return how many bytes of the body come before `offset`: all of them if ranges are ignored."""
    if response.status not in {_OK, _PARTIAL}:
        hint = "was it published to this server?" if response.status == _NOT_FOUND else None
        raise TemporaryError(f"{url}: HTTP status {response.status} where 200 was expected", hint=hint)
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise TemporaryError(f"{url} came compressed though not asked for")
    if response.headers.get("Content-Type", "").lower().startswith(("text/html", "application/xhtml")):
        raise TemporaryError(
            f"{url}: a web page came instead", hint="a captive portal answers, or the address is another server's"
        )
    if response.status == _OK:
        return offset
    found = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
    if not found or (int(found[1]), int(found[3])) != (offset, length):
        raise TemporaryError(f"{url}: the server sent another range than bytes {offset}-{length - 1} of {length}")
    return 0


def _body(response: BaseHTTPResponse, skip: int, wanted: int) -> Iterator[bytes]:
    """Yield the body after `skip` bytes; stop after one piece too many, which the caller refuses."""
    while wanted >= 0 and (piece := response.read1(_PIECE)):
        if skip >= len(piece):
            skip -= len(piece)
            continue
        piece = piece[skip:]
        skip = 0
        wanted -= len(piece)
        yield piece
