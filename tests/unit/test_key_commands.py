"""`edgeseal key` as a person types it: what lies on disk, who can read it, and what never comes out."""

from __future__ import annotations

import base64
import json
import os
import pty
import re
import shutil
import stat
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey, MLDSA65PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeseal.errors import EdgesealError, NotAuthorisedError, UsageError
from edgeseal_host.cli import main
from edgeseal_host.keys import KeyDirectory
from edgeseal_host.pkcs8 import to_pem

if TYPE_CHECKING:
    from pathlib import Path

PASSPHRASE = "Correct-Horse-ä"
SCRYPT_OID = bytes.fromhex("06092b06010401da47040b")


def edgeseal(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def ok(*arguments: object) -> dict[str, Any]:
    """Run with --json; return the one object."""
    result = edgeseal(*arguments, "--json")
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    return tmp_path / "keys"


@pytest.fixture
def passphrase(tmp_path: Path) -> Path:
    return secret_file(tmp_path / "passphrase", PASSPHRASE)


def secret_file(path: Path, text: str) -> Path:
    path.write_text(text + "\n", "utf-8")
    return path


def der(pem: bytes) -> bytes:
    return base64.b64decode(b"".join(pem.splitlines()[1:-1]))


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("ml-dsa-65", MLDSA65PrivateKey), ("ml-dsa-44", MLDSA44PrivateKey), ("family", Ed25519PrivateKey)],
)
def test_every_kind_is_sealed_with_scrypt_and_read_by_an_independent_library(
    keys: Path, passphrase: Path, kind: str, expected: type
) -> None:
    ok("key", "new", "alice", "--kind", kind, "--keys", keys, "--passphrase-file", passphrase)
    pem = (keys / "alice.key").read_bytes()
    assert pem.startswith(b"-----BEGIN ENCRYPTED PRIVATE KEY-----\n")
    assert max(map(len, pem.splitlines())) <= 64
    assert SCRYPT_OID in der(pem)
    assert isinstance(load_pem_private_key(pem, PASSPHRASE.encode()), expected)
    with pytest.raises(ValueError, match=r"password|decrypt"):
        load_pem_private_key(pem, b"another")


@pytest.mark.parametrize("protected", [True, False])
def test_openssl_reads_a_family_secret(keys: Path, passphrase: Path, protected: bool) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed: a second reader of the container is missing")
    how = ["--passphrase-file", passphrase] if protected else ["--no-passphrase"]
    ok("key", "new", "bearing", "--kind", "family", "--keys", keys, *how)
    command = [openssl, "pkey", "-in", str(keys / "bearing.key"), "-noout", "-text"]
    command += ["-passin", f"file:{passphrase}"] if protected else []
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    written = bytes.fromhex(re.sub(r"[^0-9a-f]", "", done.stdout.split("priv:")[1].split("pub:")[0]))
    secret = KeyDirectory(keys).family("bearing", PASSPHRASE.encode() if protected else None)
    assert written == secret
    assert len(secret) == 32


def test_two_keys_under_one_passphrase_share_neither_salt_nor_bytes(keys: Path) -> None:
    key = Ed25519PrivateKey.generate()
    first, second = (der(to_pem(key, b"same")) for _ in range(2))
    assert len(first) == len(second)
    assert sum(a != b for a, b in zip(first, second, strict=True)) > 48
    assert not keys.exists()


@settings(max_examples=5, deadline=None)
@given(passphrase=st.binary(min_size=1, max_size=80))
def test_any_bytes_are_a_passphrase(passphrase: bytes) -> None:
    key = Ed25519PrivateKey.generate()
    found = load_pem_private_key(to_pem(key, passphrase), passphrase)
    assert isinstance(found, Ed25519PrivateKey)
    assert found.private_bytes_raw() == key.private_bytes_raw()


def test_a_wrong_passphrase_is_not_authorised_and_says_nothing_of_it(keys: Path, passphrase: Path) -> None:
    ok("key", "new", "alice", "--keys", keys, "--passphrase-file", passphrase)
    with pytest.raises(NotAuthorisedError) as e:
        KeyDirectory(keys).signer("alice", b"Wrong-Canary")
    assert "Wrong-Canary" not in str(e.value)
    with pytest.raises(NotAuthorisedError, match="passphrase"):
        KeyDirectory(keys).signer("alice", None)
    KeyDirectory(keys).signer("alice", PASSPHRASE.encode())


@pytest.mark.parametrize("text", ["Wrong-Canary", None])
def test_the_wrong_or_no_passphrase_ends_a_command_with_exit_code_4(
    tmp_path: Path, keys: Path, passphrase: Path, text: str | None
) -> None:
    ok("key", "new", "bearing", "--kind", "family", "--keys", keys, "--passphrase-file", passphrase)
    model = secret_file(tmp_path / "model.bin", "model")
    build = ["bundle", "build", model, "--model", "bearing", "--release", 1, "--family", "bearing", "--keys", keys]
    given_ = ["--passphrase-file", secret_file(tmp_path / "wrong", text)] if text else []
    result = edgeseal(*build, "--out", tmp_path / "out", *given_, "--json")
    assert result.exit_code == 4, result.output
    assert json.loads(result.stdout)["error"] == "NotAuthorisedError"
    assert "Wrong-Canary" not in result.output
    assert not (tmp_path / "out").exists()
    # Negative control: the right one does it.
    ok(*build, "--out", tmp_path / "out", "--passphrase-file", passphrase)


@pytest.mark.parametrize("text", ["", "\nsecond line", "x" * 5000])
def test_a_file_without_a_passphrase_on_its_first_line_makes_no_key(tmp_path: Path, keys: Path, text: str) -> None:
    result = edgeseal("key", "new", "a", "--keys", keys, "--passphrase-file", secret_file(tmp_path / "p", text))
    assert result.exit_code == 2, result.output
    assert not keys.exists()


def test_without_a_terminal_it_must_be_said_how_a_key_is_protected(keys: Path) -> None:
    result = edgeseal("key", "new", "alice", "--keys", keys)
    assert result.exit_code == 2
    assert "--no-passphrase" in result.output
    assert not keys.exists()


def test_both_a_passphrase_and_none_is_refused(keys: Path, passphrase: Path) -> None:
    result = edgeseal("key", "new", "alice", "--keys", keys, "--no-passphrase", "--passphrase-file", passphrase)
    assert result.exit_code == 2, result.output
    assert not keys.exists()


def test_a_key_is_never_overwritten(keys: Path, passphrase: Path) -> None:
    ok("key", "new", "alice", "--keys", keys, "--no-passphrase")
    before = {p.name: p.read_bytes() for p in keys.iterdir()}
    for how in (["--no-passphrase"], ["--passphrase-file", passphrase], ["--no-passphrase", "--kind", "family"]):
        result = edgeseal("key", "new", "alice", "--keys", keys, *how)
        assert result.exit_code == 2
        assert "never overwritten" in result.output
    assert {p.name: p.read_bytes() for p in keys.iterdir()} == before


def test_a_public_half_without_its_key_keeps_the_name(keys: Path) -> None:
    ok("key", "new", "alice", "--keys", keys, "--no-passphrase")
    (keys / "alice.key").unlink()
    result = edgeseal("key", "new", "alice", "--keys", keys, "--no-passphrase")
    assert result.exit_code == 2
    assert not (keys / "alice.key").exists(), "half of another key beside the public half"


def test_only_the_owner_can_read_a_key_whatever_the_umask(keys: Path) -> None:
    before = os.umask(0)
    try:
        ok("key", "new", "alice", "--keys", keys, "--no-passphrase")
    finally:
        os.umask(before)
    assert stat.S_IMODE((keys / "alice.key").stat().st_mode) == 0o600
    assert stat.S_IMODE((keys / "alice.pub.json").stat().st_mode) == 0o644
    assert stat.S_IMODE(keys.stat().st_mode) == 0o700


@pytest.mark.parametrize("name", ["../alice", "a/b", ".hidden", "", "ä", "a" * 65, "a b", "-x\n"])
def test_a_name_cannot_lead_out_of_the_directory(tmp_path: Path, keys: Path, name: str) -> None:
    result = edgeseal("key", "new", "--keys", keys, "--no-passphrase", "--", name)
    assert result.exit_code == 2, result.output
    assert not list(tmp_path.rglob("*.key"))


def test_a_secret_is_in_no_output(keys: Path, passphrase: Path) -> None:
    outputs = []
    for name, kind in (("alice", "ml-dsa-65"), ("bearing", "family")):
        for json_ in ([], ["--json"]):
            who = name + ("-json" if json_ else "")
            where = ["--keys", keys, *json_]
            outputs.append(edgeseal("key", "new", who, "--kind", kind, "--no-passphrase", *where))
            outputs.append(edgeseal("key", "new", f"{who}-p", "--kind", kind, "--passphrase-file", passphrase, *where))
            outputs.extend(edgeseal("key", "show", n, *where) for n in (who, f"{who}-p"))
            outputs.append(edgeseal("key", "list", *where))
    assert {r.exit_code for r in outputs} == {0}
    said = "".join(r.stdout + r.stderr for r in outputs)
    shown = "".join(p.read_text() for p in keys.glob("*.pub.json"))
    for path in keys.glob("*.key"):
        canaries = [path.read_bytes().split(b"\n")[1].decode()[-24:]]
        private = load_pem_private_key(
            path.read_bytes(), PASSPHRASE.encode() if b"ENCRYPTED" in path.read_bytes() else None
        )
        raw = private.private_bytes_raw()  # type: ignore[union-attr]
        canaries += [raw.hex(), base64.b64encode(raw).decode()[:40]]
        for canary in canaries:
            assert canary not in said
            assert canary not in shown
    assert PASSPHRASE not in said


def test_a_family_secrets_public_file_says_nothing_but_its_name(keys: Path) -> None:
    ok("key", "new", "bearing", "--kind", "family", "--keys", keys, "--no-passphrase")
    assert json.loads((keys / "bearing.pub.json").read_text()) == {"kind": "family", "name": "bearing"}


def test_list_and_show_in_both_forms(keys: Path, passphrase: Path) -> None:
    made = ok("key", "new", "alice", "--keys", keys, "--passphrase-file", passphrase)
    ok("key", "new", "bearing", "--kind", "family", "--keys", keys, "--no-passphrase")
    listed = ok("key", "list", "--keys", keys)["keys"]
    assert [(e["name"], e["kind"], e["encrypted"]) for e in listed] == [
        ("alice", "ml-dsa-65", True),
        ("bearing", "family", False),
    ]
    shown = ok("key", "show", "alice", "--keys", keys)
    assert shown["keyid"] == made["keyid"] == listed[0]["keyid"]
    assert shown["public"]["x-edgeseal-name"] == "alice"
    assert ok("key", "show", "bearing", "--keys", keys)["public"] is None
    text = edgeseal("key", "list", "--keys", keys).stdout
    assert "alice" in text
    assert made["keyid"][:16] in text
    assert "signs nothing" in edgeseal("key", "show", "bearing", "--keys", keys).stdout


def test_no_directory_lists_nothing(keys: Path) -> None:
    assert ok("key", "list", "--keys", keys) == {"keys": []}


def test_an_unknown_key_names_those_there_are(keys: Path) -> None:
    ok("key", "new", "alice", "--keys", keys, "--no-passphrase")
    result = edgeseal("key", "show", "alcie", "--keys", keys, "--json")
    assert result.exit_code == 2
    assert "alice" in json.loads(result.stdout)["hint"]


@pytest.mark.parametrize("name", ["../other/alice", "/etc/passwd", "", ".."])
def test_show_reads_nothing_outside_the_directory(tmp_path: Path, keys: Path, name: str) -> None:
    ok("key", "new", "alice", "--keys", tmp_path / "other", "--no-passphrase")
    keys.mkdir()
    result = edgeseal("key", "show", "--keys", keys, "--", name)
    assert result.exit_code == 2, result.output


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b"\xff", b'{"kind": "family"', b'{"kind": "other"}'])
def test_a_damaged_public_file_is_refused(keys: Path, data: bytes) -> None:
    ok("key", "new", "alice", "--keys", keys, "--no-passphrase")
    (keys / "alice.pub.json").write_bytes(data)
    result = edgeseal("key", "show", "alice", "--keys", keys, "--json")
    assert result.exit_code == 3, result.output


def test_a_public_file_without_its_fields_is_refused(keys: Path) -> None:
    ok("key", "new", "alice", "--keys", keys, "--no-passphrase")
    (keys / "alice.pub.json").write_text('{"kind": "ml-dsa-65"}')
    assert edgeseal("key", "show", "alice", "--keys", keys).exit_code == 3
    with pytest.raises(EdgesealError):
        KeyDirectory(keys).public("alice")


def test_halves_of_two_keys_do_not_sign(keys: Path) -> None:
    for name in ("alice", "bob"):
        ok("key", "new", name, "--keys", keys, "--no-passphrase")
    shutil.copyfile(keys / "bob.key", keys / "alice.key")
    with pytest.raises(EdgesealError, match="not halves of one key"):
        KeyDirectory(keys).signer("alice", None)


def test_a_family_secret_signs_nothing_and_a_signing_key_opens_nothing(keys: Path) -> None:
    ok("key", "new", "alice", "--keys", keys, "--no-passphrase")
    ok("key", "new", "bearing", "--kind", "family", "--keys", keys, "--no-passphrase")
    with pytest.raises(UsageError, match="family secret"):
        KeyDirectory(keys).signer("bearing", None)
    with pytest.raises(UsageError, match="signing key"):
        KeyDirectory(keys).family("alice", None)


def test_on_a_terminal_the_passphrase_is_asked_twice_and_not_echoed(keys: Path) -> None:
    primary, secondary = pty.openpty()
    command = [sys.executable, "-c", "from edgeseal_host.cli import main; main()"]
    command += ["key", "new", "alice", "--keys", str(keys), "--json"]
    process = subprocess.Popen(
        command, stdin=secondary, stdout=subprocess.PIPE, stderr=secondary, close_fds=True, start_new_session=True
    )
    os.close(secondary)
    seen = b""
    try:
        for _ in range(2):
            while not re.search(rb": ?$", seen):
                seen += os.read(primary, 1024)
            os.write(primary, b"Typed-Canary\n")
            seen += b"|"
        out, _ = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
        os.close(primary)
    assert process.returncode == 0
    assert b"Canary" not in seen + out
    assert json.loads(out)["encrypted"] is True
    KeyDirectory(keys).signer("alice", b"Typed-Canary")
