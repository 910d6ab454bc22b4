"""What a CUDA graph call costs the host: C, every Python peer, and graphkit, in one process.

    python3 bench/launch_overhead.py [--quick] [--out DIR]

Straight lines of 1, 10, 100 and 1,000 one-thread kernel nodes that touch nothing, with a pointer
and an int as arguments. Every contender is verified first, on lines whose kernels count, and is
then timed in turn with all others (bench/measure.py says how). Host microseconds throughout.

- `launch`: a single launch right after a synchronization; the budgets mean this one.
- `launch, back to back`: 50 launches without waiting. On long lines it may show the device's pace.
- `build`: one node's share of a whole line, in the memory that the graph before it left; `build,
  all kept`: in fresh memory, because no graph is destroyed.
- `instantiate`, `upload`, `first launch`: a fresh executable graph for each sample. CuPy and
  PyTorch instantiate inside their end of capture, and so have no such rows.
- `set scalar`, `set array`: one argument of one node of an executable graph, the next node each
  time.
- `update`: the parameters of a whole graph, one int different in every node; `update, nothing
  new`: the same from a graph that is equal.

Peers' calls are timed without a check of the status they return; graphkit's check it.

NOTES. Predictions, written before graphkit's first measurement, from what single calls took when
they were timed one by one, once, on an H200 with driver 580.159 (C 1.94 us to launch 10 nodes,
cuda.bindings runtime 2.8, CuPy's launch 2.3):

- launch, 10 nodes: `launcher()` is one prebound call, so it should stand at the best binding,
  about 1.15 x C, and miss 1.10 x unless the binding leaves the interpreter's lock alone;
  `launch(stream)` adds one method call, a lock and a stream's attribute: 1.3 x C.
- set one node: rewriting packed bytes and the binding's 0.68 us make 1.2 x C; the argument dict,
  the type check and the owner's bookkeeping add 0.3 us: 1.7 x C.
- build: parsing arguments and making a Node cost about what CUDA's own call does: 2.5 x C.
- instantiate, upload, first launch and update of 100 nodes or more: within 5% of C, because the
  driver's work hides everything else.

How they did (docs/benchmarks.md is made of the runs that are kept):

- No budget of the design is met. `launcher()` stands a Python frame above CuPy's own call, and
  that call alone stands above 1.10 x C: converting two ints and letting go of the interpreter's
  lock may be what costs that much. `launch(stream)`: as predicted. Sets and build: about twice
  what was predicted. C itself takes half of the 1.94 us of those single timings, on other machines
  and in another loop; why is not established.
- Instantiate, upload and first launch: as predicted. Update: over at 100 nodes and fewer.
- Not predicted: an update that changes an int in every node costs C several times one that changes
  nothing. cuda.core's launches back to back take what the device takes; nobody else's do. Why is
  not known.

What was tried to come closer, and what became of it:

- Launch: CuPy's entry instead of cuda.bindings or ctypes (kept: the cheapest installed);
  functools.partial instead of a closure (no gain, and it would let CuPy's exception out); a cell
  for the handle instead of a second closure (kept); a C extension for this one call (a trial, not
  kept: 8% below `launcher()` when it lets go of the lock, 13% when it keeps it, which may deadlock
  with host nodes); a list's pop instead of a lock around `launch(stream)` (kept: 1.51 x C before
  and 1.38 after, in two runs that differ in other changes as well).
- Set: the driver's setter instead of the runtime's (kept: a tenth cheaper); plain numbers stored
  through a memoryview, without a function call (kept); no copy of handles, structs or names, all
  prebound (kept). What is left is the keyword call, the dict, and undoing on failure. cuda.bindings
  alone takes 1.4 x C of the 1.5.
- Build: arguments packed into one block a thread instead of one a node (kept); the struct filled by
  one pack (kept); extents, dependencies and NumPy scalars told by exact type (kept: 8.2 x C before
  and 5.1 after, in two runs that differ in other changes as well). What is left is a Node and its
  owners, and checking arguments.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

from command import options, print_source, report, whole_run
from launch_contenders import LIBRARIES
from launch_setting import BURST, FLOOR, OWN, Entry, Library, Setting, UnavailableError
from measure import (
    Budget,
    Row,
    interleave,
    judge,
    make_rows,
    print_verdicts,
    progress_bar,
    rounds,
)
from provenance import provenance
from rich.console import Console

BUDGETS = (
    Budget("launch, 10 nodes: launcher()", "launch: 10 nodes", "graphkit launcher()", 1.10, True),
    Budget("launch, 10 nodes: launch(stream)", "launch: 10 nodes", "graphkit launch(stream)", 1.25),
    Budget("set one node's scalar", "set scalar: 10 nodes", "graphkit", 1.5),
    Budget("set one node's array", "set array: 10 nodes", "graphkit", 1.5),
    # The floor of 1.5 us that this budget was set by is that of fresh memory.
    Budget("build one kernel node", "build, all kept: 100 nodes", "graphkit", 2.0),
)


@dataclass(frozen=True)
class Question:
    """One kind of call, asked at several sizes.

    Attributes:
        what: the call, as the tables name it.
        ask: returns a library's contenders for a line of ``nodes``, whose kernels add ``step``.
        samples: for each size, how many samples of each contender to keep.
        block: calls of one contender in a row, of which ``discard`` are thrown away.
        probe: the ``i`` of the verified call.
        expected: what both counters hold after it; None where the call launches nothing.
    """

    what: str
    ask: Callable[[Library, int, int], list[Entry]]
    samples: dict[int, int]
    block: int = 10
    discard: int = 2
    probe: int = 0
    expected: Callable[[int], tuple[int, int]] | None = None


QUESTIONS = (
    Question(
        "launch",
        lambda library, nodes, step: library.launches(nodes, step, 1),
        {1: 1600, 10: 1600, 100: 800, 1000: 240},
        expected=lambda nodes: (nodes, 0),
    ),
    Question(
        "launch, back to back",
        lambda library, nodes, step: library.launches(nodes, step, BURST),
        {1: 80, 10: 80, 100: 80, 1000: 12},
        block=5,
        discard=1,
        expected=lambda nodes: (nodes * BURST, 0),
    ),
    # What `build` and `instantiate` make is what the other questions launch and verify.
    Question(
        "build",
        lambda library, nodes, step: library.builds(nodes, kept=False),
        {10: 400, 100: 160, 1000: 24},
        block=5,
        discard=1,
    ),
    Question(
        "build, all kept",
        lambda library, nodes, step: library.builds(nodes, kept=True),
        {10: 400, 100: 160, 1000: 24},
        block=5,
        discard=1,
    ),
    Question(
        "instantiate",
        lambda library, nodes, step: library.instantiates(nodes, step),
        {1: 200, 10: 200, 100: 80, 1000: 16},
        block=4,
        discard=1,
    ),
    Question(
        "upload",
        lambda library, nodes, step: library.uploads(nodes, step),
        {1: 200, 10: 200, 100: 80, 1000: 16},
        block=4,
        discard=1,
        expected=lambda nodes: (nodes, 0),
    ),
    Question(
        "first launch",
        lambda library, nodes, step: library.first_launches(nodes, step),
        {1: 200, 10: 200, 100: 80, 1000: 16},
        block=4,
        discard=1,
        expected=lambda nodes: (nodes, 0),
    ),
    Question(
        "set scalar",
        lambda library, nodes, step: library.scalar_sets(nodes),
        {10: 4000, 1000: 4000},
        block=20,
        discard=4,
        probe=7,
        expected=lambda nodes: (7, 0),
    ),
    Question(
        "set array",
        lambda library, nodes, step: library.array_sets(nodes),
        {10: 4000, 1000: 4000},
        block=20,
        discard=4,
        probe=7,
        expected=lambda nodes: (nodes - 1, 1),
    ),
    Question(
        "update",
        lambda library, nodes, step: library.updates(nodes, (1, 2)),
        {1: 400, 10: 400, 100: 200, 1000: 80},
        probe=1,
        expected=lambda nodes: (2 * nodes, 0),
    ),
    Question(
        "update, nothing new",
        lambda library, nodes, step: library.updates(nodes, (1, 1)),
        {1: 400, 10: 400, 100: 200, 1000: 80},
        probe=1,
        expected=lambda nodes: (nodes, 0),
    ),
)

# The sizes that budgets and --quick need are the same.
QUICK_SIZES = {"build": (10, 100), "build, all kept": (10, 100)}


@dataclass(frozen=True)
class Case:
    """A question at one size: ``samples`` of each contender on a line of ``nodes``."""

    question: Question
    nodes: int
    samples: int

    @property
    def name(self) -> str:
        """The case's name in the rows."""
        return f"{self.question.what}: {self.nodes:,} node{'s' if self.nodes > 1 else ''}"

    @property
    def rounds(self) -> int:
        """How many rounds the case takes."""
        return rounds(self.samples, self.question.block, self.question.discard)


def cases(*, quick: bool = False) -> list[Case]:
    """Return all cases in the order of measurement; ``quick`` leaves out sizes and samples."""
    found = []
    for question in QUESTIONS:
        for nodes, samples in question.samples.items():
            if not quick:
                found.append(Case(question, nodes, samples))
            elif nodes in QUICK_SIZES.get(question.what, (10, 1000)):
                found.append(Case(question, nodes, max(samples // 5, 8)))
    return found


class WrongResultError(Exception):
    """A contender did something else than what is to be timed."""


def verify(case: Case, entry: Entry, setting: Setting) -> None:
    """Make one call of a contender and look at what its graph did.

    Raises:
        WrongResultError: when the counters are not what the case expects.
    """
    setting.zero()
    entry.contender.sample(case.question.probe, 1)
    if case.question.expected is None:
        return
    if entry.launch is not None:
        entry.launch()
    seen, expected = setting.read(), case.question.expected(case.nodes)
    if seen != expected:
        raise WrongResultError(f"{entry.contender.name}: expected {expected} counted, came {seen}")


def measure_case(
    case: Case,
    libraries: list[Library],
    setting: Setting,
    failures: list[str],
    advance: Callable[[], object],
) -> list[Row]:
    """Verify and time every contender of a case; who fails is told, and left out of it."""
    entries: list[Entry] = []
    for library in libraries:
        try:
            # The sets change what they verify, so the timed contenders are made afresh.
            for entry in case.question.ask(library, case.nodes, 1):
                verify(case, entry, setting)
            entries += case.question.ask(library, case.nodes, 0)
        except Exception as error:
            failures.append(f"{case.name}: {library.name}: {type(error).__name__}: {error}")
    try:
        summaries = interleave(
            [entry.contender for entry in entries],
            samples=case.samples,
            block=case.question.block,
            discard=case.question.discard,
            advance=advance,
        )
        setting.synchronize()
    finally:
        setting.cleanup.close()
    return make_rows(case.name, summaries, baseline=FLOOR)


def main(arguments: list[str] | None = None) -> int:
    """Measure, write, print; return 1 when a contender failed and 2 without a device."""
    parser = options(__doc__, quick="fewer samples and sizes", only=False)
    chosen = parser.parse_args(arguments)
    console = Console()
    try:
        setting = Setting()
    except UnavailableError as error:
        console.print(
            f"Launch overhead is measured on a device, never simulated. {error}", markup=False
        )
        return 2
    source = provenance()
    print_source(console, source)

    libraries: list[Library] = []
    absent: dict[str, str] = {}
    for library in LIBRARIES:
        try:
            libraries.append(library(setting))
        except Exception as error:
            known = isinstance(error, UnavailableError)
            absent[library.name] = str(error) if known else f"{type(error).__name__}: {error}"

    rows: list[Row] = []
    failures: list[str] = []
    todo = cases(quick=chosen.quick)
    with progress_bar(console) as progress:
        task = progress.add_task("", total=sum(case.rounds for case in todo))
        for case in todo:
            progress.update(task, description=case.name)
            progress.refresh()
            rows += measure_case(case, libraries, setting, failures, lambda: progress.advance(task))

    code = report(
        console, "launch_overhead", source, rows,
        out=chosen.out, whole=whole_run(chosen), absent=absent, failures=failures,
    )  # fmt: skip
    verdicts = judge(rows, BUDGETS, floor=FLOOR, own=OWN)
    print_verdicts(console, verdicts, floor=FLOOR, own=OWN)
    return code


if __name__ == "__main__":
    sys.exit(main())
