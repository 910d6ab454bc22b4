"""Signatures: equal where one captured graph can serve, whatever the addresses."""

import copy
import enum
import json
import math
from collections import namedtuple

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import graphkit as gk
from graphkit.signature import ArraySignature, Signature

BF16 = np.dtype(ml_dtypes.bfloat16)

Point = namedtuple("Point", "x y")


class Mode(enum.Enum):
    FAST = 1


class Level(enum.IntEnum):
    ONE = 1


class SomeArray:
    """Somebody's array in device memory, told by protocol; nobody reads it."""

    def __init__(self, shape, typestr="<f4", strides=None):
        self.shape, self.typestr, self.strides = shape, typestr, strides

    @property
    def __cuda_array_interface__(self):
        return {
            "version": 3,
            "shape": self.shape,
            "typestr": self.typestr,
            "strides": self.strides,
            "data": (256, False),
        }


def of(**arguments):
    return Signature.of(arguments)


# --- arrays --------------------------------------------------------------------------------------


def test_an_array_is_its_name_shape_dtype_layout_and_device(runtime):
    signature = Signature.of({"x": gk.zeros((8, 128)), "n": gk.zeros((), np.int64)}, device=1)
    assert signature.arrays == (
        ArraySignature("n", (), "int64", "C", 1),
        ArraySignature("x", (8, 128), "float32", "C", 1),
    )
    assert signature.values == ()
    assert signature.shapes == {"n": (), "x": (8, 128)}


def test_addresses_are_no_part_of_it(runtime):
    memory = gk.zeros((4, 8))
    one, other = of(x=memory[:2]), of(x=memory[2:])
    assert one == other
    assert hash(one) == hash(other)


def test_it_keeps_no_array_alive(runtime):
    array = gk.zeros(4)
    signature = of(x=array)
    del array
    assert gk.live_handles() == {}
    assert signature.shapes == {"x": (4,)}


def test_the_order_of_the_arguments_does_not_matter():
    x, y = SomeArray((2,)), SomeArray((3,))
    one = Signature.of({"x": x, "k": 1, "y": y, "a": 2})
    assert one == Signature.of({"a": 2, "y": y, "k": 1, "x": x})
    assert [array.name for array in one.arrays] == ["x", "y"]
    assert [name for name, _ in one.values] == ["a", "k"]


@pytest.mark.parametrize(
    "other",
    [
        {"x": SomeArray((2, 4))},
        {"x": SomeArray((2, 3, 1))},
        {"x": SomeArray((2, 3), "<f8")},
        {"x": SomeArray((2, 3), ">f4")},
        {"x": SomeArray((2, 3), "<i4")},
        {"x": SomeArray((2, 3), strides=(4, 8))},
        {"y": SomeArray((2, 3))},
        {"x": SomeArray((2, 3)), "y": SomeArray((2, 3))},
        {"x": SomeArray((2, 3)), "k": None},
        {"x": 6},
        {},
    ],
)
def test_anything_else_is_another_signature(other):
    assert of(x=SomeArray((2, 3))) != Signature.of(other)


def test_the_device_makes_another_signature():
    arguments = {"x": SomeArray((2,))}
    assert Signature.of(arguments, device=0) != Signature.of(arguments, device=1)


@pytest.mark.parametrize(
    ("shape", "strides", "layout"),
    [
        ((2, 3), None, "C"),
        ((2, 3), (12, 4), "C"),
        ((2, 3), (4, 8), "F"),
        ((2, 3), (16, 4), "strided"),
        ((2, 3), (0, 4), "strided"),
        ((2, 3), (12, -4), "strided"),
        ((2, 3, 4), (4, 8, 24), "F"),
        ((2, 3, 4), (4, 32, 8), "strided"),
        ((6,), (4,), "C"),
        ((6,), (8,), "strided"),
        ((), (), "C"),
        # An axis of one element has no next one, whatever its stride.
        ((1, 3), (999, 4), "C"),
        ((2, 1, 3), (4, 999, 8), "F"),
        # No element lies anywhere.
        ((0, 3), (4, 4), "C"),
    ],
)
def test_layouts(shape, strides, layout):
    (array,) = of(x=SomeArray(shape, strides=strides)).arrays
    assert array.layout == layout


@given(st.permutations(range(3)), st.lists(st.integers(1, 3), min_size=3, max_size=3))
def test_layouts_are_numpys(order, shape):
    values = np.empty(shape, np.float32).transpose(order)
    (array,) = of(x=SomeArray(values.shape, strides=values.strides)).arrays
    expected = {"C": values.flags.c_contiguous, "F": values.flags.f_contiguous}
    assert expected.get(array.layout, not any(expected.values()))
    assert array.layout == "C" or not values.flags.c_contiguous


def test_bytes_of_another_meaning_are_another_dtype(runtime):
    names = {
        of(x=gk.zeros(2, dtype)).arrays[0].dtype
        for dtype in (BF16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2, np.uint8, np.float16)
    }
    assert names == {"bfloat16", "float8_e4m3fn", "float8_e5m2", "uint8", "float16"}


@pytest.mark.parametrize("dtype", [np.float32, BF16, np.bool_, np.complex64, ">i2"])
def test_a_dtypes_text_gives_the_dtype_back(runtime, dtype):
    assert np.dtype(of(x=gk.zeros(2, dtype)).arrays[0].dtype) == dtype


def test_an_array_on_the_host_is_refused():
    with pytest.raises(TypeError, match=r"^x: expected an array in device memory, came ndarray"):
        of(x=np.zeros(3))


def test_a_freed_array_is_refused(runtime):
    array = gk.zeros(3)
    array.free()
    with pytest.raises(ValueError, match="came a freed DeviceArray"):
        of(x=array)


# --- values --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values",
    [
        (1, 1.0, True, 1 + 0j, np.float32(1), np.float64(1), np.int64(1), np.True_, Level.ONE),
        (0, 0.0, -0.0, False, np.float32(0), np.float32(-0.0), None, "", ()),
        ((1,), (1.0,), (True,), ((1,),), frozenset({1}), frozenset({1.0})),
        (complex(0, 0), complex(0, -0.0), complex(-0.0, 0)),
        ("a", b"a", np.str_("a")),
        (Point(1, 2), Point(1.0, 2), (1, 2)),
        (math.nan, "nan", np.float32("nan"), math.inf, "inf", BF16.type("nan")),
        (Mode.FAST, 1),
    ],
)
def test_values_that_python_calls_equal_are_told_apart(values):
    assert len({of(k=value) for value in values}) == len(values)
    assert len({Signature.of({}, extra=value) for value in values}) == len(values)


@pytest.mark.parametrize(
    "make",
    [
        lambda: 7,
        lambda: float("nan"),
        lambda: (1, ("a", float("nan"))),
        lambda: np.float32("nan"),
        lambda: BF16.type(1.5),
        lambda: np.longdouble(1.5),
        lambda: np.datetime64("2020-01-01", "ns"),
        lambda: frozenset({1, 2}),
        lambda: Point(1, 2),
        lambda: Mode.FAST,
        lambda: np.dtype(np.float32),
        lambda: math.sin,
        lambda: range(3),
    ],
)
def test_equal_values_of_one_type_are_one_signature(make):
    one, other = of(k=make()), of(k=make())
    assert one == other
    assert hash(one) == hash(other)


def test_a_value_stands_beside_the_name_of_its_type():
    assert of(causal=True).values == (("causal", ("bool", True)),)
    assert of(size=(1, 2.0)).values == (("size", ("tuple", (("int", 1), ("float", 2.0)))),)


@pytest.mark.parametrize("value", [[1], {"a": 1}, {1}, bytearray(b"a"), ([1],), slice([1])])
def test_what_is_neither_array_nor_hashable_is_refused(value):
    with pytest.raises(TypeError, match=r"^k: expected an array or a hashable value, came"):
        of(k=value)
    with pytest.raises(TypeError, match=r"^extra: expected an array or a hashable value, came"):
        Signature.of({}, extra=value)


def test_an_array_hidden_in_a_value_is_refused(runtime):
    # It is hashable, and would be taken for a value that never changes.
    for hidden in ((gk.zeros(3),), (1, (gk.zeros(3),)), frozenset({gk.zeros(3)})):
        with pytest.raises(TypeError, match=r"^k: expected no array inside of a value, came"):
            of(k=hidden)
    with pytest.raises(TypeError, match=r"^extra: expected no array inside of a value, came"):
        Signature.of({}, extra=gk.zeros(3))


def test_the_users_part_makes_another_signature():
    arguments = {"x": SomeArray((2,))}
    plain, one, other = (Signature.of(arguments, extra=extra) for extra in (None, "a", "b"))
    assert len({plain, one, other}) == 3
    assert plain.extra is None
    assert one == Signature.of(arguments, extra="a")


# --- the signature of a bucket -------------------------------------------------------------------


def test_with_shapes_is_the_signature_of_the_bucket():
    fortran = SomeArray((2, 3), strides=(4, 8))
    signature = Signature.of({"x": fortran, "y": fortran, "k": 1}, extra="a", device=1)
    bucket = signature.with_shapes({"x": (4, 8)})
    assert bucket.arrays == (
        ArraySignature("x", (4, 8), "float32", "C", 1),
        ArraySignature("y", (2, 3), "float32", "F", 1),
    )
    assert (bucket.values, bucket.extra) == (signature.values, signature.extra)
    assert signature.shapes == {"x": (2, 3), "y": (2, 3)}


# --- as text -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "extra", "text"),
    [
        ({"x": SomeArray((8, 128)), "causal": True}, None, "x float32[8, 128], causal=True"),
        ({"n": SomeArray((), "<i8")}, None, "n int64[]"),
        ({"x": SomeArray((2, 3), strides=(4, 8))}, None, "x float32[2, 3] F"),
        ({"x": SomeArray((2, 3), ">f4", (16, 4))}, "a", "x >f4[2, 3] strided, key='a'"),
        ({"k": (1, -0.0, "a")}, (None,), "k=(1, -0.0, 'a'), key=(None,)"),
        ({"k": math.nan, "l": 1.5, "m": 1j}, None, "k=nan, l=1.5, m=1j"),
        ({"k": np.float32(1.5)}, None, "k=numpy.float32(1.5)"),
        ({"k": frozenset({2, 1}), "l": ()}, None, "k={1, 2}, l=()"),
        ({"f": math.sin, "g": Point}, None, "f=sin, g=Point"),
        ({"k": "a" * 99}, None, f"k='{'a' * 12}...{'a' * 13}'"),
        ({}, None, ""),
    ],
)
def test_its_text_is_short(arguments, extra, text):
    assert str(Signature.of(arguments, extra)) == text


def test_its_text_names_a_device_that_is_not_the_first():
    signature = Signature.of({"x": SomeArray((2,))}, device=3)
    assert str(signature) == "x float32[2] on device 3"


def test_its_text_is_one_line():
    class Model:
        def __repr__(self):
            return "Model(\n  layer\n)"

    assert str(of(model=Model())) == "model=Model( layer )"


# --- JSON ----------------------------------------------------------------------------------------

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.complex_numbers() | st.text()
plain_values = st.recursive(scalars, lambda items: st.lists(items, max_size=3).map(tuple))
names = st.text("abxyz", min_size=1, max_size=3)
arrays = st.builds(
    SomeArray,
    st.lists(st.integers(0, 9), max_size=3).map(tuple),
    st.sampled_from(["<f4", ">f4", "<f2", "|b1", "<i8"]),
)


@given(st.dictionaries(names, arrays | plain_values, max_size=5), plain_values, st.integers(0, 7))
def test_it_comes_back_from_json(arguments, extra, device):
    signature = Signature.of(arguments, extra, device)
    data = signature.to_json()
    text = json.dumps(data, allow_nan=False)
    assert json.loads(text) == data
    back = Signature.from_json(json.loads(text))
    assert back == signature
    assert hash(back) == hash(signature)
    assert str(back) == str(signature)


@pytest.mark.parametrize("value", [np.float32(1.5), np.float64("-inf"), np.True_, BF16.type(2)])
def test_scalars_of_numpy_come_back_from_json(value):
    signature = of(k=value)
    assert Signature.from_json(json.loads(json.dumps(signature.to_json()))) == signature


def test_json_is_plain_to_read():
    signature = Signature.of({"x": SomeArray((8, 4)), "k": (1, math.inf)}, extra="a")
    assert signature.to_json() == {
        "arrays": [{"name": "x", "shape": [8, 4], "dtype": "float32", "layout": "C", "device": 0}],
        "values": {"k": ["tuple", [["int", 1], ["float", "inf"]]]},
        "extra": ["str", "a"],
    }


@pytest.mark.parametrize(
    "value", [b"a", Mode.FAST, Level.ONE, math.sin, frozenset({1}), (1, object()), range(2)]
)
def test_values_that_json_cannot_hold_are_refused(value):
    with pytest.raises(ValueError, match=r"^k: expected a value that JSON can hold, came"):
        of(k=value).to_json()
    with pytest.raises(ValueError, match=r"^extra: expected a value that JSON can hold, came"):
        Signature.of({}, extra=value).to_json()


GOOD = {
    "arrays": [
        {"name": "x", "shape": [2, 3], "dtype": "float32", "layout": "C", "device": 0},
        {"name": "y", "shape": [], "dtype": "int64", "layout": "F", "device": 1},
    ],
    "values": {"k": ["tuple", [["int", 1], ["float", "nan"]]], "l": ["NoneType", None]},
    "extra": ["str", "a"],
}


def damaged(*path, value):
    """Return good data with one place of it replaced."""
    data = copy.deepcopy(GOOD)
    place = data
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    return data


def test_what_is_sorted_otherwise_is_the_same_signature():
    data = {
        **GOOD,
        "arrays": GOOD["arrays"][::-1],
        "values": dict(reversed(GOOD["values"].items())),
    }
    assert Signature.from_json(data) == Signature.from_json(GOOD)
    assert Signature.from_json(data).to_json() == GOOD


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "signature: expected a dict of arrays, values, extra, came None"),
        ([], "signature: expected a dict"),
        ({"arrays": [], "values": {}}, "signature: expected a dict"),
        ({**GOOD, "version": 1}, "signature: expected a dict"),
        (damaged("arrays", value={}), "arrays: expected a list, came"),
        (damaged("arrays", value=["x"]), "arrays: expected a dict of name, shape, dtype"),
        (damaged("arrays", 0, value={"name": "x"}), "arrays: expected a dict of name, shape"),
        (damaged("arrays", 0, "name", value=None), "name: expected a str, came None"),
        (damaged("arrays", 0, "name", value="y"), "signature: expected a name for each argument"),
        (damaged("arrays", 0, "name", value="k"), "signature: expected a name for each argument"),
        (damaged("values", 5, value=["int", 1]), "signature: expected a name for each argument"),
        (damaged("arrays", 0, "shape", value=3), "shape: expected a list, came 3"),
        (damaged("arrays", 0, "shape", value=[-1]), "shape: expected ints of 0 or more, came"),
        (damaged("arrays", 0, "shape", value=[1.0]), "shape: expected ints of 0 or more"),
        (damaged("arrays", 0, "shape", value=[True]), "shape: expected ints of 0 or more"),
        (damaged("arrays", 0, "dtype", value=4), "dtype: expected a str, came 4"),
        (damaged("arrays", 0, "layout", value="Z"), "layout: expected C, F or strided, came 'Z'"),
        (damaged("arrays", 0, "device", value="0"), "device: expected an int, came '0'"),
        (damaged("arrays", 0, "device", value=True), "device: expected an int, came True"),
        (damaged("values", value=[]), "values: expected a dict, came"),
        (damaged("values", "k", value=7), "k: expected a list of a type's name and a value"),
        (damaged("values", "k", value=["int"]), "k: expected a list of a type's name"),
        (damaged("values", "k", value=[1, 1]), "k: expected a list of a type's name"),
        (damaged("values", "k", value=["int", "1"]), "k: expected a list of a type's name"),
        (damaged("values", "k", value=["bool", 1]), "k: expected a list of a type's name"),
        (damaged("values", "k", value=["tuple", 1]), "k: expected a list of a type's name"),
        (damaged("values", "k", value=["tuple", [1]]), "k: expected a list of a type's name"),
        (damaged("values", "k", value=["odd", {}]), "k: expected a list of a type's name"),
        (damaged("extra", value="a"), "extra: expected a list of a type's name"),
    ],
)
def test_damaged_json_is_refused(data, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        Signature.from_json(data)
