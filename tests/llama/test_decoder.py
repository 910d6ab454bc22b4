"""The decode of a Llama against float64, and its three builds against each other."""

import ml_dtypes
import numpy as np
import pytest
from graphkit.kernels.llama import BUILDS, Checkpoint, Decoder, LlamaConfig, Summary, generate
from llama.reference import (
    LLAMA3,
    byte_model,
    config,
    forward,
    greedy,
    tensors,
    write_model,
)

import graphkit as gk

PROMPT = [3, 14, 15, 9, 26, 5]
VARIANTS = {
    "plain": {"num_key_value_heads": 4},
    "grouped": {},
    "one_kv_head": {"num_key_value_heads": 1},
    "tied": {"tie_word_embeddings": True},
    "llama3": {"rope_scaling": LLAMA3},
    "wide_heads": {"head_dim": 10, "num_hidden_layers": 1},
    "all": {"tie_word_embeddings": True, "rope_scaling": LLAMA3, "head_dim": 8},
}


def checkpoint(seed=0, dtype=np.float32, **changes):
    values = config(**changes)
    weights = tensors(values, seed, dtype)
    return values, weights, Checkpoint(LlamaConfig.from_dict(values), weights)


def run(decode, prompt, count, seed=0):
    """The tokens that a build appends to a prompt."""
    decode.decoder.start(prompt, seed=seed)
    for _ in range(len(prompt) - 1 + count):
        decode.launch()
    decode.stream.synchronize()
    return decode.decoder.tokens.get()[0, len(prompt) : len(prompt) + count].tolist()


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_of_every_position_equal_the_reference(runtime, variant, dtype):
    values, weights, loaded = checkpoint(dtype=dtype, **VARIANTS[variant])
    tokens = [*PROMPT, *range(20, 40)]
    expected = forward(values, weights, tokens)
    decode = Decoder(loaded, max_len=len(tokens) + 1).build("eager")
    decode.decoder.start(tokens)
    for position in range(len(tokens)):
        decode.launch()
        decode.stream.synchronize()
        came = decode.decoder.logits.get()[0]
        error = np.linalg.norm(came - expected[position]) / np.linalg.norm(expected[position])
        assert error < 2e-5, f"position {position}"


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("variant", ["grouped", "all"])
def test_greedy_tokens_equal_the_reference(runtime, variant, build):
    values, weights, loaded = checkpoint(seed=1, **VARIANTS[variant])
    with_build = run(Decoder(loaded, max_len=40).build(build), PROMPT, 16)
    assert with_build == greedy(values, weights, PROMPT, 16)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_builds_agree_and_a_seed_repeats(runtime, temperature):
    _, _, loaded = checkpoint()
    decoder = Decoder(loaded, max_len=40, temperature=temperature, top_k=20, top_p=0.95)
    decodes = [decoder.build(build) for build in BUILDS]
    texts = [run(decode, PROMPT, 20, seed=2**40 + 7) for decode in decodes]
    assert texts[0] == texts[1] == texts[2]
    assert run(decodes[1], PROMPT, 20, seed=2**40 + 7) == texts[0]
    if temperature:
        assert run(decodes[1], PROMPT, 20, seed=7) != texts[0]


@pytest.mark.parametrize("build", BUILDS)
def test_sequences_of_a_batch_do_not_mix(runtime, build):
    values, weights, loaded = checkpoint()
    prompts = [PROMPT, [1], [60, 59, 58]]
    decode = Decoder(loaded, batch=3, max_len=24).build(build)
    decode.decoder.start(*prompts)
    for _ in range(12):
        decode.launch()
    decode.stream.synchronize()
    assert decode.decoder.position.get().tolist() == [12, 12, 12]
    for row, prompt in zip(decode.decoder.tokens.get(), prompts, strict=True):
        expected = prompt + greedy(values, weights, prompt, 13 - len(prompt))
        assert row[:13].tolist() == expected
        assert not row[13:].any()


def test_sequences_of_a_batch_draw_from_streams_of_their_own(runtime):
    _, _, loaded = checkpoint()
    decode = Decoder(loaded, batch=4, max_len=40, temperature=5.0).build("capture")
    decode.decoder.start(*[PROMPT] * 4, seed=1)
    for _ in range(30):
        decode.launch()
    decode.stream.synchronize()
    rows = {tuple(row) for row in decode.decoder.tokens.get().tolist()}
    assert len(rows) == 4


# --- the graphs ----------------------------------------------------------------------------------


def test_the_manual_graph_has_the_launches_and_their_dependencies(runtime):
    _, _, loaded = checkpoint()
    decoder = Decoder(loaded)
    decode = decoder.build("manual")
    assert len(decoder.launches) == 14 * 2 + 5
    assert decode.node_count == len(decoder.launches)
    assert decode.launches_per_token == 1
    graph = decode.graph
    place = {node: index for index, node in enumerate(graph.nodes)}
    edges = {(place[edge.from_node], place[edge.to_node]) for edge in graph.edges}
    assert edges == {
        (before, index) for index, entry in enumerate(decoder.launches) for before in entry.after
    }
    names = [entry.name for entry in decoder.launches]
    side_by_side = {names.index(f"layers.0.{name}") for name in "qkv"}
    after_norm = {b for a, b in edges if a == names.index("layers.0.norm")}
    assert after_norm == side_by_side
    assert not any(a in side_by_side and b in side_by_side for a, b in edges)


def test_the_captured_graph_has_the_same_launches_in_a_line(runtime):
    _, _, loaded = checkpoint()
    decoder = Decoder(loaded)
    captured, manual = decoder.build("capture").graph, decoder.build("manual").graph
    assert len(captured.nodes) == len(decoder.launches)
    assert len(captured.edges) == len(decoder.launches) - 1

    def launched(graph):
        return sorted((values.name, values.grid, values.block) for values in graph.kernels)

    assert launched(captured) == launched(manual)


def test_the_eager_build_has_no_graph(runtime):
    _, _, loaded = checkpoint()
    decode = Decoder(loaded).build("eager")
    assert decode.graph is None
    assert decode.node_count == 0
    assert decode.launches_per_token == len(decode.decoder.launches)
    decode.close()


def test_a_build_can_share_a_stream(runtime):
    _, _, loaded = checkpoint()
    stream = gk.Stream()
    decoder = Decoder(loaded, max_len=24)
    first, second = (decoder.build(build, stream) for build in ("capture", "eager"))
    assert first.stream is second.stream is stream
    assert run(first, PROMPT, 8) == run(second, PROMPT, 8)


def test_a_closed_build_is_refused_and_the_decoder_goes_on(runtime):
    _, _, loaded = checkpoint()
    decoder = Decoder(loaded, max_len=24)
    decode = decoder.build("capture")
    expected = run(decode, PROMPT, 8)
    decode.close()
    with pytest.raises(ValueError, match="closed"):
        decode.launch()
    assert run(decoder.build("manual"), PROMPT, 8) == expected


def test_weights_in_device_memory_are_used_where_they_lie(runtime):
    values, weights, _ = checkpoint(seed=1)
    on_device = {name: gk.asarray(array) for name, array in weights.items()}
    decoder = Decoder(Checkpoint(LlamaConfig.from_dict(values), on_device), max_len=24)
    used = {id(argument) for entry in decoder.launches for argument in entry.launch.args}
    assert all(id(array) in used for array in on_device.values())
    assert run(decoder.build("manual"), PROMPT, 4) == greedy(values, weights, PROMPT, 4)


def test_small_vectors_in_device_memory_may_have_any_dtype(runtime):
    values, weights, _ = checkpoint(seed=1, dtype=ml_dtypes.bfloat16)
    on_device = {name: gk.asarray(array) for name, array in weights.items()}
    decoder = Decoder(Checkpoint(LlamaConfig.from_dict(values), on_device), max_len=24)
    assert run(decoder.build("capture"), PROMPT, 4) == greedy(values, weights, PROMPT, 4)


def test_last_tokens(runtime):
    values, weights, loaded = checkpoint()
    decode = Decoder(loaded, max_len=24).build("capture")
    decode.decoder.start(PROMPT)
    for _ in PROMPT:
        decode.launch()
    assert decode.last_tokens().tolist() == greedy(values, weights, PROMPT, 1)


# --- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        ([], "expected at least one token"),
        ([1] * 24, "at most 23 tokens, since the cache holds 24 .* came 24"),
        ([1] * 500, "came 500"),
        ([1, 61], "expected tokens below 61, came 61"),
        ([-1], "came -1"),
        (np.array([[1, 2]]), r"expected shape \(tokens\), came \(1, 2\)"),
        (np.array(1), r"expected shape \(tokens\), came \(\)"),
    ],
)
def test_a_bad_prompt_is_refused_and_the_last_one_stays(runtime, prompt, says):
    values, weights, loaded = checkpoint()
    decode = Decoder(loaded, max_len=24).build("capture")
    decode.decoder.start(PROMPT)
    for _ in range(3):
        decode.launch()
    with pytest.raises(ValueError, match=says):
        decode.decoder.start(prompt)
    decode.stream.synchronize()
    assert decode.decoder.position.get().tolist() == [3]
    for _ in range(5):
        decode.launch()
    decode.stream.synchronize()
    appended = decode.decoder.tokens.get()[0, len(PROMPT) : 9].tolist()
    assert appended == greedy(values, weights, PROMPT, 3)


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_bad_seed_is_refused_before_anything_changes(runtime, tmp_path, seed):
    _, _, loaded = checkpoint()
    decoder = Decoder(loaded, max_len=24)
    decoder.start(PROMPT)
    with pytest.raises(ValueError, match="seed: expected 0 to"):
        decoder.start([1], seed=seed)
    assert decoder.prompt_len.get().tolist() == [len(PROMPT)]
    with pytest.raises(ValueError, match="seed: expected 0 to"):
        generate(byte_model(tmp_path / "model"), "a", 1, seed=seed)


def test_a_prompt_for_every_sequence(runtime):
    _, _, loaded = checkpoint()
    decoder = Decoder(loaded, batch=2)
    with pytest.raises(ValueError, match="expected 2, one per sequence, came 1"):
        decoder.start(PROMPT)


def test_launches_past_the_end_of_the_cache_change_nothing(runtime):
    values, weights, loaded = checkpoint()
    decode = Decoder(loaded, max_len=10).build("capture")
    decode.decoder.start(PROMPT)
    for _ in range(15):
        decode.launch()
    decode.stream.synchronize()
    assert decode.decoder.position.get().tolist() == [9]
    assert decode.decoder.tokens.get()[0].tolist() == PROMPT + greedy(values, weights, PROMPT, 4)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"batch": 0}, "batch: expected 1"),
        ({"max_len": 1}, "max_len: expected 2 to the model's 64 tokens, came 1"),
        ({"max_len": 65}, "max_len: expected 2 to the model's 64 tokens, came 65"),
        ({"temperature": -0.1}, "temperature: expected 0 or more"),
        ({"temperature": float("nan")}, "temperature: expected 0 or more"),
        ({"temperature": float("inf")}, "temperature: expected 0 or more and finite"),
        ({"top_p": -0.1}, "top_p: expected 0 to 1"),
        ({"top_p": 1.5}, "top_p: expected 0 to 1"),
        ({"top_p": float("nan")}, "top_p: expected 0 to 1"),
        ({"top_k": -1}, "top_k: expected 0"),
    ],
)
def test_bad_arguments_of_a_decoder(runtime, arguments, says):
    _, _, loaded = checkpoint()
    with pytest.raises(ValueError, match=says):
        Decoder(loaded, **arguments)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"batch": 1.0}, "batch: expected an int, came float"),
        ({"batch": True}, "batch: expected an int, came bool"),
        ({"max_len": "8"}, "max_len: expected an int, came str"),
        ({"temperature": "1"}, "temperature: expected a number, came str"),
        ({"top_p": None}, "top_p: expected a number, came NoneType"),
        ({"top_k": 2.0}, "top_k: expected an int, came float"),
        ({"checkpoint": "model"}, "checkpoint: expected a Checkpoint, came str"),
        ({"checkpoint": None}, "checkpoint: expected a Checkpoint, came NoneType"),
    ],
)
def test_arguments_of_another_type(runtime, arguments, says):
    _, _, loaded = checkpoint()
    before = gk.live_handles()
    with pytest.raises(TypeError, match=f"^{says}$"):
        Decoder(**{"checkpoint": loaded} | arguments)
    assert gk.live_handles() == before


@pytest.mark.parametrize(
    ("prompt", "seed", "says"),
    [
        ("abc", 0, "prompt: expected token ids or bytes, came str"),
        (5, 0, "prompt: expected token ids or bytes, came int"),
        (None, 0, "prompt: expected token ids or bytes, came NoneType"),
        (iter([1]), 0, "prompt: expected token ids or bytes, came list_iterator"),
        ({1, 2}, 0, "prompt: expected token ids or bytes, came set"),
        ([1, 2.5], 0, "prompt: expected an int, came float"),
        ([1], 0.5, "seed: expected an int, came float"),
    ],
)
def test_a_prompt_or_seed_of_another_type(runtime, prompt, seed, says):
    _, _, loaded = checkpoint()
    decoder = Decoder(loaded, max_len=24)
    decoder.start(np.array(PROMPT))  # NumPy's integers are some
    with pytest.raises(TypeError, match=f"^{says}$"):
        decoder.start(prompt, seed=seed)
    assert decoder.prompt_len.get().tolist() == [len(PROMPT)]


def test_unknown_build(runtime):
    _, _, loaded = checkpoint()
    with pytest.raises(ValueError, match="expected one of eager, capture, manual, came 'fast'"):
        Decoder(loaded).build("fast")


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("stream", [0, 5, "x", False])
def test_a_build_is_launched_on_a_stream_of_graphkits(runtime, build, stream):
    _, _, loaded = checkpoint()
    with pytest.raises(
        TypeError, match=f"^stream: expected a Stream, came {type(stream).__name__}$"
    ):
        Decoder(loaded).build(build, stream)


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "model.norm.weight"])
def test_a_freed_tensor_is_called_by_its_name(runtime, name):
    values, weights, _ = checkpoint()
    freed = gk.asarray(weights[name])
    freed.free()
    loaded = Checkpoint(LlamaConfig.from_dict(values), weights | {name: freed})
    with pytest.raises(ValueError, match=f"^{name}: expected live device memory, came a freed"):
        Decoder(loaded)


def test_a_vector_with_gaps_in_device_memory_is_called_by_its_name(runtime):
    values, weights, _ = checkpoint()
    gaps = gk.zeros(2 * values["hidden_size"])[::2]
    loaded = Checkpoint(LlamaConfig.from_dict(values), weights | {"model.norm.weight": gaps})
    with pytest.raises(ValueError, match=r"^model.norm.weight: expected C order, came strides"):
        Decoder(loaded)


def test_device_weights_of_a_dtype_that_no_kernel_multiplies(runtime):
    values, weights, _ = checkpoint(dtype=np.float16)
    on_device = {name: gk.asarray(array) for name, array in weights.items()}
    with pytest.raises(ValueError, match="expected float32 or bfloat16 in C order"):
        Decoder(Checkpoint(LlamaConfig.from_dict(values), on_device))


# --- text ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", BUILDS)
def test_generate_gives_text_and_then_a_summary(runtime, tmp_path, build):
    folder = byte_model(tmp_path / "model")
    *pieces, summary = generate(folder, "def ", 12, build=build)
    assert isinstance(summary, Summary)
    assert "".join(pieces) == summary.text
    assert summary.prompt_tokens == 4
    assert summary.same_tokens is True
    assert [run.build for run in summary.runs] == [build, *(b for b in BUILDS if b != build)]
    for run_ in summary.runs:
        assert len(run_.tokens) == 12
        assert bytes(run_.tokens).decode(errors="replace") == summary.text
        assert run_.launches == 15 * (33 if run_.build == "eager" else 1)
        assert run_.nodes == (0 if run_.build == "eager" else 33)
        assert run_.ms_per_token is None


def test_generate_writes_what_the_reference_writes(runtime, tmp_path):
    folder = byte_model(tmp_path / "model", seed=4)
    loaded = Checkpoint.load(folder)
    values = config(vocab_size=256, tie_word_embeddings=True, rope_scaling=LLAMA3)
    *_, summary = generate(folder, "x = ", 10)
    assert list(summary.runs[0].tokens) == greedy(values, loaded.tensors, b"x = ", 10)


def test_generate_can_leave_the_comparison_out(runtime, tmp_path):
    *_, summary = generate(byte_model(tmp_path / "model"), "a", 3, compare=False)
    assert len(summary.runs) == 1
    assert summary.same_tokens is None


def test_a_reader_who_stops_early_leaves_no_exec(runtime, tmp_path):
    pieces = generate(byte_model(tmp_path / "model"), "def ", 12)
    next(pieces)
    with_exec = gk.live_handles()
    pieces.close()
    closed = gk.live_handles()
    assert sum(with_exec.values()) > sum(closed.values())


def test_generate_ends_where_the_model_ends_its_text(runtime, tmp_path):
    folder = byte_model(tmp_path / "model")
    *_, whole = generate(folder, "def ", 20, compare=False)
    end = whole.runs[0].tokens[7]
    values = config(vocab_size=256, tie_word_embeddings=True, rope_scaling=LLAMA3, eos_token_id=end)
    write_model(folder, values, tensors(values, 0, ml_dtypes.bfloat16))
    *_, ended = generate(folder, "def ", 20)
    count = whole.runs[0].tokens.index(end) + 1
    assert ended.runs[0].tokens == whole.runs[0].tokens[:count]
    assert ended.same_tokens
    assert all(len(run.tokens) == count for run in ended.runs)


@pytest.mark.parametrize(
    ("prompt", "tokens", "says"),
    [
        ("", 4, "expected at least one token, came an empty prompt"),
        ("x" * 64, 4, "prompt: expected at most 63 tokens"),
        ("x" * 60, 5, "tokens: expected at most 4 after a prompt of 60"),
        ("x", 0, "tokens: expected 1 or more, came 0"),
    ],
)
def test_generate_refuses_before_anything_is_launched(runtime, tmp_path, prompt, tokens, says):
    # Called, not iterated: what is wrong is found before the first launch.
    with pytest.raises(ValueError, match=says):
        generate(byte_model(tmp_path / "model"), prompt, tokens)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model": None}, "model: expected a path, came NoneType"),
        ({"prompt": b"a"}, "prompt: expected a str, came bytes"),
        ({"prompt": None}, "prompt: expected a str, came NoneType"),
        ({"tokens": "3"}, "tokens: expected an int, came str"),
        ({"tokens": 1.5}, "tokens: expected an int, came float"),
        ({"tokens": True}, "tokens: expected an int, came bool"),
        ({"compare": None}, "compare: expected True or False, came None"),
        ({"timed": "no"}, "timed: expected True or False, came 'no'"),
    ],
)
def test_generate_refuses_other_types(runtime, tmp_path, change, says):
    good = {"model": byte_model(tmp_path / "model"), "prompt": "a", "tokens": 1}
    with pytest.raises(TypeError, match=f"^{says}$"):
        generate(**good | change)


def test_generate_refuses_text_without_utf_8(runtime, tmp_path):
    with pytest.raises(ValueError, match=r"^prompt: expected text that has UTF-8, came"):
        generate(byte_model(tmp_path / "model"), "\ud800", 1)


def test_generate_refuses_an_unknown_build(runtime, tmp_path):
    with pytest.raises(ValueError, match="build: expected one of"):
        generate(byte_model(tmp_path / "model"), "a", 1, build="fast")


def test_the_whole_context_can_be_filled(runtime, tmp_path):
    *_, summary = generate(byte_model(tmp_path / "model"), "x" * 60, 4)
    assert summary.same_tokens
    assert len(summary.text.encode()) >= 4


def test_the_example_of_the_package(runtime, tmp_path, capsys, monkeypatch):
    from graphkit.kernels import llama

    byte_model(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    example = "\n".join(
        line.removeprefix("    ") for line in llama.__doc__.splitlines() if line.startswith("    ")
    )
    exec(example.replace("max_len=512", "max_len=64").replace("range(64)", "range(12)"), {})
    assert capsys.readouterr().out.startswith("b'def ")
