"""The configuration file as people get it wrong: each message names the key and says what to do."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeseal.device import config
from edgeseal.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path


def test_every_key_is_optional() -> None:
    assert config.parse(b"", name="empty") == config.Config()


def test_a_whole_file() -> None:
    text = b"""
        [device]
        hardware = "raspberrypi,5-model-b, brcm,bcm2712"
        [fleet]
        url = "https://fleet.example:8443"
        poll_seconds = 60
        [runtime]
        adapter = "exec"
        command = ["/usr/bin/reload"]
    """
    parsed = config.parse(text, name="edgeseal.toml")
    assert parsed.hardware == ["raspberrypi", "5-model-b", "brcm", "bcm2712"]
    assert parsed.fleet.poll_seconds == 60
    assert parsed.runtime.command == ["/usr/bin/reload"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[fleet]\nurll = "http://x"', "fleet.urll: there is no such key (did you mean url?)"),
        ("[flet]\n", "flet: there is no such key (did you mean fleet?)"),
        ('url = "http://x"', "url: there is no such key (did you mean fleet.url?)"),
        ("[fleet]\npoll_seconds = 0", "fleet.poll_seconds: Expected `int` >= 1"),
        ('[fleet]\npoll_seconds = "60"', "fleet.poll_seconds: Expected `int | null`, got `str`"),
        ('[fleet]\nurl = "fleet.example"', "fleet.url: Expected `str` matching regex"),
        ('[fleet]\nurl = "http://user:secret@fleet.example"', "fleet.url: Expected `str` matching regex"),
        ('[runtime]\nadapter = "magic"', "runtime.adapter: Invalid enum value 'magic'"),
        ('[entropy]\npolicy = "maybe"', "entropy.policy: Invalid enum value 'maybe'"),
        ("[service]\njitter = 2.0", "service.jitter: Expected `float` <= 1.0"),
        ("[device", "is not TOML"),
        ("[runtime]\nzzz = 1", "known are: adapter, command"),
    ],
)
def test_mistake_is_named_by_its_key(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        config.parse(text.encode(), name="edgeseal.toml")
    assert message in str(caught.value)
    assert "secret" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_missing_file_is_an_error_only_if_it_was_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "DEFAULT_PATH", tmp_path / "none.toml")
    assert config.load(None) == config.Config()
    with pytest.raises(UsageError, match="there is no configuration file"):
        config.load(tmp_path / "none.toml")
    with pytest.raises(UsageError, match="Is a directory"):
        config.load(tmp_path)


def test_file_too_long(tmp_path: Path) -> None:
    path = tmp_path / "long.toml"
    path.write_bytes(b"#" * (config.MAX_CONFIG + 1))
    with pytest.raises(UsageError, match="longer than"):
        config.load(path)


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_bytes_parse_or_are_refused(data: bytes) -> None:
    try:
        config.parse(data, name="x")
    except UsageError:
        return
