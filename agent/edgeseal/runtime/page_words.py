"""Words for the person's page: text from elsewhere made harmless, points in time, durations.

Whatever comes from a release or from a runtime's error may be hostile: it is shortened, its control and direction
characters are written out, and it is escaped for HTML. Nothing reaches the page without passing here.
"""

from __future__ import annotations

import time
import unicodedata
from html import escape
from typing import Final

MAX_TEXT: Final = 500  # characters of one reason
_UNKNOWN: Final = "an unknown time"
_UNITS: Final = ((86_400, "days"), (3_600, "h"), (60, "min"), (1, "s"))
_HIDDEN: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})


def text(value: str) -> str:
    """Return `value` for HTML, shortened; what is invisible or turns the direction of writing is written out."""
    shown = value if len(value) <= MAX_TEXT else value[:MAX_TEXT] + "…"
    return escape("".join(_visible(c) for c in shown))


def _visible(character: str) -> str:
    if unicodedata.category(character) not in _HIDDEN:
        return character
    return " " if character in "\n\t" else f"\\u{{{ord(character):x}}}"


def when(at: float, now: float) -> str:
    """Return a `<time>` in UTC and how long ago that was; `at` and `now` in Unix seconds.

    A device without a battery behind its clock may have noted any time: one in the future gets no "ago".
    """
    try:
        found = time.gmtime(at)
        stamp = time.strftime("%Y-%m-%d %H:%M:%S", found)
    except (OverflowError, ValueError, OSError):
        return _UNKNOWN
    shown = f'<time datetime="{stamp.replace(" ", "T")}Z">{stamp} UTC</time>'
    return f"{shown} ({ago(now - at)})" if now >= at else shown


def ago(seconds: float) -> str:
    """Return a duration in its largest unit that is at least two, so that nothing reads "1 days"."""
    for size, unit in _UNITS:
        if seconds >= 2 * size:
            return f"{seconds // size:.0f} {unit} ago"
    return "just now"


def count(number: int) -> str:
    """Return a number with its thousands apart."""
    return f"{number:,}"


def span(seconds: float) -> str:
    """Return a duration of an answer: milliseconds, from one second on seconds."""
    return f"{seconds:g} s" if seconds >= 1 else f"{seconds * 1000:g} ms"


def plural(number: int, one: str, many: str) -> str:
    """Return the number with the right form of its noun."""
    return f"{count(number)} {one if number == 1 else many}"
