"""What a report says about this device's noise sources: the service's word, or what this process sees. Never waits."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

from edgeseal.checkin import MAX_SOURCES, SourceHealth

if TYPE_CHECKING:
    from edgeseal.device.agent import Agent

_REASON: Final = 128  # characters of a report


def sources(agent: Agent) -> list[SourceHealth]:
    """Return each configured source's health; nothing is loaded if there is none."""
    if not agent.config.entropy.sources or agent.config.entropy.policy == "off":
        return []
    from edgeseal.device.supply import published_path
    from edgeseal.entropy import published

    found = published.read(published_path(agent))
    seen = found["sources"] if found is not None else [s.snapshot.as_dict() for s in agent.sources]
    return [_health(source) for source in seen[:MAX_SOURCES]]


def failed(found: list[SourceHealth]) -> str:
    """Return the names of those that have failed: when they change, the fleet is told at the next poll."""
    return ", ".join(sorted(s.name for s in found if s.state == "failed"))


def _health(source: dict[str, Any]) -> SourceHealth:
    qcnr = source.get("qcnr_db")
    return SourceHealth(
        name=str(source["name"])[:_REASON],
        state=str(source["state"]),
        source_class=str(source["source_class"]),
        evidence=str(source["evidence"]),
        reason=str(source["reason"])[:_REASON],
        qcnr_db=round(float(qcnr), 2) if qcnr is not None and math.isfinite(qcnr) else None,
        alarms=int(source["alarm_count"]),
        bytes_mixed=int(source["bytes_mixed"]),
    )
