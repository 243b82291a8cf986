"""`python -m benchmarks`: the table on the terminal, JSON in benchmarks/out."""

import argparse
import tempfile
from pathlib import Path

import msgspec

from benchmarks.attach import Row, measure, memory, secondary
from multus.cli import output
from multus.cli.box import Box

OUT = Path(__file__).parent / "out"
_HEADER = (
    "NETWORKS",
    "AT A TIME",
    "PODS",
    "ADD ms",
    "p99",
    "DEL ms",
    "BINARIES ADD",
    "BINARIES DEL",
    "ADD RATIO",
    "PODS/s",
)


def main() -> None:
    """Run every point and print it."""
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument("--networks", type=int, nargs="+", default=[1, 2, 4, 8], help="eth0 included")
    parser.add_argument("--at-a-time", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--pods", type=int, default=32, help="pods a point")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="multus-bench-") as scratch, Box(Path(scratch, "node")) as box:
        for number in range(1, max(chosen.networks)):
            box.nad(f"n{number}", secondary(number))
        started = box.start()
        idle = memory(box)
        rows = [
            measure(box, networks=networks, at_a_time=at_a_time, pods=chosen.pods)
            for at_a_time in chosen.at_a_time
            for networks in chosen.networks
        ]
        busy = memory(box)
    _print(rows)
    print(
        f"\nmultusd: ready after {started * 1000:.0f} ms; {idle:.1f} MiB resident when idle, {busy:.1f} MiB at the end"
    )
    OUT.mkdir(exist_ok=True)
    body = {"rows": rows, "idle_mib": idle, "end_mib": busy, "start_seconds": started}
    (OUT / "attach.json").write_bytes(msgspec.json.format(msgspec.json.encode(body), indent=2))


def _print(rows: list[Row]) -> None:
    output.table(
        _HEADER,
        [
            (
                str(row.networks),
                str(row.at_a_time),
                str(row.pods),
                *(
                    f"{value:.1f}"
                    for value in (row.add_ms, row.add_p99_ms, row.del_ms, row.bare_add_ms, row.bare_del_ms)
                ),
                f"{row.ratio:.2f}",
                f"{row.pods_per_second:.1f}",
            )
            for row in rows
        ],
    )


if __name__ == "__main__":
    main()
