"""A decode step of Llama 3.2 1B: graphkit's fused kernels as one graph, and PyTorch at its best.

    python3 bench/decode.py [--quick] [--seconds N] [--out DIR] [--only peers|graphkit]
                            [--batches 1,8] [--contexts 128]
    python3 bench/decode.py --runtime sim     # verifies graphkit's contenders, times nothing
    python3 bench/decode.py --runtime cpu     # verifies PyTorch's on the host, times nothing

The model has Llama 3.2 1B's shape and random bfloat16 weights, 2.47 GB, which all contenders read
where they lie. A step takes one token of each sequence, appends its key and value to the caches,
attends to what is there, chooses the next token greedily and moves the position on. Batches of 1 to
64 sequences, with 128, 1,024 and 4,096 positions in the cache.

- `on the device`: from an event ahead of 32 steps to one behind them, a step's share: throughput.
  The host enqueues meanwhile, so what is launched operator by operator shows the host's pace.
- `until done`: the host's time for one step and the wait for it: latency.
- `a token of 32`: the same for 32 steps, one after the other; with a look at each token whether to
  go on, and with the loop inside of the graph.
- `floor`: the bytes of all weights and of the keys and values attended to, at the bandwidth that a
  kernel which only reads has in the same run, the best of several grids.
- `share of the read bandwidth`: the floor's time over the contender's.

Every contender is verified at each size before it is timed: logits, next token, and the appended
keys and values of three layers against a reference in float32 from the same weights.

Every timed window begins at the position context - 15 and ends at context + 16, for everybody; a
step that is timed alone, and the one that is verified, stands at the context. PyTorch's slices of
the cache have one length, context + 1, for a whole window (a slice has one length in a graph, and a
mask would shut flash attention out); Hugging Face's StaticCache has context + 32 places and a mask.

The whole models are compiled for batch 1 and context 128 only: a minute each. `compiled layers in
one CUDA graph` is compiled for every batch: what lies between two attentions, once for all layers,
and the step captured as a whole; by coordinate descent for batches 1, 8 and 64, where it is what a
user would deploy, and by max-autotune alone for the others. Sizes come in the order of what they
decide, and what no time was left for is listed as absent.

NOTES. Predictions, written before the first measurement. From a probe on an H200, batch 1: read
bandwidth 4.40 TB/s, so a floor of 0.562 ms; Hugging Face eager 14.8 ms until done, as one graph
2.77, compiled 1.96; PyTorch by hand, compiled by coordinate descent, 1.55 until done and 1.23 on
the device; a bare chain of matrix-vector products 0.745.

- batch 1, context 128: graphkit with programmatic edges 0.65 ms, 86% of the bandwidth; plain edges
  0.75, since 82 kernels each lose 1.2 us of streaming at their head and tail; eager 0.76 on the
  device, as the host launches a kernel in 5 us and the device needs 8. The captured graph is the
  graph with plain edges.
- PyTorch by hand: eager 2.9 ms (330 operators, 8 us of host each), as one graph 1.45, compiled
  layers in one graph 1.05, compiled as a whole 1.10 by coordinate descent and 1.4 without. Hugging
  Face: eager 13 ms, one graph 2.7, compiled 1.7, by coordinate descent 1.4. So 1.6 times the best
  of PyTorch, which is short of the 2 that are asked for; 20 times Hugging Face eager.
- context 4,096, batch 1: 134 MB of cache, a floor of 0.592 ms; graphkit 0.72, 82%. PyTorch's flash
  attention splits the positions too: 1.15.
- batch 8: the matrix units do the work, 0.70 ms at context 128; PyTorch's GEMMs of few rows reach
  65% of the bandwidth, 0.95. Batch 64: 0.85 and 1.1 at context 128, where the cache is a tenth of
  the bytes; 3.1 and 3.4 at context 4,096, where it is three quarters and attention decides.
- Hugging Face repeats keys and values fourfold for its mask: at batch 64 and context 4,096 five
  times PyTorch by hand.
- until done: 12 us more than on the device for graphkit's graphs, 15 for PyTorch's; 100 more for
  what Inductor replays, whose checks the device waits for.
- a look after each token costs 15 us of 650; the loop in the graph 2, that of a while node.
- rows said anew, through an ExecPool (written when its kernels began to start early): 10 us more
  than the graph with programmatic edges, for two copies and three edges that are plain.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import io
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from decode_model import LLAMA_1B, TINY, Answer, Draw, Model, Size, places, reference
from decode_own import EAGER as OWN_EAGER
from decode_own import LOOKING, LOOP, MANUAL, PROGRAMMATIC, Own, OwnFamily
from decode_pool import Pooled
from decode_setting import (
    DecodeSetting,
    DeviceWindow,
    Family,
    Stepper,
    read_bandwidth,
    seconds_of,
    until_done,
    window_until_done,
)
from exec_pool_setting import OWN, UnavailableError
from measure import (
    DEVICE_US,
    HOST_US,
    Budget,
    Contender,
    Row,
    Summary,
    Verdict,
    interleave,
    judge,
    make_rows,
    over,
    print_tables,
    print_verdicts,
    quiet,
    summarize,
    write_results,
)
from provenance import RESULTS, provenance
from rebind_setting import Seldom
from rich.console import Console

BATCHES = (1, 8, 64, 32, 4, 16, 2)  # in the order of what they decide
CONTEXTS = (128, 4096, 1024)
WHOLE = Size(1, 128)  # where whole models are compiled
WHOLE_AFTER = 64  # the batch behind which they are

FLOOR = "floor: all bytes at the read bandwidth"
BEST = "the best of PyTorch"
HUGGING_FACE_EAGER = "Hugging Face eager"
SHARE = "% of the read bandwidth"

_began = time.monotonic()


def on_device(size: Size) -> str:
    """Return the case of a step's device time."""
    return f"a step at context {size.context}, on the device: batch {size.batch}"


def done(size: Size) -> str:
    """Return the case of a step's host time, the wait for it included."""
    return f"a step at context {size.context}, until done: batch {size.batch}"


def many(size: Size) -> str:
    """Return the case of a window's host time."""
    return f"a token of 32 at context {size.context}, until done: batch {size.batch}"


# --- budgets -------------------------------------------------------------------------------------

_ALL = [Size(batch, context) for batch in sorted(BATCHES) for context in sorted(CONTEXTS)]


def _budget(size: Size, limit: float, metric: str = PROGRAMMATIC, case: str = "") -> Budget:
    return Budget(size.name, case or on_device(size), metric, limit)


BUDGETS: dict[str, list[Budget]] = {
    FLOOR: [_budget(Size(1, 128), 1 / 0.85), _budget(Size(1, 4096), 1 / 0.80)],
    BEST: [
        _budget(Size(1, 128), 1 / 2),
        *(_budget(Size(batch, context), 1.0) for batch in (8, 64) for context in (128, 1024, 4096)),
    ],
    HUGGING_FACE_EAGER: [_budget(Size(1, 128), 1 / 20)],
    MANUAL: [_budget(size, 1.0) for size in _ALL],
    OWN_EAGER: [_budget(size, 1.0, MANUAL, done(size)) for size in _ALL],
    LOOKING: [_budget(size, 1.0, LOOP, many(size)) for size in _ALL],
}


def verdicts(rows: Iterable[Row]) -> dict[str, list[Verdict]]:
    """Hold the budgets against rows, by what they are multiples of; only those that were measured.

    The best of PyTorch is whatever contender of PyTorch's or Hugging Face's was fastest in a case.
    """
    rows = list(rows)
    rows += best_rows(rows)
    found = {}
    for floor, budgets in BUDGETS.items():
        # Of peers no more than the one that the budget is a multiple of: who is ahead is judged
        # against the best of them.
        kept = [row for row in rows if row.metric == floor or row.metric.startswith(OWN)]
        judged = [
            verdict
            for verdict in judge(kept, budgets, floor=floor, own=OWN)
            if verdict.value is not None and verdict.floor is not None
        ]
        if judged:
            found[floor] = judged
    return found


def best_rows(rows: Iterable[Row]) -> list[Row]:
    """Return a row for each case's fastest contender of PyTorch's or Hugging Face's."""
    best: dict[str, Row] = {}
    for row in rows:
        peer = row.n > 0 and not row.metric.startswith(OWN) and row.unit in (DEVICE_US, HOST_US)
        if peer and (row.case not in best or row.value < best[row.case].value):
            best[row.case] = row
    return [replace(row, metric=BEST) for row in best.values()]


# --- measurement ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """How many samples of each contender.

    Attributes:
        windows: of 32 steps, for the device's time.
        steps: alone, for the host's.
        slow_s: who takes longer for a window than this is sampled in fewer rounds.
    """

    windows: int = 8
    steps: int = 24
    slow_s: float = 0.12


@dataclass(frozen=True)
class Case:
    """A size, and whether whole models are compiled for it."""

    size: Size
    whole: bool = False

    @property
    def name(self) -> str:
        """What to call it."""
        return self.size.name + (", whole models compiled" if self.whole else "")


def cases(batches: Sequence[int] = BATCHES, contexts: Sequence[int] = CONTEXTS) -> list[Case]:
    """Return what is measured, in the order of measurement."""
    found: list[Case] = []
    for batch in (batch for batch in BATCHES if batch in batches):
        found += [Case(Size(batch, context)) for context in CONTEXTS if context in contexts]
    if any(case.size == WHOLE for case in found):
        behind = [at for at, case in enumerate(found) if case.size.batch in (1, 8, WHOLE_AFTER)]
        found.insert(behind[-1] + 1, Case(WHOLE, whole=True))
    return found


class Bench:
    """Measures case after case while there is time; keeps rows, failures and who was absent."""

    def __init__(
        self, setting: DecodeSetting, model: Model, plan: Plan, console: Console, seconds: float
    ) -> None:
        self.setting, self.model, self.plan, self.console = setting, model, plan, console
        self.deadline = _began + seconds
        self.bandwidth: list[float] = []
        self.rows: dict[Size, list[Row]] = {}
        self.failures: list[str] = []
        self.absent: dict[str, str] = {}
        self.families: list[Callable[[int], Family]] = []
        self._made: list[Family] = []
        self._batch = 0
        self._typical = 12.0  # seconds of a case
        self._longest = {True: 50.0, False: 30.0}  # seconds of a compilation, by whether whole

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return self.deadline - time.monotonic()

    def run(self, todo: Sequence[Case], save: Callable[[], object]) -> None:
        """Measure cases in their order; call ``save`` after each."""
        for case in todo:
            if self.left < 1.5 * self._typical:
                self.absent[case.name] = "no time was left"
                continue
            began = time.monotonic()
            try:
                self.measure(case)
            except Exception as error:
                traceback.print_exc()
                self.failures.append(f"{case.name}: {_shown(error)}")
            if not case.whole:
                self._typical = max(8.0, 0.5 * (self._typical + time.monotonic() - began))
            save()
        self.finish()

    def measure(self, case: Case) -> None:
        """Verify all contenders of a case, and time them in turns."""
        size = case.size
        if self._batch != size.batch or case.whole:
            self._change_batch(size.batch)
        expected = self._reference(size)
        steppers: list[Stepper] = []
        errors: dict[str, Summary] = {}
        spent: dict[str, Summary] = {}
        try:
            for family in self._made:
                for name, make in self._makers(family, case):
                    start = time.monotonic()
                    made = self._verified(name, case, make, expected)
                    if made is None:
                        continue
                    stepper, error = made
                    steppers.append(stepper)
                    errors[name] = _once(error)
                    spent[name] = _once(time.monotonic() - start)
            self._time(case, steppers, errors, spent)
        finally:
            self.setting.drain()
            for stepper in steppers:
                stepper.close()

    def _makers(self, family: Family, case: Case) -> Sequence[tuple[str, Callable[[], Stepper]]]:
        if case.whole and not isinstance(family, OwnFamily):
            makers: Sequence[tuple[str, Callable[[], Stepper]]]
            makers = family.makers(case.size, whole=True)  # type: ignore[call-arg]
            return makers
        return family.makers(case.size)

    def _verified(
        self, name: str, case: Case, make: Callable[[], Stepper], expected: Answer
    ) -> tuple[Stepper, float] | None:
        """Make and verify a contender; who fails is told, and left out."""
        compiles = "compile" in name
        began = time.monotonic()
        try:
            if compiles and self.left < self._longest[case.whole] + self._typical:
                raise UnavailableError("no time was left to compile it")
            with quiet():  # nothing may be destroyed while one of them captures
                stepper = make()
                return stepper, stepper.verify(expected, self.setting.drain)
        except UnavailableError as error:
            self.absent[f"{name}, {case.size.name}"] = str(error)
        except Exception as error:
            traceback.print_exc(limit=-4)
            if name.startswith(OWN):
                self.failures.append(f"{case.name}: {name}: {_shown(error)}")
            else:
                self.absent[f"{name}, {case.size.name}"] = _shown(error)
        finally:
            if compiles:
                took = time.monotonic() - began
                self._longest[case.whole] = max(self._longest[case.whole], took)
        return None

    def _time(
        self,
        case: Case,
        steppers: Sequence[Stepper],
        errors: dict[str, Summary],
        spent: dict[str, Summary],
    ) -> None:
        size, setting, plan = case.size, self.setting, self.plan
        each = [stepper for stepper in steppers if not stepper.stops]
        windows: list[Contender] = []
        for stepper in each:
            window = DeviceWindow(stepper, setting, size.first)
            try:
                takes = seconds_of(window)
            except Exception as error:
                error.add_note(f"It was {stepper.name}'s turn, behind the others made so far.")
                raise
            windows.append(Seldom(window, max(1, min(4, round(takes / plan.slow_s)))))
        device = interleave(windows, samples=plan.windows, block=3, discard=1)
        alone = [until_done(stepper, setting, size) for stepper in each]
        host = interleave(alone, samples=plan.steps, block=8, discard=2)
        looped = {LOOKING, LOOP, PROGRAMMATIC}
        windowed = [
            window_until_done(stepper, setting, size)
            for stepper in steppers
            if stepper.name in looped
        ]
        loops = interleave(windowed, samples=plan.windows, block=3, discard=1)

        rates = sorted(self.bandwidth)
        floor = [self.model.step_bytes(size) / rate * 1e6 for rate in rates]
        with_floor = {FLOOR: replace(summarize(floor), n=0), **device}
        batch, context = size.batch, size.context
        rows = make_rows(on_device(size), with_floor, unit=DEVICE_US, baseline=FLOOR)
        rows += make_rows(done(size), host, unit=HOST_US, baseline=PROGRAMMATIC)
        rows += make_rows(many(size), loops, unit=HOST_US, baseline=LOOKING)
        middle = summarize(floor).value
        shares = {name: over(100 * middle, found) for name, found in device.items()}
        rows += make_rows(
            f"share of the read bandwidth at context {context}: batch {batch}", shares, unit=SHARE
        )
        rows += make_rows(
            f"error of the logits at context {context}: batch {batch}", errors, unit="relative"
        )
        compiled = {name: took for name, took in spent.items() if "compile" in name}
        rows += make_rows(
            f"time until it can be called at context {context}: batch {batch}", compiled, unit="s"
        )
        self.rows[size] = rows
        shown = ", ".join(
            f"{name} {found.value:.0f} ({shares[name].value:.0f}%)"
            for name, found in sorted(device.items(), key=lambda pair: pair[1].value)
        )
        self.console.print(
            f"[{time.monotonic() - _began:.0f} s] {case.name}: floor {middle:.0f} us; {shown}",
            markup=False,
        )

    def _reference(self, size: Size) -> Answer:
        torch = self.setting.library("torch")
        return reference(self.model, size, torch, lambda array: array.float())

    def _change_batch(self, batch: int) -> None:
        self.finish()
        self._batch = batch
        for make in self.families:
            try:
                self._made.append(make(batch))
            except UnavailableError as error:
                self.absent[f"{getattr(make, 'title', 'a family')}"] = str(error)
            except Exception as error:
                traceback.print_exc(limit=-4)
                self.failures.append(f"batch {batch}: {_shown(error)}")

    def finish(self) -> None:
        """Give back what the contenders of a batch hold."""
        self.setting.drain()
        for family in self._made:
            family.close()
        self._made.clear()
        self._batch = 0
        gc.collect()
        if "torch" in self.setting.modules:
            self.setting.modules["torch"].cuda.empty_cache()


def _once(value: float) -> Summary:
    return Summary(value, value, value, 1)


def _shown(error: BaseException) -> str:
    """Return an error as one line of a bearable length."""
    first = " ".join(str(error).split())
    return f"{type(error).__name__}: {first[:240]}"


@dataclass(frozen=True)
class Titled:
    """Makes a family of contenders for a batch, and says what to call it where it cannot."""

    title: str
    make: Callable[[int], Family]

    def __call__(self, batch: int) -> Family:
        """Make it."""
        return self.make(batch)


def own_families(setting: DecodeSetting, model: Model) -> list[Titled]:
    """Return what makes graphkit's contenders."""
    return [
        Titled(OWN, lambda batch: Own(setting, model, batch)),
        Titled(f"{OWN} ExecPool", lambda batch: Pooled(setting, model, batch)),
    ]


def peer_families(model: Model, device: str) -> list[Titled]:
    """Return what makes PyTorch's contenders."""
    peers: Any = importlib.import_module("decode_peers")
    peers.prepare()
    graphs = peers.Graphs(device)
    made: list[Any] = []

    def hugging_face(batch: int) -> Family:
        if not made:
            made.append(peers.hugging_face_model(model))
        family: Family = peers.HuggingFace(model, batch, graphs, made[0])
        return family

    return [
        Titled(peers.HAND, lambda batch: peers.HandWritten(model, batch, graphs)),
        Titled(peers.HUGGING_FACE, hugging_face),
    ]


# --- without a device ----------------------------------------------------------------------------

SMALL = (Size(1, 20), Size(2, 40), Size(8, 20))


def dry_run(console: Console, families: Sequence[Titled], model: Model, xp: Any) -> int:
    """Verify contenders of a tiny model; report no time."""
    failed, verified = [], 0

    def wide(array: Any) -> Any:
        return array.astype(np.float64) if xp is np else array.double()

    for size in SMALL:
        expected = reference(model, size, xp, wide)
        for make in families:
            try:
                family = make(size.batch)
            except UnavailableError as error:
                console.print(f"absent: {make.title}: {error}", markup=False)
                continue
            for name, made in family.makers(size):
                try:
                    off = made().verify(expected, lambda: None)
                except UnavailableError as reason:
                    console.print(f"absent: {name}, {size.name}: {reason}", markup=False)
                except Exception as reason:
                    failed.append(f"{size.name}: {name}: {_shown(reason)}")
                else:
                    verified += 1
                    console.print(f"{size.name}: {name}: error {off:.2g}", markup=False)
            family.close()
    for failure in failed:
        console.print(f"FAILED: {failure}", markup=False)
    console.print(f"{verified} contenders verified on a tiny model; nothing was timed.")
    return 1 if failed else 0


def dry_runs(console: Console, runtime: str) -> int:
    """Verify graphkit's contenders on the simulator, or PyTorch's on the host."""
    setting = DecodeSetting("sim")
    batch, room = max(size.batch for size in SMALL), places([size.context for size in SMALL])
    if runtime == "sim":
        model = Model(TINY, Draw(), batch=batch, places=room)
        return dry_run(console, own_families(setting, model), model, np)
    torch = importlib.import_module("torch")
    model = Model(TINY, Draw(torch), batch=batch, places=room)
    return dry_run(console, peer_families(model, "cpu"), model, torch)


# --- all of it -----------------------------------------------------------------------------------


def bandwidth_row(setting: DecodeSetting) -> tuple[list[float], Row]:
    """Measure what a kernel that only reads reaches, over 8 GB."""
    torch = setting.library("torch")
    nbytes = 8 << 30
    data = torch.empty(nbytes // 4, dtype=torch.int32, device="cuda").random_()
    setting.drain()
    rates, grid = read_bandwidth(setting, data, nbytes)
    del data
    torch.cuda.empty_cache()
    found = {f"a kernel that only reads, {grid}": summarize([rate / 1e12 for rate in rates])}
    (row,) = make_rows("read bandwidth: 8 GB", found, unit="TB/s")
    return rates, row


def numbers(text: str) -> tuple[int, ...]:
    """Parse numbers between commas."""
    return tuple(int(part) for part in text.split(",") if part)


def main(arguments: list[str] | None = None) -> int:
    """Measure, write, print; return 1 when a contender failed and 2 without a device."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="batch 1, context 128, few samples")
    parser.add_argument("--seconds", type=float, default=540.0, help="begin nothing after so many")
    parser.add_argument("--only", choices=("peers", OWN), help="only these contenders")
    parser.add_argument("--batches", type=numbers, default=BATCHES, help="1,8 for example")
    parser.add_argument("--contexts", type=numbers, default=CONTEXTS, help="128 for example")
    parser.add_argument("--no-whole", action="store_true", help="compile no whole models")
    parser.add_argument("--runtime", choices=("cuda", "sim", "cpu"), default="cuda")
    parser.add_argument(
        "--out", type=Path, help="results folder (default: bench/results, of a whole run only)"
    )
    chosen = parser.parse_args(arguments)
    console = Console(width=None if sys.stdout.isatty() else 200)
    if chosen.runtime != "cuda":
        return dry_runs(console, chosen.runtime)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # what is cut off has said how far it was
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", str(os.cpu_count() or 1))
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        setting = DecodeSetting("cuda")
        torch = setting.library("torch")
    except UnavailableError as error:
        console.print(f"Decoding is measured on a device, with PyTorch. {error}", markup=False)
        return 2
    source = provenance()
    console.print(f"{source['device']}, driver {source['driver']}, CUDA {source['cuda']}")

    todo = cases(chosen.batches, chosen.contexts)
    if chosen.quick:
        todo = cases((1,), (128,))[:1]
    if chosen.no_whole or chosen.only == OWN:
        todo = [case for case in todo if not case.whole]
    contexts = [case.size.context for case in todo]
    model = Model(
        LLAMA_1B,
        Draw(torch, "cuda"),
        batch=max(case.size.batch for case in todo),
        places=places(contexts),
    )
    setting.drain()
    plan = Plan(windows=4, steps=12) if chosen.quick else Plan()
    bench = Bench(setting, model, plan, console, chosen.seconds)
    if chosen.only != "peers":
        bench.families += own_families(setting, model)
    if chosen.only != OWN:
        bench.families += peer_families(model, "cuda")
    bench.bandwidth, bandwidth = bandwidth_row(setting)
    console.print(f"read bandwidth {bandwidth.value} TB/s ({bandwidth.metric})", markup=False)

    entire = not chosen.quick and chosen.only is None and len(todo) >= len(cases())
    folder = chosen.out or (RESULTS if entire else None)

    def rows() -> list[Row]:
        sizes = sorted(bench.rows, key=lambda size: (size.context, size.batch))
        return [bandwidth, *(row for size in sizes for row in bench.rows[size])]

    def save() -> None:
        if folder is not None:
            found = {**source, "absent": bench.absent}
            write_results("decode", found, rows(), folder=folder)

    bench.run(todo, save)
    save()
    if console.is_terminal:  # else whoever keeps the last lines only would see nothing else
        print_tables(console, rows())
    where = f"in {folder}" if folder else "not written: only a whole run is, or one with --out"
    console.print(f"{len(rows())} rows, {where}", markup=False)
    for name, why in bench.absent.items():
        console.print(f"absent: {name}: {why}", markup=False)
    for failure in bench.failures:
        console.print(f"FAILED: {failure}", markup=False)
    for floor, judged in verdicts(rows()).items():
        print_verdicts(console, judged, floor=floor, own=OWN, unit="us")
    return 1 if bench.failures else 0


if __name__ == "__main__":
    sys.exit(main())
