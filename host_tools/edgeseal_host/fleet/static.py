"""GET of public files: single ranges, ETag, 304, and how long caches may keep what (RFC 9110, RFC 9111).

All files but timestamp.json never change: caches may keep them for ever. An absent file must not be remembered as
absent: a root or a release may appear under that name.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from starlette.responses import Response, StreamingResponse

from edgeseal_host.fleet.objects import TIMESTAMP, is_served

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

FOREVER: Final = "public, max-age=31536000, immutable"
REVALIDATE: Final = "no-cache"
_RANGE: Final = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")
_WHOLE: Final = 2 * 2**20  # up to this size one read and one write are cheapest
_PIECE: Final = 2**20


@dataclass(frozen=True, slots=True)
class _Span:
    """Which bytes to send."""

    start: int
    length: int
    partial: bool


def respond(base: Path, name: str, *, method: str, headers: Mapping[str, str]) -> Response:
    """Answer a GET or HEAD for the file `name` below `base`. Blocking: run it in a worker thread."""
    if not is_served(name):
        return _absent()
    try:
        fd = os.open(base / name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return _absent()
    try:
        return _answer(fd, name, method=method, headers=headers)
    except BaseException:
        os.close(fd)
        raise


def _answer(fd: int, name: str, *, method: str, headers: Mapping[str, str]) -> Response:
    """Answer from an open file; closes it, at the latest when the last piece is sent."""
    size = os.fstat(fd).st_size
    etag = _etag(fd, name, size)
    common = {
        "ETag": etag,
        "Cache-Control": REVALIDATE if name == TIMESTAMP else FOREVER,
        "Accept-Ranges": "bytes",
        "X-Content-Type-Options": "nosniff",
    }
    if _matches(headers.get("if-none-match"), etag):
        os.close(fd)
        return Response(status_code=304, headers=common)
    span = _span(headers, size, etag)
    if span is None:
        os.close(fd)
        return Response(status_code=416, headers={**common, "Content-Range": f"bytes */{size}"})
    if span.partial:
        common["Content-Range"] = f"bytes {span.start}-{span.start + span.length - 1}/{size}"
    return _send(fd, span, common, name, method)


def _send(fd: int, span: _Span, headers: dict[str, str], name: str, method: str) -> Response:
    status = 206 if span.partial else 200
    kind = "application/json" if name.endswith(".json") else "application/octet-stream"
    headers["Content-Length"] = str(span.length)
    if method == "HEAD" or span.length <= _WHOLE:
        body = b"" if method == "HEAD" else os.pread(fd, span.length, span.start)
        os.close(fd)
        return Response(body, status_code=status, headers=headers, media_type=kind)
    return StreamingResponse(_pieces(fd, span), status_code=status, headers=headers, media_type=kind)


def _pieces(fd: int, span: _Span) -> Iterator[bytes]:
    with open(fd, "rb") as f:
        at, end = span.start, span.start + span.length
        while at < end and (piece := os.pread(f.fileno(), min(_PIECE, end - at), at)):
            at += len(piece)
            yield piece


def _etag(fd: int, name: str, size: int) -> str:
    """Name the content: objects and targets carry their hash in their name, metadata is small enough to hash."""
    if name.startswith("metadata/"):
        return f'"{hashlib.sha256(os.pread(fd, size, 0)).hexdigest()[:32]}"'
    return f'"{name.rpartition("/")[2][:64]}"'


def _matches(header: str | None, etag: str) -> bool:
    """If-None-Match, weak comparison (RFC 9110 §13.1.2)."""
    if header is None:
        return False
    return header.strip() == "*" or etag in [tag.strip().removeprefix("W/") for tag in header.split(",")]


def _span(headers: Mapping[str, str], size: int, etag: str) -> _Span | None:
    """Single byte range; None if it lies outside. Anything else is ignored, as RFC 9110 §14.2 allows: send it all."""
    whole = _Span(0, size, partial=False)
    found = _RANGE.fullmatch(headers.get("range", ""))
    if not found or found[0] == "bytes=-" or headers.get("if-range", etag) != etag:
        return whole
    if not found[1]:
        length = min(int(found[2]), size)
        return _Span(size - length, length, partial=True) if length else None
    start, last = int(found[1]), int(found[2]) if found[2] else size - 1
    if found[2] and last < start:
        return whole  # invalid, not unsatisfiable
    if start >= size:
        return None
    return _Span(start, min(last, size - 1) - start + 1, partial=True)


def _absent() -> Response:
    return Response("not found\n", status_code=404, headers={"Cache-Control": "no-store"}, media_type="text/plain")
