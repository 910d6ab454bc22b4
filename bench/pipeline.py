"""What a request costs a Pipeline, beside what PyTorch's users write today, in one process.

    python3 bench/pipeline.py [--quick] [--out DIR] [--only WORD]
    python3 bench/pipeline.py --runtime sim        # verifies graphkit's contenders, times nothing

A request is an array in pinned memory that goes through a three-layer MLP on the device and comes
back into pinned memory: 32 x 256 floats, and 1,024 wide in batches of 32 and 128. Every request of
a burst has an input of its own, and each result of every burst is compared with what must come out
of just this input, so that order shows too: in float64 once, and bit by bit from then on.

- `requests`: microseconds a request of a burst by the host's clock, from the first submit until
  all results are there. The budget means 32 x 256 on four slots: 100,000 requests and more.
- `one request`: from submit to the result, with nothing else under way.
- `submit`: what the host does for it on an idle device, the looks at the end of a request too.

NOTES. Before (H200 behind a virtual machine): 11.6 us at 32 x 256 on four slots, 10.2 on eight. One
request alone took 46 us, so four at a time are 11.5: what counts is how long one takes alone. Of
those the three layers are 11, the engine's copy in 12 and its copy out 12 more: changes between
engine and multiprocessors are dear there. Copies by kernels took 57 us, since every thread read the
address of the array from the host's memory, one after the other as it seems. Now a thread a block
reads it, blocks are few, the results' addresses are brought along, and nothing but the three layers
stands between two kernels.

Predictions, written before the first measurement of this version on a device:

- requests, 32 x 256, copies by kernels: alone 11 for the layers, 3 in (a trip for the address, one
  for the values), 2 out with the word of the end, 3 until host and device have seen each other: 19
  us on one slot, 9.5 on two. On four 5: as much as the host takes for a submit (1.7 of Python, 2.8
  for five kernel nodes, stores instead of calls). On eight the host's 4.5, inside of the budget.
- Copies by the engine: as before, 46, 21, 11.5 and 10.
- 32 x 1,024: 128 KB each way by kernels are 5 us longer than by the engine's wires alone, but the
  changes are saved: 13 on four slots where it was 18. 128 x 1,024: above the bound of "auto", so by
  the engine: 40 as before; by kernels 45.
- submit(x=x, y=y): 4.5, where two calls of CUDA's made it 5.5.
- PyTorch as before: 19 on four streams, 83 eager; 23 and 60 at 1,024 wide.

Measured (H200, driver 580): copies by kernels take 28.0, 15.2, 8.2 and 5.1 us a request on 1, 2, 4
and 8 slots at 32 x 256, by the engine 47.3, 21.4, 10.7 and 9.8. So the budget of 6 us is missed on
four slots and met on eight; bare launches of the engine's graphs, whose results nobody looks at,
take 8.0 on four, PyTorch's graphs on four streams 24.1, eager 105. Alone a request takes 30 us, not
19, and submit 3.2, not 4.5. A copy in by a kernel that is given the address as an argument takes
3.5 us, one that reads it from the host's memory 5.5; 10.8 are the layers; what the rest is was not
found out. Two requests an exec would take 4.9 on four slots, and a last layer that writes to the
host's memory itself 6.1: neither is a pipeline of anybody's function. At 1,024 wide four slots take
20.5 by kernels and 18.4 by the engine (128 KB each way), 50.3 and 40.7 (512 KB): on four slots the
engine overtakes kernels between 32 and 128 KB, below the bound of "auto".

Tried later at 32 x 256, in one run beside what there is (27.2 us on one slot, 7.9 on four, 5.0 on
eight), predictions for four slots first:

- programmatic edges between the layers, whose kernels fetch weights ahead of the wait, and to the
  copy out, 7.0: 25.9, 7.8, 4.9. An edge is not where the time goes.
- the engine copies in and a kernel out, 6.0: 33.9, 7.9, 6.6, since a call moves the copy in; with
  programmatic edges 30.5, 7.2, 6.9. Kernel in and engine out, with such edges: 38.0, 8.8, 7.6.

So four slots stay at 7.9: what helps them costs eight slots more. Neither was kept.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from command import options, print_source, report, whole_run
from measure import (
    Budget,
    Contender,
    Part,
    Row,
    Summary,
    interleave,
    judge,
    make_rows,
    print_verdicts,
    progress_bar,
)
from pipeline_contenders import MAIN, OWN, TORCH_GRAPHS, Case, make
from pipeline_mlp import Network, Requests, Size
from provenance import provenance
from rich.console import Console

import graphkit as gk

SIZES = (Size(32, 256, 1000, 100), Size(32, 1024, 250, 30), Size(128, 1024, 100, 30))
SIM_SIZES = (Size(3, 20, 10, 2),)
BUDGET_US, BUDGET = 6.0, "budget"
Timed = Part[Case, Contender]
BUDGETS = (Budget("a request, 32 x 256", "requests: 32 x 256", MAIN, 1.0, ahead_of_peers=True),)


def parts(size: Size, *, quick: bool, only: str) -> list[Timed]:
    """Return what is timed of one size."""
    found = [
        Part(f"requests: {size.name}", Case.burst, size.bursts, 1, 0, TORCH_GRAPHS),
        Part(f"one request: {size.name}", Case.single, 500, 25, 5, OWN),
    ]
    if size is SIZES[0]:
        found.append(Part(f"submit: {size.name}", Case.submit, 2000, 25, 5, f"{OWN} submit(x=x)"))
    if quick:
        found = [replace(part, samples=max(part.samples // 10, 4)) for part in found]
    return [part for part in found if only in part.name]


def import_torch(absent: dict[str, str]) -> Any:
    """Import PyTorch, before CuPy: behind it and NVRTC PyTorch 2.11 cannot parse its schemas."""
    try:
        torch: Any = importlib.import_module("torch")
        torch.cuda.init()
        torch.set_grad_enabled(False)
    except Exception as error:
        absent["torch"] = f"{type(error).__name__}: {error}"
        return None
    return torch


def new_case(size: Size, torch: Any, cleanup: ExitStack) -> Case:
    """Return a size with its network and requests."""
    network = Network(size.width)
    return Case(size, network, Requests(size, network), torch, cleanup)


def measure_part(
    part: Timed, case: Case, failures: list[str], advance: Callable[[], object]
) -> list[Row]:
    """Verify and time every contender of a part."""
    with ExitStack() as case.cleanup:
        contenders = list(make(part.makers(case), failures, part.name))
        summaries = interleave(
            contenders,
            samples=part.samples,
            block=part.block,
            discard=part.discard,
            advance=advance,
        )
        if part.name == BUDGETS[0].case:
            limit = Summary(BUDGET_US, BUDGET_US, BUDGET_US, 0)
            summaries = {BUDGET: limit, **summaries}
        return make_rows(part.name, summaries, baseline=part.baseline)


def dry_run(console: Console, only: str) -> int:
    """Verify graphkit's contenders on the simulator; report no time."""
    failures: list[str] = []
    verified = 0
    gk.use("sim")
    for size in SIM_SIZES:
        case = new_case(size, None, ExitStack())
        for part in parts(size, quick=True, only=only):
            with ExitStack() as case.cleanup:
                verified += len(list(make(part.makers(case), failures, part.name)))
        with ExitStack() as case.cleanup:
            verified += len(list(make(case.submit(), failures, "submit")))
    for failure in failures:
        console.print(f"FAILED: {failure}", markup=False)
    console.print(f"{verified} contenders verified on the simulator, which reports no time.")
    return 1 if failures else 0


def measure_sizes(
    todo: Sequence[tuple[Size, list[Timed]]], torch: Any, console: Console, failures: list[str]
) -> list[Row]:
    """Measure all parts of all sizes."""
    rows: list[Row] = []
    with progress_bar(console) as progress:
        task = progress.add_task("", total=sum(part.rounds for _, found in todo for part in found))
        for size, found in todo:
            case = new_case(size, torch, ExitStack())
            for part in found:
                progress.update(task, description=part.name)
                progress.refresh()
                try:
                    rows += measure_part(part, case, failures, lambda: progress.advance(task))
                except Exception as error:  # what was measured before is worth keeping
                    failures.append(f"{part.name}: {type(error).__name__}: {error}")
    return rows


def main(arguments: list[str] | None = None) -> int:
    """Measure, write, print; return 1 when a contender failed and 2 without a device."""
    chosen = options(__doc__, runtime=True).parse_args(arguments)
    console = Console()
    if chosen.runtime == "sim":
        return dry_run(console, chosen.only)
    absent: dict[str, str] = {}
    torch = import_torch(absent)
    try:
        gk.use("cuda")
    except gk.RuntimeUnavailableError as error:
        console.print(f"A pipeline is measured on a device, never simulated. {error}", markup=False)
        return 2
    source = provenance()
    print_source(console, source)
    todo = [(size, parts(size, quick=chosen.quick, only=chosen.only)) for size in SIZES]
    failures: list[str] = []
    rows = measure_sizes([pair for pair in todo if pair[1]], torch, console, failures)

    code = report(
        console, "pipeline", source, rows,
        out=chosen.out, whole=whole_run(chosen), absent=absent, failures=failures,
    )  # fmt: skip
    print_verdicts(console, judge(rows, BUDGETS, floor=BUDGET, own=OWN), floor=BUDGET, own=OWN)
    return code


if __name__ == "__main__":
    sys.exit(main())
