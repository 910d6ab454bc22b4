"""What other buffers for a captured graph cost: rebind and launch, copy and replay, capture anew.

    python3 bench/rebind.py [--quick] [--out DIR]

A graph of 1, 10 or 100 kernel nodes, each of which is given the same buffer of 1 KB, 1 MB or
100 MB, is launched on another buffer each time. Every contender is verified first, on kernels that
count what they see in both ends of the buffer, and is then timed in turn with all others.

- `rebind`: the nodes get the other buffer, and nothing is launched; the budget means this one.
- `rebind and launch`: host time right after a synchronization. Who copies, copies the buffer to
  the one of the capture; who captures anew, makes the graph executable or updates one.
- `rebind, launch and wait`: the same until the stream is done.
- `rebind and launch, on the device`: from event to event, with the stream held busy while the host
  does its part, so that no pause of the host's is in it.
- `crossover`: from how many touched nodes on a copy costs less than rebinding, for each size of the
  buffer; between measured numbers of nodes, and beyond them, on a straight line.

NOTES. Predictions, written before the first measurement, from bench/launch_overhead.py's results
on an H200 (C 0.40 us to set a node and 0.95 to launch, the driver's binding 0.60 and 1.2):

- rebind one node: the binding's call, 0.3 us of checks and 0.2 us of bookkeeping make 1.1 us for
  arrays of our own, 2.7 x C: the budget of 1.2 x C is out of reach of any call from Python. A
  tensor costs 0.5 us more. Ten nodes: 6.5 us, 1.6 x C. 100: 62 us, 1.55 x C.
- rebind and launch, one node: 2.4 us, with a tensor 2.9; torch's copy_ takes 6 us and its replay 2,
  so 3.3 times and 2.8 times as long; CuPy's copy and launch 3.5 us, only 1.4 times.
- the buffer's size makes no difference to the host. The crossover in host time is therefore the
  same for all sizes: about 10 nodes against torch, 3 against CuPy.
- on the device, rebinding adds nothing. A copy adds 1.5 us at 1 KB, 2.5 at 1 MB and 48 at 100 MB
  (200 MB at 4.3 TB/s). Until the stream is done, rebinding then wins up to about 13 nodes at 1 KB,
  15 at 1 MB and 90 at 100 MB against torch.
- capturing anew costs 25 us at one node and 300 at 100 with an update, several times as much with
  torch, which makes a new executable graph: rebinding wins everywhere. So it does against
  cuda.core, whose update takes 3 us a node.

Measured (H200, driver 580; the kept run): one node 1.28 us for arrays of our own, 3.3 x C, a tensor
1.74; ten nodes 1.95 x C, 100 1.75 x C. Rebind and launch 2.73 us, with a tensor 3.16, against 6.44
for torch's copy_ and replay: 2.4 and 2.0 times as fast, not 3. CuPy's copy and launch takes 4.07.
The crossover in host time lies at 7.4 touched nodes against torch and 3.0 against CuPy; until the
stream is done, at 7.5 nodes for 1 KB and 175 for 100 MB. Tried for the one node: the checks of our
own arrays written out, one closure a buffer with everything prebound, no lock but a list's
pop, owners kept in a dict until there are many instead of an event each. Below it stands the
binding's call itself, 1.61 x C.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from command import options, print_source, report, whole_run
from launch_setting import FLOOR, UnavailableError
from measure import (
    DEVICE_US,
    Budget,
    Contender,
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
from rebind_contenders import CUPY_COPY, OWN, OWN_CUPY, OWN_TORCH, PEERS, TORCH_COPY, Peer
from rebind_setting import VALUES, Call, DeviceCall, Line, RebindSetting, Seldom, host_call
from rich.console import Console

SIZES = {"1 KB": 1 << 10, "1 MB": 1 << 20, "100 MB": 100 << 20}
NODES = (1, 10, 100)

REBIND = "rebind"
LAUNCH = "rebind and launch"
WAIT = "rebind, launch and wait"
ON_DEVICE = "rebind and launch, on the device"

BUDGETS = (
    Budget("rebind one slot", f"{REBIND}: 1 node", "graphkit rebind(x=array)", 1.2),
    Budget("rebind one slot, a tensor", f"{REBIND}: 1 node", "graphkit rebind(x=tensor)", 1.2),
)
# Three times as fast as the copy, for one touched node, in host time.
AHEAD = tuple(
    Budget(f"rebind and launch, {size}, 1 node", f"{LAUNCH}: {size}, 1 node", OWN_TORCH, 1 / 3)
    for size in SIZES
)
# Who could be replaced by whom.
PAIRS = (
    (OWN_TORCH, TORCH_COPY),
    (OWN_CUPY, CUPY_COPY),
    (OWN, "graphkit memcpy_async + launch"),
)

DRAINED, WAITED = 1, 2  # the modes of rebind.cu


def of_nodes(nodes: int) -> str:
    """Return ``"1 node"`` or ``"10 nodes"``."""
    return f"{nodes} node{'s' if nodes > 1 else ''}"


@dataclass(frozen=True)
class Plan:
    """How many samples of each contender: for the host's time, and for the device's."""

    host: int = 320
    device: int = 80
    block: int = 10
    discard: int = 2

    def rounds_of(self, sizes: int) -> int:
        """Return how many rounds all cases take together."""
        host = rounds(self.host, self.block, self.discard)
        device = rounds(self.device, self.block, self.discard)
        return len(NODES) * (host + sizes * (2 * host + device))


class WrongResultError(Exception):
    """A contender did something else than what is to be timed."""


def verify(call: Call, line: Line, setting: RebindSetting) -> None:
    """Make two calls of a contender and look at what its launches saw.

    Raises:
        WrongResultError: when that is not what the buffers hold.
    """
    setting.zero()
    contender = host_call(call, setting, drained=True, waited=True)
    for i in range(2):
        contender.sample(i, 1)
        if call.launch is not None:
            call.launch()
    seen, _ = setting.read()
    expected = line.nodes * sum(2 * value for value in VALUES)
    if seen != expected:
        raise WrongResultError(f"{call.name}: expected {expected} counted, came {seen}")


def contenders_of(calls: Iterable[Call], make: Callable[[Call], Contender]) -> list[Contender]:
    """Return a contender for each call; who takes long is sampled seldom."""
    return [Seldom(make(call), call.every) if call.every > 1 else make(call) for call in calls]


class Bench:
    """Measures case after case, and keeps the rows and what failed."""

    def __init__(self, setting: RebindSetting, peers: Sequence[Peer], plan: Plan) -> None:
        self.setting = setting
        self.peers = peers
        self.plan = plan
        self.rows: list[Row] = []
        self.failures: list[str] = []
        self.advance: Callable[[], object] = lambda: None

    def _calls(self, ask: Callable[[Peer, Line], list[Call]], line: Line, case: str) -> list[Call]:
        """Return the verified calls of all peers; who fails is told, and left out."""
        counting = self.setting.line(line.nbytes, line.nodes, 1)
        calls: list[Call] = []
        for peer in self.peers:
            try:
                with quiet():  # nothing may be destroyed while one of them captures
                    for call in ask(peer, counting):
                        verify(call, counting, self.setting)
                    calls += ask(peer, line)
            except Exception as error:
                self.failures.append(f"{case}: {peer.name}: {type(error).__name__}: {error}")
        return calls

    def _host(self, case: str, calls: list[Call], *, mode: int) -> dict[str, Summary]:
        def make(call: Call) -> Contender:
            if call.native is not None:
                native: Contender = call.native(mode)
                return native
            return host_call(call, self.setting, drained=mode > 0, waited=mode == WAITED)

        summaries = interleave(
            contenders_of(calls, make),
            samples=self.plan.host,
            block=self.plan.block,
            discard=self.plan.discard,
            advance=self.advance,
        )
        self.setting.synchronize()
        self.rows += make_rows(case, summaries, baseline=FLOOR)
        return summaries

    def rebind(self, nodes: int) -> None:
        """Measure the setting alone."""
        line, case = self.setting.line(SIZES["1 KB"], nodes, 0), f"{REBIND}: {of_nodes(nodes)}"
        try:
            calls = self._calls(lambda peer, it: peer.rebinds(it), line, case)
            self._host(case, calls, mode=0)
        except Exception as error:
            self.failures.append(f"{case}: {type(error).__name__}: {error}")
        finally:
            self.setting.synchronize()
            self.setting.cleanup.close()

    def launch(self, size: str, nodes: int) -> None:
        """Measure rebinding and launching: host, until done, device."""
        line, what = self.setting.line(SIZES[size], nodes, 0), f"{size}, {of_nodes(nodes)}"
        try:
            calls = self._calls(lambda peer, it: peer.calls(it), line, f"{LAUNCH}: {what}")
            host = self._host(f"{LAUNCH}: {what}", calls, mode=DRAINED)
            self._host(f"{WAIT}: {what}", calls, mode=WAITED)

            def make(call: Call) -> Contender:
                return DeviceCall(call, self.setting, 30 + 3 * host[call.name].p80)

            summaries = interleave(
                contenders_of(calls, make),
                samples=self.plan.device,
                block=self.plan.block,
                discard=self.plan.discard,
                advance=self.advance,
            )
            self.rows += make_rows(
                f"{ON_DEVICE}: {what}", summaries, unit=DEVICE_US, baseline=FLOOR
            )
        except Exception as error:
            self.failures.append(f"{LAUNCH}: {what}: {type(error).__name__}: {error}")
        finally:
            self.setting.synchronize()
            self.setting.cleanup.close()


# --- the crossover -------------------------------------------------------------------------------


def crossing(points: Sequence[tuple[int, float, float]]) -> float | None:
    """Return where the first of two costs becomes greater than the second.

    Args:
        points: (nodes, first cost, second cost), two or more, by ascending nodes.

    Returns:
        The number of nodes on the straight lines between the points, or on the last of them
        prolonged; 0 when the first is greater from the start, None when it never will be.
    """
    if points[0][1] >= points[0][2]:
        return 0.0
    for (n, a, b), (later, c, d) in pairwise(points):
        before, after = b - a, d - c
        last = later == points[-1][0]
        if after <= 0 or (last and after < before):
            return n + (later - n) * before / (before - after)
    return None


def crossover_rows(rows: Iterable[Row], sizes: Iterable[str]) -> list[Row]:
    """Return a row for each size and pair: from how many nodes on copying costs less."""
    found = {(row.case, row.metric): row for row in rows}
    made = []
    for what, title in ((LAUNCH, "in host time"), (WAIT, "until the stream is done")):
        for size in sizes:
            for own, peer in PAIRS:
                pairs = []
                for nodes in NODES:
                    case = f"{what}: {size}, {of_nodes(nodes)}"
                    if (case, own) in found and (case, peer) in found:
                        pairs.append((nodes, found[case, own], found[case, peer]))
                if len(pairs) < 2:
                    continue
                middle, low, high = (
                    crossing(
                        [(nodes, getattr(a, ours), getattr(b, theirs)) for nodes, a, b in pairs]
                    )
                    for ours, theirs in (("value", "value"), ("p80", "p20"), ("p20", "p80"))
                )
                if middle is None:
                    continue  # copying never costs less
                made.append(
                    Row(
                        f"crossover {title}: {size}",
                        f"{own}, then {peer}",
                        round(middle, 1),
                        "touched nodes",
                        round(middle if low is None else low, 1),
                        round(middle if high is None else high, 1),
                        min(min(a.n, b.n) for _, a, b in pairs),
                    )
                )
    return made


# --- all of it -----------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> int:
    """Measure, write, print; return 1 when a contender failed and 2 without a device."""
    parser = options(__doc__, quick="fewer samples, without 100 MB", only=False)
    chosen = parser.parse_args(arguments)
    console = Console()
    try:
        setting = RebindSetting()
        if setting.graphkit is None:
            raise UnavailableError(f"graphkit: {setting.graphkit_absent}")
    except UnavailableError as error:
        console.print(f"Rebinding is measured on a device, never simulated. {error}", markup=False)
        return 2
    source = provenance()
    print_source(console, source)

    peers: list[Peer] = []
    absent: dict[str, str] = {}
    for peer in PEERS:
        try:
            peers.append(peer(setting))
        except Exception as error:
            known = isinstance(error, UnavailableError)
            absent[peer.name] = str(error) if known else f"{type(error).__name__}: {error}"

    sizes = list(SIZES)[:2] if chosen.quick else list(SIZES)
    plan = Plan(host=40, device=16) if chosen.quick else Plan()
    bench = Bench(setting, peers, plan)
    with progress_bar(console) as progress:
        task = progress.add_task("", total=plan.rounds_of(len(sizes)))
        bench.advance = lambda: progress.advance(task)
        for nodes in NODES:
            progress.update(task, description=f"{REBIND}: {of_nodes(nodes)}")
            progress.refresh()
            bench.rebind(nodes)
        for size in sizes:
            for nodes in NODES:
                progress.update(task, description=f"{size}, {of_nodes(nodes)}")
                progress.refresh()
                bench.launch(size, nodes)
    rows = bench.rows + crossover_rows(bench.rows, sizes)

    code = report(
        console, "rebind", source, rows,
        out=chosen.out, whole=whole_run(chosen), absent=absent, failures=bench.failures,
    )  # fmt: skip
    for budgets, floor in ((BUDGETS, FLOOR), (AHEAD, TORCH_COPY)):
        verdicts = judge(rows, budgets, floor=floor, own="graphkit")
        print_verdicts(console, verdicts, floor=floor, own="graphkit")
    return code


if __name__ == "__main__":
    sys.exit(main())
