"""`edgeseal-agent rng watch`: the sources as they change, redrawn on a terminal, a line for each look elsewhere.

Plain ANSI, no library. Ends with Ctrl-C, with the reader of a pipe, or after a number of looks; devices are given back.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import TYPE_CHECKING, Any, Final, TextIO

from edgeseal.device import rng_view
from edgeseal.device.rng import look, none_read

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgeseal.device.agent import Agent

_HOME: Final = "\x1b[H"  # redraw over what is there: clearing first would flicker
_TO_END_OF_LINE: Final = "\x1b[K"
_TO_END_OF_SCREEN: Final = "\x1b[J"


class _Reading:
    """How fast each source is being read: samples between two looks. Not its own rate: it is read in bursts."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[float, int]] = {}
        self._rates: dict[str, float] = {}

    def note(self, about: dict[str, Any]) -> None:
        """Add `reading` to each source; what the service said stands until it says something new."""
        at = float(about.get("at") or time.monotonic())
        for source in about["sources"]:
            name, samples = source["name"], source["samples"]
            before, had = self._last.get(name, (at, samples))
            if at > before:
                self._rates[name] = max(0, samples - had) / (at - before)
            if at > before or name not in self._last:
                self._last[name] = (at, samples)
            source["reading"] = self._rates.get(name)


def watch(
    agent: Agent,
    *,
    interval: float,
    count: int | None,
    as_json: bool,
    out: TextIO | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> int:
    """Show the sources every `interval` seconds, `count` times or until interrupted; return the exit code."""
    out = out or sys.stdout
    show = _json if as_json else _screen if out.isatty() else _line
    looks, reading = 0, _Reading()
    try:
        while True:
            about = look(agent)
            if about["from"] == "here":
                for source in agent.sources:
                    source.start()
                    source.look()
            reading.note(about)
            out.write(show(about))
            out.flush()
            looks += 1
            if looks == count:
                return 0
            sleep(interval)
    except KeyboardInterrupt:
        if not as_json and out.isatty():
            out.write("\n")
        return 0
    except BrokenPipeError:  # `rng watch | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), out.fileno())  # what is still buffered goes nowhere
        return 0
    finally:
        for source in agent.sources:
            source.close()


def _json(about: dict[str, Any]) -> str:
    return json.dumps(about | {"time": time.time()}, ensure_ascii=False) + "\n"


def _line(about: dict[str, Any]) -> str:
    at = time.strftime("%H:%M:%S", time.gmtime())
    found = [rng_view.line(source) for source in about["sources"]] or [none_read(about["policy"])]
    return "".join(f"{at} {text}\n" for text in found)


def _screen(about: dict[str, Any]) -> str:
    colour = not os.environ.get("NO_COLOR")
    whose = "this process" if about["from"] == "here" else f"the service, {about['age_seconds']} s ago"
    at = time.strftime("%H:%M:%S UTC", time.gmtime())
    out = [f"edgeseal-agent rng  {at}  policy {about['policy']}  seen by {whose}   (Ctrl-C ends)", ""]
    for source in about["sources"]:
        out += [*rng_view.lines(source, colour=colour), ""]
    if not about["sources"]:
        out.append(none_read(about["policy"]))
    if about["kernel_feed"]:
        out.append(about["kernel_feed"])
    return _HOME + "".join(f"{text}{_TO_END_OF_LINE}\n" for text in out) + _TO_END_OF_SCREEN
