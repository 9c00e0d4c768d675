"""The station's half of any dialogue: sessions, patience, refusals. What is said, `station` and `reset` decide."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Final

from edgeseal.errors import EdgesealError, FormatError, IncompatibleError, IntegrityError, NoSpaceError, TemporaryError
from edgeseal.provisioning import wire
from edgeseal.provisioning.caller import Caller, Problem
from edgeseal.provisioning.machine import Machine, Step
from edgeseal.provisioning.messages import NONCE_LENGTH, Kind, Refused, cut, frame
from edgeseal.provisioning.transcript import Transcript
from edgeseal.provisioning.verdict import Code, RefusalError, Verdict
from edgeseal.smp import Rc

if TYPE_CHECKING:
    from collections.abc import Callable

BYTES_PER_SECOND: Final = 11_520.0  # 115,200 baud, 8N1
PATIENCE: Final = 45.0  # seconds without any answer; a slow noise source may take 30
LIMIT: Final = 900.0  # seconds for everything: a device that always answers and never ends
BUSY_PAUSE: Final = 0.5


class Conversation(ABC):
    """One device on one line, from the first byte to a verdict.

    Loop of a caller: write `outgoing()`, sleep `wait()` seconds or until bytes come, `feed` them; stop when there is a
    `verdict`. Closing the line and making a new one for the same device goes on where it was.
    """

    def __init__(
        self,
        *,
        random: Callable[[int], bytes],
        clock: Callable[[], float],
        owner: bytes,
        rate: float = BYTES_PER_SECOND,
        patience: float = PATIENCE,
    ) -> None:
        """`clock` in seconds, monotonic; `owner` is the station's id; `rate` in bytes and `patience` in seconds."""
        self._random = random
        self._clock = clock
        self._owner = owner
        self._patience = patience
        self.caller = Caller(clock=clock, rate=rate)
        self.verdict: Verdict | None = None
        self._began_at = clock()
        self._resume_at: float | None = None
        self._busy = ""
        self._begin()

    @property
    def state(self) -> Step:
        """How far the dialogue is."""
        return self._machine.step

    @property
    def seconds(self) -> float:
        """Seconds since the first byte could leave."""
        return self._clock() - self._began_at

    def feed(self, data: bytes) -> None:
        """Take any bytes that the line brought."""
        if self.verdict is not None:
            return
        answer = self.caller.feed(data)
        if isinstance(answer, Problem):
            self._problem(answer)
        elif answer is not None:
            self._answered(answer)

    def outgoing(self) -> bytes:
        """Return what is to be written now, maybe nothing."""
        if self.verdict is not None:
            return b""
        now = self._clock()
        if now - (self.caller.heard_at or self._began_at) > self._patience or now - self._began_at > LIMIT:
            self._give_up()
            return b""
        if self._resume_at is not None:
            if now < self._resume_at:
                return b""
            self._begin()
        return self.caller.outgoing()

    def wait(self) -> float | None:
        """Seconds until `outgoing` must be called again; None once there is a verdict."""
        if self.verdict is not None:
            return None
        now = self._clock()
        ends = (self.caller.heard_at or self._began_at) + self._patience - now
        if self._resume_at is not None:
            return max(0.0, min(self._resume_at - now, ends))
        wait = self.caller.wait()
        return max(0.0, ends if wait is None else min(wait, ends))

    def abandon(self) -> None:
        """End it because the line is gone (cable pulled, port closed)."""
        if self.verdict is None:
            self._end(RefusalError(Code.LINE_BROKE, f"the line was lost while {self.state}"))

    # For station and reset ---------------------------------------------------------------------------------------

    @abstractmethod
    def _opening(self, nonce: bytes) -> tuple[Kind, bytes]:
        """Return the first message of a new session."""

    @abstractmethod
    def _reply(self, kind: Kind, body: bytes) -> tuple[Kind, bytes] | None:
        """Take the device's answer in; return the next message, or None after `_pass`."""

    def _machine_for_session(self) -> Machine:
        return Machine()

    def _refused(self, refused: Refused) -> None:
        """Take in that the device goes no further. Raises RefusalError."""
        try:
            code = Code(refused.code)
        except ValueError:
            code = Code.INCOMPATIBLE
        raise RefusalError(code, refused.reason)

    def _pass(self, reason: str) -> None:
        self.verdict = Verdict(passed=True, reason=reason)
        self.caller.hang_up()

    # Sessions ----------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Open a new session; whatever an earlier one left is void."""
        self._resume_at = None
        self._machine = self._machine_for_session()
        self._transcript = Transcript()
        nonce = self._random(NONCE_LENGTH)
        self._session = self._owner[: wire.OWNER_LENGTH] + nonce[: wire.SESSION_LENGTH - wire.OWNER_LENGTH]
        self._number = 0
        self._say(*self._opening(nonce))

    def _say(self, kind: Kind, body: bytes) -> None:
        self._machine.move(kind)
        if kind is not Kind.CHALLENGE:  # taken in where its key is made
            self._transcript.absorb(kind, body)
        self.caller.call(self._session, self._number, frame(kind, body))
        self._number += 1

    def _answered(self, answer: bytes) -> None:
        try:
            kind, body = cut(answer)
            self._machine.move(kind)
            following = None
            if kind is Kind.REFUSED:
                self._refused(Refused.from_bytes(body))
            else:
                following = self._reply(kind, body)
        except RefusalError as e:
            self._end(e)
        except (EdgesealError, OSError) as e:
            self._end(_as_refusal(e))
        else:
            if following is not None:
                self._say(*following)

    def _problem(self, problem: Problem) -> None:
        """Call anew: the device restarted at once, after a pause if another station has it."""
        self.caller.hang_up()
        pause = 0.0
        if problem.rc == Rc.BUSY:
            self._busy = problem.reason or "another station is talking to this device"
            pause = BUSY_PAUSE
        self._resume_at = self._clock() + pause

    def _give_up(self) -> None:
        if self._clock() - self._began_at > LIMIT:
            self._end(RefusalError(Code.NO_ANSWER, f"{LIMIT:.0f} s were not enough, it is still {self.state}"))
        elif self._busy:
            self._end(RefusalError(Code.BUSY, self._busy))
        elif self.caller.heard_at is None:
            self._end(RefusalError(Code.NO_ANSWER, f"no answer in {self._patience:.0f} s"))
        else:
            self._end(RefusalError(Code.NO_ANSWER, f"the device fell silent while {self.state}"))

    def _end(self, refusal: RefusalError) -> None:
        self.verdict = Verdict.failed(refusal)
        self.caller.hang_up()


def _as_refusal(error: EdgesealError | OSError) -> RefusalError:
    """Say what an error of ours means for the technician."""
    text = error.message if isinstance(error, EdgesealError) else f"{error.strerror or type(error).__name__}"
    match error:
        case FormatError():
            return RefusalError(Code.MALFORMED, f"the device answered something that is no answer: {text}")
        case IntegrityError():
            return RefusalError(Code.IMPOSTOR, text)
        case IncompatibleError():
            return RefusalError(Code.INCOMPATIBLE, text)
        case NoSpaceError() | TemporaryError() | OSError():
            return RefusalError(Code.JOURNAL, f"the station could not write: {text}")
        case _:
            return RefusalError(Code.OPERATOR, text, remedy=error.hint)
