"""Sends signed enrolment records to the fleet server while the run goes on; the network never holds a line up.

One thread talks to the server; the journal is written by whoever calls `step`. What could not be sent stays in the
journal as not uploaded: the next run, `station upload` or `station carry` takes it from there. Killed between the
server's answer and the journal's entry, the same record is sent again and is known there.
"""

from __future__ import annotations

import queue
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from edgeseal.errors import EdgesealError, NotAuthorisedError, TemporaryError
from edgeseal_host.station import chain
from edgeseal_host.station.devices import offer_for, to_send

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any

    from edgeseal_host.station.chain import Entry
    from edgeseal_host.station.devices import Made
    from edgeseal_host.station.enrolments import SignedRecord, Signer
    from edgeseal_host.station.journal import Journal

RETRY: Final = 10.0  # seconds until a server that did not answer is asked again
PATIENCE: Final = 30.0  # seconds at the end of a run for what is still to be sent
NOTES: Final = 4  # journal entries in one step: each is flushed, and the lines wait meanwhile


class Client(Protocol):
    """The fleet server's API, as far as a station needs it (`FleetClient`)."""

    def enrol_signed(self, signed: SignedRecord) -> dict[str, Any]:
        """Register a device; the same record again is no error."""


class Registrar(Protocol):
    """Whoever takes records (`SigningRegistrar`)."""

    def register(self, record: bytes) -> None:
        """Register a device; the same record again is no error.

        Raises TemporaryError to be asked again, another EdgesealError for good.
        """


@dataclass(frozen=True, slots=True)
class SigningRegistrar:
    """Signs each record with the station's key on its way to the fleet server."""

    client: Client
    signer: Signer

    def register(self, record: bytes) -> None:
        """Send one record."""
        self.client.enrol_signed(self.signer.signed(record))


@dataclass(frozen=True, slots=True)
class _Sent:
    entry: Entry
    error: EdgesealError | None


class Uploader:
    """Call `step` often; `close` waits for what is on its way."""

    def __init__(
        self,
        journal: Journal,
        registrar: Registrar,
        say: Callable[[str], None],
        *,
        retry: float = RETRY,
    ) -> None:
        """Begin with what earlier runs left. `retry` in seconds."""
        self._journal = journal
        self._registrar = registrar
        self._say = say
        self._retry = retry
        self._todo: queue.Queue[tuple[Entry, bytes] | None] = queue.Queue()
        self._sent: queue.Queue[_Sent] = queue.Queue()
        self._closing = threading.Event()  # whoever waits for a server tries once more, and gives up
        self._stop = threading.Event()  # nobody writes answers down any more
        self._seen = journal.head.n if journal.head else 0
        self._not_welcome = False
        self.waiting = 0
        self.sent = 0
        self.refused = 0
        for device in to_send(journal):
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
        for _ in range(min(NOTES, self._sent.qsize())):
            self._note(self._sent.get_nowait())

    def close(self, *, patience: float = PATIENCE) -> None:
        """Wait at most so many seconds for the rest; what is left stays for later.

        A server that does not answer is asked once more and not waited for.
        """
        self.step()
        self._todo.put(None)
        self._closing.set()
        self._thread.join(patience)
        self._stop.set()
        while self._sent.qsize():
            self._note(self._sent.get_nowait())
        if self.waiting:
            self._say(f"{self.waiting} records are not at the fleet server yet: edgeseal station upload, or carry")

    def _put(self, entry: Entry) -> None:
        self.waiting += 1
        self._todo.put((entry, offer_for(self._journal, entry.kid).record))

    def _note(self, sent: _Sent) -> None:
        if isinstance(sent.error, NotAuthorisedError):  # true of every record: said once, and all of them wait
            if not self._not_welcome:
                self._say(f"the fleet server takes nothing from this station: {sent.error}")
            self._not_welcome = True
            return
        self.waiting -= 1
        if sent.error is None:
            self.sent += 1
            note_uploaded(self._journal, sent.entry)
        else:
            self.refused += 1
            self._say(f"{sent.entry.device}: the fleet server refused its record: {sent.error}")

    # The other thread ----------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        while (job := self._todo.get()) is not None:
            entry, record = job
            error = self._send(record)
            if isinstance(error, TemporaryError):
                return
            self._sent.put(_Sent(entry, error))
            if self._stop.is_set() or isinstance(error, NotAuthorisedError):
                return

    def _send(self, record: bytes) -> EdgesealError | None:
        """Send until there is an answer; TemporaryError if there was none at the end of the run."""
        tries = 0
        while True:
            tries += 1
            last = tries > 1 and self._closing.is_set()
            try:
                self._registrar.register(record)
            except TemporaryError as e:
                if last:
                    return e
                self._closing.wait(self._retry)
            except EdgesealError as e:
                return e
            else:
                return None


def send(
    journal: Journal, registrar: Registrar, devices: Iterable[Made]
) -> Iterator[tuple[Entry, EdgesealError | None]]:
    """Send records one after the other; yield each with None, or the reason why the server refused it.

    Raises TemporaryError or NotAuthorisedError at the first that ends so: the next would too. What was sent is written
    down.
    """
    for device in devices:
        entry = device.entry
        try:
            registrar.register(offer_for(journal, entry.kid).record)
        except (TemporaryError, NotAuthorisedError):
            raise
        except EdgesealError as e:
            yield entry, e
        else:
            note_uploaded(journal, entry)
            yield entry, None


def note_uploaded(journal: Journal, entry: Entry) -> None:
    """Keep that the fleet server has a device's record."""
    journal.append(chain.UPLOADED, batch=entry.batch, device=entry.device, serial=entry.serial, kid=entry.kid)
