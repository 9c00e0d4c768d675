"""What a run says where there is no full-screen view: one line for each change, for a person or as JSON."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from edgeseal_host.station.lane import OVER, Phase

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from edgeseal_host.station.lane import View
    from edgeseal_host.station.tally import Tally


class PlainReport:
    """One line of text for each thing that a person waits for."""

    def __init__(self, write: Callable[[str], None]) -> None:
        """`write` takes a line without its end."""
        self._write = write

    def changed(self, view: View) -> None:
        """Say it if it matters: a device came, PASS, FAIL."""
        who = " ".join(word for word in (view.serial, view.device) if word)
        if view.phase is Phase.TALKING and view.step == "greeted":
            self._write(f"{view.port}: {who}: talking")
        elif view.phase is Phase.SCAN:
            self._write(f"{view.port}: {who}: scan its label")
        elif view.phase is Phase.PASSED:
            self._write(f"{view.port}: {who}: PASS ({view.seconds:.1f} s)")
        elif view.phase in OVER:
            self._write(f"{view.port}: {who or 'nobody'}: {view.phase}: {view.reason}; {view.remedy}")

    def tick(self, views: Sequence[View], tally: Tally, now: float) -> None:
        """Say nothing."""

    def said(self, text: str) -> None:
        """Pass it on."""
        self._write(text)


class JsonReport:
    """One JSON object in a line for every change."""

    def __init__(self, write: Callable[[str], None]) -> None:
        """`write` takes a line without its end."""
        self._write = write

    def changed(self, view: View) -> None:
        """Say everything."""
        event: dict[str, Any] = {
            "event": "port",
            "port": view.port,
            "phase": view.phase.name.lower(),
            "serial": view.serial,
            "device": view.device,
            "step": view.step,
            "seconds": round(view.seconds, 3),
        }
        if view.code is not None:
            event |= {"code": int(view.code), "reason": view.reason, "remedy": view.remedy}
        self._write(json.dumps(event, ensure_ascii=False))

    def tick(self, views: Sequence[View], tally: Tally, now: float) -> None:
        """Say nothing."""

    def said(self, text: str) -> None:
        """Pass it on."""
        self._write(json.dumps({"event": "note", "text": text}, ensure_ascii=False))
