"""A Llama's decode step at the speed of device memory: fused kernels, one chain of them a token.

A ``.cu`` and a ``.py`` of the same stem for each kernel, compiled for the extents of a model; what
they share stands in ``.cuh`` files, which become part of the source. They need an sm_90: weights
come by bulk copies that begin before the kernel ahead has ended (programmatic edges)::

    from graphkit.kernels.decode import FusedDecoder

    decoder = FusedDecoder(Checkpoint.load("model"), max_len=512)
    decode = decoder.build("programmatic")
    decoder.start(b"def ")
    for _ in range(64):
        decode.launch()
"""

from .decoder import FusedDecoder
from .gate_up_silu import gate_up_silu
from .next_token import next_token
from .project_residual import project_residual
from .project_vocabulary import project_vocabulary
from .qkv_rope_append import qkv_rope_append
from .split_attention import split_attention

__all__ = [
    "FusedDecoder",
    "gate_up_silu",
    "next_token",
    "project_residual",
    "project_vocabulary",
    "qkv_rope_append",
    "split_attention",
]
