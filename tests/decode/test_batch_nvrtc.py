"""The projections of a batch compile without a warning, and keep everything in registers.

Needs NVRTC, but no driver. With the extents of a Llama of 1B parameters, for which the tiles are
chosen, and with those of the tests.
"""

from itertools import pairwise

import pytest
from batch_cases import BATCHES, MODELS, Extents
from compiled import log_of, registers_of
from graphkit.kernels.decode.batch_gate_up import gate_up_kernel, gate_up_tiles
from graphkit.kernels.decode.batch_qkv import qkv_kernel, qkv_tiles
from graphkit.kernels.decode.batch_residual import residual_kernel, residual_tiles
from graphkit.kernels.decode.batch_vocabulary import vocabulary_kernel, vocabulary_tiles

from graphkit.c_signature import parse_signature

LARGE = Extents(2048, 8192, 32, 8, 64, 128256)
KERNELS = (
    "batch_qkv",
    "batch_residual",
    "batch_residual of h",
    "batch_gate_up",
    "batch_vocabulary",
)


def kernel_for(name, batch, extents, page=0):
    hidden, intermediate, heads, kv_heads, head_dim, vocabulary = extents
    if name == "batch_qkv":
        shape = (hidden, heads, kv_heads, head_dim)
        tiles = qkv_tiles(*shape, batch)
        return qkv_kernel(batch, *shape, page, tiles)
    if name == "batch_gate_up":
        tiles = gate_up_tiles(hidden, intermediate, batch)
        return gate_up_kernel(batch, hidden, intermediate, tiles)
    if name == "batch_vocabulary":
        tiles = vocabulary_tiles(batch)
        return vocabulary_kernel(batch, hidden, vocabulary, tiles)
    width = intermediate if name.endswith(" of h") else heads * head_dim
    tiles = residual_tiles(hidden, width, batch)
    return residual_kernel(batch, hidden, width, tiles)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("name", KERNELS)
def test_uses_no_local_memory(name, batch):
    log = log_of(kernel_for(name, batch, LARGE), "sm_90", "--ptxas-options=-v")
    assert "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads" in log


@pytest.mark.parametrize("architecture", ["sm_90", "sm_100"])
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", KERNELS)
def test_compiles_without_a_warning(name, model, architecture):
    assert not log_of(kernel_for(name, 16, MODELS[model], page=4), architecture)


def room_of(kernel):
    """Return the registers of a block, and its shared memory, CUDA's own part included."""
    constants = dict(option[2:].split("=") for option in kernel.options)
    size = {name: int(value) for name, value in constants.items()}
    threads = size["ROWS"] // size["WARP_ROWS"] * size["WARP_SPLIT"] * 32
    ring = size["STAGES"] * (size["ROWS"] + size["BATCH"]) * size["DEPTH"] * 2
    return threads * registers_of(kernel, "sm_90"), ring + 4096


CHAIN = ("batch_qkv", "batch_residual", "batch_gate_up", "batch_residual of h", "batch_qkv")


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize(("name", "behind"), [*pairwise(CHAIN)])
def test_blocks_of_neighbours_fit_on_a_multiprocessor(name, behind, batch):
    """So that the next kernel may fetch its weights while this one works."""
    rooms = [room_of(kernel_for(kernel, batch, LARGE)) for kernel in (name, behind)]
    registers, shared = map(sum, zip(*rooms, strict=True))
    assert registers <= 65_536
    assert shared <= 228 << 10


@pytest.mark.parametrize("name", [name for name in KERNELS if " " not in name])
def test_a_kernel_and_its_twin_take_what_the_source_says(name):
    kernel = kernel_for(name, 8, MODELS["bundled"])
    assert kernel.name == name
    assert kernel.parameters == parse_signature(kernel.code, name)
    taken = kernel.twin.__code__.co_varnames[: kernel.twin.__code__.co_argcount]
    assert list(taken) == ["launch", *(item.name for item in kernel.parameters)]
