"""The publisher's and operator's side of a fleet server's API. Errors come back as the classes the server raised.

Uploads go on where they stopped; everything else is one request. Not here: devices' traffic (edgeseal.transport).
"""

from __future__ import annotations

import base64
import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final, NoReturn
from urllib.parse import quote, urlsplit

import urllib3
from urllib3.exceptions import HTTPError

from edgeseal.errors import FormatError, IntegrityError, NotAuthorisedError, TemporaryError, UsageError
from edgeseal_host.fleet.public import FleetPublic
from edgeseal_host.fleet.wire import LENGTH_HEADER, MAX_NAMES, OFFSET_HEADER, Kind, error_from

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from urllib3.response import BaseHTTPResponse

    from edgeseal_host.repository.verify import Publication
    from edgeseal_host.station.enrolments import SignedRecord

TRIES: Final = 5  # of one upload; each goes on where the last one stopped
FIRST_PAUSE: Final = 0.25  # seconds; doubles with each try
_PIECE: Final = 262_144
_TIMEOUT: Final = urllib3.Timeout(connect=10.0, read=120.0)
_OK: Final = 200
_NO_CONTENT: Final = 204
_NOT_FOUND: Final = 404
_CONFLICT: Final = 409
_ERROR: Final = 400
_MAX_ANSWER: Final = 64 * 2**20


def _ignore(_: int) -> None:
    """Stand in for a progress bar."""


class FleetClient:
    """One fleet server, one token. Threads may share it."""

    def __init__(self, url: str, *, token: str | None = None, ca_file: str | None = None) -> None:
        """`url` is the server's base address; without a token only public things answer.

        Raises UsageError if `url` is not http(s), or a token would cross the network in clear.
        """
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.username or parts.query:
            raise UsageError(
                f"{url!r} is not the address of a fleet server",
                hint="expected http(s)://host[:port], as in public.json",
            )
        if token is not None and parts.scheme == "http" and parts.hostname not in {"127.0.0.1", "::1", "localhost"}:
            raise UsageError(
                f"{url} is not encrypted: everybody on the way could read the token",
                hint="use https://, or http:// to this machine only",
            )
        self.url = url.rstrip("/")
        self.partial: dict[tuple[Kind, str], int] = {}
        headers = {"User-Agent": "edgeseal", "Accept": "application/json"}
        if token is not None:
            headers["Authorization"] = f"Bearer {token.strip()}"
        self._pool = urllib3.PoolManager(
            num_pools=1, maxsize=8, block=True, headers=headers, ca_certs=ca_file, retries=False, timeout=_TIMEOUT
        )

    def public(self) -> FleetPublic:
        """Return the server's public keys. They count only once a signed root names them."""
        return FleetPublic.from_json(self._call("GET", "public"))

    # What a publisher does -----------------------------------------------------------------------------------------

    def missing(self, kind: Kind, names: Sequence[bytes]) -> list[bytes]:
        """Return those objects (SHA-256 each) that the server does not have yet, in the order of `names`.

        Where an earlier upload of one stopped is remembered: `upload` goes on there.
        """
        absent: set[str] = set()
        texts = [name.hex() for name in names]
        for start in range(0, len(texts), MAX_NAMES):
            body = {"kind": kind, "names": texts[start : start + MAX_NAMES]}
            answer = self._call("POST", "missing", body)
            absent.update(_list_of_str(answer, "missing"))
            self._remember_partial(kind, answer.get("partial"))
        return [name for name, text in zip(names, texts, strict=True) if text in absent]

    def _remember_partial(self, kind: Kind, offsets: object) -> None:
        """Keep where interrupted uploads stopped, so that `upload` need not ask for each object."""
        if isinstance(offsets, dict):
            for name, offset in offsets.items():
                if type(offset) is int:
                    self.partial[kind, str(name)] = offset

    def upload(self, kind: Kind, sha256: bytes, path: Path, progress: Callable[[int], None] = _ignore) -> None:
        """Upload one object; once this returns it is durable on the server.

        Raises IntegrityError if the file is not the object of that name, TemporaryError after several tries.
        """
        _Upload(self, kind, sha256, path, progress).run()

    def upload_all(
        self, kind: Kind, files: Mapping[bytes, Path], progress: Callable[[int], None] = _ignore, *, workers: int = 4
    ) -> None:
        """Upload many objects, several at a time; each one flushes to disk on its own."""
        with ThreadPoolExecutor(workers) as pool:
            jobs = [pool.submit(self.upload, kind, name, path, progress) for name, path in files.items()]
            try:
                for job in jobs:
                    job.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def publish(self, publication: Publication, envelopes: Mapping[str, bytes] | None = None) -> dict[str, Any]:
        """Publish signed metadata; `envelopes` maps target paths to `contentkey.wrap(...)` for the server's wrap key.

        Returns {changed, versions, without_key}: the last lists releases that no device can get a key for. May be sent
        again after an interruption.
        """
        body = publication.to_json()
        body["envelopes"] = {path: base64.b64encode(data).decode() for path, data in (envelopes or {}).items()}
        return self._call("POST", "metadata", body)

    # What an operator does -----------------------------------------------------------------------------------------

    def enrol(self, record: bytes) -> dict[str, Any]:
        """Register a device by its `enrolment.Record`; the same record twice is one device."""
        return self._call("POST", "devices", {"record": base64.b64encode(record).decode()})

    def enrol_signed(self, signed: SignedRecord) -> dict[str, Any]:
        """Register a device by a record that a manufacturing station has signed."""
        body = {
            "record": base64.b64encode(signed.record).decode(),
            "station": signed.pin.hex(),
            "signature": base64.b64encode(signed.signature).decode(),
        }
        return self._call("POST", "devices", body)

    def devices(self) -> list[dict[str, Any]]:
        """List all devices."""
        return _list_of_dict(self._call("GET", "devices"), "devices")

    def device(self, name: str) -> dict[str, Any]:
        """Return one device with its last report and what it is to run."""
        return self._call("GET", f"devices/{quote(name, '')}")

    def revoke(self, name: str, reason: str) -> dict[str, Any]:
        """Refuse a device from now on; it gets no content key any more."""
        return self._call("POST", f"devices/{quote(name, '')}/revoke", {"reason": reason})

    def forget(self, name: str) -> dict[str, Any]:
        """Delete a device with its keys; needs the scope admin. Revoke instead, unless it is to be enrolled again."""
        return self._call("DELETE", f"devices/{quote(name, '')}")

    def assign(
        self,
        model: str,
        release: int,
        *,
        device: str | None = None,
        group: str | None = None,
        not_after: int | None = None,
    ) -> dict[str, Any]:
        """Say which release a device or a group shall run; a device's own assignment wins over its group's."""
        body = {"model": model, "release": release, "device": device, "group": group, "not_after": not_after}
        return self._call("POST", "assignments", {k: v for k, v in body.items() if v is not None})

    def unassign(self, model: str, *, device: str | None = None, group: str | None = None) -> dict[str, Any]:
        """Take an assignment back; devices keep running what they have."""
        body = {"model": model, "device": device, "group": group}
        return self._call("POST", "assignments/withdraw", {k: v for k, v in body.items() if v is not None})

    def assignments(self) -> list[dict[str, Any]]:
        """List all assignments."""
        return _list_of_dict(self._call("GET", "assignments"), "assignments")

    def ticket(self, device: str, model: str, release: int) -> bytes:
        """Return a content key sealed to one device, for a disk that is carried to it."""
        body = {"device": device, "model": model, "release": release}
        text = self._call("POST", "tickets", body).get("ticket")
        if not isinstance(text, str):
            _unexpected("ticket")
        try:
            return base64.b64decode(text, validate=True)
        except ValueError:
            _unexpected("ticket")

    # HTTP ----------------------------------------------------------------------------------------------------------

    def _call(self, method: str, path: str, body: object = None) -> dict[str, Any]:
        data = None if body is None else json.dumps(body).encode()
        headers = {} if data is None else {"Content-Type": "application/json"}
        response = self.request(method, path, body=data, headers=headers)
        return _object(response, path)

    def request(
        self, method: str, path: str, *, body: bytes | Iterator[bytes] | None = None, headers: Mapping[str, str]
    ) -> BaseHTTPResponse:
        """Send one API request.

        Raises the server's own error, TemporaryError if there was no complete answer.
        """
        try:
            response = self._pool.request(
                method,
                f"{self.url}/api/v1/{path}",
                body=body,
                headers={**self._pool.headers, **headers},
                redirect=False,
            )
        except (HTTPError, OSError) as e:
            reason = getattr(e, "reason", None) or e
            raise TemporaryError(
                f"no answer from the fleet server at {self.url}: {type(reason).__name__}",
                hint="check the address and that `edgeseal fleet serve` is running",
            ) from e
        if response.status >= _ERROR and method != "HEAD":
            raise _error(response)
        return response


class _Upload:
    """One object on its way; goes on at the offset the server reports."""

    def __init__(
        self, client: FleetClient, kind: Kind, sha256: bytes, path: Path, progress: Callable[[int], None]
    ) -> None:
        self._client, self._path, self._progress = client, path, progress
        self._where = f"uploads/{kind}/{sha256.hex()}"
        self._length = path.stat().st_size
        begun = client.partial.pop((kind, sha256.hex()), 0)
        self._begun = begun if 0 < begun < self._length else 0
        self._told = 0  # bytes the progress bar already knows

    def run(self) -> None:
        offset, pause, fresh = self._begun, FIRST_PAUSE, False
        for left in reversed(range(TRIES)):
            try:
                self._send(offset)
            except TemporaryError:
                if not left:
                    raise
                time.sleep(pause)
                pause *= 2
            except IntegrityError:
                if fresh or not offset:
                    raise  # the file itself is wrong
                offset, fresh = 0, True  # somebody else's beginning may have been: once more, all of it
                continue
            else:
                self._tell(self._length)
                return
            offset = self._known_offset()

    def _send(self, offset: int) -> None:
        headers = {
            OFFSET_HEADER: str(offset),
            LENGTH_HEADER: str(self._length),
            "Content-Type": "application/offset+octet-stream",
            "Content-Length": str(self._length - offset),
        }
        self._client.request("PATCH", self._where, body=self._pieces(offset), headers=headers)

    def _pieces(self, offset: int) -> Iterator[bytes]:
        with self._path.open("rb") as f:
            f.seek(offset)
            while piece := f.read(_PIECE):
                yield piece
                offset += len(piece)
                self._tell(offset)

    def _tell(self, reached: int) -> None:
        if reached > self._told:
            self._progress(reached - self._told)
            self._told = reached

    def _known_offset(self) -> int:
        """Ask where to go on; 0 if the server cannot say."""
        try:
            response = self._client.request("HEAD", self._where, headers={})
        except TemporaryError:
            return 0
        text = response.headers.get(OFFSET_HEADER, "0") if response.status == _OK else "0"
        offset = int(text) if text.isascii() and text.isdigit() else 0
        return offset if offset < self._length else 0


def _error(response: BaseHTTPResponse) -> Exception:
    try:
        body = json.loads(response.data)
    except ValueError:
        body = None
    if isinstance(body, dict) and "error" in body:
        return error_from(body)
    if response.status in {401, 403}:
        return NotAuthorisedError(f"the server answered HTTP status {response.status}")
    return TemporaryError(
        f"the server answered HTTP status {response.status} without an edgeseal error",
        hint="is this the fleet server's address, or a proxy in front of it?",
    )


def _object(response: BaseHTTPResponse, path: str) -> dict[str, Any]:
    try:
        body = json.loads(response.data)
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        raise FormatError(f"the fleet server's answer to {path} is not a JSON object", hint="is this a fleet server?")
    return body


def _list_of_dict(body: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    value = body.get(name)
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        _unexpected(name)
    return value


def _list_of_str(body: Mapping[str, Any], name: str) -> list[str]:
    value = body.get(name)
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        _unexpected(name)
    return value


def _unexpected(name: str) -> NoReturn:
    raise FormatError(f"the fleet server's answer lacks `{name}`", hint="server and client may differ in version")
