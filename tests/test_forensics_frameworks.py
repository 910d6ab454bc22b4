"""Captures that PyTorch and CuPy break: which line of whose code did it. Needs a device.

As in test_forensics.py, a comment marks the line that must be reported.
"""

from __future__ import annotations

import pickle
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from sample_kernels import INCREMENT

import graphkit as gk
from graphkit.frameworks import PrivateMemory, current_stream

pytestmark = [pytest.mark.gpu, pytest.mark.alone]

LINES = Path(__file__).read_text(encoding="utf-8").splitlines()


def line_of(name):
    (line,) = [n for n, text in enumerate(LINES, 1) if text.endswith(f"# breaks: {name}")]
    return line


class Scene:
    """What the bodies below need, of the library that they use."""

    def __init__(self, library, stream):
        self.stream = stream
        self.library = library
        self.counter = gk.zeros(1, np.int32)
        if library.__name__ == "torch":
            self.x = library.arange(8, dtype=library.float32, device="cuda")
            self.side = library.cuda.Stream()
            self.host = library.empty(8)
            library.cuda.synchronize()
        else:
            self.x = library.arange(8, dtype=np.float32)
            library.cuda.Device().synchronize()


CASES = {}


def case(library, *codes, sure=True, warm=True):
    """Register a way to break a capture.

    Args:
        library: whose it is.
        codes: the statuses that may be told; None where the library keeps them to itself.
        sure: whether every version of the library breaks a capture so.
        warm: whether to run it once before.
    """

    def register(provoke):
        CASES[provoke.__name__] = provoke, library, codes, sure, warm
        return provoke

    return register


# --- PyTorch -------------------------------------------------------------------------------------


@case("torch", 900)
def torch_item(torch, scene):
    total = scene.x.sum()
    return total.item()  # breaks: torch_item


@case("torch", 900)
def torch_item_in_a_module(torch, scene):
    class Gate(torch.nn.Module):
        def forward(self, x):
            limit = x.max().item()  # breaks: torch_item_in_a_module
            return x.clamp(max=limit)

    return torch.nn.Sequential(torch.nn.Identity(), Gate())(scene.x)


@case("torch", 900)
def torch_print(torch, scene):
    return f"x is {scene.x}"  # breaks: torch_print


@case("torch", 900)
def torch_tolist(torch, scene):
    return scene.x.tolist()  # breaks: torch_tolist


@case("torch", 900)
def torch_synchronize(torch, scene):
    scene.x.add_(1)
    torch.cuda.synchronize()  # breaks: torch_synchronize
    scene.x.add_(1)


@case("torch", 900)
def torch_stream_synchronize(torch, scene):
    torch.cuda.current_stream().synchronize()  # breaks: torch_stream_synchronize


@case("torch", 900)
def torch_nonzero(torch, scene):
    return torch.nonzero(scene.x)  # breaks: torch_nonzero


@case("torch", 900)
def torch_index_by_mask(torch, scene):
    mask = scene.x > 3
    return scene.x[mask]  # breaks: torch_index_by_mask


@case("torch", 900)
def torch_if(torch, scene):
    total = scene.x.sum()
    if total > 3:  # breaks: torch_if
        scene.x.add_(1)


@case("torch", 900)
def torch_copy_to_pageable_memory(torch, scene):
    scene.x.add_(1)
    scene.host.copy_(scene.x)  # breaks: torch_copy_to_pageable_memory


@case("torch", 900)
def torch_cpu(torch, scene):
    return [
        scene.x + 1,
        scene.x.cpu(),  # breaks: torch_cpu
        scene.x + 2,
    ]


@case("torch", 907)
def torch_event_query(torch, scene):
    event = torch.cuda.Event()
    event.record()
    event.query()  # breaks: torch_event_query


@case("torch", 907)
def torch_event_synchronize(torch, scene):
    event = torch.cuda.Event()
    event.record()
    event.synchronize()  # breaks: torch_event_synchronize


@case("torch", 900, 907, None, sure=False)
def torch_elapsed_time(torch, scene):
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    end.record()
    begin.elapsed_time(end)  # breaks: torch_elapsed_time


@case("torch", 900, None, sure=False)
def torch_new_tensor(torch, scene):
    return torch.tensor([1.0, 2.0], device="cuda")  # breaks: torch_new_tensor


@case("torch", 904)
def torch_unjoined(torch, scene):
    scene.x.add_(1)
    scene.side.wait_stream(torch.cuda.current_stream())  # breaks: torch_unjoined
    with torch.cuda.stream(scene.side):
        scene.x.add_(1)


# --- CuPy ----------------------------------------------------------------------------------------


@case("cupy", 900)
def cupy_get(cupy, scene):
    scene.x += 1
    return scene.x.get()  # breaks: cupy_get


@case("cupy", 900)
def cupy_float(cupy, scene):
    return float(scene.x.sum())  # breaks: cupy_float


@case("cupy", 900)
def cupy_if(cupy, scene):
    total = scene.x.sum()
    if total > 3:  # breaks: cupy_if
        scene.x += 1


@case("cupy", 900)
def cupy_print(cupy, scene):
    return str(scene.x)  # breaks: cupy_print


@case("cupy", 900)
def cupy_nonzero(cupy, scene):
    return cupy.nonzero(scene.x)  # breaks: cupy_nonzero


@case("cupy", 900)
def cupy_stream_synchronize(cupy, scene):
    cupy.cuda.get_current_stream().synchronize()  # breaks: cupy_stream_synchronize


@case("cupy", 900)
def cupy_device_synchronize(cupy, scene):
    cupy.cuda.Device().synchronize()  # breaks: cupy_device_synchronize


@case("cupy", 900)
def cupy_malloc(cupy, scene):
    return cupy.cuda.Memory(1 << 16)  # breaks: cupy_malloc


@case("cupy", 900, None, warm=False)
def cublas_handle(cupy, scene):
    from cupy_backends.cuda.libs import cublas

    cublas.create()  # breaks: cublas_handle


@case("cupy", 900, None, sure=False, warm=False)
def cusolver_handle(cupy, scene):
    from cupy_backends.cuda.libs import cusolver

    cusolver.create()  # breaks: cusolver_handle


@case("cupy", 907, None)
def cupy_event_that_swallows_it(cupy, scene):
    event = cupy.cuda.Event()
    event.record()
    return event.done  # breaks: cupy_event_that_swallows_it


@case("cupy", 904)
def cupy_unjoined(cupy, scene):
    scene.x += 1
    side = cupy.cuda.Stream(non_blocking=True)
    event = cupy.cuda.Event(disable_timing=True)
    event.record()
    side.wait_event(event)  # breaks: cupy_unjoined
    with side:
        scene.x += 1


# --- held ----------------------------------------------------------------------------------------


@pytest.fixture(params=CASES)
def setting(request, runtime):
    """A way to break a capture, its module, and what it needs, warmed up on the stream."""
    provoke, name, codes, sure, warm = CASES[request.param]
    module = pytest.importorskip(name)
    stream = gk.Stream()
    scene = Scene(module, stream)
    if warm:
        with current_stream(stream):
            provoke(module, scene)
        stream.synchronize()
    return request.param, lambda: provoke(module, scene), scene, codes, sure


def raised_at(error):
    """Return the innermost line of this file in an exception's traceback."""
    entry, line = error.__traceback__, None
    while entry is not None:
        if entry.tb_frame.f_code.co_filename == __file__:
            line = entry.tb_lineno
        entry = entry.tb_next
    return line


def check(culprit, name, codes):
    assert culprit is not None
    assert (culprit.file, culprit.line) == (__file__, line_of(name)), str(culprit)
    assert culprit.code in codes, str(culprit)
    assert culprit.cause
    assert "another thread made this call" not in culprit.cause
    assert culprit.fix
    assert f"{__file__}:{culprit.line}, in {culprit.function}" in str(culprit)
    assert pickle.loads(pickle.dumps(culprit)) == culprit


def works(scene):
    """Check that the stream and the library are as good as new."""
    stream, library = scene.stream, scene.library
    assert stream.capture_status is gk.CaptureStatus.NONE
    with gk.capture(stream) as graph:
        INCREMENT(1, 1, (scene.counter, 1), stream=stream)
    with graph.instantiate() as exe:
        exe.launch(stream)
        stream.synchronize()
    graph.close()
    before = int(scene.counter.get()[0])
    assert before >= 1
    with current_stream(stream):
        assert float((library.ones_like(scene.x) * 2).sum()) == 16


@pytest.mark.parametrize("debug", [True, False])
def test_the_line_that_broke_the_capture(setting, debug):
    name, provoke, scene, codes, sure = setting
    capture = gk.capture(scene.stream, debug=debug)
    memory = PrivateMemory()

    def body():
        with ExitStack() as stack:
            stack.enter_context(memory.allocating(scene.stream))
            with capture, current_stream(scene.stream):
                INCREMENT(1, 1, (scene.counter, 1), stream=scene.stream)
                provoke()
                INCREMENT(1, 1, (scene.counter, 1), stream=scene.stream)

    try:
        body()
    except Exception as error:
        raised = error
    else:
        memory.close()
        if sure:
            pytest.fail("the capture did not break")
        pytest.skip("this version does not break a capture so")
    memory.close()
    failure = capture.failure
    if failure is None:  # the library refused it before CUDA could
        assert raised_at(raised) == line_of(name)
    elif debug:
        check(failure.culprit, name, codes)
        assert raised is failure or str(failure.culprit) in raised.__notes__[-1]
    elif failure.culprit is not None:  # what the library raised told the status
        check(failure.culprit, name, codes)
    del raised
    works(scene)


def test_the_line_explained(setting):
    name, provoke, scene, codes, sure = setting
    culprit = refused = None
    try:
        culprit = gk.explain_capture(provoke, scene.stream)
    except Exception as error:  # the library refused it before CUDA could
        refused = raised_at(error)
    if refused is not None:
        assert refused == line_of(name)
    elif culprit is None and not sure:
        pytest.skip("this version does not break a capture so")
    else:
        check(culprit, name, codes)
    works(scene)
