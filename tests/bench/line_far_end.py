"""The far end of the manufacturing line's benchmark: devices on paced lines, in a process of their own.

    python -m tests.bench.line_far_end COUNT BAUD

Prints the station's ports as JSON, waits for a line on standard input, prints how many bytes each line has carried.
"""

from __future__ import annotations

import json
import sys

from tests.sim.line_devices import numbered, powered
from tests.sim.serial_line import bench


def main(count: int, baud: int) -> None:
    """Serve until told to stop."""
    with bench(count, baud=baud) as lines, powered([line.device for line in lines], numbered(count)):
        print(json.dumps([line.station for line in lines]), flush=True)
        sys.stdin.readline()
        print(json.dumps([sum(line.passed.values()) for line in lines]), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
