"""The exception tree, and the table that explains every CUDA status."""

import pickle
import re

import pytest

from graphkit import errors
from graphkit.statuses import STATUSES, Status, StatusCode

# The CUDA whose statuses the table lists completely, and those that came after CUDA 12.9.
TABLE_VERSION = (13, 5)
LATER = {10, 227, 917, 918, 919}


def bindings_statuses() -> dict[int, str]:
    runtime = pytest.importorskip("cuda.bindings.runtime")
    return {int(status): status.name for status in runtime.cudaError_t}


def bindings_version() -> tuple[int, int]:
    version = pytest.importorskip("cuda.bindings").__version__
    major, minor = version.split(".")[:2]
    return int(major), int(minor)


def test_every_status_of_the_bindings_is_explained():
    names = {code: status.name for code, status in STATUSES.items()}
    different = {
        code: name for code, name in bindings_statuses().items() if names.get(code) != name
    }
    if bindings_version() > TABLE_VERSION:  # they may know more, but nothing else
        different = {code: name for code, name in different.items() if code in names}
    assert different == {}


def test_no_status_is_invented():
    invented = set(STATUSES) - set(bindings_statuses())
    assert invented <= LATER
    if bindings_version() >= TABLE_VERSION:
        assert invented == set()


def test_the_table_is_in_order():
    assert list(STATUSES) == sorted(STATUSES)


def test_each_explanation_reads_well_behind_its_name():
    for status in STATUSES.values():
        assert re.fullmatch(r"cuda(Success|Error\w+)", status.name)
        assert status.meaning
        assert not status.meaning.endswith("."), f"{status.name}: the end of a line, no sentence"
        for text in (status.meaning, status.cause, status.fix):
            assert text == text.strip(), status.name
            assert "  " not in text, status.name


# What users of CUDA graphs meet: for these, a cause and a fix, not only a meaning.
MET = (
    *(1, 2, 3, 4, 9, 35, 98, 100, 101, 200, 201, 209, 218, 222),
    *(400, 401, 402, 500, 700, 701, 716, 719, 720, 800, 801, 802, 803, 804),
    *(900, 901, 902, 903, 904, 905, 906, 907, 908, 910, 912),
)


def test_a_status_that_users_meet_has_a_cause_and_a_fix():
    bare = [code for code in MET if not (STATUSES[code].cause and STATUSES[code].fix)]
    assert bare == []


# After these the context is gone; every later call fails, whatever its arguments.
STICKY = (214, 220, 226, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719, 721, 810)


def test_a_status_that_destroys_the_context_says_so():
    for code in STICKY:
        assert "end the process and start again" in STATUSES[code].fix, code


def test_an_unknown_status_is_named_by_its_number():
    status = errors.explain(4242)
    assert status.name == "cudaError4242"
    assert status.cause == status.fix == ""
    assert isinstance(status, Status)


def test_a_message_holds_the_call_the_status_the_place_the_cause_and_the_fix():
    error = errors.CudaError("cudaStreamEndCapture", 904, "stream 0x10 forked to stream 0x20")
    first, here, cause, fix = str(error).splitlines()
    assert first == (
        "cudaStreamEndCapture returned 904 cudaErrorStreamCaptureUnjoined: " + STATUSES[904].meaning
    )
    assert here == "  here:        stream 0x10 forked to stream 0x20"
    assert cause == "  usual cause: " + STATUSES[904].cause
    assert fix == "  fix:         " + STATUSES[904].fix


def test_a_message_leaves_out_what_there_is_not():
    assert str(errors.CudaError("cudaEventQuery", 37)).splitlines() == [
        "cudaEventQuery returned 37 cudaErrorInvalidSurface: the surface is not valid"
    ]


def test_a_cuda_error_carries_the_call_the_code_and_the_name():
    error = errors.CudaError("cudaGraphLaunch", 400, "exec is closed")
    assert (error.call, error.code, error.name) == (
        "cudaGraphLaunch",
        400,
        "cudaErrorInvalidResourceHandle",
    )
    assert error.detail == "exec is closed"


@pytest.mark.parametrize("kind", [errors.CudaError, errors.CaptureError])
def test_a_cuda_error_survives_pickling(kind):
    error = kind("cudaStreamEndCapture", 901, "the capture died at cudaMalloc")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind
    assert (copy.call, copy.code, copy.name, copy.detail) == (
        error.call,
        error.code,
        error.name,
        error.detail,
    )
    assert str(copy) == str(error)


def test_an_unavailable_runtime_carries_its_reason_apart_from_the_fix():
    error = errors.RuntimeUnavailableError("no NVIDIA driver", "Install one")
    assert (error.reason, error.fix, str(error)) == (
        "no NVIDIA driver",
        "Install one",
        "no NVIDIA driver. Install one",
    )
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.reason, copy.fix, str(copy)) == (error.reason, error.fix, str(error))
    assert str(errors.RuntimeUnavailableError("no device")) == "no device"


def test_named_codes_are_explained():
    assert set(StatusCode) <= set(STATUSES)


def test_the_tree():
    assert issubclass(errors.GraphkitError, Exception)
    for kind in (
        errors.CudaError,
        errors.SimulationError,
        errors.NotSimulated,
        errors.RuntimeUnavailableError,
    ):
        assert kind.__mro__[1] is errors.GraphkitError
    for kind in (errors.CaptureError, errors.GraphUpdateError):
        assert kind.__mro__[1] is errors.CudaError


def test_everything_that_the_module_names_is_there():
    assert all(hasattr(errors, name) for name in errors.__all__)


def test_a_refused_update_carries_its_report():
    report = "topology changed at node 3"
    error = errors.GraphUpdateError("cudaGraphExecUpdate", 910, report)
    assert error.report is report
    assert "here:        topology changed at node 3" in str(error)
    assert error.name == "cudaErrorGraphExecUpdateFailure"
