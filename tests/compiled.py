"""What NVRTC makes of a kernel. It needs no driver."""

from cuda.bindings import nvrtc  # of the extra `test`: a missing compiler is an error, not a skip


def checked(result):
    status, *values = result
    assert status == nvrtc.nvrtcResult.NVRTC_SUCCESS, status
    return values[0] if values else None


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
