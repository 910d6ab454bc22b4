"""A stream of requests through an ExecPool: is every answer right, and memory where it should be?

    python3 bench/request_stream.py                              # on the device
    python3 bench/request_stream.py --runtime sim                # every answer checked, no times
    python3 bench/request_stream.py [--requests N] [--check N|every|none] [--cases CASE ...]
                                    [--layers N] [--tracemalloc] [--out DIR]

100,000 requests `x[batch, sequence]`: batches of 1 to 512 by Zipf's law, sequences of 1 to 256
spread evenly over their logarithm. The function makes prefix sums along the sequence, which padding
behind a row does not change, in as many kernels as the bucket's sequence has doublings: buckets of
different sequences have different topologies, and share no exec. Inputs lie at changing addresses,
every eighth of them at an odd one.

The budget holds the arenas and about a tenth of the execs that all buckets of the ready-made lists
would need. Answers are compared with what the function gives eagerly: on the simulator each of
them, on the device every 50th. The same stream is served four times:

- `serving`: vLLM's list of batches, sequences in powers of two;
- `powers of two`: both in powers of two;
- `learnt`: as many sizes as `serving` has, chosen by `Buckets.learn` from the first 2,000 requests;
- `serving, unshared`: `serving` again, with a function whose blocks of threads differ with the
  batch, so that no two buckets can share an exec: what is left is to evict the right ones.

Rows hold the share of padding, the hit rate, fallbacks by reason, evictions, the most memory that
`pool.memory()` and cudaMemGetInfo ever showed, the process's resident memory after the first fifth
and at the end, and on the device host microseconds a request, all rungs together. A run fails (exit
status 1) when an answer was wrong, when `pool.memory()` was over the budget after any request, or
when resident memory grew by more than a fiftieth (and 8 MiB) after the first fifth.

NOTES. Predictions, written before the first run: padding 30% by `serving`, most of it the
sequence's, 45% by powers of two, 15% learnt; hit rates above 99% each, since there are a few
hundred buckets at most and five topologies share the execs; no fallback but for what is over the
largest learnt size, which is none. With nothing shared the budget's 25 execs are those of the most
frequent keys, which take half of the requests: a hit rate of 50%, the rest eager for the budget.

How they did, 100,000 requests a case on an H200: no wrong answer of the 2,000 compared, never over
the budget by the pool's account; hit rates 99.7, 99.95 and 99.7%, 78% where no two keys share a
topology (the rest answered eagerly for want of room). cudaMemGetInfo shows 4 MiB at most against a
budget of 4.8, and 6 in the first case of the process; the pool itself accounts for 4.5 there, and
where the rest comes from was not found out. A first version charged an exec by the mean of all
that were ever made: 28 MiB. Host memory grows by 0.1 to 4.2 MiB after the first fifth, while the
calls for the last pairs of exec and bucket are bound. Half of the requests move an exec: 255
buckets have room for 25 of them. Learnt sizes pad 32%, the ready-made list 35, powers of two 51.
"""

from __future__ import annotations

import argparse
import gc
import resource
import sys
import time
import tracemalloc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from math import ceil, log2
from pathlib import Path
from typing import Any

import numpy as np
from command import report
from measure import HOST_US, Row, percentile, progress_bar
from numpy.typing import NDArray
from provenance import cpu_name, digest, package_versions, provenance
from rich.console import Console

import graphkit as gk
from graphkit.buckets import Buckets
from graphkit.copying import host_copy
from graphkit.exec_pool import ExecPool
from graphkit.pool_stats import PoolStats

LARGEST_BATCH, LARGEST_SEQUENCE = 512, 256
SEQUENCES = (16, 32, 64, 128, 256)
LEARNT_FROM = 2000
BUFFERS = 8
THREADS = 256
MOST_BLOCKS = 1024
EXEC_BYTES_PER_NODE = 2400  # what an H200 takes; the simulator is told the same
CHECK_EVERY = {"sim": 1, "cuda": 50}
LAYERS = {"sim": 1, "cuda": 12}  # so that execs on the device are larger than its pieces of memory

SHARE, REQUESTS, TIMES = "share", "requests", "times"
DEVICE_MIB, HOST_MIB = "device MiB", "host MiB"
_MIB = 1 << 20
UNSHARED = "serving, unshared"
CASES = ("serving", "powers of two", "learnt", UNSHARED)
# A shorter stream captures all along, and keeps what it captured.
JUDGED_FLAT = 20_000

# --- the function --------------------------------------------------------------------------------

_SCAN_STEP = r"""
extern "C" __global__ void scan_step(
    const unsigned* x, unsigned* y, int columns, int count, int shift
) {
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += gridDim.x * blockDim.x) {
        y[i] = x[i] + (i % columns >= shift ? x[i - shift] : 0);
    }
}
"""


def _scan_step(
    launch: gk.Launch, x: gk.Pointer, y: gk.Pointer, columns: int, count: int, shift: int
) -> None:
    source = x.view((count // columns, columns))
    target = y.view((count // columns, columns))
    target[:] = source
    target[:, shift:] += source[:, :-shift]


SCAN_STEP = gk.Kernel(_SCAN_STEP, "scan_step", twin=_scan_step)


def steps(columns: int) -> int:
    """Return how many kernels a prefix sum of so many columns takes."""
    return max(ceil(log2(columns)), 1)


class PrefixSums:
    """Prefix sums along each row, ``layers`` times over, modulo 2**32.

    The work goes back and forth between two pieces of memory that are allocated beforehand. The
    number of kernels depends on the columns, and the block, unless ``shared``, on the rows.
    """

    def __init__(self, layers: int, *, shared: bool = True) -> None:
        self.layers = layers
        self.shared = shared
        most = LARGEST_BATCH * LARGEST_SEQUENCE
        self.memories = [gk.empty(most, np.uint32) for _ in range(2)]

    def __call__(self, x: Any, stream: object) -> gk.DeviceArray:
        """Launch the kernels on a stream."""
        rows, columns = x.shape
        count = rows * columns
        source: gk.DeviceArray = x
        target = self.memories[0].view(x.shape, np.uint32)
        spare = self.memories[1].view(x.shape, np.uint32)
        threads = THREADS if self.shared else THREADS + rows
        blocks = min(-(-count // threads), MOST_BLOCKS)
        for _ in range(self.layers):
            for step in range(steps(columns)):
                arguments = (source, target, columns, count, 1 << step)
                SCAN_STEP(blocks, threads, arguments, stream=stream)
                source, target, spare = target, spare, target
        return source


# --- the requests --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Requests:
    """The shapes of a stream of requests, and where their inputs lie.

    Attributes:
        batches: rows of each.
        sequences: columns of each.
        offsets: elements between the begin of an input buffer and the input.
    """

    batches: NDArray[np.int64]
    sequences: NDArray[np.int64]
    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.batches)


def zipf_batches(random: np.random.Generator, count: int, largest: int) -> NDArray[np.int64]:
    """Return batch sizes from 1 to ``largest``, each as often as its inverse says."""
    sizes = np.arange(1, largest + 1)
    weights = 1 / sizes
    return random.choice(sizes, count, p=weights / weights.sum())


def log_uniform(random: np.random.Generator, count: int, largest: int) -> NDArray[np.int64]:
    """Return lengths from 1 to ``largest``, as many from each octave as from any other."""
    lengths = np.exp(random.uniform(0, np.log(largest + 1), count)).astype(np.int64)
    return np.clip(lengths, 1, largest)


def make_requests(count: int, seed: int = 0) -> Requests:
    """Return the stream; the same for the same seed, and a shorter one is how a longer begins."""
    children = np.random.SeedSequence(seed).spawn(3)
    randoms = [np.random.default_rng(child) for child in children]
    # Libraries align what they allocate: an odd address is the exception.
    offsets = 16 * randoms[2].integers(0, 16, count)
    offsets[::BUFFERS] += 1
    return Requests(
        zipf_batches(randoms[0], count, LARGEST_BATCH),
        log_uniform(randoms[1], count, LARGEST_SEQUENCE),
        offsets,
    )


def learn(extents: NDArray[np.int64], k: int, largest: int, axis: int) -> Buckets:
    """Return the k sizes that pad the extents seen the least, and hold the largest there may be."""
    values, counts = np.unique(extents, return_counts=True)
    histogram = {largest: 0, **dict(zip(values.tolist(), counts.tolist(), strict=True))}
    return Buckets.learn(histogram, k, axis)


def lattices(requests: Requests) -> dict[str, tuple[Buckets, Buckets]]:
    """Return the buckets of batch and sequence by case."""
    serving = Buckets.serving(LARGEST_BATCH)
    seen = slice(0, LEARNT_FROM)
    learnt = (
        learn(requests.batches[seen], len(serving), LARGEST_BATCH, 0),
        learn(requests.sequences[seen], len(SEQUENCES), LARGEST_SEQUENCE, 1),
    )
    powers = Buckets.powers_of_two(LARGEST_BATCH)
    ready_made = serving, Buckets(SEQUENCES, 1)
    made = ready_made, (powers, Buckets(SEQUENCES, 1)), learnt, ready_made
    return dict(zip(CASES, made, strict=True))


def budget(layers: int) -> int:
    """Return bytes for the arena and a tenth of the execs of the `serving` lattice."""
    arena = 4 * LARGEST_BATCH * LARGEST_SEQUENCE
    batches = len(Buckets.serving(LARGEST_BATCH))
    nodes = batches * sum(1 + layers * steps(columns) for columns in SEQUENCES)
    return arena + nodes * EXEC_BYTES_PER_NODE // 10


# --- serving them --------------------------------------------------------------------------------


@dataclass
class Served:
    """What came of a stream.

    Attributes:
        checked: answers that were compared with eager ones.
        wrong: how many of them differed.
        over_budget: requests after which the pool had more memory than allowed.
        most_told: the most memory that the pool ever said it had.
        most_taken: the most device memory that was ever taken, by cudaMemGetInfo.
        resident_fifth: resident memory of the process after the first fifth.
        resident_end: the same at the end.
        microseconds: of each call on the host; empty on the simulator.
        stats: what the pool counted.
    """

    checked: int = 0
    wrong: int = 0
    over_budget: int = 0
    most_told: int = 0
    most_taken: int = 0
    resident_fifth: int = 0
    resident_end: int = 0
    microseconds: NDArray[np.float32] | None = None
    stats: PoolStats | None = None

    @property
    def flat(self) -> bool:
        """Whether host memory stayed what it was after the first fifth."""
        grown = self.resident_end - self.resident_fifth
        return grown <= max(8 << 20, self.resident_fifth // 50)

    def faults(self, *, flat: bool = True) -> list[str]:
        """Return what must not happen, in sentences; ``flat`` looks at host memory as well."""
        grown = (self.resident_end - self.resident_fifth) / _MIB
        requests = self.stats.requests if self.stats else 0
        found = [
            (self.wrong, f"{self.wrong} of {self.checked} answers were wrong"),
            (self.over_budget, f"over the budget after {self.over_budget} requests"),
            (
                flat and requests >= JUDGED_FLAT and not self.flat,
                f"host memory grew by {grown:.1f} MiB after the first fifth",
            ),
        ]
        return [sentence for happened, sentence in found if happened]


class Server:
    """Serves a stream with a pool, and compares answers with those that the function gives.

    Args:
        pool: the pool under test.
        fn: its function.
        stream: where both launch.
        timed: whether to take the host time of each call.
    """

    def __init__(self, pool: ExecPool, fn: PrefixSums, stream: gk.Stream, *, timed: bool) -> None:
        self._pool, self._fn, self._stream = pool, fn, stream
        self._runtime = stream.runtime
        self._timed = timed
        random = np.random.default_rng(1)
        most = LARGEST_BATCH * LARGEST_SEQUENCE + 16 * 16 + 1
        self._buffers = [
            gk.asarray(random.integers(0, 1 << 16, most).astype(np.uint32)) for _ in range(BUFFERS)
        ]
        self._runtime.device_synchronize()
        self._free_before = self._runtime.mem_get_info()[0]

    def serve(
        self,
        requests: Requests,
        check_every: int,
        advance: Callable[[int], object] = lambda _: None,
        at_fifth: Callable[[], object] = lambda: None,
    ) -> Served:
        """Serve all requests.

        Args:
            requests: the stream.
            check_every: compares every so many answers with eager ones; 0 compares none.
            advance: told now and then how many more requests are done.
            at_fifth: called after the first fifth.
        """
        pool, served = self._pool, Served()
        limit = pool.memory().budget
        assert limit is not None
        clock = time.perf_counter_ns
        taken = np.zeros(len(requests) if self._timed else 0, np.float32)
        pace = max(len(requests) // 200, 1)
        fifth = len(requests) // 5
        for number in range(len(requests)):
            x = self._input(requests, number)
            begin = clock()
            result = pool(x=x)
            if self._timed:
                taken[number] = (clock() - begin) / 1e3
            told = pool.memory().total
            served.most_told = max(served.most_told, told)
            served.over_budget += told > limit
            if check_every and number % check_every == 0:
                found = host_copy(result)
                expected = host_copy(self._fn(x, self._stream))
                served.checked += 1
                served.wrong += not np.array_equal(found, expected)
            if number % pace == 0 or number == len(requests) - 1:
                self._stream.synchronize()
                used = self._free_before - self._runtime.mem_get_info()[0]
                served.most_taken = max(served.most_taken, used)
                advance(min(pace, len(requests) - number))
            if number == fifth:
                served.resident_fifth = resident_bytes()
                at_fifth()
        served.resident_end = resident_bytes()
        served.microseconds = taken
        served.stats = pool.stats()
        return served

    def _input(self, requests: Requests, number: int) -> gk.DeviceArray:
        shape = int(requests.batches[number]), int(requests.sequences[number])
        offset = int(requests.offsets[number])
        return self._buffers[number % BUFFERS][offset:].view(shape, np.uint32)


def resident_bytes() -> int:
    """Return the resident memory of this process (Linux), without what is garbage already."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize()


# --- rows ----------------------------------------------------------------------------------------


def make_rows(name: str, served: Served, limit: int) -> list[Row]:
    """Return the rows of one case."""
    case, stats = f"request stream: {name}", served.stats
    assert stats is not None
    counts: list[tuple[str, float, str]] = [
        ("hit rate", stats.hit_rate, SHARE),
        ("padding", stats.padding_ratio, SHARE),
        ("requests", stats.requests, REQUESTS),
        ("compared with eager", served.checked, REQUESTS),
        ("wrong", served.wrong, REQUESTS),
        ("over the budget", served.over_budget, REQUESTS),
        ("fallbacks", sum(stats.fallbacks.values()), REQUESTS),
        *((f"fallback: {why}", count, REQUESTS) for why, count in stats.fallbacks.items()),
        ("keys", len(stats.keys), TIMES),
        ("captures", stats.captures, TIMES),
        ("instantiates", stats.instantiates, TIMES),
        ("evictions", stats.evictions, TIMES),
        *((f"moves, by {how}", count, TIMES) for how, count in stats.updates.items()),
        ("the budget", limit / _MIB, DEVICE_MIB),
        ("pool.memory(), at most", served.most_told / _MIB, DEVICE_MIB),
        ("cudaMemGetInfo, at most", served.most_taken / _MIB, DEVICE_MIB),
        ("resident after a fifth", served.resident_fifth / _MIB, HOST_MIB),
        ("resident at the end", served.resident_end / _MIB, HOST_MIB),
    ]
    rows = [
        Row(case, metric, _rounded(value), unit, _rounded(value), _rounded(value), stats.requests)
        for metric, value, unit in counts
    ]
    if served.microseconds is not None and len(served.microseconds):
        times = served.microseconds.tolist()
        p20, median, p80 = (_rounded(percentile(times, percent)) for percent in (20, 50, 80))
        rows.append(Row(case, "a request", median, HOST_US, p20, p80, len(times)))
        mean = _rounded(sum(times) / len(times))
        rows.append(Row(case, "a request, mean", mean, HOST_US, p20, p80, len(times)))
    return rows


def _rounded(value: float) -> float:
    return value if isinstance(value, int) else float(f"{value:.4g}")


def simulator_provenance() -> dict[str, Any]:
    """Return what :func:`provenance.provenance` does, for a run without a device."""
    return {
        "device": "simulator",
        "driver": "none",
        "cuda": "none",
        "cpu": cpu_name(),
        "python": ".".join(map(str, sys.version_info[:3])),
        "packages": package_versions(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "digest": digest(),
    }


# --- the command ---------------------------------------------------------------------------------


def check_interval(text: str) -> int:
    """Return after how many requests one is compared: ``every`` is 1, ``none`` is 0."""
    words = {"every": 1, "none": 0}
    return words[text] if text in words else int(text)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the arguments of the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runtime", choices=("cuda", "sim"), default="cuda")
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument(
        "--check", type=check_interval, help="N, every or none (default: every, on a device 50)"
    )
    parser.add_argument("--cases", nargs="+", choices=CASES, metavar="CASE")
    parser.add_argument("--layers", type=int, help="prefix sums of prefix sums (default: 1 or 12)")
    parser.add_argument("--tracemalloc", action="store_true", help="show what host memory grew by")
    parser.add_argument(
        "--out", type=Path, help="results folder (default: bench/results, of whole runs)"
    )
    return parser.parse_args(arguments)


def grown_by(before: tracemalloc.Snapshot) -> list[str]:
    """Return the lines of source whose allocations grew most since a snapshot."""
    difference = tracemalloc.take_snapshot().compare_to(before, "lineno")
    return [str(item) for item in difference[:10]]


def serve_case(
    name: str,
    sizes: tuple[Buckets, Buckets],
    requests: Requests,
    chosen: argparse.Namespace,
    advance: Callable[[int], object],
    say: Callable[[str], object],
) -> tuple[Served, int]:
    """Serve the stream in one case; return what came of it, and the budget."""
    layers = chosen.layers or LAYERS[chosen.runtime]
    every = CHECK_EVERY[chosen.runtime] if chosen.check is None else chosen.check
    limit = budget(layers)
    stream = gk.Stream()
    fn = PrefixSums(layers, shared=name != UNSHARED)
    snapshots: list[tracemalloc.Snapshot] = []

    def at_fifth() -> None:
        if chosen.tracemalloc:
            tracemalloc.start()
            snapshots.append(tracemalloc.take_snapshot())

    try:
        with ExecPool(fn, {"x": sizes}, memory_budget=limit, stream=stream) as pool:
            server = Server(pool, fn, stream, timed=chosen.runtime == "cuda")
            served = server.serve(requests, every, advance, at_fifth)
            say(repr(pool))
        for snapshot in snapshots:
            for line in grown_by(snapshot):
                say(line)
    finally:
        if snapshots:
            tracemalloc.stop()
        stream.synchronize()
        stream.close()
    return served, limit


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve, check, write, print; return 1 when something was wrong and 2 without a device."""
    chosen = parse(arguments)
    console = Console()
    try:
        gk.use(chosen.runtime)
    except gk.RuntimeUnavailableError as error:
        console.print(str(error), markup=False)
        return 2
    source: Mapping[str, Any] = provenance() if chosen.runtime == "cuda" else simulator_provenance()
    requests = make_requests(chosen.requests)
    todo = lattices(requests)
    todo = {name: todo[name] for name in chosen.cases or todo}
    rows: list[Row] = []
    faults: list[str] = []
    with progress_bar(console) as progress:
        task = progress.add_task("", total=len(todo) * len(requests))

        def advance(count: int) -> None:
            progress.advance(task, count)
            progress.refresh()

        for name, sizes in todo.items():
            progress.update(task, description=name)
            gk.use(chosen.runtime)  # on the simulator an empty one
            served, limit = serve_case(
                name, sizes, requests, chosen, advance, progress.console.print
            )
            rows += make_rows(name, served, limit)
            # What traces allocations keeps notes of all of them, in memory of its own.
            faults += [f"{name}: {fault}" for fault in served.faults(flat=not chosen.tracemalloc)]
    whole = chosen.requests == 100_000 and not chosen.cases and chosen.layers is None
    return report(
        console, "request_stream", source, rows, out=chosen.out, whole=whole, failures=faults
    )


if __name__ == "__main__":
    sys.exit(main())
