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
"""

from .checkpoint import Checkpoint, CheckpointError, Llama3Scaling, LlamaConfig
from .decoder import BUILDS, Build, Decode, Decoder
from .generation import BUNDLED_MODEL, BuildRun, Summary, generate
from .model import DecodeLaunch
from .tokenizer import ByteTokenizer, FileTokenizer, load_tokenizer

__all__ = [
    "BUILDS",
    "BUNDLED_MODEL",
    "Build",
    "BuildRun",
    "ByteTokenizer",
    "Checkpoint",
    "CheckpointError",
    "Decode",
    "DecodeLaunch",
    "Decoder",
    "FileTokenizer",
    "Llama3Scaling",
    "LlamaConfig",
    "Summary",
    "generate",
    "load_tokenizer",
]
