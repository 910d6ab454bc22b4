"""What NVRTC makes of a kernel. It needs no driver."""

import struct

from cuda.bindings import nvrtc  # of the extra `test`: a missing compiler is an error, not a skip


def checked(result):
    status, *values = result
    assert status == nvrtc.nvrtcResult.NVRTC_SUCCESS, status
    return values[0] if values else None


def registers_of(kernel, architecture):
    """Compile a kernel and return the registers of a thread.

    They stand in the cubin's attributes (EIATTR_REGCOUNT, which cuobjdump shows): not every NVRTC
    says them in its log.
    """
    program = checked(nvrtc.nvrtcCreateProgram(kernel.code.encode(), b"kernel.cu", 0, [], []))
    flags = [flag.encode() for flag in (f"--gpu-architecture={architecture}", *kernel.options)]
    checked(nvrtc.nvrtcCompileProgram(program, len(flags), flags))
    cubin = b" " * checked(nvrtc.nvrtcGetCUBINSize(program))
    checked(nvrtc.nvrtcGetCUBIN(program, cubin))
    checked(nvrtc.nvrtcDestroyProgram(program))
    at = cubin.index(struct.pack("<BBH", 0x04, 0x2F, 8))  # of a kernel's index and its registers
    _, registers = struct.unpack_from("<II", cubin, at + 4)
    return registers


def log_of(kernel, architecture, *options):
    """Compile a kernel as it is and return what the compiler says."""
    program = checked(nvrtc.nvrtcCreateProgram(kernel.code.encode(), b"kernel.cu", 0, [], []))
    flags = [f"--gpu-architecture={architecture}", *kernel.options, *options]
    flags = [flag.encode() for flag in flags]
    (status,) = nvrtc.nvrtcCompileProgram(program, len(flags), flags)
    log = b" " * checked(nvrtc.nvrtcGetProgramLogSize(program))
    checked(nvrtc.nvrtcGetProgramLog(program, log))
    messages = log.decode().strip("\0 \n")
    assert status == nvrtc.nvrtcResult.NVRTC_SUCCESS, messages
    checked(nvrtc.nvrtcDestroyProgram(program))
    return messages


def ptx_of(kernel):
    """Compile a kernel and return its PTX."""
    program = checked(nvrtc.nvrtcCreateProgram(kernel.code.encode(), b"kernel.cu", 0, [], []))
    flags = [flag.encode() for flag in ("--gpu-architecture=compute_90", *kernel.options)]
    checked(nvrtc.nvrtcCompileProgram(program, len(flags), flags))
    text = b" " * checked(nvrtc.nvrtcGetPTXSize(program))
    checked(nvrtc.nvrtcGetPTX(program, text))
    checked(nvrtc.nvrtcDestroyProgram(program))
    return text.decode()
