"""What control flow inside of a graph costs beside the host's: loops.

    python3 bench/flow.py [--quick] [--only TEXT] [--out DIR]

Every contender is verified first, and is then timed in turn with all others.

- `an iteration of a loop`: a while node beside launching its body again and again with a look at a
  flag in between, for bodies of 1, 10 and 100 kernels. `host busy` is how long the host cannot do
  anything else, `until done` lasts until the loop has ended, `on the device` from event to event;
  each divided by the iterations.

NOTES. Predictions, written before the first measurement, from the probes on an H200 (driver 580):

- a while node with one kernel takes 4.2 us an iteration, with ten 8.3, with 100 56. The shipped
  setter is one more kernel: 0.7 us more an iteration where the user's own kernel sets the handle.
- the host is busy for one launch, 2 us: 0.02 us an iteration of 100, a thousandth of the others'.
- launch, copy, wait, look: 20 us an iteration with one kernel, 25 with ten, 75 with 100; with the
  copy inside of the graph 3 us less, since a call is saved. So the while node is 4.8, 3 and 1.3
  times as fast until done.
- by calls of cuda.bindings the same as by graphkit: the device decides.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace

import flow_diamond
import flow_while
from command import options, print_source, report, whole_run
from flow_setting import Case, FlowSetting, UnavailableError, measure
from measure import Row, progress_bar
from provenance import provenance
from rich.console import Console


def cases(*, quick: bool = False, only: str = "") -> list[Case]:
    """Return what is measured, in the order of measurement."""
    found = [*flow_while.CASES, *flow_diamond.CASES]
    if quick:
        found = [replace(case, samples=max(case.samples // 6, 4)) for case in found]
    return [case for case in found if only in case.name]


def run(
    chosen: Sequence[Case],
    setting: FlowSetting,
    advance: Callable[[Case | None], None],
) -> tuple[list[Row], list[str]]:
    """Measure cases; return the rows, and what failed."""
    rows: list[Row] = []
    failures: list[str] = []
    for case in chosen:
        advance(case)
        rows += measure(case, setting, failures, lambda: advance(None))
    return rows, failures


def main(arguments: list[str] | None = None) -> int:
    """Measure, write, print; return 1 when a contender failed and 2 without a device."""
    given = options(__doc__).parse_args(arguments)
    console = Console()
    try:
        setting = FlowSetting()
    except UnavailableError as error:
        console.print(
            f"Control flow is measured on a device, never simulated. {error}", markup=False
        )
        return 2
    source = provenance()
    print_source(console, source)

    chosen = cases(quick=given.quick, only=given.only)
    with progress_bar(console) as progress:
        task = progress.add_task("", total=sum(case.rounds for case in chosen))

        def advance(case: Case | None) -> None:
            if case is None:
                progress.advance(task)
            else:
                progress.update(task, description=case.name)
            progress.refresh()

        rows, failures = run(chosen, setting, advance)

    return report(
        console, "flow", source, rows, out=given.out, whole=whole_run(given), failures=failures
    )


if __name__ == "__main__":
    sys.exit(main())
