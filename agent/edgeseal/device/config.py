"""The agent's configuration: one TOML file, every key optional, every mistake named by its key.

Not here: what enrolment brought (edgeseal.device.profile) and what the agent remembers (edgeseal.device.state).
"""

from __future__ import annotations

import difflib
import platform
import re
import tomllib
from pathlib import Path
from typing import Annotated, Final, Literal, get_type_hints

import msgspec

from edgeseal.errors import UsageError
from edgeseal.runtime import serve_status
from edgeseal.runtime.engine_settings import MAX_THREADS

DEFAULT_PATH: Final = Path("/etc/edgeseal/edgeseal.toml")
MAX_CONFIG: Final = 65_536
_DEVICE_TREE: Final = Path("/proc/device-tree/compatible")
_SERIAL: Final = Path("/proc/device-tree/serial-number")
_MACHINE_ID: Final = Path("/etc/machine-id")

_SOURCES: Final = (
    "edgeseal-qrng|quantis-usb|qcicada|chaoskey|truerng|onerng|infinite-noise|swiftrng|comscire|hwrng|file"
)

Seconds = Annotated[int, msgspec.Meta(ge=1, le=31 * 86_400)]
Mebibytes = Annotated[int, msgspec.Meta(ge=1, le=2**20)]
Url = Annotated[str, msgspec.Meta(pattern=r"^https?://[^\s/?#@]+(/[^\s?#]*)?\Z", max_length=256)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
SourceEntry = Annotated[str, msgspec.Meta(pattern=rf"^({_SOURCES})(:[ -~]{{1,120}})?\Z")]


class _Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class Device(_Section, frozen=True):
    """What this device is. Releases say for which hardware they are; several names are separated by commas."""

    hardware: Annotated[str, msgspec.Meta(max_length=256)] = ""
    serial: Annotated[str, msgspec.Meta(max_length=128)] = ""


class Fleet(_Section, frozen=True):
    """Where things are fetched from. The default for all is the fleet server named by the enrolment grant."""

    url: Url | None = None
    metadata_url: Url | None = None
    targets_url: Url | None = None
    objects_url: Url | None = None
    ca_file: Path | None = None
    deadline_seconds: Seconds = 3600
    poll_seconds: Seconds | None = None
    report_seconds: Seconds | None = None


class Paths(_Section, frozen=True):
    """Where state and decrypted models live."""

    state: Path = Path("/var/lib/edgeseal")
    models: Path = Path("/run/edgeseal/models")


class Runtime(_Section, frozen=True):
    """How a model is handed over, what the acceptance probe may use, and how long and strictly a switch is watched.

    `watch_error_rate` is the part of answers that may fail beyond what the release before had. `threads` are the most
    of one inference in the probe, whatever a release asks for (0: one for each core); edgeseal-serve has `--threads`.

    With `shadow_seconds` a release runs `shadow_fraction` of the live requests beside the old one before the switch; at
    most the part `shadow_divergence` of its answers may be further off than `shadow_tolerance`, or of another class.
    """

    adapter: Literal["serve", "exec", "systemd", "oip-http", "none"] = "serve"
    command: Annotated[list[Name], msgspec.Meta(max_length=32)] = []
    unit: Annotated[str, msgspec.Meta(max_length=128)] = ""
    url: Url | None = None
    status_file: Path = serve_status.DEFAULT
    activate_seconds: Seconds = 120
    watch_seconds: Annotated[int, msgspec.Meta(ge=0, le=86_400)] = 60
    watch_error_rate: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.05
    shadow_seconds: Annotated[int, msgspec.Meta(ge=0, le=7200)] = 0  # a pass is ended after service.pass_seconds
    shadow_fraction: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.1
    shadow_compare: Literal["values", "top-1"] = "values"
    shadow_tolerance: Annotated[float, msgspec.Meta(ge=0, le=2)] = 0.05
    shadow_divergence: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.05
    offers: Annotated[list[Name], msgspec.Meta(max_length=16)] | None = None
    probe: bool = True
    probe_seconds: Seconds = 60
    probe_memory_mb: Mebibytes = 1024
    threads: Annotated[int, msgspec.Meta(ge=0, le=MAX_THREADS)] = 0
    group: Annotated[str, msgspec.Meta(max_length=32)] = ""
    allow_disk: bool = False
    workers: Annotated[int, msgspec.Meta(ge=1, le=4)] | None = None


class Entropy(_Section, frozen=True):
    """Randomness: `require` refuses to make keys without a healthy hardware source.

    `sources` names the devices that may be opened; nothing else ever is. `credit` and `kernel_reseed` need
    CAP_SYS_ADMIN and are needed for nothing. `lab` accepts simulated sticks and recordings.
    """

    policy: Literal["off", "mix", "require"] = "mix"
    sources: Annotated[list[SourceEntry], msgspec.Meta(max_length=8)] = []
    feed_kernel: bool = True
    feed_seconds: Seconds = 60
    credit: bool = False
    kernel_reseed: bool = False
    retry_failed_seconds: Seconds | None = None
    stick_keys: Path | None = None
    lab: bool = False


class Service(_Section, frozen=True):
    """The service loop. Jitter spreads a fleet's polls; back-off grows to its ceiling while passes fail."""

    jitter: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.2
    backoff_seconds: Seconds = 30
    backoff_max_seconds: Seconds = 3600
    pass_seconds: Seconds = 4 * 3600


class Config(_Section, frozen=True):
    """All sections with their defaults."""

    device: Device = Device()
    fleet: Fleet = Fleet()
    paths: Paths = Paths()
    runtime: Runtime = Runtime()
    entropy: Entropy = Entropy()
    service: Service = Service()

    @property
    def hardware(self) -> list[str]:
        """Names of this hardware: configured, or from the device tree, or the machine's architecture."""
        if self.device.hardware:
            return [name.strip() for name in self.device.hardware.split(",") if name.strip()]
        return _device_tree_names() or [platform.machine()]

    @property
    def serial(self) -> str:
        """Serial number: configured, or the board's, or the machine id."""
        return self.device.serial or _first_line(_SERIAL) or _first_line(_MACHINE_ID) or "unknown"


def load(path: Path | None) -> Config:
    """Read `path`; None means the default path, which need not exist.

    Raises UsageError that names the key.
    """
    chosen = path or DEFAULT_PATH
    try:
        with chosen.open("rb") as f:
            data = f.read(MAX_CONFIG + 1)
    except FileNotFoundError:
        if path is None:
            return Config()
        raise UsageError(f"there is no configuration file {path}") from None
    except OSError as e:
        raise UsageError(f"cannot read the configuration file {chosen}: {e.strerror}") from e
    return parse(data, name=str(chosen))


def parse(data: bytes, *, name: str) -> Config:
    """Parse the TOML text of a configuration file called `name`.

    Raises UsageError that names the key and, for an unknown one, what it may have meant.
    """
    if len(data) > MAX_CONFIG:
        raise UsageError(f"{name} is longer than {MAX_CONFIG} bytes")
    try:
        document = tomllib.loads(data.decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as e:
        raise UsageError(f"{name} is not TOML: {e}") from e
    try:
        return msgspec.convert(document, Config, strict=True, dec_hook=_path)
    except msgspec.ValidationError as e:
        raise _named(str(e), name) from None


def _path(kind: type, value: object) -> object:
    """Make a path of a TOML string; msgspec calls this for types it does not know."""
    if kind is Path and isinstance(value, str) and value.startswith("/") and "\0" not in value:
        return Path(value)
    raise ValueError("expected an absolute path")


def _named(reason: str, name: str) -> UsageError:
    """Turn msgspec's message into one with the dotted key in front, and a suggestion for a misspelt key."""
    text, _, where = reason.partition(" - at `$")
    key = re.sub(r"[`$]", "", where).lstrip(".")
    unknown = re.fullmatch(r"Object contains unknown field `(.*)`", text)
    if not unknown:
        return UsageError(f"{name}: {key or 'top level'}: {text}")
    section, known = _known_keys(key)
    close = difflib.get_close_matches(unknown[1], known, n=1)
    dotted = f"{section}.{unknown[1]}" if section else unknown[1]
    elsewhere = [f"{s}.{unknown[1]}" for s in _SECTIONS if unknown[1] in _SECTIONS[s].__struct_fields__]
    suggestion = (close and f"did you mean {close[0]}?") or (elsewhere and f"did you mean {elsewhere[0]}?")
    return UsageError(f"{name}: {dotted}: there is no such key", hint=suggestion or f"known are: {', '.join(known)}")


_SECTIONS: Final[dict[str, type[msgspec.Struct]]] = {
    field: kind for field, kind in get_type_hints(Config).items() if isinstance(kind, type)
}


def _known_keys(section: str) -> tuple[str, tuple[str, ...]]:
    schema = _SECTIONS.get(section, Config)
    return (section if section in _SECTIONS else ""), schema.__struct_fields__


def _device_tree_names() -> list[str]:
    """Return the board's `compatible` list: NUL-separated, most specific first."""
    try:
        return [n for n in _DEVICE_TREE.read_text("ascii", "replace").split("\0") if n]
    except OSError:
        return []


def _first_line(path: Path) -> str:
    try:
        return path.read_text("ascii", "replace").strip("\0\n ")[:128]
    except OSError:
        return ""
