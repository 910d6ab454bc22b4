"""Every .cu of the folder compiles by itself and says what its Kernel says. Needs no driver."""

import importlib
from importlib.resources import files

import graphkit.kernels.relevance as relevance
import pytest
from compiled import compiled

from graphkit.c_signature import parse_signature

FOLDER = files("graphkit.kernels.relevance")
SOURCES = {
    path.name.removesuffix(".cu"): path.read_text(encoding="utf-8")
    for path in FOLDER.iterdir()
    if path.name.endswith(".cu")
}


def log_of(stem, architecture, *options):
    """Compile one file without any include path and return what the compiler says."""
    return compiled(SOURCES[stem], architecture, "--std=c++17", *options).log


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90", "sm_100"])
@pytest.mark.parametrize("stem", sorted(SOURCES))
def test_compiles_by_itself_without_a_warning(stem, architecture):
    assert not log_of(stem, architecture)


@pytest.mark.parametrize("stem", sorted(SOURCES))
def test_uses_no_local_memory(stem):
    log = log_of(stem, "sm_90", "--ptxas-options=-v")
    assert "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads" in log


@pytest.mark.parametrize("stem", sorted(SOURCES))
def test_has_a_module_a_kernel_and_a_function_of_its_name(stem):
    module = importlib.import_module(f"graphkit.kernels.relevance.{stem}")
    kernel = getattr(relevance, stem.upper())
    assert getattr(relevance, stem).__module__ == module.__name__
    assert kernel.name == stem
    assert kernel.parameters == parse_signature(SOURCES[stem], stem)
    twin = module.twin.__code__
    names = [parameter.name for parameter in kernel.parameters]
    assert list(twin.co_varnames[: twin.co_argcount]) == ["launch", *names]
