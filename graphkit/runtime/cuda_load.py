"""Load CUDA C++ source: NVRTC and cuModuleLoadData as CuPy brings them, CuPy imported when needed.

Not ``cupy.RawKernel``: it appends ``-ftz=true`` and ``--device-as-default-execution-space`` behind
the caller's options, where they win, so that a kernel would flush denormals although its options
and its NumPy twin say otherwise. Here NVRTC gets the options as they were given, the architecture
of the device unless one was given, and the folder with CUDA's headers.
"""

from __future__ import annotations

from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from graphkit.errors import GraphkitError, RuntimeUnavailableError
from graphkit.runtime import cuda_driver
from graphkit.runtime.protocol import KernelSource, LoadedFunction

__all__ = ["cupy_cuda", "load"]


def _install() -> str:
    return f"Install it: {cuda_driver.install_command(cuda_driver.driver_version())}"


def cupy_cuda() -> Any:
    """Import and return ``cupy.cuda``; RuntimeUnavailableError names the extra to install."""
    try:
        import cupy.cuda
    except ImportError as error:
        raise RuntimeUnavailableError(
            f"compiling and loading a kernel needs CuPy, which cannot be imported ({error})",
            _install(),
        ) from error
    return cupy.cuda


@cache
def _cuda_headers() -> str | None:
    """Return the folder that holds cuda_fp16.h, or None; NVRTC itself has no headers built in."""
    candidates: list[str | None] = []
    try:
        from cuda.pathfinder import find_nvidia_header_directory

        candidates.append(find_nvidia_header_directory("cudart"))
    except ImportError:
        pass  # cuda-pathfinder before 1.2; CuPy knows the usual places too
    root = cupy_cuda().get_cuda_path()
    if root is not None:
        candidates.append(str(Path(root) / "include"))
    for candidate in candidates:
        if candidate is not None and (Path(candidate) / "cuda_fp16.h").is_file():
            return candidate
    return None


@lru_cache(maxsize=256)
def _cubin(code: str, name: str, options: tuple[str, ...], architecture: str) -> bytes:
    """Compile to a cubin: PTX of a newer NVRTC is refused by an older driver of the same major."""
    nvrtc = cupy_cuda().nvrtc
    if not any(option.lstrip("-").startswith(("arch", "gpu-arch")) for option in options):
        options = (*options, f"-arch={architecture}")
    headers = _cuda_headers()
    if headers is not None:
        options = (*options, f"-I{headers}")
    try:
        program = nvrtc.createProgram(code, f"{name}.cu", (), ())
    except nvrtc.NVRTCError:
        raise
    except Exception as error:  # whatever the search for the library ends in
        raise RuntimeUnavailableError(
            f"CuPy finds no NVRTC to compile with ({error})", _install()
        ) from error
    try:
        try:
            nvrtc.compileProgram(program, options)
        except nvrtc.NVRTCError as error:
            log = nvrtc.getProgramLog(program).strip() or str(error)
            raise GraphkitError(
                f"kernel {name!r} does not compile with options {options}:\n{log}"
            ) from error
        cubin: bytes = nvrtc.getCUBIN(program)
    finally:
        nvrtc.destroyProgram(program)
    return cubin


def load(source: KernelSource, compute_capability: tuple[int, int]) -> LoadedFunction:
    """Compile ``source`` for ``compute_capability``, load it, return its CUfunction.

    The same source and options are compiled once per process.
    """
    cuda = cupy_cuda()
    major, minor = compute_capability
    cubin = _cubin(source.code, source.name, tuple(source.options), f"sm_{major}{minor}")
    try:
        module = cuda.function.Module()
        module.load(cubin)
        function = module.get_function(source.name)
    except cuda.driver.CUDADriverError as error:
        raise GraphkitError(
            f"kernel {source.name!r} compiled but does not load: {error}. Is it declared "
            f'`extern "C" __global__ void {source.name}(...)`?'
        ) from error
    return LoadedFunction(int(function.ptr), function)  # a Function holds its module
