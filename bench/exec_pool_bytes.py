"""Device memory for bench/exec_pool.py: what it takes to serve 51 sizes, by whoever serves them.

Each contender has a process of its own: the driver keeps memory that was given back, and another
contender would find it there. What is counted is everything from before its first buffer on, by
cudaMemGetInfo, after every size was served a few times and with the results verified.
"""

from __future__ import annotations

import gc
import json
import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from exec_pool_setting import COLUMNS, OWN, Setting, UnavailableError, check, new_pool

import graphkit as gk
from graphkit.buckets import Buckets

LARGEST = 512
PASSES = 4  # over all sizes
NODES = (100, 1000)
ONE_A_SIZE = "one exec a size: GraphExec"
TORCH = "one exec a size: torch CUDAGraph, shared pool"
CASE = "device memory for 51 sizes"


def pool_name(max_execs: int) -> str:
    """Return the name of a pool's contender."""
    return f"{OWN} ExecPool, max_execs={max_execs}"


POOLS = {pool_name(count): count for count in (1, 4)}
CONTENDERS = (ONE_A_SIZE, TORCH, *POOLS)

Serve = Callable[[int], Any]  # answers the request of a size


@dataclass(frozen=True)
class Taken:
    """What a contender took, in bytes.

    Attributes:
        device: the most device memory, by cudaMemGetInfo.
        told: the same as the pool itself has it; None for others.
        host: resident memory of the process, beside what it was before.
        execs: executable graphs at the end.
    """

    device: int
    told: int | None
    host: int
    execs: int


class Serving:
    """The sizes and their inputs; contenders share a static input buffer where they need one."""

    def __init__(self, setting: Setting, nodes: int, sizes: tuple[int, ...]) -> None:
        self.setting = setting
        self.nodes = nodes
        self.sizes = sizes
        self.host = np.arange(sizes[-1] * COLUMNS, dtype=np.float32).reshape(-1, COLUMNS)
        self.whole: Any = None

    def prepare(self) -> Any:
        """Make the input, run the function once, and return it: all that is not to be counted."""
        self.whole = self.setting.array(OWN, self.host)
        chain = self.setting.chain(OWN, self.nodes, self.host.size)
        chain(self.whole, self.setting.stream)
        self.setting.runtime.device_synchronize()
        return chain

    def prepare_torch(self) -> Any:
        """Do the same for PyTorch; the function writes to memory of its own there, too."""
        torch = self.setting.library("torch")
        self.whole = self.setting.array("torch", self.host)
        result = torch.empty_like(self.whole)

        def chain(x: Any) -> Any:
            y = result[: x.shape[0]]
            torch.add(x, 1.0, out=y)
            for _ in range(self.nodes - 1):
                y += 1.0
            return y

        chain(self.whole)
        self.setting.runtime.device_synchronize()
        return chain

    def take(self, serve: Serve, free_before: int, resident_before: int, name: str) -> Taken:
        """Serve every size, largest first, verify each, and return what that took."""
        least_free = free_before
        for _ in range(PASSES):
            for size in reversed(self.sizes):
                check(name, serve(size), self.host[:size] + np.float32(self.nodes))
            least_free = min(least_free, self.setting.free_bytes())
        grown = resident_bytes() - resident_before
        return Taken(free_before - least_free, None, max(grown, 0), 0)

    def pool(self, max_execs: int) -> Taken:
        """Serve by an ExecPool."""
        chain = self.prepare()
        before = self.setting.free_bytes(), resident_bytes()
        name = pool_name(max_execs)
        with new_pool(self.setting, chain, Buckets(self.sizes), max_execs=max_execs) as pool:
            taken = self.take(lambda size: pool(x=self.whole[:size]), *before, name)
            stats = pool.stats()
            execs = stats.instantiates - stats.evictions
            return Taken(taken.device, stats.memory.total, taken.host, execs)

    def exec_a_size(self) -> Taken:
        """Serve by a dict of GraphExecs."""
        chain, stream = self.prepare(), self.setting.stream
        before = self.setting.free_bytes(), resident_bytes()
        arena = gk.zeros(self.host.size)
        execs: dict[int, Any] = {}
        graphs = []
        for size in reversed(self.sizes):
            static = arena.view((size, COLUMNS), np.float32)
            with gk.capture(stream) as graph:
                y = chain(static, stream)
            graphs.append(graph)
            execs[size] = static, graph.instantiate(upload_stream=stream), y

        def serve(size: int) -> Any:
            static, exe, y = execs[size]
            gk.memcpy_async(static, self.whole[:size], stream)
            exe.launch(stream)
            return y

        taken = self.take(serve, *before, ONE_A_SIZE)
        for _, exe, _ in execs.values():
            exe.close()
        for graph in graphs:
            graph.close()
        return Taken(taken.device, None, taken.host, len(execs))

    def torch_graphs(self) -> Taken:
        """Serve by a dict of CUDAGraphs that share a memory pool."""
        torch = self.setting.library("torch")
        chain = self.prepare_torch()
        torch.cuda.empty_cache()
        before = self.setting.free_bytes(), resident_bytes()
        arena = torch.zeros(self.host.shape, device="cuda")
        pool = torch.cuda.graph_pool_handle()
        graphs: dict[int, Any] = {}
        for size in reversed(self.sizes):
            static = arena[:size]
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool):
                y = chain(static)
            graphs[size] = static, graph, y

        def serve(size: int) -> Any:
            static, graph, y = graphs[size]
            static.copy_(self.whole[:size])
            graph.replay()
            return y

        gc.collect()
        torch.cuda.empty_cache()
        taken = self.take(serve, *before, TORCH)
        return Taken(taken.device, None, taken.host, len(graphs))


def resident_bytes() -> int:
    """Return the resident memory of this process (Linux)."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize()


def take(name: str, nodes: int, runtime: str, sizes: tuple[int, ...] | None = None) -> Taken:
    """Let a contender serve all sizes, in this process.

    Raises:
        UnavailableError: when it cannot take part.
        WrongResultError: when it does not answer as it should.
    """
    setting = Setting(runtime, ("torch",) if name == TORCH else ())
    serving = Serving(setting, nodes, sizes or Buckets.serving(LARGEST).sizes)
    if name in POOLS:
        return serving.pool(POOLS[name])
    return serving.torch_graphs() if name == TORCH else serving.exec_a_size()


def take_apart(script: Path, name: str, nodes: int) -> Taken:
    """Let a contender serve all sizes in a process of its own, on the device.

    Args:
        script: answers ``--bytes-of NAME --nodes N`` with a line of JSON.
        name: the contender.
        nodes: kernels of the function.

    Raises:
        UnavailableError: with the last line of what it said when it failed.
    """
    command = [sys.executable, str(script), "--bytes-of", name, "--nodes", str(nodes)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    if answer.returncode:
        said = answer.stderr.strip().splitlines() or [f"exit status {answer.returncode}"]
        raise UnavailableError(said[-1])
    return Taken(**json.loads(answer.stdout.strip().splitlines()[-1]))


def as_json(taken: Taken) -> str:
    """Return what :func:`take_apart` reads."""
    return json.dumps(asdict(taken))
