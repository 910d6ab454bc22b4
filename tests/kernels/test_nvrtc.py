"""Every .cu compiles by itself, and says what its Kernel says. Needs NVRTC, but no driver."""

import importlib
import re
from importlib.resources import files

import graphkit.kernels
import numpy as np
import pytest
from compiled import compiled

from graphkit.device_array import BFLOAT16
from graphkit.kernel import Kernel

FOLDER = files("graphkit.kernels")
SOURCES = {
    path.name.removesuffix(".cu"): path.read_text(encoding="utf-8")
    for path in FOLDER.iterdir()
    if path.name.endswith(".cu")
}
KERNELS = {
    kernel.name: kernel
    for stem in SOURCES
    for value in vars(importlib.import_module(f"graphkit.kernels.{stem}")).values()
    for kernel in (value.values() if isinstance(value, dict) else [value])
    if isinstance(kernel, Kernel)
}
TYPES = {
    "float": np.dtype(np.float32),
    "int": np.dtype(np.int32),
    "unsigned int": np.dtype(np.uint32),
    "__nv_bfloat16": BFLOAT16,
}


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90", "sm_100"])
@pytest.mark.parametrize("stem", sorted(SOURCES))
def test_compiles_by_itself_without_a_warning(stem, architecture):
    made = compiled(SOURCES[stem], architecture, "--std=c++17")
    assert not made.log
    assert made.code


def test_every_cu_has_a_py_of_the_same_stem_and_a_function():
    modules = {
        path.name.removesuffix(".py") for path in FOLDER.iterdir() if path.name.endswith(".py")
    }
    assert modules - set(SOURCES) == {"__init__", "launch"}
    assert set(SOURCES) <= modules
    assert set(SOURCES) <= set(graphkit.kernels.__all__)


def parameters_in(source):
    """Yield (kernel name, [(const, type, pointer, parameter name)]) for each kernel of a file."""
    for name, text in re.findall(r'extern "C" __global__ void (\w+)\(([^)]*)\)', source):
        declared = [
            re.fullmatch(r"(const )?([\w ]+?)(\*?) (\w+)", item.strip()).groups()
            for item in text.split(",")
        ]
        yield name, [(bool(const), kind, bool(star), item) for const, kind, star, item in declared]


DECLARED = {name: found for source in SOURCES.values() for name, found in parameters_in(source)}


def test_every_kernel_of_a_cu_is_a_kernel_in_python():
    assert set(DECLARED) == set(KERNELS)


@pytest.mark.parametrize("name", sorted(DECLARED))
def test_parameters_are_those_of_the_source(name):
    kernel = KERNELS[name]
    assert [item.name for item in kernel.parameters] == [item[-1] for item in DECLARED[name]]
    for parameter, (const, kind, pointer, _) in zip(kernel.parameters, DECLARED[name], strict=True):
        assert parameter.dtype == TYPES[kind]
        assert (parameter.const, parameter.pointer) == (const, pointer)


@pytest.mark.parametrize("name", sorted(KERNELS))
def test_a_twin_takes_what_its_kernel_takes(name):
    twin = KERNELS[name].twin
    taken = twin.__code__.co_varnames[: twin.__code__.co_argcount]
    assert list(taken) == ["launch", *(item.name for item in KERNELS[name].parameters)]
