"""What the device believes about models: TUF with ML-DSA keys, refreshed in stages, committed as a whole.

    trust           Trust: refresh, look up targets, time floor           (imports tuf only when it verifies)
    targets         TargetInfo: what is listed about a file
    generations     the directories on disk: staged, committed, swept
    floors          versions and time that never go back: two checksummed slots
    views           committed metadata as plain JSON, for `status`
    refresh         one run of tuf's client on the staged copy
    rules           what we ask beyond tuf: key algorithms, floors, expiry against the time floor
    chain           committed metadata verified again, without network, each time it is used
    fetch_http      metadata over HTTP      fetch_archive, ustar    metadata from a directory or tar

Not here: manifests (they are opaque targets), the session with the fleet server, what gets installed when.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgeseal.trust.targets import TargetInfo
from edgeseal.trust.trust import RefreshResult, RoleState, Trust

if TYPE_CHECKING:
    from edgeseal.trust.fetch_archive import ArchiveFetcher
    from edgeseal.trust.fetch_http import HttpFetcher

__all__ = ["ArchiveFetcher", "HttpFetcher", "RefreshResult", "RoleState", "TargetInfo", "Trust"]


def __getattr__(name: str) -> object:
    """Import the fetchers when somebody fetches: they bring tuf and urllib3, which `status` does not need."""
    if name == "HttpFetcher":
        from edgeseal.trust.fetch_http import HttpFetcher

        return HttpFetcher
    if name == "ArchiveFetcher":
        from edgeseal.trust.fetch_archive import ArchiveFetcher

        return ArchiveFetcher
    raise AttributeError(name)
