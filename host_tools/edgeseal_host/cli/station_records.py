"""`edgeseal station upload | carry | acknowledge | rework`: what a fleet server learns of devices, and re-work.

Not here: what these do (edgeseal_host.station); what the server does with it (edgeseal_host.fleet).
"""

from __future__ import annotations

import functools
import getpass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from edgeseal.durable import write_atomic
from edgeseal.errors import RefusedError, UsageError
from edgeseal.provisioning import CONTEXT
from edgeseal_host.bundle import read_bounded
from edgeseal_host.cli import options, output
from edgeseal_host.cli.station import station_option
from edgeseal_host.station.probe import printable

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey

    from edgeseal_host.fleet.client import FleetClient
    from edgeseal_host.station.directory import StationDirectory
    from edgeseal_host.station.enrolments import Signer

_PATH: Final = click.Path(path_type=Path, dir_okay=False)


@click.command()
@click.option("--batch", metavar="NAME", help="Only the devices of this batch.")
@options.server_options(required=True)
@options.passphrase_option
@station_option
@output.json_option
def upload(
    batch: str | None,
    url: str,
    token_file: Path,
    ca_file: Path | None,
    passphrase_file: Path | None,
    station: StationDirectory,
) -> None:
    """Send the records that the fleet server does not have yet, each with the station's signature.

    Records it refuses are named and stay; then the exit code is 3. Cut short, the next time goes on.
    """
    from edgeseal_host.station.devices import to_send
    from edgeseal_host.station.uploader import SigningRegistrar, send

    registrar = SigningRegistrar(options.client(url, token_file, ca_file), _signer(station, passphrase_file))
    refused: list[dict[str, Any]] = []
    sent = 0
    with station.journal() as journal:
        waiting = list(to_send(journal, batch=batch))
        with output.progress("records", total=len(waiting), unit="records") as advance:
            for entry, error in send(journal, registrar, waiting):
                advance(1)
                sent += error is None
                if error is not None:
                    refused.append({"device": entry.device, "serial": entry.serial, "reason": str(error)})
                    output.note(printable(f"{entry.device}: refused: {error}"))
    text = f"{sent} records sent, {len(refused)} refused" if waiting else "the fleet server has every record already"
    output.emit({"sent": sent, "refused": refused}, text)
    if refused:
        click.get_current_context().exit(RefusedError.exit_code)


@click.command()
@click.argument("file", type=_PATH)
@click.option("--batch", metavar="NAME", help="Only the devices of this batch.")
@click.option("--all", "everything", is_flag=True, help="Also those that the fleet server has already.")
@options.passphrase_option
@station_option
@output.json_option
def carry(
    file: Path,
    batch: str | None,
    everything: bool,  # noqa: FBT001 - click's flag
    passphrase_file: Path | None,
    station: StationDirectory,
) -> None:
    """Write FILE with the signed records that are not at the fleet server yet, to be carried there.

    Nothing in it is secret, and it may be imported twice. Works while a run is going on.
    """
    from edgeseal_host.station import enrolments
    from edgeseal_host.station.devices import newest, offer_for, to_send

    if file.exists():
        raise UsageError(f"{file} is there already", hint="choose another name, so that no records are lost")
    signer = _signer(station, passphrase_file)
    with station.journal(alone=False) as journal:
        found = list((newest if everything else to_send)(journal, batch=batch))
        records = [offer_for(journal, device.entry.kid).record for device in found]
    if not records:
        text = (
            "there is nothing to carry: no device's record is waiting (--all takes also those that are there already)"
        )
        output.emit({"file": None, "devices": [], "pin": signer.pin.hex()}, text)
        return
    if len(records) >= enrolments.MAX_LINES:
        raise UsageError(f"{len(records)} records are too many for one file", hint="carry them by --batch NAME")
    with output.progress("records", total=len(records), unit="records") as advance:
        lines = []
        for line in enrolments.write(records, signer):
            lines.append(line)
            advance(1)
    write_atomic(file, b"".join(lines), mode=0o644)
    text = (
        f"{len(records)} records in {file}; next, at the fleet server: edgeseal fleet import-enrolments {file.name}\n"
        f"  it must trust this station, id {signer.pin.hex()[:32]}"
    )
    devices = [device.entry.device for device in found]
    output.emit({"file": str(file), "devices": devices, "pin": signer.pin.hex()}, text)


@click.command()
@click.argument("receipt", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@station_option
@output.json_option
def acknowledge(receipt: Path, station: StationDirectory) -> None:
    """Take note of a RECEIPT that came back from the fleet server: these records are there, and not carried again."""
    from edgeseal_host.station import receipts

    taken = receipts.read(read_bounded(receipt, receipts.MAX_FILE))
    with station.journal() as journal:
        devices, left = receipts.acknowledge(journal, taken)
    text = f"{len(devices)} more records are at the fleet server; {left} still wait"
    output.emit({"devices": devices, "waiting": left}, text)


@click.command()
@click.argument("serial")
@click.option(
    "--reason", required=True, help="Why it is provisioned again: new card, repaired, …; the journal keeps it."
)
@click.option("--operator", default=getpass.getuser, help="Who authorises it, for the journal.  [default: the user]")
@click.option("--port", metavar="PATH", help="Also reset the device on this port, which runs `provision --reset`.")
@click.option("--baud", type=click.IntRange(1200, 12_000_000), default=115_200, show_default=True)
@options.server_options(required=False)
@options.passphrase_option
@station_option
@output.json_option
def rework(  # noqa: PLR0913, PLR0917 - what re-work needs
    serial: str,
    reason: str,
    operator: str,
    port: str | None,
    baud: int,
    url: str | None,
    token_file: Path | None,
    ca_file: Path | None,
    passphrase_file: Path | None,
    station: StationDirectory,
) -> None:
    """Authorise that the device of this SERIAL number is provisioned once more, as a new device.

    With --to and an operator's token its former identity is revoked at the fleet server. Otherwise somebody there has
    to: until then the server refuses the new one.
    """
    from edgeseal_host.station import rework as again

    client = None if url is None and token_file is None else options.client(url, token_file, ca_file)
    key = _private(station, passphrase_file) if port is not None else None
    with station.journal() as journal:
        done = again.former(journal, serial)
        new = again.authorise(journal, done, operator=operator, reason=reason)
        if port is not None and key is not None:
            sign = functools.partial(_sign_reset, key)
            dialogue = again.factory_reset(journal, station.public(), sign, serial)
            again.converse(dialogue, port, baud)
    # Last: with --port the device itself has said by now that it is the one that was meant.
    revoked = [] if client is None else _revoke(client, serial, f"provisioned again at {station.name}: {reason}")
    result = {"serial": serial, "former": done.device, "new": new, "revoked": revoked, "reset": port is not None}
    output.emit(result, _rework_text(result, done.device, asked=client is not None))


def _rework_text(result: dict[str, Any], former: str, *, asked: bool) -> str:
    serial = result["serial"]
    lines = [f"{serial} may be provisioned once more" + ("" if result["new"] else " (authorised before, not used yet)")]
    if result["reset"]:
        lines.append(f"  the device has destroyed its identity {former}")
    else:
        lines.append(f"  the device still has its identity {former}: give it a new card, or reset it with --port")
    if result["revoked"]:
        lines.append(f"  revoked at the fleet server: {', '.join(result['revoked'])}")
    elif asked:
        lines.append("  the fleet server knows no device of this serial number that is not revoked")
    else:
        lines.append(f"  before the fleet server takes the new record: edgeseal device revoke {former}")
    return "\n".join(lines)


def _revoke(client: FleetClient, serial: str, reason: str) -> list[str]:
    """Revoke whatever the fleet server has of a serial number; returns the names."""
    found = [str(d["name"]) for d in client.devices() if d["serial"] == serial and not d["revoked"]]
    for name in found:
        client.revoke(name, reason[:512])
    return found


def _sign_reset(private: MLDSA65PrivateKey, message: bytes) -> bytes:
    return private.sign(message, CONTEXT)


def _private(station: StationDirectory, passphrase_file: Path | None) -> MLDSA65PrivateKey:
    name = station.key_name
    return station.keys.mldsa65(name, options.passphrase_for(station.keys, name, passphrase_file))


def _signer(station: StationDirectory, passphrase_file: Path | None) -> Signer:
    from edgeseal_host.station.enrolments import Signer

    return Signer.of(station.public(), _private(station, passphrase_file))
