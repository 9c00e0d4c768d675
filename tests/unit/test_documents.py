"""What README and guides say must be true: commands exist with these options, links lead somewhere, examples parse.

Every command in a document is parsed by the command line it is for; none is run here (`test_demo.py` runs the story).
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click
import pytest

from edgeseal import errors
from edgeseal.device import config
from edgeseal.device.cli import _parser as agent_parser
from edgeseal.runtime.serve import _arguments as serve_arguments
from edgeseal_host.cli import main as edgeseal
from edgeseal_host.station import batch

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.unit
ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs" / "guides").glob("*.md"))]
LINKED = [*DOCUMENTS, *(p for p in (ROOT / "SECURITY.md", ROOT / "docs" / "threat-model.md") if p.exists())]
PROGRAMS = ("edgeseal", "edgeseal-agent", "edgeseal-serve", "./dev")
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_MEASURED = re.compile(
    r"\d[\d,.]*\s?(?:%|x\b|[kKMGT]i?B(?:/s)?\b|ms\b|µs\b|s\b|seconds?\b|minutes?\b|times (?:faster|smaller|less)\b)"
)
_WITH_COMMAND = re.compile(r"`\./dev (?:bench|demo|test)|`openssl ")


@dataclass(frozen=True)
class Line:
    """A command in a document. A partial one is prose's mention: `edgeseal repo doctor`."""

    place: str
    text: str
    partial: bool


def _blocks(text: str, language: str) -> list[str]:
    return [body for kind, body in _FENCE.findall(text) if kind == language]


def _lines(path: Path) -> Iterator[Line]:
    text, name = path.read_text(), str(path.relative_to(ROOT))
    for block in _blocks(text, "sh"):
        yield from (Line(name, line, partial=False) for line in block.splitlines() if line.startswith(PROGRAMS))
    prose = _FENCE.sub("", text)
    for mention in re.findall(r"`([^`\n]+)`", prose):
        if mention.split()[0] in PROGRAMS:
            yield Line(name, mention, partial=True)


COMMANDS = [line for path in DOCUMENTS for line in _lines(path)]


def check(line: Line) -> None:
    """Parse a command line with the program it is for.

    Raises UsageError or ValueError, naming what that program does not know.
    """
    program, *words = shlex.split(line.text, comments=True)
    if program == "./dev":
        _check_dev(words)
    elif program == "edgeseal":
        _check_click(words, partial=line.partial)
    elif line.partial and not any(w.startswith("-") for w in words) and (program == "edgeseal-serve" or not words):
        return
    else:
        _check_argparse(program, words, partial=line.partial)


def _check_dev(words: list[str]) -> None:
    verbs = re.findall(r"^  (\w+)\) setup", (ROOT / "dev").read_text(), re.MULTILINE)
    if not words or words[0] not in [*verbs, "hw"]:
        raise ValueError(f"./dev has no verb {words[:1]}")


def _check_argparse(program: str, words: list[str], *, partial: bool) -> None:
    parse = agent_parser().parse_args if program == "edgeseal-agent" else serve_arguments
    needs_file = words in (["install"], ["rng", "capture"], ["rng", "assess"])
    filled = [*words, "FILE"] if partial and needs_file else words
    try:
        parse(filled)
    except SystemExit as e:
        if e.code:
            raise ValueError(f"{program} does not take {shlex.join(words)}") from e


def _check_click(words: list[str], *, partial: bool) -> None:
    """Walk to the command, parse its options, and see that nothing it requires is missing."""
    command: click.Command = edgeseal
    context = click.Context(command, info_name="edgeseal")
    words = [w for w in words if w != "…"]
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        found = command.get_command(context, words[0])
        if found is None:
            raise ValueError(f"there is no command {words[0]!r} in `{context.command_path}`")
        context = click.Context(found, info_name=words.pop(0), parent=context)
        command = found
    given, rest, _ = command.make_parser(context).parse_args(list(words))
    if partial or "--help" in words:
        return
    if rest or isinstance(command, click.Group):
        raise ValueError(f"`{context.command_path}` does not take {rest or 'nothing'}")
    missing = [
        p.name
        for p in command.params
        if p.required and not p.envvar and (p.name not in given or p.value_is_missing(given[p.name]))
    ]
    if missing:
        raise ValueError(f"`{context.command_path}` also needs {', '.join(map(str, missing))}")


@pytest.mark.parametrize("line", COMMANDS, ids=lambda line: f"{line.place}: {line.text[:60]}")
def test_every_command_in_a_document_exists_with_these_options(line: Line) -> None:
    check(line)


@pytest.mark.parametrize(
    "text",
    [
        "edgeseal fleet serve --dta /srv",  # misspelt option
        "edgeseal fleet sirve --data /srv",  # no such command
        "edgeseal fleet init --data /srv",  # --url is missing
        "edgeseal fleet assign bearing --group g --to U --token T",  # an argument is missing
        "edgeseal fleet restored --data /srv surplus",
        "edgeseal-agent upgrade",
        "edgeseal-agent update --fast",
        "edgeseal-serve --port 80",
        "./dev deploy",
    ],
)
def test_a_wrong_command_would_be_found(text: str) -> None:
    with pytest.raises((ValueError, click.UsageError)):
        check(Line("control", text, partial=False))


def test_documents_show_every_program() -> None:
    assert {line.text.split()[0] for line in COMMANDS} == set(PROGRAMS)


def _anchors(path: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).strip().replace(" ", "-") for h in headings}


def _broken_links(text: str, folder: Path) -> list[str]:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", _FENCE.sub("", text)):
        if target.startswith(("https://", "mailto:")):
            continue
        file, _, anchor = target.partition("#")
        place = (folder / file).resolve() if file else None
        if place and (not place.exists() or (anchor and anchor not in _anchors(place))):
            broken.append(target)
    return broken


@pytest.mark.parametrize("path", LINKED, ids=lambda p: p.name)
def test_every_link_leads_to_a_file_and_a_heading(path: Path) -> None:
    assert _broken_links(path.read_text(), path.parent) == []


def test_a_broken_link_would_be_found() -> None:
    text = "[a](nowhere.md) [b](README.md#no-such-heading) [c](README.md#status) [d](https://example.org)"
    assert _broken_links(text, ROOT) == ["nowhere.md", "README.md#no-such-heading"]


def _unbacked(text: str) -> list[str]:
    """Paragraphs with a measured number and no command that reproduces it."""
    paragraphs = re.split(r"\n\s*\n", _FENCE.sub("", text))
    return [p for p in paragraphs if _MEASURED.search(p) and not _WITH_COMMAND.search(p)]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.name)
def test_every_measured_number_has_the_command_that_reproduces_it(path: Path) -> None:
    assert _unbacked(path.read_text()) == []


def test_a_bare_number_would_be_found() -> None:
    assert _unbacked("It takes 12 ms.\n\nIt takes 12 ms (`./dev bench`).\n\nPython 3.11 on a Pi 4") == [
        "It takes 12 ms."
    ]


def _error_classes(base: type[errors.EdgesealError]) -> Iterator[type[errors.EdgesealError]]:
    yield base
    for sub in base.__subclasses__():
        if sub.__module__ == errors.__name__:
            yield from _error_classes(sub)


def test_troubleshooting_lists_every_error_kind_with_its_exit_code() -> None:
    text = (ROOT / "docs" / "guides" / "troubleshooting.md").read_text()
    listed = {(name, int(code)) for code, name in re.findall(r"^\| (\d) \| `(\w+)` \|", text, re.MULTILINE)}
    assert listed == {(e.__name__, e.exit_code) for e in _error_classes(errors.EdgesealError)}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.name)
def test_every_configuration_example_is_accepted(path: Path) -> None:
    for block in _blocks(path.read_text(), "toml"):
        parse = batch.parse if "[batch]" in block else config.parse
        parse(block.encode(), name=path.name)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.name)
def test_every_configuration_key_named_in_prose_exists(path: Path) -> None:
    sections = config._SECTIONS
    for section, key in re.findall(r"`(\w+)\.(\w+)(?: = \w+)?`", _FENCE.sub("", path.read_text())):
        if section in sections:
            assert key in sections[section].__struct_fields__, f"{section}.{key}"
