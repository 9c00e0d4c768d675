"""Devices and failures of a journal as CSV or JSON, for whoever keeps the books of a factory.

JSON has every text exactly as the device said it, in ASCII. CSV is for spreadsheets, which run what looks like a
formula: there such a text gets an apostrophe, and what cannot be printed becomes a question mark.
"""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from edgeseal_host.station import chain
from edgeseal_host.station.devices import timestamp

if TYPE_CHECKING:
    from collections.abc import Iterable

    from edgeseal_host.station.chain import Entry
    from edgeseal_host.station.devices import Made
    from edgeseal_host.station.journal import Journal

_BOARD: Final = ("serial", "eth_mac", "mmc_cid", "rpi_duid", "board_revision")
COLUMNS: Final = (
    *("device", "group", "batch", *_BOARD, "provision_ts", "operator", "fixture", "timings", "kid", "suite"),
    *("hardware", "agent", "entropy", "locked", "uploaded"),
)
FAILURE_COLUMNS: Final = (
    *("provision_ts", "batch", *_BOARD, "operator", "fixture", "code", "reason", "timings", "kid"),
)
FORMAT: Final = "edgeseal/devices/1"
FAILURE_FORMAT: Final = "edgeseal/failures/1"
# A formula begins with one of these, in full width too (OWASP, "CSV Injection"). It may also begin after a semicolon
# within a cell: where a country's spreadsheets separate cells by those, our quotes do not hold.
_FORMULA: Final = re.compile(r"""(^|[;,])([ "']*)(?=[=+\-@＝＋－＠])""")  # noqa: RUF001 - meant


@dataclass(frozen=True, slots=True)
class Listing:
    """Rows with the same columns. Columns never change their order; new ones are added at the end."""

    format: str
    name: str
    columns: tuple[str, ...]
    rows: tuple[dict[str, Any], ...]

    def as_csv(self) -> str:
        """Return RFC 4180 text with a header."""
        out = io.StringIO(newline="")
        writer = csv.writer(out, quoting=csv.QUOTE_ALL)
        writer.writerow(self.columns)
        writer.writerows([_cell(row[column]) for column in self.columns] for row in self.rows)
        return out.getvalue()

    def as_json(self) -> str:
        """Return one object whose rows have the columns of the CSV text as keys. ASCII: no terminal obeys it."""
        rows = [{column: row[column] for column in self.columns} for row in self.rows]
        return json.dumps({"format": self.format, self.name: rows}, indent=2) + "\n"


def devices(made: Iterable[Made]) -> Listing:
    """List devices that were provisioned."""
    return Listing(FORMAT, "devices", COLUMNS, tuple(device.row() for device in made))


def failures(journal: Journal, *, batch: str | None = None) -> Listing:
    """List every FAIL, oldest first, of one batch or of all; a device may be there many times."""
    found = (e for e in journal.of_kind(chain.FAILED) if batch in {None, e.batch})
    return Listing(FAILURE_FORMAT, "failures", FAILURE_COLUMNS, tuple(_failure(entry) for entry in found))


def _failure(entry: Entry) -> dict[str, Any]:
    detail = entry.details()
    return {
        "provision_ts": timestamp(entry.provision_ts),
        "code": detail.get("code", 0),
        "reason": detail.get("reason", ""),
        "timings": json.loads(entry.timings),
        "kid": entry.kid.hex(),
        **{name: getattr(entry, name) for name in ("batch", *_BOARD, "operator", "fixture")},
    }


def _cell(value: Any) -> str:  # noqa: ANN401 - a row's values
    structured = isinstance(value, bool | dict)
    text = json.dumps(value, ensure_ascii=False, sort_keys=True) if structured else str(value)
    return _FORMULA.sub(r"\1\2'", "".join(c if c.isprintable() else "?" for c in text))
