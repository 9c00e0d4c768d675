"""`edgeseal` itself: who is blamed when a sub-command cannot be imported."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

import pytest

from edgeseal.errors import UsageError
from edgeseal_host import cli

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"
IMPORTED_AS = {"argon2-cffi": "argon2"}  # where it is not the distribution's own name


def load(place: Path, source: str, monkeypatch: pytest.MonkeyPatch) -> object:
    """Load a sub-command whose module holds `source`."""
    (place / "a_command.py").write_text(source)
    monkeypatch.syspath_prepend(place)
    monkeypatch.delitem(sys.modules, "a_command", raising=False)
    monkeypatch.setitem(sys.modules, "uvicorn", None)  # as if it were not installed
    try:
        return cli._load("fleet", cli._Entry("a_command", "", extra="server"))
    finally:
        sys.modules.pop("a_command", None)


def test_module_of_an_extra_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"no module 'uvicorn'.*pip install 'edgeseal\[server\]'"):
        load(tmp_path, "import uvicorn", monkeypatch)


def test_missing_module_behind_a_message_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = "try:\n    import uvicorn\nexcept ImportError as e:\n    raise ImportError('needs an extra') from e"
    with pytest.raises(UsageError, match="no module 'uvicorn'"):
        load(tmp_path, source, monkeypatch)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("from edgeseal.errors import NoSuchError", "cannot import name 'NoSuchError'"),
        ("import edgeseal.no_such_module", "No module named 'edgeseal.no_such_module'"),
        ("import a_core_dependency", "No module named 'a_core_dependency'"),
        ("raise ImportError('broken build')", "broken build"),
    ],
)
def test_anything_else_is_not_blamed_on_an_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, message: str
) -> None:
    with pytest.raises(ImportError, match=message):
        load(tmp_path, source, monkeypatch)


def test_every_dependency_of_an_extra_of_the_host_is_known() -> None:
    """A new dependency of an extra must be named where the blame is decided."""
    extras = tomllib.loads(PYPROJECT.read_text())["project"]["optional-dependencies"]
    for extra in ("host", "server", "stick"):
        for requirement in extras.get(extra, []):
            name = re.split(r"[^A-Za-z0-9._-]", requirement)[0].lower()
            assert IMPORTED_AS.get(name, name.replace("-", "_")) in cli._MODULES_OF_EXTRAS, requirement
