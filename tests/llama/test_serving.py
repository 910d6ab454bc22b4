"""Several prompts at once: each gets what it gets alone, whoever comes and goes beside it."""

from contextlib import contextmanager

import ml_dtypes
import numpy as np
import pytest
from graphkit.kernels.llama import Piece, Served, generate, serve
from llama.reference import LLAMA3, byte_model, config, tensors, write_model

import graphkit as gk

pytestmark = pytest.mark.untraced

PROMPTS = ["def ", "x", "import numpy", "\u00e9t\u00e9 = ", "for"]


@pytest.fixture
def model(tmp_path):
    return byte_model(tmp_path / "model")


def alone(model, prompt, tokens):
    """What `generate` says of a prompt: its text and its tokens."""
    *_, summary = generate(model, prompt, tokens, build="eager", compare=False)
    return summary.text, summary.runs[0].tokens


class Recorder:
    """Serves eagerly, and keeps the rows of every step."""

    def __init__(self):
        self.rows, self.open, self.closed = [], False, False

    @contextmanager
    def __call__(self, decoder):
        stream = gk.Stream()
        self.open = True

        def step(*, tokens, positions, slots, next_tokens):
            arrays = (tokens, positions, slots)
            self.rows.append(list(zip(*(array.get().tolist() for array in arrays), strict=True)))
            decoder.step(tokens, positions, slots, next_tokens, stream=stream)

        try:
            yield step
        finally:
            self.closed = True

    @property
    def sizes(self):
        return [len(rows) for rows in self.rows]


def check(model, prompts, limits, came):
    """Hold pieces and summaries against what each prompt gets alone."""
    pieces = [item for item in came if isinstance(item, Piece)]
    summaries = came[len(pieces) :]
    assert all(isinstance(item, Served) for item in summaries)
    assert [item.prompt for item in summaries] == list(range(len(prompts)))
    for place, (prompt, limit, item) in enumerate(zip(prompts, limits, summaries, strict=True)):
        assert (item.text, item.tokens) == alone(model, prompt, limit)
        assert "".join(piece.text for piece in pieces if piece.prompt == place) == item.text
        assert item.prompt_tokens == len(prompt.encode())
        assert len(item.steps) == item.prompt_tokens - 1 + len(item.tokens)
    return summaries


@pytest.mark.parametrize("max_batch", [1, 2, 3, 8])
@pytest.mark.parametrize("count", [1, 3, 5])
def test_each_prompt_gets_the_tokens_that_it_gets_alone(runtime, model, count, max_batch):
    prompts, limits = PROMPTS[:count], [9, 14, 3, 6, 1][:count]
    recorder = Recorder()
    came = list(serve(model, prompts, limits, max_batch=max_batch, prepare=recorder))
    summaries = check(model, prompts, limits, came)
    assert all(item.same_tokens for item in summaries)
    assert {item.finished for item in summaries} == {"limit"}
    for number, rows in enumerate(recorder.rows):
        assert len(rows) == sum(number in item.steps for item in summaries)
        slots = [slot for _, _, slot in rows]
        assert len(set(slots)) == len(slots)
        assert set(slots) <= set(range(min(max_batch, count)))
    assert max(recorder.sizes) == min(max_batch, count)
    assert recorder.closed


def test_the_batch_shrinks_only_when_nobody_waits(runtime, model):
    recorder = Recorder()
    list(serve(model, PROMPTS, [9, 14, 3, 6, 1], max_batch=3, prepare=recorder, compare=False))
    # The steps of the five: 12, 14, 14, 13 and 3. Two wait for a slot, and then it drains.
    assert recorder.sizes == [3] * 14 + [2] * 3 + [1] * 8


def test_a_sequence_ends_where_the_model_ends_its_text(runtime, tmp_path):
    model = byte_model(tmp_path / "model")
    # What the second prompt gets as its fifth token ends a text from now on, everybody's.
    end = alone(model, PROMPTS[1], 12)[1][4]
    values = config(vocab_size=256, tie_word_embeddings=True, rope_scaling=LLAMA3, eos_token_id=end)
    write_model(model, values, tensors(values, 0, ml_dtypes.bfloat16))
    summaries = check(model, PROMPTS, [12] * 5, list(serve(model, PROMPTS, 12, max_batch=2)))
    assert summaries[1].finished == "eos"
    assert summaries[1].tokens[-1] == end
    for item in summaries:
        assert (item.tokens[-1] == end) == (item.finished == "eos")
        assert item.finished == "eos" or len(item.tokens) == 12
        assert end not in item.tokens[:-1]


def test_the_same_prompt_several_times(runtime, model):
    *_, first, second, third = serve(model, ["def "] * 3, [4, 9, 9], max_batch=2)
    assert first.tokens == second.tokens[:4]
    assert second.tokens == third.tokens
    assert second.steps != third.steps


def test_a_graph_of_each_size_serves_as_well(runtime, model, stream):
    @contextmanager
    def graphs(decoder):
        captured = {}

        def step(**arrays):
            size = len(arrays["tokens"])
            if size not in captured:  # the same arrays every time: captured as they are
                if not captured:
                    decoder.step(**arrays, stream=stream)  # load the kernels before the capture
                with gk.capture(stream) as graph:
                    decoder.step(**arrays, stream=stream)
                captured[size] = graph.instantiate()
            captured[size].launch(stream)

        yield step
        assert sorted(captured) == [1, 2, 3]

    limits = [9, 14, 3, 6, 1]
    check(model, PROMPTS, limits, list(serve(model, PROMPTS, limits, max_batch=3, prepare=graphs)))


def test_a_comparison_that_fails_is_said(runtime, model):
    @contextmanager
    def wrong(decoder):
        stream = gk.Stream()

        def step(*, tokens, positions, slots, next_tokens):
            decoder.step(tokens, positions, slots, next_tokens, stream=stream)
            next_tokens.set((next_tokens.get() + (slots.get() == 1)) % 256)

        yield step

    *_, first, second = serve(model, PROMPTS[:2], 4, prepare=wrong)
    assert (first.same_tokens, second.same_tokens) == (True, False)


def test_a_reader_who_stops_early_closes_the_step(runtime, model):
    recorder = Recorder()
    came = serve(model, PROMPTS, 9, prepare=recorder)
    assert not recorder.open  # nothing before the first piece is asked for
    next(came)
    assert (recorder.open, recorder.closed) == (True, False)
    came.close()
    assert recorder.closed


@pytest.mark.parametrize(
    ("prompts", "tokens", "error", "says"),
    [
        ([], 4, ValueError, "prompts: expected 1 text or more, came none"),
        ("def", 4, TypeError, "prompts: expected a sequence of texts, came a str"),
        (b"def", 4, TypeError, "prompts: expected a sequence of texts, came a bytes"),
        (None, 4, TypeError, "prompts: expected a sequence of texts, came a NoneType"),
        ({"a", "b"}, 4, TypeError, "prompts: expected a sequence of texts, came a set"),
        (["a", 5], 4, TypeError, r"prompts\[1\]: expected a str, came int"),
        (["a", "\ud800"], 4, ValueError, r"prompts\[1\]: expected text that has UTF-8"),
        (["a"], None, TypeError, "tokens: expected an int, came NoneType"),
        (["a"], "4", TypeError, "tokens: expected an int, came str"),
        (["a"], [1.5], TypeError, "tokens: expected an int, came float"),
        (["a"], True, TypeError, "tokens: expected an int, came bool"),
        (["a", ""], 4, ValueError, r"prompts\[1\]: expected at least one token, came an empty"),
        (["a", "x" * 64], 4, ValueError, r"prompts\[1\]: expected at most 63 tokens"),
        (["a", "x" * 60], 5, ValueError, "tokens: expected at most 4 after a prompt of 60"),
        (["a", "b"], 0, ValueError, "tokens: expected 1 or more, came 0"),
        (["a", "b"], [3], ValueError, "tokens: expected 2, one a prompt, came 1"),
    ],
)
def test_refuses_before_anything_is_launched(runtime, model, prompts, tokens, error, says):
    with pytest.raises(error, match=says):  # called, not iterated
        serve(model, prompts, tokens)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"model": 5}, "model: expected a path, came int"),
        ({"max_batch": "2"}, "max_batch: expected an int, came str"),
        ({"max_batch": 1.5}, "max_batch: expected an int, came float"),
        ({"prepare": 5}, "prepare: expected a function, came int"),
        ({"compare": "no"}, "compare: expected True or False, came 'no'"),
    ],
)
def test_refuses_options_of_other_types(runtime, model, options, says):
    with pytest.raises(TypeError, match=f"^{says}$"):
        serve(**{"model": model, "prompts": ["a"], "tokens": 1} | options)


def test_what_prepare_returns_is_a_context_manager(runtime, model):
    with pytest.raises(TypeError, match=r"^prepare\(decoder\): expected an .*, came NoneType$"):
        next(serve(model, ["a"], 1, prepare=lambda decoder: None))


def test_numpys_ints_are_some(runtime, model):
    *_, only = serve(model, ["a"], np.int64(2), max_batch=np.int32(1), compare=False)
    assert len(only.tokens) == 2


def test_refuses_a_batch_of_none(runtime, model):
    with pytest.raises(ValueError, match="max_batch: expected 1 row or more, came 0"):
        serve(model, ["a"], 1, max_batch=0)


def test_without_a_comparison_nothing_is_said_of_it(runtime, model):
    *_, only = serve(model, ["a"], 2, compare=False)
    assert only.same_tokens is None
