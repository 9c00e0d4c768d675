"""A real terminal: a tmux server of one's own with a shell in it; what is on its screen is text."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PATIENCE = 60.0  # seconds; a safety net
PROMPT = "ready> "
_EXIT = re.compile(r"exit=(\d+)\.")


@dataclass(frozen=True)
class Terminal:
    """One window. `-u`: UTF-8 whatever the locale is."""

    socket: Path

    def tmux(self, *arguments: str) -> str:
        command = ["tmux", "-u", "-S", str(self.socket), "-f", "/dev/null", *arguments]
        # Not the environment that C has: readline, which pytest loads, has put the size of another terminal into it.
        clean = {k: v for k, v in os.environ.items() if k not in {"COLUMNS", "LINES", "TMUX"}}
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=PATIENCE, env=clean)
        return done.stdout

    def screen(self) -> str:
        """What a person sees now."""
        return self.tmux("capture-pane", "-p")

    def keys(self, *keys: str) -> None:
        self.tmux("send-keys", *keys)

    def type(self, text: str) -> None:
        """Type a line."""
        self.tmux("send-keys", "-l", text)
        self.keys("Enter")

    def wait_for(self, what: Callable[[str], object]) -> str:
        """Return the first screen of which `what` is true."""
        ends = time.monotonic() + PATIENCE
        while not what(found := self.screen()):
            assert time.monotonic() < ends, found
            time.sleep(0.05)
        return found

    def flag(self, name: str) -> bool:
        """Return a flag of tmux's: alternate_on, cursor_flag."""
        return self.tmux("display-message", "-p", f"#{{{name}}}").strip() == "1"

    def resize(self, columns: int, lines: int) -> None:
        self.tmux("resize-window", "-x", str(columns), "-y", str(lines))

    def run(self, *command: object) -> None:
        """Start a command; `exited` waits for its end."""
        script = f"{shlex.join(map(str, command))}\necho exit=$?.\n"
        (self.socket.parent / "go").write_text(script)
        self.type(". ./go")

    def exited(self) -> tuple[int, str]:
        """Return the exit code of the command that `run` started, and the screen then."""
        text = self.wait_for(_EXIT.search)
        found = _EXIT.search(text)
        assert found is not None
        return int(found[1]), text

    def is_echoing(self) -> bool:
        """Whether the terminal shows what is typed, as the shell sees it."""
        self.type("stty -a > state; echo; echo said")
        self.wait_for(lambda screen: "\nsaid" in screen)
        state = (self.socket.parent / "state").read_text()
        return " echo " in state.replace("\n", " ") and "-echo " not in state


@contextlib.contextmanager
def terminal(columns: int = 100, lines: int = 30) -> Iterator[Terminal]:
    """A window with a shell whose working directory is empty; everything in it ends at the end."""
    with tempfile.TemporaryDirectory(prefix="tty-") as place:  # a socket's path has at most 107 characters
        made = Terminal(Path(place) / "tmux")
        shell = f"cd {place}; PS1='{PROMPT}' ENV= exec sh -i"
        made.tmux("new-session", "-d", "-x", str(columns), "-y", str(lines), shell)
        try:
            made.wait_for(lambda screen: PROMPT.strip() in screen)
            yield made
        finally:
            with contextlib.suppress(subprocess.CalledProcessError):
                made.tmux("kill-server")
