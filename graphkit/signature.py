"""The key of a request: all that a captured graph depends on but where the arrays lie."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from math import copysign, isfinite
from reprlib import repr as shortened
from typing import Any, NamedTuple, Self

import numpy as np

from graphkit.arrays import ArrayInfo, device_pointer, is_array

__all__ = ["ArraySignature", "Signature", "plain_value", "typed_value"]


class ArraySignature(NamedTuple):
    """What a captured graph depends on in one array.

    Attributes:
        name: the argument's name.
        shape: extent of each axis in elements.
        dtype: the NumPy dtype as text, such as ``float32``, ``>f4`` or ``bfloat16``.
        layout: ``C`` or ``F`` for elements in that order without gaps, else ``strided``.
        device: index of the device.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    layout: str = "C"
    device: int = 0

    def __str__(self) -> str:
        layout = "" if self.layout == "C" else f" {self.layout}"
        device = f" on device {self.device}" if self.device else ""
        return f"{self.name} {self.dtype}{list(self.shape)}{layout}{device}"


@dataclass(frozen=True)
class Signature:
    """The key of a request: equal where one captured graph can serve both.

    Hashable, and it keeps no array alive.

    Attributes:
        arrays: the arguments that are arrays, sorted by name.
        values: the others, which a capture bakes in, sorted by name: pairs of the name and the
            value with the name of its type, ``("causal", ("bool", True))``, because 1 == True.
        extra: what the user adds to the key, with the name of its type; None for nothing.
        rebound: the arrays that an exec pool's graph reads where the request has them; the others
            are copied into its staging memory.
    """

    arrays: tuple[ArraySignature, ...]
    values: tuple[tuple[str, Hashable], ...] = ()
    extra: Hashable = None
    rebound: tuple[str, ...] = ()

    @classmethod
    def of(cls, arguments: Mapping[str, object], extra: Hashable = None, device: int = 0) -> Self:
        """Return the signature of a function's arguments, whatever their order.

        1, 1.0 and True differ, also in tuples, as do 0.0 and -0.0; a NaN equals a NaN. Objects of
        other types are the same when they say that they are equal.

        Args:
            arguments: arrays in device memory and hashable values, by name.
            extra: what the user adds to the key.
            device: index of the device that the arrays are on.

        Raises:
            TypeError: when an argument is neither an array nor hashable, an array on the host, or
                a tuple with an array in it.
            ValueError: when the memory of an array was freed.
        """
        arrays: list[ArraySignature] = []
        values: list[tuple[str, Hashable]] = []
        for name in sorted(arguments):
            value = arguments[name]
            if type(value) not in _JSON_TYPES and is_array(value):
                info = device_pointer(value, name)
                dtype = _dtype_name(info.dtype)
                arrays.append(ArraySignature(name, info.shape, dtype, _layout(info), device))
            else:
                values.append((name, typed_value(value, name)))
        return cls(
            tuple(arrays), tuple(values), None if extra is None else typed_value(extra, "extra")
        )

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each array by name."""
        return {array.name: array.shape for array in self.arrays}

    def with_shapes(self, shapes: Mapping[str, tuple[int, ...]]) -> Self:
        """Return the signature with other shapes, in C order: that of the bucket it falls into.

        Args:
            shapes: shapes by name; an array that is not named stays as it is.
        """
        arrays = tuple(
            array._replace(shape=tuple(shapes[array.name]), layout="C")
            if array.name in shapes
            else array
            for array in self.arrays
        )
        return replace(self, arrays=arrays)

    def staged(self) -> Self:
        """Return the signature of the graph that copies everything."""
        return replace(self, rebound=()) if self.rebound else self

    def to_json(self) -> dict[str, Any]:
        """Return the signature as what JSON holds, for :meth:`from_json`.

        Without what is rebound, which each pool finds out for itself.

        Raises:
            ValueError: when a value is none that JSON can hold: None, a bool, a number, a str, or
                a tuple of them.
        """
        return {
            "arrays": [{**array._asdict(), "shape": list(array.shape)} for array in self.arrays],
            "values": {name: _to_json(typed, name) for name, typed in self.values},
            "extra": None if self.extra is None else _to_json(self.extra, "extra"),
        }

    @classmethod
    def from_json(cls, data: object) -> Self:
        """Return the signature that :meth:`to_json` was asked of.

        Raises:
            ValueError: when the data is nothing that :meth:`to_json` returns.
        """
        fields = _fields(data, "signature", {"arrays": list, "values": dict, "extra": object})
        arrays = sorted(_array_from_json(array) for array in fields["arrays"])
        names = [*(array.name for array in arrays), *fields["values"]]
        if not all(type(name) is str for name in names) or len({*names}) < len(names):
            raise ValueError(f"signature: expected a name for each argument, came {names}")
        values = [(name, _from_json(typed, name)) for name, typed in fields["values"].items()]
        extra = None if fields["extra"] is None else _from_json(fields["extra"], "extra")
        return cls(tuple(arrays), tuple(sorted(values)), extra)

    def __str__(self) -> str:
        parts = [str(array) for array in self.arrays]
        parts += [f"{name}={_shown(typed)}" for name, typed in self.values]
        if self.extra is not None:
            parts.append(f"key={_shown(self.extra)}")
        if self.rebound:
            parts.append(f"rebound: {' '.join(self.rebound)}")
        return ", ".join(parts)


@cache
def _dtype_name(dtype: np.dtype[Any]) -> str:
    # dtype.name lacks the byte order, and dtype.str does not know bfloat16 from two plain bytes.
    return str(dtype)


def _layout(info: ArrayInfo) -> str:
    if info.contiguous or 0 in info.shape:
        return "C"
    backwards = info._replace(shape=info.shape[::-1], strides=info.strides[::-1])
    return "F" if backwards.contiguous else "strided"


# --- values, each with the name of its type ------------------------------------------------------

# What is held as it is, here and in JSON.
_JSON_TYPES: dict[type, str] = {kind: kind.__name__ for kind in (type(None), bool, int, str)}


def typed_value(value: object, argument: str) -> tuple[str, Hashable]:
    """Return a value with the name of its type, so that ``==`` is sameness.

    Raises:
        TypeError: when it is not hashable, or has an array inside.
    """
    kind = type(value)
    if kind in _JSON_TYPES:
        return _JSON_TYPES[kind], value
    if kind is float or kind is complex:
        return kind.__name__, _exactly(value)
    if isinstance(value, tuple):
        return _type_name(kind), tuple(typed_value(item, argument) for item in value)
    if isinstance(value, frozenset):
        return _type_name(kind), frozenset(typed_value(item, argument) for item in value)
    if isinstance(value, np.generic):
        item = value.item()
        if type(item) in (bool, int, float, complex):
            return f"numpy.{value.dtype}", _exactly(item)
    if is_array(value):
        raise TypeError(f"{argument}: expected no array inside of a value, came {kind.__name__}")
    try:
        hash(value)
    except TypeError:
        raise TypeError(
            f"{argument}: expected an array or a hashable value, came {kind.__name__}"
        ) from None
    return _type_name(kind), value


def plain_value(typed: Any, argument: str) -> Any:
    """Return the value that :func:`typed_value` was asked of.

    Raises:
        ValueError: when its type is none of Python's own.
    """
    kind, value = typed
    if kind == "tuple":
        return tuple(plain_value(item, argument) for item in value)
    if kind in ("float", "complex"):
        return (float if kind == "float" else complex)(value)
    if type(value) not in _JSON_TYPES or kind != _JSON_TYPES[type(value)]:
        raise ValueError(
            f"{argument}: expected a value that an example gives, came {_shown(typed)}"
        )
    return value


def _type_name(kind: type) -> str:
    plain = kind.__module__ == "builtins"
    return kind.__qualname__ if plain else f"{kind.__module__}.{kind.__qualname__}"


def _exactly(number: Any) -> Hashable:
    """Return a number, or its text where ``==`` is not sameness or JSON has no such number."""
    if type(number) is float:
        same = isfinite(number) and (number != 0 or copysign(1, number) > 0)
        return number if same else repr(number)
    return repr(number) if type(number) is complex else number


def _shown(typed: Any) -> str:
    kind, value = typed
    if isinstance(value, tuple):
        items = [_shown(item) for item in value]
        return f"({', '.join(items)}{',' if len(items) == 1 else ''})"
    if isinstance(value, frozenset):
        return f"{{{', '.join(sorted(map(_shown, value)))}}}"
    if kind.startswith("numpy."):
        return f"{kind}({value})"
    if kind in ("float", "complex"):
        return str(value)
    # A function's repr has its address, and a model's several lines.
    return getattr(value, "__qualname__", None) or " ".join(shortened(value).split())


# --- JSON: a pair is a list of two, a tuple a list of pairs --------------------------------------

_ANY_FORM: tuple[type, ...] = (bool, int, float, str, list)
# How the value of a pair is held, by the name of its type.
_FORMS: dict[str, tuple[type, ...]] = {name: (kind,) for kind, name in _JSON_TYPES.items()} | {
    "float": (float, str),
    "complex": (str,),
    "tuple": (list,),
}


def _to_json(typed: Any, argument: str) -> list[Any]:
    kind, value = typed
    if isinstance(value, tuple):
        return [kind, [_to_json(item, argument) for item in value]]
    if type(value) in _JSON_TYPES or type(value) is float:
        return [kind, value]
    raise ValueError(f"{argument}: expected a value that JSON can hold, came {kind}")


def _from_json(data: object, argument: str) -> tuple[str, Hashable]:
    if type(data) is list and len(data) == 2 and type(data[0]) is str:
        kind, value = data
        if type(value) in _FORMS.get(kind, _ANY_FORM):
            if type(value) is list:
                return kind, tuple(_from_json(item, argument) for item in value)
            return kind, _exactly(value)
    raise ValueError(f"{argument}: expected a list of a type's name and a value, came {data!r}")


def _array_from_json(data: object) -> ArraySignature:
    wanted = {"name": str, "shape": list, "dtype": str, "layout": str, "device": int}
    fields = _fields(data, "arrays", wanted)
    shape = tuple(fields["shape"])
    if not all(type(extent) is int and extent >= 0 for extent in shape):
        raise ValueError(f"shape: expected ints of 0 or more, came {fields['shape']}")
    if fields["layout"] not in ("C", "F", "strided"):
        raise ValueError(f"layout: expected C, F or strided, came {fields['layout']!r}")
    return ArraySignature(**{**fields, "shape": shape})


def _fields(data: object, argument: str, wanted: Mapping[str, type]) -> dict[str, Any]:
    if not isinstance(data, dict) or data.keys() != wanted.keys():
        raise ValueError(f"{argument}: expected a dict of {', '.join(wanted)}, came {data!r}")
    for name, kind in wanted.items():
        if not isinstance(data[name], kind) or (kind is int and type(data[name]) is bool):
            article = "an" if kind is int else "a"
            raise ValueError(f"{name}: expected {article} {kind.__name__}, came {data[name]!r}")
    return data
