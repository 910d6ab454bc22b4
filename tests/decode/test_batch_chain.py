"""The projections one behind the other, as a decode step has them."""

from typing import NamedTuple

import numpy as np
import pytest
from batch_cases import BFLOAT16, EPS, MODELS, bfloat16, close, float16, product
from decode_cases import floats
from graphkit.kernels.decode.batch_gate_up import batch_gate_up
from graphkit.kernels.decode.batch_qkv import batch_qkv
from graphkit.kernels.decode.batch_residual import batch_residual, residual_parts
from graphkit.kernels.decode.batch_vocabulary import batch_vocabulary, vocabulary_blocks

import graphkit as gk

MAX_LEN = 8


class Layer(NamedTuple):
    """Weights of one layer, with the gains of the norms that follow its two projections."""

    wq: np.ndarray
    wk: np.ndarray
    wv: np.ndarray
    wo: np.ndarray
    gate: np.ndarray
    up: np.ndarray
    down: np.ndarray
    gain_mlp: np.ndarray
    gain_next: np.ndarray


class Step:
    """Two layers without attention, whose output is given, and the vocabulary."""

    def __init__(self, rng, batch, extents):
        hidden, intermediate, heads, kv_heads, head_dim, vocabulary = extents
        q, kv = heads * head_dim, kv_heads * head_dim
        shapes = [(q, hidden), (kv, hidden), (kv, hidden), (hidden, q)]
        shapes += [(intermediate, hidden)] * 2 + [(hidden, intermediate)]
        self.layers = [
            Layer(
                *(bfloat16(rng, *shape, scale=0.1) for shape in shapes),
                *(0.1 * floats(rng, hidden) for _ in range(2)),
            )
            for _ in "ab"
        ]
        self.attended = float16(rng, batch, q)
        self.embedding = bfloat16(rng, vocabulary, hidden, scale=0.1)
        self.gain = floats(rng, hidden)
        self.x = floats(rng, batch, hidden)
        self.position = rng.integers(0, MAX_LEN, batch).astype(np.int32)
        self.batch, self.extents = batch, extents

    def logits(self):
        """Return the logits in float64, with the roundings that the data flow has."""

        def normalized(x, gain):
            rms = np.sqrt((x * x).mean(axis=1, keepdims=True) + EPS)
            return (x * gain.astype(np.float64)).astype(np.float16).astype(np.float64) / rms

        x = self.x.astype(np.float64)
        for layer in self.layers:
            x = x + product(self.attended, layer.wo)
            n = normalized(x, layer.gain_mlp)
            gates = product(n, layer.gate)
            h = (gates / (1 + np.exp(-gates)) * product(n, layer.up)).astype(np.float16)
            x = x + product(h, layer.down)
            last = layer.gain_next
        return product(normalized(x, last), self.embedding)

    def launches(self):
        """Return the launches of a step, and the arrays of q and the logits that it writes."""
        hidden, intermediate, heads, kv_heads, head_dim, vocabulary = self.extents
        batch, q_width = self.batch, heads * head_dim
        x, xg = gk.asarray(self.x), gk.asarray((self.x * self.gain).astype(np.float16))
        first = np.ascontiguousarray((self.x * self.x).sum(axis=1)[None])
        after_o = gk.zeros((residual_parts(hidden, q_width, batch), batch))
        after_down = gk.zeros((residual_parts(hidden, intermediate, batch), batch))
        squares = gk.asarray(first)
        h, q = gk.zeros((batch, intermediate), np.float16), gk.zeros((batch, q_width))
        caches = [gk.zeros((batch, kv_heads, MAX_LEN, head_dim), BFLOAT16) for _ in "kv"]
        tables = [gk.zeros((MAX_LEN, head_dim // 2)) for _ in range(2)]
        position, attended = gk.asarray(self.position), gk.asarray(self.attended)
        blocks = vocabulary_blocks(vocabulary, batch)
        best, index = gk.zeros((blocks, batch)), gk.zeros((blocks, batch), np.int32)
        logits = gk.zeros((batch, vocabulary))
        found = []
        for layer in self.layers:
            on = Layer(*map(gk.asarray, layer))
            found += [
                batch_qkv(
                    *(xg, squares, on.wq, on.wk, on.wv, *tables, position, q, *caches), eps=EPS
                ),
                batch_residual(attended, on.wo, on.gain_mlp, x, xg, after_o),
                batch_gate_up(xg, after_o, on.gate, on.up, h, eps=EPS),
                batch_residual(h, on.down, on.gain_next, x, xg, after_down),
            ]
            squares = after_down
        table = gk.asarray(self.embedding)
        found.append(batch_vocabulary(xg, squares, table, logits, best, index, eps=EPS))
        return found, logits


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("batch", [8, 64])
def test_a_chain_gives_the_same_bits_with_programmatic_edges(stream, rng, batch, model):
    step = Step(rng, batch, MODELS[model])
    results = []
    for programmatic in (False, True):
        launches, logits = step.launches()
        graph, last = gk.Graph(), None
        for launch in launches:
            node = launch.add_to(graph)
            if last is not None:
                graph.add_dependency(last, node, programmatic=programmatic)
            last = node
        exe = graph.instantiate()
        exe.launch(stream)
        stream.synchronize()
        results.append(logits.get())
        exe.close()
        graph.close()
    np.testing.assert_array_equal(*results)
    # float16 rounds x times gain and h, in another direction where the last bits differ.
    close(results[0], step.logits(), rtol=2.5e-3, atol=6e-3)
