"""One run of tuf's client on the staged copy, its errors turned into ours.

The client's workflow (TUF §5) is tuf's; here are its limits, its idea of the time, and what a failure means.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from tuf.api import exceptions as tuf_errors
from tuf.api.metadata import Metadata, Targets
from tuf.ngclient import Updater, UpdaterConfig
from tuf.ngclient.fetcher import FetcherInterface

from edgeseal.errors import (
    EdgesealError,
    FormatError,
    IntegrityError,
    RefusedError,
    RollbackError,
    TemporaryError,
)
from edgeseal.trust import rules, views
from edgeseal.trust.generations import read_tree, storage_error

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

    from edgeseal.trust.trust import Source

# A timestamp with many ML-DSA-87 signatures: 4.6 KB each in binary, twice that in hex. tuf's default is 16 KiB.
_CONFIG: Final = UpdaterConfig(timestamp_max_length=65_536)
_EXPIRED: Final = re.compile(r"(?:Final |New )?(.+?)(?:\.json)? is expired")  # how tuf 7 says it
_KEPT: Final = "nothing was changed; what is installed keeps running"


@dataclass
class Outcome:
    """How far a run got. `error` stops the refresh; `refused` only the roles named in it."""

    error: EdgesealError | None = None
    verified_on_the_way: bool = False  # some roles were verified and stored before the error
    refused: dict[str, EdgesealError] = field(default_factory=dict)


class _Tap(FetcherInterface):
    """Passes everything through and remembers what came, for messages."""

    def __init__(self, inner: Source, staging: Path | None = None) -> None:
        self._inner = inner
        self._staging = staging
        self._files: dict[str, bytes] = {}
        self.name = ""

    def _fetch(self, url: str) -> Iterator[bytes]:
        return self._inner.fetch(url)

    def download_bytes(self, url: str, max_length: int) -> bytes:
        self.name = urlsplit(url).path.rpartition("/")[2]
        data = self._inner.download_bytes(url, max_length)
        self._files[self.name.lstrip("0123456789").lstrip(".")] = data
        return data

    def newest(self, role: str) -> views.RoleState | None:
        """Return the state of `role` as it came, or as it was staged."""
        files = read_tree(self._staging) if self._staging else {}
        return views.roles({**files, **self._files}).get(role)


def run(
    staging: Path,
    *,
    bootstrap: bytes | None,
    source: Source,
    now: float,
    models: Collection[str] | None,
    paths: Collection[str],
) -> Outcome:
    """Refresh the metadata in `staging` and fetch the roles responsible for `models` (None: all) and `paths`."""
    tap = _Tap(source, staging)
    outcome = Outcome()
    try:
        updater = Updater(str(staging), source.metadata_url, fetcher=tap, config=_CONFIG, bootstrap=bootstrap)
        # tuf asks the system clock; a device that starts in 1970 must ask its floor. tuf offers no parameter for it.
        updater._trusted_set.reference_time = rules.instant(now)  # noqa: SLF001
        updater.refresh()
    except Exception as e:  # noqa: BLE001 - _translate lets what it does not know pass
        outcome.error = _translate(e, tap, now)
        outcome.verified_on_the_way = isinstance(e, tuf_errors.RepositoryError | tuf_errors.DownloadError)
        return outcome
    wanted = {path: path for path in paths} | _model_paths(staging, models)
    for path, label in wanted.items():
        try:
            updater.get_targetinfo(path)
        except OSError as e:  # our disk's fault, not the publisher's: this role would be half there
            outcome.error = storage_error(e)
            return outcome
        except Exception as e:  # noqa: BLE001 - as above; one publisher's fault must not stop the others
            outcome.refused[label] = _translate(e, tap, now)
    return outcome


def _model_paths(staging: Path, models: Collection[str] | None) -> dict[str, str]:
    """Return a path that each model's role is responsible for (release 0 never exists), with the model's name."""
    if models is None:
        targets = Metadata[Targets].from_bytes((staging / "targets.json").read_bytes()).signed
        delegated = targets.delegations.roles if targets.delegations else None
        patterns = [path for role in (delegated or {}).values() for path in role.paths or ()]
        models = [p[len("models/") : -len("/*")] for p in patterns if p.startswith("models/") and p.endswith("/*")]
    return {f"models/{model}/0.cbor": model for model in models}


_SAID: Final[tuple[tuple[type[Exception], type[EdgesealError], str, str], ...]] = (
    # What tuf says, who must act (our type), how we say it, what to do. The first match counts.
    (tuf_errors.DownloadLengthMismatchError, RefusedError, "is longer than allowed", _KEPT),
    (tuf_errors.DownloadHTTPError, TemporaryError, "was not served", "is the address right, is the server whole?"),
    (tuf_errors.DownloadError, TemporaryError, "could not be fetched", "try again later; " + _KEPT),
    (tuf_errors.BadVersionNumberError, RollbackError, "goes back or does not follow", _KEPT),
    (tuf_errors.UnsignedMetadataError, IntegrityError, "lacks valid signatures", _KEPT),
    (tuf_errors.LengthOrHashMismatchError, IntegrityError, "is not the file that was listed", _KEPT),
    (tuf_errors.RepositoryError, FormatError, "is not acceptable TUF metadata", _KEPT),
    (ValueError, FormatError, "is not acceptable TUF metadata", _KEPT),
    (LookupError, FormatError, "is not acceptable TUF metadata", _KEPT),
    (TypeError, FormatError, "is not acceptable TUF metadata", _KEPT),
    (RecursionError, FormatError, "is nested too deeply", _KEPT),
)


def _translate(error: Exception, tap: _Tap, now: float) -> EdgesealError:
    """Turn what tuf or the disk raised into ours; anything else is a bug and passes."""
    if isinstance(error, EdgesealError):
        return error
    if isinstance(error, tuf_errors.ExpiredMetadataError):
        return _expired(error, tap, now)
    for theirs, ours, text, hint in _SAID:
        if isinstance(error, theirs):
            return ours(f"{tap.name or 'the provisioned root'} {text}: {_reason(error)}", hint=hint)
    if isinstance(error, OSError):
        return storage_error(error)
    raise error


def _expired(error: Exception, tap: _Tap, now: float) -> EdgesealError:
    """Say which version and since when: tuf only says that a role has expired."""
    found = _EXPIRED.fullmatch(str(error))
    state = tap.newest(found[1]) if found else None
    if found is None or state is None:
        return RefusedError(f"{error}; the time here is {rules.date(now)} or later", hint=_KEPT)
    return rules.expired(found[1], state.version, state.expires, now)


def _reason(error: BaseException) -> str:
    """Return the innermost reason: what happened is more use than where it was noticed."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error) or type(error).__name__


def fetch(source: Source, url: str, length: int) -> bytes:
    """Fetch one file of at most `length` bytes outside a refresh, with the same errors."""
    tap = _Tap(source)
    try:
        return tap.download_bytes(url, length)
    except Exception as e:
        raise _translate(e, tap, 0) from e
