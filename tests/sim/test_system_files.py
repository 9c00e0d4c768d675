"""Units, sysusers, tmpfiles and udev rules, read by the programs that will read them on a device."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from tests.needed import missing

SYSTEM = Path(__file__).parents[2] / "agent" / "system"
UNITS = ("edgeseal-agent.service", "edgeseal-serve.service", "edgeseal-provision.service")
_EXPOSURE = 25  # `systemd-analyze security`, in tenths: "OK" ends at 4.9; a unit that lost its sandbox has 96


def run(*command: str) -> subprocess.CompletedProcess[str]:
    if shutil.which(command[0]) is None:
        missing(f"needs {command[0]} (apt-get install systemd udev)")
    return subprocess.run(command, capture_output=True, text=True, check=False)


def unit_with_programs(tmp_path: Path, name: str, change: tuple[str, str] = ("", "")) -> Path:
    """Return a copy whose programs exist on this machine: verify looks for them."""
    for program in ("edgeseal-agent", "edgeseal-serve"):
        (tmp_path / program).symlink_to("/bin/true")
    unit = tmp_path / name
    unit.write_text((SYSTEM / name).read_text().replace("/opt/edgeseal/bin", str(tmp_path)).replace(*change))
    return unit


@pytest.mark.parametrize("name", UNITS)
def test_systemd_understands_every_line_of_a_unit(tmp_path: Path, name: str) -> None:
    done = run("systemd-analyze", "verify", "--man=no", str(unit_with_programs(tmp_path, name)))
    assert (done.returncode, [line for line in done.stderr.splitlines() if name in line]) == (0, [])


@pytest.mark.parametrize(
    "change",
    [
        ("NoNewPrivileges=yes", "NoNewPrivilege=yes"),
        ("Restart=always", "Restart=sometimes"),
        ("RestrictRealtime=yes", "RestrictRealtime=perhaps"),
    ],
)
def test_a_line_that_systemd_ignores_would_be_found(tmp_path: Path, change: tuple[str, str]) -> None:
    unit = unit_with_programs(tmp_path, UNITS[0], change)
    done = run("systemd-analyze", "verify", "--man=no", str(unit))
    assert unit.name in done.stderr


@pytest.mark.parametrize("name", UNITS)
def test_the_sandbox_stays_shut(name: str) -> None:
    done = run("systemd-analyze", "security", "--offline=true", f"--threshold={_EXPOSURE}", str(SYSTEM / name))
    assert done.returncode == 0, done.stdout[-400:]


def test_an_open_sandbox_would_be_found(tmp_path: Path) -> None:
    unit = tmp_path / "open.service"
    unit.write_text("[Service]\nExecStart=/bin/true\n")
    done = run("systemd-analyze", "security", "--offline=true", f"--threshold={_EXPOSURE}", str(unit))
    assert done.returncode != 0


def _allowed(unit: str) -> set[str]:
    """Return the system calls that a unit's filter lets through, with systemd's groups opened up."""
    words = {w for line in unit.splitlines() if line.startswith("SystemCallFilter=") for w in line[17:].split()}
    while groups := {w for w in words if w.startswith("@")}:
        done = run("systemd-analyze", "syscall-filter", *groups)
        assert done.returncode == 0, done.stderr
        members = {line.strip() for line in done.stdout.splitlines() if line.startswith("    ")}
        words = (words - groups) | {m for m in members if not m.startswith("#")}
    return words


def _guides_units(tmp_path: Path) -> str:
    """Install our socket and what the runtime guides show, as they say; return what systemd says of all of it."""
    guides = Path(__file__).parents[2] / "docs" / "guides"
    (drop_in,) = re.findall(r"^```ini\n(.*?)^```$", (guides / "serve.md").read_text(), re.MULTILINE | re.DOTALL)
    (unit,) = re.findall(
        r"^```ini\n(.*?)^```$", (guides / "bring-your-own-runtime.md").read_text(), re.MULTILINE | re.DOTALL
    )
    unit_with_programs(tmp_path, "edgeseal-serve.service")
    shutil.copy(SYSTEM / "edgeseal-serve.socket", tmp_path)
    (tmp_path / "edgeseal-serve.socket.d").mkdir()
    (tmp_path / "edgeseal-serve.socket.d" / "unix.conf").write_text(drop_in)
    (tmp_path / "inference.service").write_text(unit.replace("/usr/local/bin/inference", "/bin/true"))
    words = ["systemd-analyze", "verify", "--man=no", "edgeseal-serve.socket", "inference.service"]
    if shutil.which(words[0]) is None:
        missing(f"needs {words[0]} (apt-get install systemd)")
    environment = {**os.environ, "SYSTEMD_UNIT_PATH": f"{tmp_path}:"}
    return subprocess.run(words, capture_output=True, text=True, check=False, env=environment).stderr


def test_systemd_understands_the_units_of_the_guides(tmp_path: Path) -> None:
    assert [line for line in _guides_units(tmp_path).splitlines() if "edgeseal" in line or "inference" in line] == []


def test_a_wrong_line_in_a_guide_would_be_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.read_text

    def misspelt(path: Path, *arguments: str) -> str:
        return real(path, *arguments).replace("SocketGroup=", "SocketGruop=").replace("RestartSec=1", "RestartSec=x")

    monkeypatch.setattr(Path, "read_text", misspelt)
    said = _guides_units(tmp_path)
    assert "SocketGruop" in said
    assert "inference.service:5: Failed to parse" in said


# What the agent and its probe worker need beyond any server: child.run, confine, durable writes.
_NEEDED = {
    *("pidfd_open", "memfd_create", "prctl", "prlimit64", "setrlimit", "unshare", "kill", "setsid"),
    *("landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self"),
    *("fsync", "fdatasync", "rename", "renameat2", "symlink", "chown", "chmod"),
}


def test_the_agents_filter_lets_through_what_its_probe_confines_itself_with() -> None:
    assert _allowed((SYSTEM / UNITS[0]).read_text()) >= _NEEDED


def test_the_servers_filter_lets_through_what_a_shadow_confines_itself_with() -> None:
    confining = {call for call in _NEEDED if call.startswith("landlock")} | {"prctl", "prlimit64", "setpriority"}
    assert _allowed((SYSTEM / "edgeseal-serve.service").read_text()) >= confining


def test_a_filter_without_landlock_would_be_found() -> None:
    lines = (SYSTEM / UNITS[0]).read_text().splitlines()
    text = "\n".join(line for line in lines if "landlock" not in line)
    if "landlock_add_rule" in _allowed(text):
        pytest.skip("this systemd has Landlock in a group of @system-service")
    assert not _allowed(text) >= _NEEDED


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An empty system with our files in it; making users and owners needs root."""
    if os.getuid():
        missing("needs root")
    for place, name in (("sysusers.d", "edgeseal.sysusers"), ("tmpfiles.d", "edgeseal.tmpfiles")):
        target = tmp_path / "usr" / "lib" / place / "edgeseal.conf"
        target.parent.mkdir(parents=True)
        shutil.copy(SYSTEM / name, target)
    (tmp_path / "etc").mkdir()
    return tmp_path


def test_sysusers_and_tmpfiles_make_the_users_and_directories(root: Path) -> None:
    made = run("systemd-sysusers", f"--root={root}", "edgeseal.conf")
    assert made.returncode == 0, made.stderr
    ids = {line.split(":")[0]: line.split(":") for line in (root / "etc/passwd").read_text().splitlines()}
    groups = {line.split(":")[0]: line.split(":") for line in (root / "etc/group").read_text().splitlines()}
    assert set(groups["edgeseal-models"][3].split(",")) == {"edgeseal", "edgeseal-serve"}
    assert ids["edgeseal"][6].endswith("nologin")
    done = run("systemd-tmpfiles", "--create", f"--root={root}", "edgeseal.conf")
    assert done.returncode == 0, done.stderr
    for place, mode, owner, group in (
        ("var/lib/edgeseal", 0o700, "edgeseal", "edgeseal"),
        ("run/edgeseal", 0o710, "edgeseal", "edgeseal-models"),
        ("run/edgeseal/models", 0o750, "edgeseal", "edgeseal-models"),
    ):
        found = (root / place).stat()
        assert found.st_mode & 0o777 == mode
        assert (found.st_uid, found.st_gid) == (int(ids[owner][2]), int(groups[group][2]))


@pytest.mark.parametrize(("wrong", "right"), [("u edgeseal - ", "u edgeseal "), ("d /run/edgeseal 0710", "d run 07x0")])
def test_a_wrong_line_would_be_found(root: Path, wrong: str, right: str) -> None:
    """The negative control for both programs."""
    for place, program in (("sysusers.d", ("systemd-sysusers",)), ("tmpfiles.d", ("systemd-tmpfiles", "--create"))):
        file = root / "usr" / "lib" / place / "edgeseal.conf"
        if wrong in file.read_text():
            file.write_text(file.read_text().replace(wrong, right))
            assert "edgeseal.conf" in run(*program, f"--root={root}", "edgeseal.conf").stderr


def _udev_says(tmp_path: Path, text: str) -> list[str]:
    """Return what udev complains about in rules with that text, read in a mount namespace of its own."""
    if os.getuid():
        missing("needs root")
    if shutil.which("udevadm") is None:
        missing("needs udevadm (apt-get install udev)")
    rules = tmp_path / "70-edgeseal-qrng.rules"
    rules.write_text(text)
    script = (
        "mkdir -p /run/udev && mount -t tmpfs none /run/udev && mkdir /run/udev/rules.d && "
        f"cp {rules} /run/udev/rules.d/ && SYSTEMD_LOG_LEVEL=debug udevadm test /sys/class/mem/null"
    )
    done = run("unshare", "-m", "sh", "-c", script)
    said = (done.stdout + done.stderr).splitlines()
    if not any("Reading rules file" in line and rules.name in line for line in said):
        missing("udevadm cannot read rules here (mount namespaces, /sys)")
    group = "Unknown group 'edgeseal', ignoring"  # sysusers.d makes it, on a device
    return [line for line in said if rules.name in line and "Reading" not in line and group not in line]


def test_udev_reads_every_rule(tmp_path: Path) -> None:
    assert _udev_says(tmp_path, (SYSTEM / "70-edgeseal-qrng.rules").read_text()) == []


@pytest.mark.parametrize(
    "change", [("GROUP=", "GRUOP="), ('MODE="0660"', 'MODE=="0660"'), ("edgeseal_qrng_end", "x y")]
)
def test_a_rule_that_udev_ignores_would_be_found(tmp_path: Path, change: tuple[str, str]) -> None:
    assert _udev_says(tmp_path, (SYSTEM / "70-edgeseal-qrng.rules").read_text().replace(*change, 1))
