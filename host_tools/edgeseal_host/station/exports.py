"""Devices of a journal as CSV or JSON, for whoever keeps the books of a factory.

JSON has every text exactly as the device said it, in ASCII. CSV is for spreadsheets, which run what looks like a
formula: there such a text gets an apostrophe, and what cannot be printed becomes a question mark.
"""

from __future__ import annotations

import csv
import io
import json
import re
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

    from edgeseal_host.station.devices import Made

COLUMNS: Final = (
    *("device", "group", "batch", "serial", "eth_mac", "mmc_cid", "rpi_duid", "board_revision", "provision_ts"),
    *("operator", "fixture", "timings", "kid", "suite", "hardware", "agent", "entropy", "locked", "uploaded"),
)
FORMAT: Final = "edgeseal/devices/1"
# A formula begins with one of these, in full width too (OWASP, "CSV Injection"). It may also begin after a semicolon
# within a cell: where a country's spreadsheets separate cells by those, our quotes do not hold.
_FORMULA: Final = re.compile(r"""(^|[;,])([ "']*)(?=[=+\-@＝＋－＠])""")  # noqa: RUF001 - meant


def as_csv(devices: Iterable[Made]) -> str:
    """Return RFC 4180 text with a header: the columns never change their order, new ones are added at the end."""
    out = io.StringIO(newline="")
    writer = csv.writer(out, quoting=csv.QUOTE_ALL)
    writer.writerow(COLUMNS)
    for device in devices:
        row = device.row()
        writer.writerow([_cell(row[column]) for column in COLUMNS])
    return out.getvalue()


def as_object(devices: Iterable[Made]) -> dict[str, Any]:
    """Return what is printed as JSON; keys of a device are the columns of the CSV file."""
    rows = [device.row() for device in devices]
    return {"format": FORMAT, "devices": [{column: row[column] for column in COLUMNS} for row in rows]}


def as_json(devices: Iterable[Made]) -> str:
    """Return `as_object` as text for a file. ASCII: no terminal obeys it, no editor turns it around."""
    return json.dumps(as_object(devices), indent=2) + "\n"


def _cell(value: Any) -> str:  # noqa: ANN401 - a row's values
    structured = isinstance(value, bool | dict)
    text = json.dumps(value, ensure_ascii=False, sort_keys=True) if structured else str(value)
    return _FORMULA.sub(r"\1\2'", "".join(c if c.isprintable() else "?" for c in text))
