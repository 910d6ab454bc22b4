"""No kernel of a step reads what the one ahead of it has not finished.

With programmatic edges a kernel starts while those ahead of it are still at work; here each of
those has to wait for a kernel that keeps it waiting for a tenth of a millisecond. On the simulator
kernels run one after the other, and the check for races stands in for the time.
"""

import numpy as np
import pytest
from decode_cases import MODELS, bundled, model
from graphkit.kernels.decode import FusedDecoder

import graphkit as gk

LATE = gk.Kernel(
    r"""
    extern "C" __global__ void late(long long cycles) {
        asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
        asm volatile("griddepcontrol.wait;" ::: "memory");
        const long long begin = clock64();
        while (clock64() - begin < cycles) {}
    }
    """,
    "late",
    twin=lambda launch, cycles: None,
)
CYCLES = 200_000  # 0.1 ms and some more
STEPS = 9
PROMPTS = [b"def f(", b"import os, s", b"#", b"x = ", b"class "]


def late_graph(decoder, ahead_of):
    """Return the step's graph with a late kernel ahead of the launches that are asked for."""
    graph, last = gk.Graph(), None

    def follow(node, programmatic):
        if last is not None:
            graph.add_dependency(last, node, programmatic=programmatic)
        return node

    for number, entry in enumerate(decoder.launches):
        if ahead_of(number):
            last = follow(graph.add_kernel_node(LATE, 1, 1, (CYCLES,)), programmatic=True)
        last = follow(entry.launch.add_to(graph), programmatic=entry.early)
    return graph


def wipe(decoder):
    """Let whoever reads too early find no number."""
    for name, array in decoder.llama.step.arrays.items():
        if name not in ("arrived", "x", "xg", "first_squares") and array.dtype != np.int32:
            array.set(np.full(array.shape, np.nan, array.dtype))


def steps(decoder, launch, stream, prompts):
    """Decode; return the logits of each step and the tokens in the end."""
    decoder.start(*prompts)
    found = []
    for _ in range(STEPS):
        wipe(decoder)
        launch(stream)
        stream.synchronize()
        found.append(decoder.logits.get())
    return found, decoder.tokens.get()


@pytest.mark.parametrize("ahead_of", [lambda number: number == 0, lambda number: True],
                         ids=["the first", "each"])  # fmt: skip
@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_a_late_kernel_ahead_changes_nothing(runtime, stream, batch, temperature, ahead_of):
    _, _, checkpoint = bundled()
    decoder = FusedDecoder(checkpoint, batch=batch, max_len=16, temperature=temperature)
    eager = decoder.build("eager", stream)
    expected = steps(decoder, lambda _: eager.launch(), stream, PROMPTS[:batch])
    graph = late_graph(decoder, ahead_of)
    assert not graph.check_races()
    with graph.instantiate() as exe:
        found = steps(decoder, exe.launch, stream, PROMPTS[:batch])
    for one, other in zip((*expected[0], expected[1]), (*found[0], found[1]), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(("batch", "max_len"), [(1, None), (3, None), (63, 256), (64, 256)])
def test_every_launch_begins_early_but_the_draw_and_attention_over_much(runtime, batch, max_len):
    _, _, checkpoint = model(MODELS["bundled"], max_position_embeddings=256)
    decoder = FusedDecoder(checkpoint, batch=batch, max_len=max_len, temperature=1.0)
    late = {entry.name.rpartition(".")[2] for entry in decoder.launches if not entry.early}
    assert late == ({"choose", "attention"} if batch * decoder.max_len >= 16_384 else {"choose"})
    sources = {entry.launch.kernel.code for entry in decoder.launches if entry.early}
    assert all("griddepcontrol.wait" in code for code in sources)
