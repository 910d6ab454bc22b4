"""A user's function: its name, what it takes, and the stream it is given."""

from __future__ import annotations

from functools import partial

import pytest

from graphkit.user_function import UserFunction


class Model:
    def forward(self, x, stream=None):
        return x, stream

    def __call__(self, x):
        return x


def plain(x, y=2):
    return x, y


def with_stream(x, *, stream):
    return x, stream


def anything(**arguments):
    return arguments


@pytest.mark.parametrize(
    ("fn", "name"),
    [
        (plain, "plain"),
        (Model().forward, "Model.forward"),
        (Model(), "Model"),
        (partial(plain, y=3), "partial"),
        (lambda x: x, "<lambda>"),
        (dict, "dict"),
    ],
)
def test_its_name_says_what_it_is(fn, name):
    assert UserFunction(fn).name.rpartition("<locals>.")[2] == name


@pytest.mark.parametrize("fn", [None, "plain", 3])
def test_it_must_be_a_function(fn):
    with pytest.raises(TypeError, match=f"fn: expected a function .*, came {type(fn).__name__}"):
        UserFunction(fn)


def test_it_is_given_the_stream_when_it_takes_one(runtime, stream):
    assert UserFunction(with_stream)({"x": 1}, stream) == (1, stream)
    assert UserFunction(Model().forward)({"x": 1}, stream) == (1, stream)
    assert UserFunction(plain)({"x": 1}, stream) == (1, 2)
    assert UserFunction(anything)({"x": 1}, stream) == {"x": 1}
    assert UserFunction(partial(plain, y=3))({"x": 1}, stream) == (1, 3)


@pytest.mark.parametrize(
    ("fn", "arguments", "came"),
    [
        (plain, {}, "missing a required argument: 'x'"),
        (plain, {"x": 1, "z": 2}, "unexpected keyword argument 'z'"),
        (with_stream, {"x": 1, "z": 2}, "unexpected keyword argument 'z'"),
        (lambda x, /: x, {"x": 1}, "positional"),
    ],
)
def test_arguments_that_it_does_not_take_are_refused(fn, arguments, came):
    with pytest.raises(TypeError, match=rf"arguments: expected those of .*\(.*\), came .*{came}"):
        UserFunction(fn).check(arguments)


@pytest.mark.parametrize(
    ("fn", "arguments"),
    [
        (plain, {"x": 1}),
        (plain, {"y": 1, "x": 2}),
        (with_stream, {"x": 1}),
        (anything, {"a": 1, "b": 2}),
        (anything, {}),
        (dict, {"whatever": 1}),  # C code that does not say
    ],
)
def test_arguments_that_it_takes_are_accepted(fn, arguments):
    UserFunction(fn).check(arguments)


def test_a_stream_among_the_arguments_is_refused_where_it_is_the_pools_to_give():
    with pytest.raises(TypeError, match="stream"):
        UserFunction(with_stream).check({"x": 1, "stream": 3})
    UserFunction(anything).check({"stream": 3})


def test_what_it_raises_is_its_own(runtime, stream):
    def fn(x):
        raise KeyError(x)

    with pytest.raises(KeyError):
        UserFunction(fn)({"x": 1}, stream)
