"""What the commands of the benchmarks have in common: their options, and how they end.

A script adds the options that only it has, and prints verdicts behind the report.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from measure import Row, print_tables, write_results
from provenance import RESULTS
from rich.console import Console

__all__ = ["options", "print_source", "report", "whole_run"]


def options(
    doc: str | None, *, quick: str = "fewer samples", only: bool = True, runtime: bool = False
) -> argparse.ArgumentParser:
    """Return a parser with the options that benchmarks share.

    Args:
        doc: the script's docstring; its first line says what is measured.
        quick: what ``--quick`` does.
        only: whether cases can be chosen by a part of their name.
        runtime: whether the simulator can verify contenders.
    """
    parser = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help=quick)
    if only:
        parser.add_argument("--only", default="", help="only cases with this in their name")
    if runtime:
        parser.add_argument("--runtime", choices=("cuda", "sim"), default="cuda")
    parser.add_argument(
        "--out", type=Path, help="results folder (default: bench/results, of whole runs)"
    )
    return parser


def whole_run(chosen: argparse.Namespace) -> bool:
    """Return whether nothing was left out, so that the results are worth keeping."""
    return not chosen.quick and not getattr(chosen, "only", "")


def print_source(console: Console, source: Mapping[str, Any]) -> None:
    """Print what is measured on."""
    console.print(f"{source['device']}, driver {source['driver']}, CUDA {source['cuda']}")


def report(
    console: Console,
    bench: str,
    source: Mapping[str, Any],
    rows: Sequence[Row],
    *,
    out: Path | None,
    whole: bool,
    absent: Mapping[str, str] | None = None,
    failures: Iterable[str] = (),
) -> int:
    """Write the rows and print them; return 1 when a contender failed.

    Args:
        console: where to print.
        bench: names the results file.
        source: where the numbers come from.
        rows: the numbers.
        out: the results folder; bench/results for a whole run, none for another, when None.
        whole: whether nothing was left out.
        absent: libraries that took no part and why, for the results file.
        failures: what to say of contenders that failed.
    """
    folder = out or (RESULTS if whole else None)
    if folder is None:
        console.print(f"{len(rows)} rows, not written: only a whole run is, or one with --out")
    else:
        known = source if absent is None else {**source, "absent": absent}
        console.print(f"{len(rows)} rows in {write_results(bench, known, rows, folder=folder)}")
    print_tables(console, rows)
    for name, why in (absent or {}).items():
        console.print(f"absent: {name}: {why}", markup=False)
    failed = list(failures)
    for failure in failed:
        console.print(f"FAILED: {failure}", markup=False)
    return 1 if failed else 0
