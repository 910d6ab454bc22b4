"""The kernels for one and two rows, and those around a step, compile without a warning.

Needs NVRTC, but no driver. Those for batches are in test_batch_nvrtc.py.
"""

import re

import numpy as np
import pytest
from compiled import log_of, ptx_of
from decode_cases import MODELS, model
from graphkit.kernels.decode import FusedDecoder, RowEnds, loop_on

import graphkit as gk
from graphkit.c_signature import parse_signature

LARGE = MODELS["bundled"]._replace(
    hidden=2048, intermediate=8192, heads=32, kv_heads=8, head_dim=64
)
CASES = {
    "bundled, one row": (MODELS["bundled"], {"batch": 1}),
    "odd, two rows with pages": (MODELS["odd"], {"batch": 2, "page": 4}),
    "bundled, five rows": (MODELS["bundled"], {"batch": 5}),
    "a Llama of 1B parameters": (LARGE, {"batch": 1}),
}


def kernels_of(extents, options):
    """Return the kernels of a step, of its beginning and of the loop around it."""
    _, _, checkpoint = model(extents, num_hidden_layers=1)
    decoder = FusedDecoder(checkpoint, max_len=16, **options)
    launches = [entry.launch for entry in decoder.launches]
    launches.append(decoder.llama.embed(decoder.tokens, decoder.position))
    graph, one = gk.Graph(), gk.zeros(1, np.int32)
    state = decoder.tokens, decoder.prompt_len, decoder.position, one
    launches.append(loop_on(graph.conditional_handle(), *state, RowEnds(decoder.length_limit)))
    named = {(launch.kernel.name, launch.kernel.options): launch.kernel for launch in launches}
    return [kernel for (name, _), kernel in named.items() if not name.startswith("batch_")]


@pytest.mark.parametrize("case", CASES)
def test_compile_without_a_warning(sim, case):
    for kernel in kernels_of(*CASES[case]):
        for architecture in ("sm_90", "sm_100"):
            assert not log_of(kernel, architecture), (kernel.name, architecture)


@pytest.mark.parametrize("case", ["odd, two rows with pages", "bundled, five rows"])
def test_nothing_is_written_before_the_kernel_ahead_has_ended(sim, case):
    """Its instruction to wait stands ahead of every store in the order of the PTX.

    What is read early cannot be told so simply: see test_early_starts.py.
    """
    for kernel in kernels_of(*CASES[case]):
        ptx = ptx_of(kernel).partition(f".entry {kernel.name}(")[2]
        body = ptx[: ptx.index("\n}")]
        early = body.index("griddepcontrol.launch_dependents")
        wait = body.index("griddepcontrol.wait")
        stores = re.search(r"\b(st\.(volatile\.)?global|red\.|atom\.)", body)
        assert early < wait, kernel.name
        assert stores is None or wait < stores.start(), kernel.name


@pytest.mark.parametrize("case", ["odd, two rows with pages", "bundled, five rows"])
def test_kernels_and_their_twins_take_what_the_sources_say(sim, case):
    for kernel in kernels_of(*CASES[case]):
        assert kernel.parameters == parse_signature(kernel.code, kernel.name)
        taken = kernel.twin.__code__.co_varnames[: kernel.twin.__code__.co_argcount]
        assert list(taken) == ["launch", *(item.name for item in kernel.parameters)]
