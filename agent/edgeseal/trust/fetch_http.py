"""Metadata and targets over HTTP, for `tuf.ngclient` and for us: bounded in bytes, in time and in patience.

Against slow retrieval: a deadline for a whole refresh, a minimum rate, a limit for silence. A dripped header defeats
socket timeouts (each byte starts a new one), so a watch shuts the socket down. Redirects are followed within the same
origin only. An unchanged timestamp costs a 304.

No proxies, no cookies, no compression (a length limit must mean what it says), no retries: the update pass retries.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Final
from urllib.parse import urljoin, urlsplit

import urllib3
from tuf.api.exceptions import (
    DownloadError,
    DownloadHTTPError,
    DownloadLengthMismatchError,
    SlowRetrievalError,
)
from tuf.ngclient.fetcher import FetcherInterface
from urllib3.exceptions import HTTPError, IncompleteRead
from urllib3.exceptions import TimeoutError as PoolTimeoutError

from edgeseal.errors import UsageError
from edgeseal.watch import Watch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from urllib3.response import BaseHTTPResponse

_PIECE: Final = 65_536
_MAX_REDIRECTS: Final = 3
_DRAIN: Final = 1024  # an error page this short is read, so that the connection serves the next request
_OK: Final = 200
_NOT_MODIFIED: Final = 304
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_HTML: Final = ("text/html", "application/xhtml")


class HttpFetcher(FetcherInterface):
    """A tuf fetcher for `<base>/metadata/…` and `<base>/targets/…`. One refresh at a time."""

    def __init__(
        self,
        base: str,
        *,
        metadata: str | None = None,
        targets: str | None = None,
        deadline: float = 600,
        silence: float = 20,
        min_rate: float = 1024,
        patience: float = 10,
        ca_file: str | None = None,
    ) -> None:
        """Take the repository's address; `metadata` and `targets` override its two parts.

        Seconds: `deadline` for everything of one refresh, `silence` between two pieces, `patience` before `min_rate`
        (bytes a second) is asked for. Raises UsageError for something that is not an http(s) address.
        """
        self.metadata_url = _address(metadata or f"{base.rstrip('/')}/metadata/")
        self.targets_url = _address(targets or f"{base.rstrip('/')}/targets/")
        self.etag: str | None = None
        self._deadline, self._silence, self._min_rate, self._patience = deadline, silence, min_rate, patience
        self._known: tuple[str, str | None, bytes] | None = None
        self._ends = time.monotonic() + deadline
        self._watch = Watch()
        self._pools = urllib3.PoolManager(num_pools=2, maxsize=1, ca_certs=ca_file, retries=False)
        self._pools.pool_classes_by_scheme = self._watch.pool_classes()

    def recall(self, url: str, etag: str | None, body: bytes | None) -> None:
        """Begin a refresh: start its deadline and remember the file at `url` that we have already."""
        self._ends = time.monotonic() + self._deadline
        self._known = (url, etag, body) if body is not None else None
        self.etag = etag

    def download_bytes(self, url: str, max_length: int) -> bytes:
        """Return the file, at most `max_length` bytes of it in memory, nothing on disk.

        Raises DownloadError (tuf's).
        """
        received = bytearray()
        for piece in self._pieces(url, max_length):
            received += piece
            if len(received) > max_length:
                raise DownloadLengthMismatchError(f"{len(received)} bytes or more came; {max_length} are allowed")
        return bytes(received)

    def _fetch(self, url: str) -> Iterator[bytes]:
        return self._pieces(url, None)

    def _pieces(self, url: str, max_length: int | None) -> Iterator[bytes]:
        started = time.monotonic()
        try:
            with contextlib.closing(self._ask(url)) as response:
                if response.status == _NOT_MODIFIED:
                    yield self._unchanged(url)
                    response.drain_conn()
                    return
                self._check_head(response, url, max_length)
                yield from self._body(response, started)
                if url == (self._known or (self.metadata_url + "timestamp.json",))[0]:
                    self.etag = response.headers.get("ETag")
        except (HTTPError, OSError, ValueError) as e:
            raise self._failure(e) from e

    def _ask(self, url: str) -> BaseHTTPResponse:
        """Send the request, follow redirects within the origin; the head must come within `silence`."""
        for _ in range(_MAX_REDIRECTS + 1):
            with self._watch.until(min(self._ends, time.monotonic() + self._silence)):
                response = self._pools.request(
                    "GET",
                    url,
                    headers=self._headers(url),
                    preload_content=False,
                    decode_content=False,
                    redirect=False,
                    timeout=urllib3.Timeout(self._left()),
                )
            if response.status not in _REDIRECTS:
                return response
            location = response.headers.get("Location") or ""
            response.close()
            url = _same_origin(url, location)
        raise DownloadError(f"more than {_MAX_REDIRECTS} redirects; the last to {url}")

    def _headers(self, url: str) -> dict[str, str]:
        headers = {"Accept-Encoding": "identity", "User-Agent": "edgeseal"}
        if self._known and self._known[0] == url and self._known[1]:
            headers["If-None-Match"] = self._known[1]
        return headers

    def _unchanged(self, url: str) -> bytes:
        if self._known and self._known[0] == url and self._known[1]:
            return self._known[2]
        raise DownloadError("the server says `304 Not Modified` to a question that did not ask for it")

    def _check_head(self, response: BaseHTTPResponse, url: str, max_length: int | None) -> None:
        if response.status >= 400:  # noqa: PLR2004 - RFC 9110 §15: client and server errors
            self._drain(response)
            raise DownloadHTTPError(f"{url}: HTTP status {response.status}", response.status)
        if response.status != _OK:
            raise DownloadError(f"HTTP status {response.status} where 200 was expected")
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise DownloadError(
                f"the answer is compressed ({response.headers['Content-Encoding']}) though not asked for"
            )
        if response.headers.get("Content-Type", "").lower().startswith(_HTML):
            raise DownloadError("a web page came instead of the file: a captive portal, or the address is wrong")
        length = response.headers.get("Content-Length", "")
        if max_length is not None and length.isdecimal() and int(length) > max_length:
            raise DownloadLengthMismatchError(f"{length} bytes announced; {max_length} are allowed")

    def _body(self, response: BaseHTTPResponse, started: float) -> Iterator[bytes]:
        received = 0
        with self._watch.until(self._ends):
            while piece := response.read1(_PIECE):
                received += len(piece)
                yield piece
                took = time.monotonic() - started
                if took > self._patience and received < took * self._min_rate:
                    raise SlowRetrievalError(
                        f"{received} bytes in {took:.0f} s; {self._min_rate:.0f} a second is the least"
                    )
        if self._watch.over:
            raise SlowRetrievalError(f"not finished within {self._deadline:.0f} s")

    def _drain(self, response: BaseHTTPResponse) -> None:
        length = response.headers.get("Content-Length", "")
        if length.isdecimal() and int(length) <= _DRAIN:
            with self._watch.until(min(self._ends, time.monotonic() + self._silence)):
                response.drain_conn()
                response.release_conn()

    def _left(self) -> float:
        left = min(self._silence, self._ends - time.monotonic())
        if left <= 0:
            raise SlowRetrievalError(f"not finished within {self._deadline:.0f} s")
        return left

    def _failure(self, error: Exception) -> DownloadError:
        if self._watch.over or isinstance(error, PoolTimeoutError | TimeoutError):
            return SlowRetrievalError("the server is too slow or silent")
        if isinstance(error, IncompleteRead):
            return DownloadError("the connection ended before the file did")
        return DownloadError(f"{type(error).__name__}: {error}")


def _address(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.fragment or parts.username:
        raise UsageError(
            f"{parts.scheme}://{parts.hostname or ''} is not the address of a repository",
            hint="expected http(s)://host[:port]/path",
        )
    return url if url.endswith("/") else url + "/"


def _same_origin(url: str, location: str) -> str:
    """Return where a redirect leads; another host is somebody else's business (a captive portal, mostly)."""
    target = urljoin(url, location)
    old, new = urlsplit(url), urlsplit(target)
    if (old.scheme, old.hostname, old.port) != (new.scheme, new.hostname, new.port) or not location:
        raise DownloadError(f"redirected to another place, {location[:200]!r}: a captive portal, or a moved repository")
    return target
