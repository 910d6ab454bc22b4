"""What NVRTC makes of CUDA C++. It needs no driver."""

import struct
from typing import NamedTuple

from cuda.bindings import nvrtc  # of the extra `test`: a missing compiler is an error, not a skip


class Compiled(NamedTuple):
    """What came of a source: what the compiler said, and PTX or, for an `sm_`, a cubin."""

    log: str
    code: bytes


def compiled(source, architecture, *options):
    """Compile a source without any include path; fail with the compiler's log."""
    program = _checked(nvrtc.nvrtcCreateProgram(source.encode(), b"source.cu", 0, [], []))
    if _checked(nvrtc.nvrtcVersion(), several=True) >= (12, 9):
        options = (*options, "--no-cache")  # what comes out of a cache comes without a log
    flags = [flag.encode() for flag in (f"--gpu-architecture={architecture}", *options)]
    (status,) = nvrtc.nvrtcCompileProgram(program, len(flags), flags)
    log = _filled(nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog, program)
    messages = log.decode().strip("\0 \n")
    assert status == nvrtc.nvrtcResult.NVRTC_SUCCESS, messages
    if architecture.startswith("sm_"):
        code = _filled(nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN, program)
    else:
        code = _filled(nvrtc.nvrtcGetPTXSize, nvrtc.nvrtcGetPTX, program)
    _checked(nvrtc.nvrtcDestroyProgram(program))
    return Compiled(messages, code)


def log_of(kernel, architecture, *options):
    """Compile a kernel as it is and return what the compiler says."""
    return compiled(kernel.code, architecture, *kernel.options, *options).log


def ptx_of(kernel):
    """Compile a kernel and return its PTX."""
    return compiled(kernel.code, "compute_90", *kernel.options).code.decode()


def registers_of(kernel, architecture):
    """Compile a kernel and return the registers of a thread.

    They stand in the cubin's attributes (EIATTR_REGCOUNT, which cuobjdump shows): not every NVRTC
    says them in its log.
    """
    cubin = compiled(kernel.code, architecture, *kernel.options).code
    at = cubin.index(struct.pack("<BBH", 0x04, 0x2F, 8))  # of a kernel's index and its registers
    _, registers = struct.unpack_from("<II", cubin, at + 4)
    return registers


def _checked(result, *, several=False):
    status, *values = result
    assert status == nvrtc.nvrtcResult.NVRTC_SUCCESS, status
    if several:
        return tuple(values)
    return values[0] if values else None


def _filled(size_of, fill, program):
    # NVRTC writes into the bytes that it is given, and an empty log has one. Bytes of length 1 are
    # objects that all of Python shares: b" " would be b"\0" from then on, everywhere.
    size = _checked(size_of(program))
    buffer = b" " * (size + 1)
    _checked(fill(program, buffer))
    return buffer[:size]
