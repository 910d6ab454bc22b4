"""A Llama's decode: the checkpoint, its kernel launches, and the three ways to launch them.

Everything that changes from token to token lies in device memory, so the host only launches::

    from graphkit.kernels.llama import Checkpoint, Decoder

    decoder = Decoder(Checkpoint.load("model"), max_len=512)
    decode = decoder.build("capture")
    decoder.start(b"def ")
    for _ in range(64):
        decode.launch()
    decode.stream.synchronize()
    print(bytes(decoder.tokens.get()[0, :65].tolist()))

Sequences that come and go share a :class:`BatchedDecoder`, whose steps take any number of them;
:func:`serve` continues several prompts with it.
"""

from .batching import BatchedDecoder
from .checkpoint import Checkpoint, CheckpointError, Llama3Scaling, LlamaConfig
from .decoder import BUILDS, Build, Decode, Decoder
from .generation import BUNDLED_MODEL, BuildRun, Kernels, Loop, Summary, generate
from .model import DecodeLaunch, Llama
from .serving import Piece, Served, Step, serve
from .tokenizer import ByteTokenizer, FileTokenizer, load_tokenizer

__all__ = [
    "BUILDS",
    "BUNDLED_MODEL",
    "BatchedDecoder",
    "Build",
    "BuildRun",
    "ByteTokenizer",
    "Checkpoint",
    "CheckpointError",
    "Decode",
    "DecodeLaunch",
    "Decoder",
    "FileTokenizer",
    "Kernels",
    "Llama",
    "Llama3Scaling",
    "LlamaConfig",
    "Loop",
    "Piece",
    "Served",
    "Step",
    "Summary",
    "generate",
    "load_tokenizer",
    "serve",
]
