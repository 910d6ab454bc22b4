"""How strict the simulator is, and in which order it runs what CUDA leaves open."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["SimOptions"]

_UNINITIALIZED = ("nan", "zero", "keep")
_EXECUTION = ("on_wait", "at_once")


@dataclass(frozen=True, slots=True)
class SimOptions:
    """Options of :class:`graphkit.runtime.sim.SimRuntime`.

    Attributes:
        detect_races: report two pieces of work that touch the same bytes, at least one of them
            writing, when nothing orders them.
        uninitialized: what fresh memory holds: ``"nan"`` (every byte 0xFF, which is a NaN in
            float16, bfloat16, float32 and float64, and -1 in signed integers), ``"zero"``, or
            ``"keep"`` (whatever the host had there).
        order_seed: seeds the order of work that CUDA leaves unordered.
        execution: ``"on_wait"`` runs work when somebody waits for it, so that a missing
            synchronization shows; ``"at_once"`` runs it inside the call that submits it.
        total_memory: bytes of simulated device memory; past it, allocations fail with status 2.
        exec_bytes_per_node: bytes of device memory that an executable graph takes for each of its
            nodes, those of child graphs included; past ``total_memory``, instantiating fails with
            status 2.
        max_iterations: how many iterations the while nodes of one launch may make together; past
            it, the launch counts as an endless loop.
        quarantine: bytes of freed memory kept unused, so that late accesses are recognised.
    """

    detect_races: bool = True
    uninitialized: Literal["nan", "zero", "keep"] = "nan"
    order_seed: int = 0
    execution: Literal["on_wait", "at_once"] = "on_wait"
    total_memory: int = 4 << 30
    exec_bytes_per_node: int = 2400
    quarantine: int = 64 << 20
    max_iterations: int = 100_000

    def __post_init__(self) -> None:
        for name in (
            "order_seed", "total_memory", "exec_bytes_per_node", "quarantine", "max_iterations",
        ):  # fmt: skip
            value = getattr(self, name)
            if not isinstance(value, int):
                raise TypeError(f"{name}: expected an int, came {value!r}")
        if self.uninitialized not in _UNINITIALIZED:
            raise ValueError(
                f"uninitialized: expected one of {_UNINITIALIZED}, came {self.uninitialized!r}"
            )
        if self.execution not in _EXECUTION:
            raise ValueError(f"execution: expected one of {_EXECUTION}, came {self.execution!r}")
        if self.total_memory <= 0:
            raise ValueError(f"total_memory: expected a positive number, came {self.total_memory}")
        for name in ("exec_bytes_per_node", "quarantine", "max_iterations"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: expected at least 0, came {getattr(self, name)}")
