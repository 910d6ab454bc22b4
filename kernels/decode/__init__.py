"""A Llama's decode step at the speed of device memory: fused kernels, one chain of them a token.

A ``.cu`` and a ``.py`` of the same stem for each kernel, compiled for the extents of a model; what
they share stands in ``.cuh`` files, which become part of the source. They need an sm_90: weights
come by bulk copies that begin before the kernel ahead has ended (programmatic edges). One and two
rows have kernels of their own (:class:`VectorStep`), 3 to 64 those on the tensor cores
(:class:`TensorStep`, whose kernels begin with ``batch_``)::

    from graphkit.kernels.decode import FusedDecoder

    decoder = FusedDecoder(Checkpoint.load("model"), max_len=512)
    decode = decoder.build("programmatic")
    decoder.start(b"def ")
    for _ in range(64):
        decode.launch()

Or with the whole generation in one launch, which ends when the model ends its text::

    decode = decoder.build("loop")
    decoder.start(b"def ")
    decode.launch()

:class:`FusedBatchedDecoder` takes as many sequences as there are at each step, for an
:class:`graphkit.ExecPool`.
"""

from .batch_gate_up import batch_gate_up
from .batch_qkv import batch_qkv
from .batch_residual import batch_residual
from .batch_vocabulary import batch_vocabulary
from .batching import FusedBatchedDecoder
from .decoder import FusedDecoder
from .gate_up_silu import gate_up_silu
from .loop_on import loop_on
from .model import FusedLlama, check_fit
from .next_token import Scaled, embed_token, next_token
from .project_residual import project_residual
from .project_vocabulary import project_vocabulary
from .qkv_rope_append import qkv_rope_append
from .row_ends import RowEnds
from .split_attention import split_attention
from .tensor_step import TensorStep
from .vector_step import VectorStep

__all__ = [
    "FusedBatchedDecoder",
    "FusedDecoder",
    "FusedLlama",
    "RowEnds",
    "Scaled",
    "TensorStep",
    "VectorStep",
    "batch_gate_up",
    "batch_qkv",
    "batch_residual",
    "batch_vocabulary",
    "check_fit",
    "embed_token",
    "gate_up_silu",
    "loop_on",
    "next_token",
    "project_residual",
    "project_vocabulary",
    "qkv_rope_append",
    "split_attention",
]
