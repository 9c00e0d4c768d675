"""Sends enrolment records to the fleet server while the run goes on; the network never holds a line up.

One thread talks to the server; the journal is written by whoever calls `step`. What could not be sent stays in the
journal as not uploaded: the next run, `station upload` or `station carry` takes it from there.
"""

from __future__ import annotations

import queue
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from edgeseal.errors import EdgesealError, TemporaryError
from edgeseal_host.station import chain
from edgeseal_host.station.devices import made, offer_for

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from edgeseal_host.station.chain import Entry
    from edgeseal_host.station.journal import Journal

RETRY: Final = 10.0  # seconds until a server that did not answer is asked again
PATIENCE: Final = 30.0  # seconds at the end of a run for what is still to be sent


class Registrar(Protocol):
    """The fleet server, as far as a station needs it (`FleetClient`)."""

    def enrol(self, record: bytes) -> dict[str, Any]:
        """Register a device."""


@dataclass(frozen=True, slots=True)
class _Sent:
    entry: Entry
    error: EdgesealError | None


class Uploader:
    """Call `step` often; `close` waits for what is on its way."""

    def __init__(self, journal: Journal, client: Registrar, say: Callable[[str], None]) -> None:
        """Begin with what earlier runs left."""
        self._journal = journal
        self._client = client
        self._say = say
        self._todo: queue.Queue[tuple[Entry, bytes] | None] = queue.Queue()
        self._sent: queue.Queue[_Sent] = queue.Queue()
        self._stop = threading.Event()
        self._seen = journal.head.n if journal.head else 0
        self.waiting = 0
        self.refused = 0
        for device in made(journal):
            if not device.uploaded:
                self._put(device.entry)
        self._thread = threading.Thread(target=self._serve, name="station-uploader", daemon=True)
        self._thread.start()

    def step(self) -> None:
        """Hand over what was provisioned since, and write down what the server has."""
        head = self._journal.head
        if head is not None and head.n > self._seen:
            for entry in self._journal.of_kind(chain.PROVISIONED, after=self._seen):
                self._put(entry)
            self._seen = head.n
        while True:
            try:
                self._note(self._sent.get_nowait())
            except queue.Empty:
                return

    def close(self, *, patience: float = PATIENCE) -> None:
        """Wait at most so many seconds for the rest; what is left stays for later."""
        self.step()
        self._todo.put(None)
        self._thread.join(patience)
        self._stop.set()
        self.step()
        if self.waiting:
            self._say(f"{self.waiting} records are not at the fleet server yet: edgeseal station upload, or carry")

    def _put(self, entry: Entry) -> None:
        self.waiting += 1
        self._todo.put((entry, offer_for(self._journal, entry.kid).record))

    def _note(self, sent: _Sent) -> None:
        self.waiting -= 1
        if sent.error is None:
            note_uploaded(self._journal, sent.entry)
        else:
            self.refused += 1
            self._say(f"{sent.entry.device}: the fleet server refused its record: {sent.error.message}")

    def _serve(self) -> None:
        while (job := self._todo.get()) is not None:
            entry, record = job
            while not self._stop.is_set():
                try:
                    self._client.enrol(record)
                except TemporaryError:
                    self._stop.wait(RETRY)
                except EdgesealError as e:
                    self._sent.put(_Sent(entry, e))
                    break
                else:
                    self._sent.put(_Sent(entry, None))
                    break
            if self._stop.is_set():
                return


def note_uploaded(journal: Journal, entry: Entry) -> None:
    """Keep that the fleet server has a device's record."""
    journal.append(chain.UPLOADED, batch=entry.batch, device=entry.device, serial=entry.serial, kid=entry.kid)
