"""The relevance pipeline as one graph, against the same kernels one by one, and against PyTorch.

    python3 bench/relevance.py [--quick] [--out DIR] [--only WORD]
    python3 bench/relevance.py --runtime sim        # verifies graphkit's contenders, times nothing

Images of 224, 384 and 512 pixels in patches of 16: 196, 576 and 1,024 patches with 256 features
each; 32 patches are selected and share 4,096 tokens. `scoring` is three scorers side by side and
their balance, five kernels; `allocation` selects patches and divides tokens, two kernels; `whole`
is both. Every contender is verified against float64, and is then timed in turn with all others.

- `host`: what a call costs the host, right after a synchronization.
- `until done`: the same and the wait for the stream: what a request takes.
- `on the device`: from event to event, with the stream held busy while the host does its part.
- `other arrays`: `whole`, with image, features and query in other memory than the time before.

NOTES. Predictions, written before the first measurement, from what an eager launch (4.4 us from C,
about 5 from graphkit, 7.5 from CuPy), a graph launch (1 to 2 us) and a node on the device (about
1 us and its work) cost elsewhere here. The seeds of this project claim 2 to 3 times for scoring and
3 to 5 times for allocation over eager launches.

- host: 5 launches against 1 make scoring 10 times as cheap, 2 against 1 allocation 4 times, 7 the
  whole 13 times; the size makes no difference. That is more than the claim.
- until done: scoring 25 us eager and 13 as a graph at 1,024 patches, 1.9 times; allocation 16 and
  11, 1.4 times, far less than the claim: two launches are soon made, and both wait for the same 5
  us of device and for the wait itself. The whole 38 and 17 us, 2.2 times.
- on the device: scoring 6 us at 1,024 patches with the scorers side by side, 8 in a line. Eager
  about as long as in a line, since launches that wait for a busy stream follow each other at 1 us.
- PyTorch eager: 30 operators for scoring and 12 for allocation, 200 and 90 us: 15 and 8 times a
  graph until done. Its own graph: 45 us of device time for scoring, 4 times ours.
- other arrays: 4 sets of 0.6 us and looks at three arrays make 5 us where the launch alone is 2;
  with tensors 6. The pool's copies add the time of 4 MB, 2 us of device, and its host time is the
  same 5 us. PyTorch's three copies cost 18 us.

Measured (H200, driver 580): until done, a graph beside eager launches of the same kernels through
graphkit is 2.9 to 3.1 times as fast for scoring, 1.9 to 2.0 for allocation and 2.7 to 3.0 for the
whole (2.4 to 2.7, 1.7 and 2.2 to 2.5 in a run before it); beside CuPy's launches 2.1, 1.6 and 1.9
times; beside PyTorch eager 22 to 24, 18 and 24 to 32. So the seeds' claim holds for scoring, and
for allocation beside PyTorch only: ours is two kernels.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from command import options, print_source, report, whole_run
from exec_pool_setting import OWN, UnavailableError
from measure import (
    DEVICE_US,
    HOST_US,
    Budget,
    Contender,
    PythonCall,
    Row,
    Summary,
    interleave,
    judge,
    make_rows,
    print_verdicts,
    progress_bar,
    quiet,
    rounds,
)
from provenance import provenance
from rebind_setting import Call, DeviceCall
from relevance_contenders import (
    EAGER,
    GRAPH,
    PARTS,
    TORCH,
    Entry,
    Maker,
    Part,
    RelevanceContenders,
    RelevanceSetting,
)
from relevance_reference import SIZES
from rich.console import Console

HOST, DONE, DEVICE = "host", "until done", "on the device"
OTHER = "other arrays"

# What the seeds claim, at its lower end, as shares of what eager launches take.
CLAIMS: dict[Part, float] = {"scoring": 1 / 2, "allocation": 1 / 3}
BUDGETS = tuple(
    Budget(f"{part}, {how}: {size} px", f"{part}, {how}: {size} px", GRAPH, limit)
    for part, limit in CLAIMS.items()
    for how in (HOST, DONE)
    for size in SIZES
)


@dataclass(frozen=True)
class Plan:
    """How many samples of each contender: for the host's time, and for the device's."""

    host: int = 240
    device: int = 64
    block: int = 10
    discard: int = 2

    @property
    def rounds(self) -> int:
        """How many rounds a case takes, in all three ways of timing."""
        host = rounds(self.host, self.block, self.discard)
        return 2 * host + rounds(self.device, self.block, self.discard)


@dataclass(frozen=True)
class Case:
    """What is timed: a stage with the same arrays each time, or all of it with others.

    Attributes:
        what: the first half of its name in the rows.
        size: pixels of the image's side.
        makers: who takes part.
        baseline: the metric that ratios are to.
    """

    what: str
    size: int
    makers: Callable[[RelevanceContenders], Sequence[Maker]]
    baseline: str = EAGER

    @property
    def label(self) -> str:
        """What to call it."""
        return f"{self.what}: {self.size} px"

    def name(self, how: str) -> str:
        """Return its name in the rows, timed in one of the three ways."""
        return f"{self.what}, {how}: {self.size} px"


def _stage(part: Part, size: int) -> Case:
    return Case(part, size, lambda contenders: contenders.makers(part))


def cases(only: str = "") -> list[Case]:
    """Return what is timed, in the order of measurement."""
    found = [_stage(part, size) for size in SIZES for part in PARTS]
    found += [Case(OTHER, size, lambda contenders: contenders.moving_makers()) for size in SIZES]
    return [case for case in found if only in case.label]


def make_entries(
    case: Case, contenders: RelevanceContenders, failures: list[str], absent: dict[str, str]
) -> list[Entry]:
    """Make and verify every contender of a case; who fails is told, and left out of it."""
    entries: list[Entry] = []
    for name, make in case.makers(contenders):
        try:
            with quiet():  # nothing may be destroyed while one of them captures
                for entry in make():
                    for i in range(4):
                        entry.verify(i)
                    entries.append(entry)
        except UnavailableError as error:
            absent[name] = str(error)
        except Exception as error:
            failures.append(f"{case.name('')}: {name}: {type(error).__name__}: {error}")
    return entries


def host_call(call: Call, setting: RelevanceSetting, *, waited: bool) -> PythonCall:
    """Return a contender for host time; the stream is drained before each sample."""
    names = {**call.names, "synchronize": setting.synchronize}
    statement = f"{call.statement}\nsynchronize()" if waited else call.statement
    return PythonCall(call.name, statement, names, before="synchronize()")


class Bench:
    """Measures case after case, and keeps the rows and what failed."""

    def __init__(self, setting: RelevanceSetting, plan: Plan) -> None:
        self.setting = setting
        self.plan = plan
        self.rows: list[Row] = []
        self.failures: list[str] = []
        self.absent: dict[str, str] = dict(setting.absent)
        self.advance: Callable[[], object] = lambda: None

    def measure(self, case: Case) -> None:
        """Verify all contenders of a case and time them in three ways."""
        try:
            contenders = RelevanceContenders(self.setting, case.size)
            entries = make_entries(case, contenders, self.failures, self.absent)
            calls = [entry.call for entry in entries]
            self._time(case, DONE, calls, lambda call: host_call(call, self.setting, waited=True))
            host = self._time(
                case, HOST, calls, lambda call: host_call(call, self.setting, waited=False)
            )
            self._time(case, DEVICE, calls, lambda call: self._device_call(call, host))
        except Exception as error:
            self.failures.append(f"{case.name('')}: {type(error).__name__}: {error}")
        finally:
            self.setting.runtime.device_synchronize()
            self.setting.cleanup.close()

    def _device_call(self, call: Call, host: dict[str, Summary]) -> Contender:
        # It asks its setting for hold, record, elapsed_us and synchronize, which ours has.
        return DeviceCall(call, cast("Any", self.setting), 30 + 3 * host[call.name].p80)

    def _time(
        self, case: Case, how: str, calls: Sequence[Call], make: Callable[[Call], Contender]
    ) -> dict[str, Summary]:
        summaries = interleave(
            [make(call) for call in calls],
            samples=self.plan.device if how == DEVICE else self.plan.host,
            block=self.plan.block,
            discard=self.plan.discard,
            advance=self.advance,
        )
        unit = DEVICE_US if how == DEVICE else HOST_US
        self.rows += make_rows(case.name(how), summaries, unit=unit, baseline=case.baseline)
        return summaries


def dry_run(console: Console, todo: Sequence[Case]) -> int:
    """Verify graphkit's contenders on the simulator; report no time."""
    failures: list[str] = []
    verified = 0
    for case in todo:
        setting = RelevanceSetting("sim")
        try:
            contenders = RelevanceContenders(setting, case.size)
            verified += len(make_entries(case, contenders, failures, {}))
        finally:
            setting.cleanup.close()
    for failure in failures:
        console.print(f"FAILED: {failure}", markup=False)
    console.print(f"{verified} contenders verified on the simulator, which reports no time.")
    return 1 if failures else 0


def main(arguments: list[str] | None = None) -> int:
    """Measure, write, print; return 1 when a contender failed and 2 without a device."""
    chosen = options(__doc__, runtime=True).parse_args(arguments)
    console = Console()
    todo = cases(chosen.only)
    if chosen.runtime == "sim":
        return dry_run(console, todo)
    try:
        setting = RelevanceSetting("cuda")
    except UnavailableError as error:
        console.print(f"A pipeline is measured on a device, never simulated. {error}", markup=False)
        return 2
    source = provenance()
    print_source(console, source)

    plan = replace(Plan(), host=40, device=16) if chosen.quick else Plan()
    bench = Bench(setting, plan)
    with progress_bar(console) as progress:
        task = progress.add_task("", total=plan.rounds * len(todo))
        bench.advance = lambda: progress.advance(task)
        for case in todo:
            progress.update(task, description=case.label)
            progress.refresh()
            bench.measure(case)

    code = report(
        console, "relevance", source, bench.rows,
        out=chosen.out, whole=whole_run(chosen), absent=bench.absent, failures=bench.failures,
    )  # fmt: skip
    for floor in (EAGER, TORCH):
        verdicts = judge(bench.rows, BUDGETS, floor=floor, own=OWN)
        print_verdicts(console, verdicts, floor=floor, own=OWN)
    return code


if __name__ == "__main__":
    sys.exit(main())
