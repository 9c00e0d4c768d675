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
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from rich.console import Console
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

BIN: Final = Path(sys.executable).parent
START_TIMEOUT: Final = 60.0


class Stage:
    """A working directory, the processes started in it, and a console."""

    def __init__(self, directory: Path, *, python_path: Path | None = None) -> None:
        """Commands run in `directory`; `python_path` is where their `python -m` finds the examples."""
        self.directory = directory
        self.console = Console(highlight=False, soft_wrap=True)
        self._servers: list[subprocess.Popen[bytes]] = []
        self._environment = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}"}
        if python_path:
            self._environment["PYTHONPATH"] = str(python_path)
        self._chapter = 0

    def __enter__(self) -> Self:
        """Nothing runs yet."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End all servers, the last one first, as politely as they let us."""
        for server in reversed(self._servers):
            if server.poll() is None:
                server.send_signal(signal.SIGTERM)
        for server in self._servers:
            try:
                server.wait(timeout=20)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()

    def chapter(self, title: str) -> None:
        """Begin a part of the story."""
        self._chapter += 1
        self.console.print()
        self.console.rule(f"[bold]{self._chapter}. {title}", align="left")

    def say(self, text: str) -> None:
        """Tell what happens and why."""
        self.console.print(text)

    def run(self, *command: object, expect: int = 0) -> str:
        """Run a command and show it; return its output.

        Ends the demo if its exit code is not `expect`. Progress bars, where there is a terminal, are the command's own.
        """
        words = [str(word) for word in command]
        self.console.print(Text(f"$ {shlex.join(words)}", style="cyan"))
        bars = expect == 0 and sys.stderr.isatty()
        done = subprocess.run(
            words,
            cwd=self.directory,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=None if bars else subprocess.STDOUT,
            check=False,
        )
        output = done.stdout.decode(errors="replace")
        style = "red" if expect else "dim"
        self._show(output or "(no output)", style)
        if done.returncode != expect:
            raise SystemExit(f"demo: that ended with exit code {done.returncode}; expected was {expect}")
        if expect:
            self.console.print(f"    [bold]exit code {done.returncode}")
        return output

    def export(self, name: str, value: str) -> None:
        """Set an environment variable for all commands from here on."""
        self._environment[name] = value
        self.console.print(Text(f"$ export {name}={shlex.quote(value)}", style="cyan"))

    def _show(self, output: str, style: str) -> None:
        for line in output.rstrip().splitlines():
            self.console.print(Text(f"    {line}", style=style))

    def ask(self, *command: object) -> Any:  # noqa: ANN401 - whatever JSON the command prints
        """Run a command with --json and return what it says."""
        words = [*(str(word) for word in command), "--json"]
        self.console.print(Text(f"$ {shlex.join(words)}", style="cyan"))
        done = subprocess.run(words, cwd=self.directory, env=self._environment, capture_output=True, check=False)
        if done.returncode != 0:
            raise SystemExit(f"demo: {shlex.join(words)} failed: {(done.stderr + done.stdout).decode()}")
        return json.loads(done.stdout)

    @contextmanager
    def meanwhile(self, *command: object, until: str) -> Iterator[None]:
        """Run a command in the background; when the block ends make the file `until`, wait, and show what it said."""
        words = [*(str(word) for word in command), "--until", until]
        self.console.print(Text(f"$ {shlex.join(words)} &", style="cyan"))
        place = self.directory / until
        with subprocess.Popen(
            words, cwd=self.directory, env=self._environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ) as process:
            try:
                yield
            finally:
                place.touch()
            output = process.communicate(timeout=60)[0].decode(errors="replace")
        self.console.print(Text(f"$ touch {until}", style="cyan"))
        self._show(output, "dim")
        if process.returncode != 0:
            raise SystemExit(f"demo: that ended with exit code {process.returncode}; expected was 0")

    def serve(self, *command: object, ready: str) -> str:
        """Start a server in the background; return the URL it writes to the file `ready` when it answers."""
        words = [*(str(word) for word in command), "--ready-file", ready]
        self.console.print(Text(f"$ {shlex.join(words)} &", style="cyan"))
        log_file = self.directory / f"{ready}.log"
        with log_file.open("wb") as log:
            server = subprocess.Popen(
                words,
                cwd=self.directory,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C reaches the demo, which then ends its servers in order
            )
        self._servers.append(server)
        deadline = time.monotonic() + START_TIMEOUT
        place = self.directory / ready
        while not (place.exists() and place.read_text().strip()):
            if server.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"demo: the server did not start:\n{log_file.read_text()}")
            time.sleep(0.05)
        url = place.read_text().strip()
        self._show(f"answers at {url}", "dim")
        return url
