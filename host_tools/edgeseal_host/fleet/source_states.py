"""How many noise sources the fleet's devices have in each state, from their last reports: for /metrics.

Reports are what devices say; a state that this version does not know is counted as `other`, so that no device can make
up a label.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

import sqlalchemy as sa

from edgeseal.checkin import Report
from edgeseal.entropy.snapshot import State
from edgeseal.errors import EdgesealError
from edgeseal_host.fleet.schema import device

if TYPE_CHECKING:
    from collections.abc import Iterator

OTHER: Final = "other"
STATES: Final = (*(str(s) for s in State), OTHER)


def count(connection: sa.Connection) -> dict[str, int]:
    """Return the number of sources in each of STATES, of devices that are not revoked."""
    query = sa.select(device.c.report).where(device.c.report.is_not(None), device.c.revoked.is_(sa.false()))
    found = Counter(state for (data,) in connection.execute(query) for state in _states(data))
    return {state: found[state] for state in STATES}


def _states(data: bytes) -> Iterator[str]:
    try:
        sources = Report.from_bytes(data).sources
    except EdgesealError:
        return  # of a version whose reports this one does not read
    for source in sources:
        yield source.state if source.state in STATES else OTHER
