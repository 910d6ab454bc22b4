"""The simulator: the CUDA calls of the seam on the host, with NumPy."""

from graphkit.runtime.sim.options import SimOptions
from graphkit.runtime.sim.runtime import SimRuntime

__all__ = ["SimOptions", "SimRuntime"]
