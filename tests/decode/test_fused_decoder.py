"""The whole step of fused kernels: logits against float64, tokens against the simple decoder's."""

import numpy as np
import pytest
from decode_cases import MODELS, bundled, model
from graphkit.kernels.decode import FusedDecoder
from graphkit.kernels.llama import Checkpoint, Decoder, LlamaConfig
from llama.reference import LLAMA3, forward

import graphkit as gk

pytestmark = pytest.mark.untraced

PROMPTS = (b"def f(x", b"import ", b"class A:\n", b"x", b"for i in range", b"# ", b"if x", b"d = {")
EVEN = MODELS["odd"]._replace(vocabulary=520)
BOUND = 5e-3  # relative to float64: the caches are bfloat16


def decode(decoder, build, prompts, steps, seed=0):
    """Return the tokens after so many steps."""
    made = decoder.build(build, steps=steps) if build == "loop" else decoder.build(build)
    decoder.start(*prompts, seed=seed)
    for _ in range(1 if build == "loop" else steps):
        made.launch()
    made.stream.synchronize()
    made.close()
    return decoder.tokens.get()


def shuffle(decoder, rng):
    """Give every sequence pages in no order."""
    table = decoder.llama.block_table
    pages = rng.permutation(table.size).astype(np.int32)
    table.set(pages.reshape(table.shape))


def relative_error(came, expected):
    return np.linalg.norm(came - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize("page", [0, 4])
@pytest.mark.parametrize(
    ("name", "batch"),
    [
        ("odd", 1),
        ("odd", 2),
        ("narrow heads", 2),
        ("even", 3),
        ("even", 8),
        ("even", 9),
        ("even", 33),
        ("even", 64),
    ],
)
def test_logits_of_every_position_equal_the_reference(runtime, rng, name, batch, page):
    extents = EVEN if name == "even" else MODELS[name]
    values, weights, checkpoint = model(
        extents, tie_word_embeddings=batch % 2 == 0, rope_scaling=LLAMA3
    )
    length = 12 if batch < 9 else 4
    texts = rng.integers(0, extents.vocabulary, (batch, length))
    decoder = FusedDecoder(checkpoint, batch=batch, max_len=16, page=page)
    if page:
        shuffle(decoder, rng)
    made = decoder.build("programmatic")
    decoder.start(*texts.tolist())
    found = []
    for _ in range(length):
        made.launch()
        made.stream.synchronize()
        found.append(decoder.logits.get())
    for b in {0, batch // 2, batch - 1}:
        expected = forward(values, weights, texts[b].tolist())
        for position in range(length):
            assert relative_error(found[position][b], expected[position]) < BOUND


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_logits_of_the_bundled_model_equal_the_reference(runtime, batch):
    values, weights, checkpoint = bundled()
    decoder = FusedDecoder(checkpoint, batch=batch, max_len=40)
    texts = decode(decoder, "eager", PROMPTS[:batch], 30)
    for b in range(batch):
        expected = forward(values, weights, texts[b, :30].tolist())[-1]
        assert relative_error(decoder.logits.get()[b], expected) < BOUND / 2


def test_256_tokens_equal_the_simple_decoders(runtime):
    _, _, checkpoint = bundled()
    simple, fused = (make(checkpoint, max_len=264) for make in (Decoder, FusedDecoder))
    expected = decode(simple, "capture", PROMPTS[:1], 263)
    np.testing.assert_array_equal(decode(fused, "programmatic", PROMPTS[:1], 263), expected)


@pytest.mark.parametrize("page", [0, 8])
@pytest.mark.parametrize("batch", [1, 2, 3, 8, 9])
def test_tokens_of_all_builds_equal_the_simple_decoders(runtime, rng, batch, page):
    _, _, checkpoint = bundled()
    prompts = [*PROMPTS, b"\n"][:batch]
    steps = 20 if batch < 8 else 12
    expected = decode(Decoder(checkpoint, batch=batch, max_len=40), "capture", prompts, steps)
    fused = FusedDecoder(checkpoint, batch=batch, max_len=40, page=page)
    if page:
        shuffle(fused, rng)
    builds = fused.builds if page and batch in (2, 3) else ("programmatic", "loop")
    for build in builds:
        found = decode(fused, build, prompts, steps)
        np.testing.assert_array_equal(found, expected, err_msg=build)


def test_sampled_tokens_are_the_same_in_all_builds(runtime):
    _, _, checkpoint = bundled()
    fused = FusedDecoder(checkpoint, batch=2, max_len=40, temperature=0.9, top_k=40, top_p=0.95)
    found = [decode(fused, build, PROMPTS[:2], 25, seed=2**40) for build in fused.builds]
    for other in found[1:]:
        np.testing.assert_array_equal(other, found[0])
    assert (decode(fused, "capture", PROMPTS[:2], 25, seed=1) != found[0]).any()


@pytest.mark.parametrize("batch", [1, 4])
def test_the_end_of_the_buffer_is_as_in_the_simple_decoder(runtime, batch):
    """What is launched past it changes nothing more: not the cache either."""
    _, _, checkpoint = bundled()
    prompts = PROMPTS[:batch]
    expected = decode(Decoder(checkpoint, batch=batch, max_len=20), "eager", prompts, 24)
    fused = FusedDecoder(checkpoint, batch=batch, max_len=20)
    np.testing.assert_array_equal(decode(fused, "manual", prompts, 24), expected)
    once = [cache.get().tobytes() for cache in (*fused.k_cache, *fused.v_cache)]
    decode(fused, "manual", prompts, 31)
    assert [cache.get().tobytes() for cache in (*fused.k_cache, *fused.v_cache)] == once


def test_a_position_that_is_set_by_hand(runtime):
    _, _, checkpoint = bundled()
    decoder = FusedDecoder(checkpoint, batch=3, max_len=40)
    made = decoder.build("programmatic")
    decoder.start(*PROMPTS[:3])
    for _ in range(12):
        made.launch()
    made.stream.synchronize()
    expected = decoder.logits.get()
    decoder.position.set([11, 11, 11])
    decoder.embed()
    made.launch()
    made.stream.synchronize()
    np.testing.assert_array_equal(decoder.logits.get(), expected)


def test_norm_weights_in_float32_are_taken_as_they_are(runtime):
    values, weights, _ = model(EVEN)
    rng = np.random.default_rng(3)
    for name, weight in weights.items():
        if weight.ndim == 1:
            weights[name] = rng.uniform(0.5, 1.5, weight.shape).astype(np.float32)
    checkpoint = Checkpoint(LlamaConfig.from_dict(values), weights)
    text = rng.integers(0, EVEN.vocabulary, 6).tolist()
    expected = forward(values, weights, text)[-1]
    for batch in (1, 3):
        decoder = FusedDecoder(checkpoint, batch=batch, max_len=16)
        decode(decoder, "eager", [text] * batch, len(text))
        assert relative_error(decoder.logits.get()[-1], expected) < BOUND


def test_weights_in_device_memory_are_used_where_they_lie(runtime):
    _, weights, checkpoint = bundled()
    on_device = {name: gk.asarray(array) for name, array in weights.items()}
    for batch in (1, 3):
        decoder = FusedDecoder(Checkpoint(checkpoint.config, on_device), batch=batch, max_len=16)
        used = {id(argument) for entry in decoder.launches for argument in entry.launch.args}
        matrices = [array for array in on_device.values() if len(array.shape) == 2]
        assert all(id(array) in used for array in matrices)


@pytest.mark.parametrize("batch", [1, 3])
def test_the_graphs_have_the_launches_in_a_line(runtime, batch):
    _, _, checkpoint = bundled()
    decoder = FusedDecoder(checkpoint, batch=batch, max_len=16)
    names = [entry.name for entry in decoder.launches]
    assert len(names) == 5 * 5 + 2
    assert names[:5] == [
        f"layers.0.{name}" for name in ("qkv", "attention", "o", "gate_up", "down")
    ]
    assert names[-2:] == ["vocabulary", "next_token"]
    for build in ("capture", "manual", "programmatic"):
        made = decoder.build(build)
        assert made.node_count == len(names)
        assert made.launches_per_token == 1
        assert len(made.graph.edges) == len(names) - 1
        assert {edge.programmatic for edge in made.graph.edges} == {build == "programmatic"}
        assert not made.graph.check_races()
    assert decoder.build("eager").launches_per_token == len(names)
