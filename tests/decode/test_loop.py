"""The loop around a decode step: when it ends, for each row and for all, and what it leaves."""

import numpy as np
import pytest
from decode_cases import MODELS, bundled, model
from graphkit.kernels.decode import FusedDecoder, RowEnds, loop_on

import graphkit as gk

pytestmark = pytest.mark.untraced

PROMPTS = (b"def f(x", b"import ", b"class A:\n", b"x", b"for i in range", b"# ", b"if x", b"d = {")


def until(decoder, decode, prompts, seed=0, most=400):
    """Decode as the host would: token by token until every row has ended; return all tokens."""
    decoder.start(*prompts, seed=seed)
    ends, limits = decoder.config.eos_token_ids, decoder.length_limit.get()
    rows = [list(prompt) for prompt in prompts]
    for _ in range(most):
        going = [
            b
            for b, row in enumerate(rows)
            if len(row) < min(limits[b], decoder.max_len)
            and not (len(row) > len(prompts[b]) and row[-1] in ends)
        ]
        if not going:
            return rows
        decode.launch()
        position, tokens = decoder.position.get(), decoder.tokens.get()
        for b in going:
            if position[b] + 1 > len(prompts[b]):
                rows[b] = tokens[b, : position[b] + 1].tolist()
    raise AssertionError("the host does not come to an end")


def rows_of(decoder):
    return [
        row[: at + 1].tolist()
        for row, at in zip(decoder.tokens.get(), decoder.position.get(), strict=True)
    ]


def launch(decode):
    decode.launch()
    decode.stream.synchronize()


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("batch", [1, 2, 8])
def test_ends_where_the_host_would_with_the_same_tokens(runtime, batch, temperature):
    # A newline or a parenthesis ends a row; those in the prompt do not.
    _, _, checkpoint = bundled(eos_token_id=[ord("\n"), ord(")")])
    decoder = FusedDecoder(checkpoint, batch=batch, max_len=28, temperature=temperature)
    decoder.length_limit.set([24, 12, 28, 9, 15, 99, 20, 16][:batch])
    prompts = PROMPTS[:batch]
    expected = until(decoder, decoder.build("programmatic"), prompts)
    loop = decoder.build("loop")
    decoder.start(*prompts)
    launch(loop)
    assert rows_of(decoder) == expected
    assert decoder.next_token.get().tolist() == [row[-1] for row in expected]
    for row, found in zip(decoder.tokens.get(), expected, strict=True):
        assert not row[len(found) :].any()
    # All rows are at their ends: another launch makes no step.
    logits = decoder.logits.get()
    launch(loop)
    assert rows_of(decoder) == expected
    np.testing.assert_array_equal(decoder.logits.get(), logits)


def test_rows_that_go_on_are_taken_further_by_another_launch(runtime):
    _, _, checkpoint = bundled()
    decoder = FusedDecoder(checkpoint, batch=2, max_len=40)
    decoder.length_limit.set([40, 30])
    expected = until(decoder, decoder.build("eager"), PROMPTS[:2])
    decoder.length_limit.set([12, 16])
    loop = decoder.build("loop")
    decoder.start(*PROMPTS[:2])
    launch(loop)
    assert [len(row) for row in rows_of(decoder)] == [12, 16]
    decoder.length_limit.set([40, 30])
    launch(loop)
    assert rows_of(decoder) == expected


def test_a_number_of_steps(runtime):
    _, _, checkpoint = bundled()
    decoder = FusedDecoder(checkpoint, max_len=32)
    expected = until(decoder, decoder.build("manual"), PROMPTS[:1])
    decoder.start(PROMPTS[0])
    loop = decoder.build("loop", steps=9)
    for position in (9, 18, 27, 31, 31):  # the last ends at the end of the buffer
        launch(loop)
        assert decoder.position.get().tolist() == [position]
    assert rows_of(decoder) == expected
    decoder.start(PROMPTS[0])  # and it counts anew at each launch
    launch(loop)
    assert decoder.position.get().tolist() == [9]


def test_nodes_and_launches(runtime):
    _, _, checkpoint = bundled()
    decoder = FusedDecoder(checkpoint, max_len=16)
    loop = decoder.build("loop")
    assert loop.node_count == len(decoder.launches) + 3
    assert loop.launches_per_token == 0
    assert len(loop.graph.nodes) == 2
    assert len(loop.body.edges) == len(decoder.launches)
    assert all(edge.programmatic for edge in loop.body.edges)
    assert not loop.graph.check_races()


@pytest.mark.parametrize("position", [-1, -2, 16, 2**31 - 1])
def test_a_position_outside_of_the_buffer_ends_or_comes_in(runtime, position):
    _, _, checkpoint = bundled()
    decoder = FusedDecoder(checkpoint, max_len=16)
    loop = decoder.build("loop", steps=2)
    decoder.start(b"ab")
    decoder.position.set([position])
    launch(loop)
    assert decoder.position.get().tolist() == [1 if position == -1 else position]


def test_steps_out_of_range(runtime):
    _, _, checkpoint = model(MODELS["bundled"])
    decoder = FusedDecoder(checkpoint)
    for steps in (0, -1, 2**31):
        with pytest.raises(ValueError, match=r"^steps: expected 1 to"):
            decoder.build("loop", steps=steps)
    for steps in (1.5, True, "4"):
        with pytest.raises(TypeError, match=r"^steps: expected an int, came"):
            decoder.build("loop", steps=steps)
    with pytest.raises(ValueError, match=r"^steps: expected None but for the loop, came 4"):
        decoder.build("manual", steps=4)
    with pytest.raises(ValueError, match=r"^build: expected one of .*programmatic, loop, came"):
        decoder.build("fast")
    tokens, one = gk.zeros((1, 4), np.int32), gk.zeros(1, np.int32)
    with pytest.raises(TypeError, match=r"^handle: expected what conditional_handle"):
        loop_on(3, tokens, one, one, one, RowEnds(one))


def test_a_loop_of_other_types(runtime):
    tokens, one = gk.zeros((1, 4), np.int32), gk.zeros(1, np.int32)
    handle = gk.Graph().conditional_handle()
    with pytest.raises(TypeError, match=r"^row_ends: expected a RowEnds, came DeviceArray"):
        loop_on(handle, tokens, one, one, one, one)
    for begins in (1, "yes", None):
        with pytest.raises(TypeError, match=r"^begins: expected True or False, came"):
            loop_on(handle, tokens, one, one, one, RowEnds(one), begins=begins)
