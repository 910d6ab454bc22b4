"""What each kernel of a decode step takes, beside the time of its bytes at the read bandwidth.

    python3 bench/decode_kernels.py [--quick] [--batches 1,8,64] [--contexts 128,4096] [--out DIR]
    python3 bench/decode_kernels.py --runtime sim    # launches every kernel, times nothing

Each kind of kernel is put into a graph of its own, in a line of 16 nodes: those of the 16 layers
with their different weights, or 16 times the same where the step has only one. One graph has plain
edges, one programmatic edges, and a sample is a node's share of eight launches. So a time is that
of a kernel among its like, what is lost between two of them included. The whole step is timed in
turn with them, both ways.

Bytes are those of the weights that a kernel reads, and of the keys and values that attention does;
activations are left out. At small contexts the caches of all layers fit into the L2 cache, where
they lie when nothing but attention is launched: its time is then less than in the step, and may be
less than its floor.

`decode_picture.py` draws the results.

NOTES. Predictions, written before the first measurement, for batch 1 and context 128, in us a
kernel with plain and with programmatic edges, at 4.40 TB/s:

- qkv 12.6 MB, floor 2.9: 4.1 and 3.3. Attention's output 8.4 MB, 1.9: 3.1 and 2.3. Gate and up 67
  MB, 15.3: 16.9 and 15.9. Down 33.6 MB, 7.6: 9.0 and 8.1. Attention itself 2.6 and 2.0. The
  vocabulary 525 MB, 119: 122 and 121. The next token 3.0 and 2.5.
- programmatic edges take 0.6 to 1.0 us off each kernel: 16 times five of them make the 75 us that
  the step gains.
- the sum over the step is its time within 5%, with either kind of edges.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from decode import BATCHES, bandwidth_row, numbers
from decode_model import LLAMA_1B, TINY, WINDOW, Draw, Model, Size
from decode_own import Own
from decode_setting import DecodeSetting
from exec_pool_setting import UnavailableError
from measure import (
    DEVICE_US,
    Row,
    Summary,
    interleave,
    make_rows,
    over,
    print_tables,
    summarize,
    timed_loop,
    write_results,
)
from provenance import RESULTS, provenance
from rich.console import Console

import graphkit as gk
from graphkit.arrays import describe, is_array

NODES = 16
LAUNCHES = 8  # of a graph, in a sample
ROOM = NODES * LAUNCHES + WINDOW  # positions that a sample moves on by, at most
PLAIN, PROGRAMMATIC = "plain edges", "programmatic edges"
STEP = "the whole step"

_LAYER = re.compile(r"^layers\.\d+\.")


@dataclass(frozen=True)
class Kind:
    """The launches of a step that do the same, in different layers.

    Attributes:
        name: what they do.
        launches: in the order of the step.
        nbytes: what one of them reads of weights and caches.
    """

    name: str
    launches: Sequence[Any]
    nbytes: int


def kinds(own: Own, size: Size) -> list[Kind]:
    """Group a decoder's launches by what they do, in the order of a step."""
    groups: dict[str, list[Any]] = {}
    for entry in own.decoder.launches:
        groups.setdefault(_LAYER.sub("", entry.name), []).append(entry.launch)
    return [
        Kind(name, launches, bytes_read(launches[0], own, size))
        for name, launches in groups.items()
    ]


def bytes_read(launch: Any, own: Own, size: Size) -> int:
    """Return the bytes of weights and caches that a launch reads, told by its arguments."""
    model, name = own.model, launch.kernel.name
    matrices = {
        describe(tensor).ptr: (key, describe(tensor).nbytes)
        for key, tensor in own.checkpoint.tensors.items()
        if len(tensor.shape) == 2
    }
    total = 0
    for value in launch.args:
        address = describe(value).ptr if is_array(value) else value
        key, nbytes = matrices.get(address, ("", 0))
        if key.endswith("embed_tokens.weight") and not re.search("vocab|head|matvec", name):
            nbytes = size.batch * model.config.hidden_size * 2  # a row for each sequence
        total += nbytes
    if "attention" in name:
        total += size.batch * size.attended * model.position_bytes // model.layer_count
    return total


def line_of(launches: Sequence[Any], edges: str) -> gk.Graph:
    """Return a graph of kernel nodes, each behind the one before."""
    graph = gk.Graph()
    before: gk.Node | None = None
    for launch in launches:
        node = launch.add_to(graph)
        if before is not None:
            graph.add_dependency(before, node, programmatic=edges == PROGRAMMATIC)
        before = node
    return graph


@dataclass
class Repeated:
    """A contender: launches that are made several times between two events."""

    name: str
    launch: Callable[[], object]
    place: Callable[[], None]
    setting: DecodeSetting
    launches: int
    nodes: int

    def __post_init__(self) -> None:
        self._device: list[float] = []
        names = {
            "launch": self.launch,
            "place": self.place,
            "drain": self.setting.drain,
            "record": self.setting.record,
            "device": self._device,
            "elapsed_us": self.setting.elapsed_us,
        }
        self._loop = timed_loop(
            f"for _ in range({self.launches}): launch()",
            names,
            before="place(); drain(); record(0)",
            after="record(1); device.append(elapsed_us())",
        )

    def sample(self, first: int, count: int) -> list[float]:
        """Return device microseconds of a node, or of a step."""
        self._device.clear()
        self._loop(first, count)
        return [us / (self.launches * self.nodes) for us in self._device]


class Kernels:
    """Makes and measures the graphs of one size."""

    def __init__(self, setting: DecodeSetting, own: Own, size: Size) -> None:
        self.setting, self.own, self.size = setting, own, size
        self.kinds = kinds(own, size)

    def launcher(self, launches: Sequence[Any], edges: str) -> Callable[[], None]:
        """Return what launches a graph of launches in a line; closed with the setting's others."""
        graph = line_of(launches, edges)
        exe = graph.instantiate()
        exe.upload(self.setting.stream)
        self.setting.cleanup.callback(graph.close)
        self.setting.cleanup.callback(exe.close)
        return exe.launcher(self.setting.stream)

    def contenders(self) -> list[Repeated]:
        """Return every kind in a graph of its own, and the step, each with both kinds of edges."""
        found: list[Repeated] = []
        for edges, build in ((PLAIN, "manual"), (PROGRAMMATIC, "programmatic")):
            for kind in self.kinds:
                launches = [kind.launches[node % len(kind.launches)] for node in range(NODES)]
                launch = self.launcher(launches, edges)
                name = f"{kind.name}, {edges}"
                found.append(
                    Repeated(name, launch, self.place, self.setting, LAUNCHES, len(launches))
                )
            step = self.own.decode(build).launch
            found.append(Repeated(f"{STEP}, {edges}", step, self.place, self.setting, WINDOW, 1))
        return found

    def place(self) -> None:
        """Put the position where a window of steps begins."""
        self.own.place(self.size.first)

    def measure(self, rates: Sequence[float], samples: int) -> list[Row]:
        """Time everything in turns; return the rows."""
        self.own.start(self.size)
        found = interleave(self.contenders(), samples=samples, block=4, discard=1)
        floors = {
            kind.name: summarize([kind.nbytes / rate * 1e6 for rate in rates])
            for kind in self.kinds
            if kind.nbytes
        }
        total = self.own.model.step_bytes(self.size)
        floors[STEP] = summarize([total / rate * 1e6 for rate in rates])
        nbytes = {kind.name: kind.nbytes for kind in self.kinds} | {STEP: total}
        counts = {kind.name: len(kind.launches) for kind in self.kinds} | {STEP: 1}
        name, rows = self.size.name, []
        rows += make_rows(f"launches in a step: {name}", _exact(counts), unit="launches")
        rows += make_rows(
            f"weights and caches that a kernel reads: {name}",
            _exact({kind: count / 1e6 for kind, count in nbytes.items()}),
            unit="MB",
        )
        rows += make_rows(f"floor of a kernel: {name}", floors, unit=DEVICE_US)
        for edges in (PLAIN, PROGRAMMATIC):
            ours = {kind: found[f"{kind}, {edges}"] for kind in counts}
            rows += make_rows(f"a kernel, {edges}: {name}", ours, unit=DEVICE_US)
            rates_ = {
                kind: over(nbytes[kind] / 1e3, took) for kind, took in ours.items() if nbytes[kind]
            }
            rows += make_rows(f"rate of a kernel, {edges}: {name}", rates_, unit="GB/s")
            shares = {
                kind: over(100 * floors[kind].value, took)
                for kind, took in ours.items()
                if kind in floors
            }
            rows += make_rows(
                f"share of a kernel, {edges}: {name}", shares, unit="% of the read bandwidth"
            )
        return rows


def _exact(values: dict[str, Any]) -> dict[str, Summary]:
    return {name: Summary(value, value, value, 0) for name, value in values.items()}


def dry_run(console: Console) -> int:
    """Launch every graph of a tiny model on the simulator; report no time."""
    setting, size = DecodeSetting("sim"), Size(1, 20)
    model = Model(TINY, Draw(), batch=size.batch, places=size.context + ROOM)
    own = Own(setting, model, size.batch)
    own.start(size)
    made = Kernels(setting, own, size).contenders()
    for contender in made:
        contender.place()
        contender.launch()
        setting.drain()
    setting.cleanup.close()
    own.close()
    console.print(f"{len(made)} graphs launched on the simulator, which reports no time.")
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Measure, write, print; return 2 without a device or without the kernels."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="batch 1, context 128, few samples")
    parser.add_argument("--batches", type=numbers, default=(1, 8, 64))
    parser.add_argument("--contexts", type=numbers, default=(128, 4096))
    parser.add_argument("--runtime", choices=("cuda", "sim"), default="cuda")
    parser.add_argument("--out", type=Path, help="results folder (default: bench/results)")
    chosen = parser.parse_args(arguments)
    console = Console(width=None if sys.stdout.isatty() else 200)
    try:
        if chosen.runtime == "sim":
            return dry_run(console)
        setting = DecodeSetting("cuda")
        torch = setting.library("torch")
    except UnavailableError as error:
        console.print(f"Kernels are measured on a device. {error}", markup=False)
        return 2
    source = provenance()
    batches = (1,) if chosen.quick else tuple(b for b in sorted(BATCHES) if b in chosen.batches)
    contexts = (128,) if chosen.quick else chosen.contexts
    rates, bandwidth = bandwidth_row(setting)
    model = Model(LLAMA_1B, Draw(torch, "cuda"), batch=max(batches), places=max(contexts) + ROOM)
    setting.drain()
    rows = [bandwidth]
    for batch in batches:
        own = Own(setting, model, batch)
        for context in contexts:
            rows += Kernels(setting, own, Size(batch, context)).measure(
                rates, 6 if chosen.quick else 24
            )
            setting.drain()
            setting.cleanup.close()
        own.close()
    folder = chosen.out or (None if chosen.quick else RESULTS)
    if folder is not None:
        console.print(f"{write_results('decode_kernels', source, rows, folder=folder)}")
    print_tables(console, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
