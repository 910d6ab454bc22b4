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

NOTES. Predictions, written before the first measurement on a device:

- submit: 1.7 us of Python (the launch stubbed out) and 1.1 to 1.9 for the launch: 3 us with an
  input and an output of the user's own. done(): 0.1, no CUDA call.
- requests, 32 x 256, four slots: five kernels in a row, the copies among them, take some 15 us;
  four at a time are 4 us, as much as the host takes: 4 to 5 us, inside of the budget of 6. One
  slot: 17, two: 8, eight: what the host takes, 3.5.
- Copies by the engine: two more changes between engine and multiprocessors, 5 us each, and two
  more calls a request: 7 to 8 us.
- 32 x 1,024: the 12 MB of weights come out of the second-level cache, 3 us of memory traffic and
  3 of arithmetic: 8 us. 128 x 1,024: 0.8 GFLOP at half of 67 TFLOP/s is 24 us, and 0.5 MB each way
  10 us beside it: 25 us, no better than PyTorch's, whose matrix products are as good.
- PyTorch: eager 100 us, graphs on four streams 24 as measured before; with the copies in the graph
  one replay, two copies by the host and an event: 15.

Measured (H200 behind a virtual machine; the kept run is of the final code): 11.6 us at 32 x 256 on
four slots, 10.2 on eight, against 19.2 for PyTorch's graphs on four streams and 83 eager; 18.0 and
40.1 at 1,024 wide against 22.6 and 59.5. The budget of 6 is missed. Where the time goes: one
request alone takes 46 us, so four at a time are 11.5; bare launches of the same graphs, with nobody
asking for results, take 8.0. Tried: copies by kernels (57 us: there each load of host memory takes
microseconds), copies by the engine (12.3), the end told by a count kept on the device instead of a
number read from the host's memory (11.6), eight slots (10.2). Submit takes 5.5 us, two exec calls
and a launch; a launcher by hand 3.9 in that run and 1.3 in the one before.
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

SIZES = (Size(32, 256, 1000, 100), Size(32, 1024, 250, 60), Size(128, 1024, 100, 60))
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
