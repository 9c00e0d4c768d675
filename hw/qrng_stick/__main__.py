"""Behind `./dev hw`: regenerate and check the stick's hardware, headless; `--write` renews what docs show of it."""

from __future__ import annotations

import csv
import sys
from typing import Any

from hw.qrng_stick import checks, documents, drawing, parts, pictures, spice
from hw.qrng_stick.values import NOMINAL

BUILD = checks.ROOT / "build" / "hw" / "qrng_stick"
PICTURES = checks.ROOT / "docs" / "pictures"
PAGES = [checks.ROOT / "docs" / "qrng-model.md", checks.ROOT / "hw" / "qrng_stick" / "README.md"]


def documentation(report: dict[str, Any], tables: dict[str, str]) -> list[checks.Check]:
    """Find tables and pictures of the documentation that show other numbers than the design's."""
    shown = pictures.stale(pictures.pictures(NOMINAL), PICTURES) + drawing.stale(report, PICTURES)
    old = documents.stale(PAGES, tables) + shown
    wanted = "tables and pictures as the design"
    came = f"old: {', '.join(old)}; renew with ./dev hw --write" if old else wanted
    return [checks.Check("documentation", wanted, came, not old)]


def main(argv: list[str]) -> int:
    """Write netlist, deck and bill of materials into the build folder, run every check; 1 if one failed."""
    BUILD.mkdir(parents=True, exist_ok=True)
    report = checks.draw(BUILD)
    (BUILD / "front_end.cir").write_text(spice.netlist(NOMINAL), encoding="ascii")
    with (BUILD / "bom.csv").open("w", encoding="utf-8", newline="") as out:
        csv.writer(out).writerows(parts.csv_rows(checks.references(report), NOMINAL))
    tables = {**documents.blocks(NOMINAL), "bom": documents.bom_table(NOMINAL, report)}
    if "--write" in argv:
        documents.write(PAGES, tables)
        PICTURES.mkdir(parents=True, exist_ok=True)
    folder = PICTURES if "--write" in argv else BUILD
    for picture in pictures.pictures(NOMINAL):
        pictures.draw(picture, folder)
    drawing.draw(report, folder)
    sections = (
        checks.simulation(NOMINAL),
        checks.stochastic(NOMINAL),
        checks.drawing(NOMINAL, report),
        documentation(report, tables),
    )
    results = [check for section in sections for check in section]
    checks.show(results)
    print(f"\nnetlist, bill of materials, ngspice deck and pictures: {BUILD}")
    failed = sum(not check.ok for check in results)
    print(f"{len(results)} checks, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
