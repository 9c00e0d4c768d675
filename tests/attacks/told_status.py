"""A runtime that is only the status file of edgeseal-serve, written again and again as edgeseal-serve writes it."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from pathlib import Path

    from tests.unit.agent_world import Device


@dataclass
class ToldStatus(ABC):
    """Tells from a thread of its own for as long as the context lasts."""

    device: Device
    status_file: Path
    _done: threading.Event = field(default_factory=threading.Event, kw_only=True)

    def __enter__(self) -> Self:
        self.tell()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._done.wait(0.02):
            self.tell()

    @abstractmethod
    def tell(self) -> None:
        """Write the file as things are now."""
