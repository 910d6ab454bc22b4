"""Kernels for the decode step of a Llama: a .cu and a .py of the same stem for each.

A function of this package checks its arrays and returns a :class:`KernelLaunch`; the caller
launches it, captures it or makes a node of it. What changes from one token to the next (tokens,
position, state of the random numbers) lies in device memory, so an executable graph of a whole
decode step is launched again and again as it is.

A ``.cu`` file includes nothing, so that it compiles with NVRTC alone, with nvcc, and by hand.
"""

from .advance import ADVANCE, advance
from .argmax import ARGMAX, argmax
from .attention import ATTENTION, attention
from .embedding import EMBEDDING, embedding
from .launch import KernelLaunch
from .linear import LINEAR, linear
from .matvec import MATVEC, matvec
from .residual_add import RESIDUAL_ADD, residual_add
from .rms_norm import RMS_NORM, rms_norm
from .rope_append import ROPE_APPEND, rope_append
from .sample import SAMPLE, random_state, sample
from .silu_mul import SILU_MUL, silu_mul
from .softmax import SOFTMAX, softmax
from .top_k import TOP_K, top_k

__all__ = [
    "KernelLaunch",
    "ADVANCE", "advance",
    "ARGMAX", "argmax",
    "ATTENTION", "attention",
    "EMBEDDING", "embedding",
    "LINEAR", "linear",
    "MATVEC", "matvec",
    "RESIDUAL_ADD", "residual_add",
    "RMS_NORM", "rms_norm",
    "ROPE_APPEND", "rope_append",
    "SAMPLE", "random_state", "sample",
    "SILU_MUL", "silu_mul",
    "SOFTMAX", "softmax",
    "TOP_K", "top_k",
]  # fmt: skip
