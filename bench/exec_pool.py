"""What a request costs an ExecPool, beside what users write today, in one process.

    python3 bench/exec_pool.py [--quick] [--out DIR] [--only WORD]
    python3 bench/exec_pool.py --runtime sim        # verifies graphkit's contenders, times nothing

Functions are chains of elementwise kernels that each add 1. Every contender is verified first, and
is then timed in turn with all others (bench/measure.py says how). No timed call waits for the
device, which is idle before each. Host microseconds, but for the memory.

- `exact hit`, `padded hit`: a request whose graph is there, with another input buffer each time;
  padded ones are of different sizes inside one bucket. The budgets mean these. `back to back`: 20
  requests without waiting, so that caches are warm and the launch queue is not empty.
- `retarget and launch`: one exec, two buckets in turn, so that every call moves it: the whole call
  with input and launch. `the move alone`: for the pool what its own stats say, which takes in its
  bookkeeping; by hand the bare calls, prebound. The budget means this one.
- `retarget, how`: which way the pool chose, by its measured costs. A count, not a time.
- `miss`: the first request of a size, two eager warm-ups included for everybody.
- `device memory for 51 sizes`: vLLM's list of sizes up to 512. A process for each contender.

NOTES. Predictions, written before the first measurement, with C's launch at 1 us and a set of one
node at 0.4 us on the host of the kept results of bench/launch_overhead.py:

- exact hit: a look at the arguments 0.6 us, a look-up and a lock 0.4, a set 0.6, a launch 1.2,
  counting and keeping 0.3: 3.1 us for DeviceArrays, inside the budget of 3.5; PyTorch's attributes
  cost 0.3 more, CuPy's 0.1. PyTorch's dict: half of the 10.2 us of the other host.
- padded hit: the same code, the same time; everybody else pays two more calls: 1.6 times as much.
- retarget, the move alone: within a tenth of the cheaper way at 1,000 nodes with 100 or 1,000 of
  them changed. Not with 10 changed, nor at 100 nodes, where the pool's bookkeeping of 5 us is as
  much as the calls.
- miss: four runs of the function in Python, and every node read back: with 1,000 nodes 5 times
  PyTorch's, which launches faster and reads nothing back; with 10 about the same as PyTorch's,
  because that empties its cache.
- memory: 4 of 51 execs are 8%: within a tenth at 1,000 nodes. At 100 nodes not: CUDA hands out
  pieces of 2 MiB, and arenas count too.

How they did. Four runs, the kept one of the final code and three of states before it, differ by up
to 16% in everybody's figures, those by hand too: more than what some changes gave. The kept one is
the slowest. A set and a launch by hand took 1.7 to 1.8 us before and 1.99 there, a pool's hit 1.93
to 2.05 times that before and 2.02 there.

- exact hit: 1.6 to 1.9 times ahead of the best peer, but behind the budget: 3.5 to 4.0 us for
  DeviceArrays, 3.6 to 4.3 for CuPy, 3.7 to 4.4 for PyTorch, twice the bare set and launch (1.8 to
  2.0). What brought it down, in us of Python for an input and an output with the launch stubbed
  out: arguments looked at by a function a type and the last shape compared before any is hashed
  (2.65 -> 2.07), only the staging nodes that moved being set, by prebound lists (-> 1.75). One
  event in 64 launches instead of 16 came on top. What is left is a look at each argument (0.14
  us for ours, 0.28 CuPy, 0.39 PyTorch), a lock, the counts.
- padded hit: the same path as predicted, 1.5 us dearer for the argument block of another size;
  2.7 times ahead. 1 to 9% inside of the budget in the runs before, 1 to 7% over it in the kept one.
- the move alone: 1.01 and 1.03 of the cheaper way at 1,000 nodes with 100 and 1,000 changed, as
  predicted, and every choice was the right one. 5 to 7 us of bookkeeping are most of the rest.
  Setting a row of nodes by one prebound loop (instead of a call for each) took the 100 changed
  nodes from 1.11 to 1.01.
- miss: 3.4 times PyTorch's at 1,000 nodes and 6.7 at 10, not 5 and 1: it reads every node back and
  compares topologies, PyTorch does neither.
- memory: 3% of one exec a size at 1,000 nodes. At 100 nodes 25%, as predicted: all of them together
  take 16 MiB, and CUDA hands out pieces of 2 MiB, one for arenas and one for the exec.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import exec_pool_bytes as memory
from command import options, print_source, report, whole_run
from exec_pool_hits import HITS, LIBRARIES, NODES, Hit, HitContenders
from exec_pool_misses import MISSES, Miss, MissContenders
from exec_pool_moves import (
    BY_NODES,
    BY_UPDATE,
    POOL_MOVE,
    RETARGETS,
    PoolMove,
    Retarget,
    RetargetContenders,
)
from exec_pool_setting import OWN, Entry, Setting, UnavailableError
from measure import (
    HOST_US,
    Budget,
    Maker,
    Part,
    Row,
    Summary,
    Verdict,
    interleave,
    judge,
    make_rows,
    print_verdicts,
    progress_bar,
)
from provenance import provenance
from rich.console import Console

BUDGET = "budget"  # the metric of a row that nobody measured
CHEAPER = "by hand, the cheaper"
MOVES = "moves"
DEVICE_MIB, HOST_MIB, EXECS = "device MiB", "host MiB", "execs"
_MIB = 1 << 20

HIT_BUDGETS_US = {"exact": 3.5, "padded": 6.0}
_POOLS = {shown: f"{OWN} ExecPool, {shown} (1 + {NODES} nodes)" for shown in LIBRARIES.values()}

# By what limits are multiples of.
BUDGETS: dict[str, tuple[Budget, ...]] = {
    BUDGET: tuple(
        Budget(f"{kind} hit: {shown}", f"{kind} hit: {NODES} nodes", metric, 1.0)
        for kind in HIT_BUDGETS_US
        for shown, metric in _POOLS.items()
    ),
    CHEAPER: tuple(Budget(case.alone, case.alone, POOL_MOVE, 1.1) for case in RETARGETS),
    memory.ONE_A_SIZE: tuple(
        Budget(f"{memory.CASE}: {nodes:,} nodes", f"{memory.CASE}: {nodes:,} nodes", name, 0.1)
        for nodes in memory.NODES
        for name in memory.POOLS
    ),
}

PoolPart = Part[Setting, Iterator[Entry]]


def _hit(case: Hit) -> PoolPart:
    samples = 2000 if case.burst == 1 else 200
    block, discard = (12, 4) if case.burst == 1 else (6, 2)
    return Part(
        case.name, lambda setting: HitContenders(setting, case).makers(), samples, block, discard,
        BUDGET,
    )  # fmt: skip


def _retarget(case: Retarget, *, alone: bool) -> PoolPart:
    def makers(setting: Setting) -> Sequence[Maker[Iterator[Entry]]]:
        made = RetargetContenders(setting, case)
        return made.alone() if alone else made.whole()

    samples = 240 if case.nodes <= 100 else 48
    return Part(
        case.alone if alone else case.whole, makers, samples, 8, 2, CHEAPER if alone else POOL_MOVE
    )


def _miss(case: Miss) -> PoolPart:
    samples = 60 if case.nodes <= 10 else 15
    return Part(
        case.name, lambda setting: MissContenders(setting, case).makers(), samples, 4, 1,
        "torch: torch.cuda.graph",
    )  # fmt: skip


def parts(*, quick: bool = False, only: str = "") -> list[PoolPart]:
    """Return what is timed, in the order of measurement."""
    found = [
        *map(_hit, HITS),
        *(_retarget(case, alone=alone) for case in RETARGETS for alone in (False, True)),
        *map(_miss, MISSES),
    ]
    if quick:
        found = [replace(part, samples=max(part.samples // 10, 6)) for part in found]
    return [part for part in found if only in part.name]


def make_entries(part: PoolPart, setting: Setting, failures: list[str]) -> list[Entry]:
    """Make and verify every contender of a part; who fails is told, and left out of it."""
    entries: list[Entry] = []
    for name, make in part.makers(setting):
        try:
            for entry in make():
                entry.verify()
                entries.append(entry)
        except UnavailableError:
            pass  # said once for the library
        except Exception as error:
            failures.append(f"{part.name}: {name}: {type(error).__name__}: {error}")
    return entries


def with_floor(part: str, summaries: dict[str, Summary]) -> dict[str, Summary]:
    """Add to the measured what they are held against: the budget, or the cheaper of two ways."""
    kind = part.partition(" hit")[0]
    if kind in HIT_BUDGETS_US:
        limit = HIT_BUDGETS_US[kind]
        return {BUDGET: Summary(limit, limit, limit, 0), **summaries}
    ways = [summaries[name] for name in (BY_NODES, BY_UPDATE) if name in summaries]
    if part.startswith("retarget, the move alone") and ways:
        return {CHEAPER: min(ways, key=lambda way: way.value), **summaries}
    return summaries


def measure_part(
    part: PoolPart, setting: Setting, failures: list[str], advance: Callable[[], object]
) -> list[Row]:
    """Verify and time every contender of a part."""
    try:
        entries = make_entries(part, setting, failures)
        before = {entry.contender.name: _updates(entry) for entry in entries}
        summaries = interleave(
            [entry.contender for entry in entries],
            samples=part.samples,
            block=part.block,
            discard=part.discard,
            advance=advance,
        )
        setting.runtime.device_synchronize()
        rows = make_rows(part.name, with_floor(part.name, summaries), baseline=part.baseline)
        for entry in entries:
            if isinstance(entry.contender, PoolMove):
                rows += move_rows(part.name, before[entry.contender.name], _updates(entry))
        return rows
    finally:
        setting.cleanup.close()


def _updates(entry: Entry) -> dict[str, int]:
    return entry.contender.updates() if isinstance(entry.contender, PoolMove) else {}


def count_row(case: str, metric: str, count: float, unit: str) -> Row:
    """Return a row of something counted once."""
    value = float(f"{count:.4g}")
    return Row(case, metric, value, unit, value, value, 1)


def move_rows(case: str, before: dict[str, int], after: dict[str, int]) -> list[Row]:
    """Return how often a pool moved its exec in each way while it was timed."""
    size = case.partition(": ")[2]
    return [
        count_row(f"retarget, how: {size}", f"by {way}", after[way] - before.get(way, 0), MOVES)
        for way in sorted(after)
    ]


def memory_rows(nodes: int, taken: dict[str, memory.Taken]) -> list[Row]:
    """Return the rows of one number of nodes."""
    case = f"{memory.CASE}: {nodes:,} nodes"
    floor = taken.get(memory.ONE_A_SIZE)
    rows = []
    for name, found in taken.items():
        row = count_row(case, name, found.device / _MIB, DEVICE_MIB)
        if floor and floor.device:
            ratio = float(f"{found.device / floor.device:.4g}")
            row = replace(row, baseline=memory.ONE_A_SIZE, ratio=ratio)
        rows.append(row)
        if found.told is not None:
            told = found.told / _MIB
            rows.append(count_row(case, f"{name}, by its own account", told, DEVICE_MIB))
    rows += [count_row(case, name, found.execs, EXECS) for name, found in taken.items()]
    rows += [count_row(case, name, found.host / _MIB, HOST_MIB) for name, found in taken.items()]
    return rows


def measure_memory(failures: list[str], advance: Callable[[], object]) -> list[Row]:
    """Let every contender serve the sizes in a process of its own."""
    rows = []
    for nodes in memory.NODES:
        taken: dict[str, memory.Taken] = {}
        for name in memory.CONTENDERS:
            try:
                taken[name] = memory.take_apart(Path(__file__), name, nodes)
            except Exception as error:
                failures.append(f"{memory.CASE}: {nodes:,} nodes: {name}: {error}")
            advance()
        rows += memory_rows(nodes, taken)
    return rows


def verdicts(rows: Iterable[Row]) -> dict[str, list[Verdict]]:
    """Hold all budgets against rows, by what they are multiples of."""
    found = list(rows)
    return {
        floor: judge([_alike(row) for row in found], budgets, floor=floor, own=OWN)
        for floor, budgets in BUDGETS.items()
    }


def _alike(row: Row) -> Row:
    """Keep counts of another unit out of a case that is judged by time or bytes."""
    judged = row.unit in (HOST_US, DEVICE_MIB)
    return row if judged else replace(row, case=f"{row.case}, {row.unit}")


def dry_run(console: Console, todo: Sequence[PoolPart]) -> int:
    """Verify graphkit's contenders on the simulator; report no time and no bytes."""
    failures: list[str] = []
    verified = 0
    for part in todo:
        setting = Setting("sim")
        try:
            verified += len(make_entries(part, setting, failures))
        finally:
            setting.cleanup.close()
    for name in memory.CONTENDERS:
        if name != memory.TORCH:
            try:
                memory.take(name, 3, "sim")
                verified += 1
            except Exception as error:
                failures.append(f"{memory.CASE}: {name}: {type(error).__name__}: {error}")
    for failure in failures:
        console.print(f"FAILED: {failure}", markup=False)
    console.print(f"{verified} contenders verified on the simulator, which reports no time.")
    return 1 if failures else 0


def main(arguments: list[str] | None = None) -> int:
    """Measure, write, print; return 1 when a contender failed and 2 without a device."""
    parser = options(__doc__, quick="fewer samples, no memory", runtime=True)
    # How this script asks itself for the memory of one contender.
    parser.add_argument("--bytes-of", choices=memory.CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--nodes", type=int, default=100, help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.bytes_of:
        print(memory.as_json(memory.take(chosen.bytes_of, chosen.nodes, chosen.runtime)))
        return 0
    console = Console()
    todo = parts(quick=chosen.quick, only=chosen.only)
    if chosen.runtime == "sim":
        return dry_run(console, todo)
    try:
        setting = Setting("cuda")
    except UnavailableError as error:
        console.print(f"A pool is measured on a device, never simulated. {error}", markup=False)
        return 2
    source = provenance()
    print_source(console, source)

    rows: list[Row] = []
    failures: list[str] = []
    with_memory = not chosen.quick and chosen.only in memory.CASE
    processes = len(memory.CONTENDERS) * len(memory.NODES) if with_memory else 0
    with progress_bar(console) as progress:
        task = progress.add_task("", total=sum(part.rounds for part in todo) + processes)

        def advance() -> None:
            progress.advance(task)

        for part in todo:
            progress.update(task, description=part.name)
            progress.refresh()
            rows += measure_part(part, setting, failures, advance)
        if with_memory:
            progress.update(task, description=memory.CASE)
            progress.refresh()
            rows += measure_memory(failures, advance)

    code = report(
        console, "exec_pool", source, rows,
        out=chosen.out, whole=whole_run(chosen), absent=setting.absent, failures=failures,
    )  # fmt: skip
    for floor, judged in verdicts(rows).items():
        if floor == memory.ONE_A_SIZE:
            print_memory_verdicts(console, judged)
        else:
            print_verdicts(console, judged, floor=floor, own=OWN)
    return code


def print_memory_verdicts(console: Console, judged: Iterable[Verdict]) -> None:
    """Print the budgets in bytes, which the table of times has no place for."""
    words = {True: "met", False: "not met", None: "not judged"}
    for verdict in judged:
        ratio = "-" if verdict.ratio is None else f"{verdict.ratio:.3f}"
        budget = verdict.budget
        console.print(
            f"{budget.what}, {budget.metric}: {ratio} of {memory.ONE_A_SIZE}, "
            f"budget {budget.limit}: {words[verdict.met]}",
            markup=False,
        )


if __name__ == "__main__":
    sys.exit(main())
