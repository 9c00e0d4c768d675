"""Running commands before an audience: each is printed as a person would type it, then run, its output indented.

What `demo.py` needs and nothing more; no edgeseal code is called from here, only its installed commands.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

if TYPE_CHECKING:
    from types import TracebackType

BIN: Final = Path(sys.executable).parent
START_TIMEOUT: Final = 60.0


class Stage:
    """A working directory, the processes started in it, and a console."""

    def __init__(self, directory: Path) -> None:
        """Commands run in `directory`; paths below it are shown relative."""
        self.directory = directory
        self.console = Console(highlight=False, soft_wrap=True)
        self._servers: list[subprocess.Popen[bytes]] = []
        self._environment = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}"}
        self._chapter = 0

    def __enter__(self) -> Stage:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for server in reversed(self._servers):
            server.send_signal(signal.SIGTERM)
        for server in self._servers:
            try:
                server.wait(timeout=20)
            except subprocess.TimeoutExpired:
                server.kill()

    def chapter(self, title: str) -> None:
        """Begin a part of the story."""
        self._chapter += 1
        self.console.print()
        self.console.rule(f"[bold]{self._chapter}. {title}", align="left")

    def say(self, text: str) -> None:
        """Tell what happens and why."""
        self.console.print(text)

    def run(self, *command: object, refused: bool = False) -> str:
        """Run a command and show it; return its standard output.

        Ends the demo if the command fails, or, with `refused`, if it does not.
        """
        words = [str(word) for word in command]
        self.console.print(Text(f"$ {shlex.join(words)}", style="cyan"))
        done = subprocess.run(
            words,
            cwd=self.directory,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )
        output = done.stdout.decode(errors="replace")
        style = "red" if refused else "dim"
        self.console.print(Padding(Text(output.rstrip() or "(no output)", style=style), (0, 0, 0, 4)))
        if (done.returncode != 0) != refused:
            raise SystemExit(f"demo: that ended with exit code {done.returncode}, which was not expected")
        if refused:
            self.console.print(f"    exit code {done.returncode}")
        return output

    def ask(self, *command: object) -> Any:  # noqa: ANN401 - whatever JSON the command prints
        """Run a command with --json, unseen, and return what it says."""
        words = [*(str(word) for word in command), "--json"]
        done = subprocess.run(words, cwd=self.directory, env=self._environment, capture_output=True, check=False)
        if done.returncode != 0:
            raise SystemExit(f"demo: {shlex.join(words)} failed: {done.stderr.decode()}{done.stdout.decode()}")
        return json.loads(done.stdout)

    def serve(self, *command: object, ready: str) -> str:
        """Start a server in the background; return the URL it writes to the file `ready` when it answers."""
        words = [*(str(word) for word in command), "--ready-file", ready]
        self.console.print(Text(f"$ {shlex.join(words)} &", style="cyan"))
        log = (self.directory / f"{ready}.log").open("wb")
        server = subprocess.Popen(words, cwd=self.directory, env=self._environment, stdout=log, stderr=log)
        self._servers.append(server)
        deadline = time.monotonic() + START_TIMEOUT
        place = self.directory / ready
        while not (place.exists() and place.read_text().strip()):
            if server.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"demo: the server did not start:\n{Path(log.name).read_text()}")
            time.sleep(0.05)
        url = place.read_text().strip()
        self.console.print(Padding(Text(f"answers at {url}", style="dim"), (0, 0, 0, 4)))
        return url
