"""Put results of bench/decode.py together that runs of different batches wrote.

    python3 bench/decode.py --batches 1,8 --out a & python3 bench/decode.py --batches 64 --out b
    python3 bench/decode_join.py a/nvidia-h200/decode.json b/nvidia-h200/decode.json

For two devices of one host, where the whole comparison takes half the time. All contenders of a
batch still take turns in one run, and each run measures the bandwidth of its own device.
"""

# Not a benchmark: it puts results together that are there.

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from measure import Row, read_results, write_results

BANDWIDTH = "read bandwidth"


def joined(
    parts: Sequence[tuple[dict[str, Any], list[Row]]],
) -> tuple[dict[str, Any], list[Row]]:
    """Return provenance and rows of all parts.

    Raises:
        ValueError: parts of different code, devices or versions, or a case that two of them have.
    """
    (first, _), *others = parts
    for source, _ in others:
        different = [
            key for key in first if key not in ("absent", "date") and source.get(key) != first[key]
        ]
        if different:
            raise ValueError(f"parts: expected the same {', '.join(different)} in all of them")
    rows: list[Row] = []
    for number, (_, part) in enumerate(parts, 1):
        if {row.case for row in rows} & {row.case for row in part}:
            raise ValueError("parts: expected each case in one of them")
        rows += [
            replace(row, case=f"{row.case}, device {number}")
            if row.case.startswith(BANDWIDTH)
            else row
            for row in part
        ]
    absent = {name: why for source, _ in parts for name, why in source["absent"].items()}
    return {**first, "absent": absent}, rows


def main(arguments: list[str] | None = None) -> int:
    """Join the parts that are named, in the results folder."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("parts", nargs="+", type=Path)
    source, rows = joined([read_results(part) for part in parser.parse_args(arguments).parts])
    print(f"{len(rows)} rows, in {write_results('decode', source, rows)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
