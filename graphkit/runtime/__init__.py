"""The seam: one method per CUDA call, on a device or on the simulator, and which of the two."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Final

from graphkit.errors import RuntimeUnavailableError
from graphkit.runtime.probe import Capabilities, Feature
from graphkit.runtime.probe import probe as _probe
from graphkit.runtime.protocol import Runtime, dotted_version

if TYPE_CHECKING:
    from graphkit.runtime.sim import SimOptions

__all__ = ["Capabilities", "Feature", "Runtime", "current", "probe", "use"]

ENVIRONMENT_VARIABLE: Final = "GRAPHKIT_RUNTIME"
_NAMES: Final = ("cuda", "sim")
_TRY_SIMULATOR: Final = (
    'To work without a device, choose the simulator: gk.use("sim"), '
    f"or {ENVIRONMENT_VARIABLE}=sim in the environment."
)

_lock = threading.Lock()
_current: Runtime | None = None
_cuda: Runtime | None = None


def _open_cuda() -> Runtime:
    """Return the CUDA runtime of this process, made on the first call."""
    global _cuda
    if _cuda is None:
        try:
            from graphkit.runtime.cuda import CudaRuntime
        except ImportError as error:
            reason, fix = _why_not_importable(error)
            raise RuntimeUnavailableError(reason, f"{fix}\n{_TRY_SIMULATOR}") from error
        try:
            _cuda = CudaRuntime()
        except RuntimeUnavailableError as error:
            fix = f"{error.fix}.\n{_TRY_SIMULATOR}" if error.fix else _TRY_SIMULATOR
            raise RuntimeUnavailableError(error.reason, fix) from None
    return _cuda


def _why_not_importable(error: ImportError) -> tuple[str, str]:
    """Return the reason and the fix."""
    from graphkit.runtime.cuda_driver import NO_DRIVER, driver_version, install_command

    supported = driver_version()
    missing = isinstance(error, ModuleNotFoundError) and (error.name or "").split(".")[0] == "cuda"
    if missing and supported is None:
        # That comes first: without a driver the package would be of no use.
        reason, fix = NO_DRIVER
        return reason, f"{fix}; then {install_command(supported)}."
    command = install_command(supported)
    if supported is not None:
        command += f" (the driver supports CUDA {dotted_version(supported)})"
    if missing:
        return "cuda-bindings is not installed", f"Install it: {command}."
    return f"cuda-bindings cannot be imported ({error})", f"Install it anew: {command}."


def _open_sim(options: SimOptions | None) -> Runtime:
    from graphkit.runtime.sim import SimOptions, SimRuntime

    if options is not None and not isinstance(options, SimOptions):
        raise TypeError(f"options: expected SimOptions, came {type(options).__name__}")
    return SimRuntime(SimOptions() if options is None else options)


def use(name: str, options: SimOptions | None = None) -> Runtime:
    """Choose the runtime for everything made from now on; make no CUDA call but cudaGetDeviceCount.

    May be called again to switch. What already exists (arrays, streams, graphs) keeps the runtime
    it was made with. ``use("sim")`` starts a new, empty simulator each time.

    Args:
        name: ``"cuda"`` or ``"sim"``.
        options: how strict the simulator is; only with ``"sim"``.

    Returns:
        The runtime chosen.

    Raises:
        ValueError: ``name`` is neither.
        TypeError: ``options`` are no SimOptions, or were given for ``"cuda"``.
        RuntimeUnavailableError: there is no CUDA to use. The choice made before still holds.
    """
    global _current
    if name not in _NAMES:
        raise ValueError(f'name: expected "cuda" or "sim", came {name!r}')
    if name == "cuda" and options is not None:
        raise TypeError('options: the simulator has options, expected None with name "cuda"')
    with _lock:
        chosen = _open_cuda() if name == "cuda" else _open_sim(options)
        _current = chosen
    return chosen


def current() -> Runtime:
    """Return the runtime that new objects are made with; at most one cudaGetDeviceCount.

    The one chosen by :func:`use`; else the one that the environment variable ``GRAPHKIT_RUNTIME``
    names; else CUDA. Never the simulator unless somebody asked for it.

    Raises:
        RuntimeUnavailableError: CUDA cannot be used, and why; how to choose the simulator.
        ValueError: ``GRAPHKIT_RUNTIME`` names no runtime.
    """
    global _current
    chosen = _current
    if chosen is not None:
        return chosen
    with _lock:
        if _current is None:
            name = os.environ.get(ENVIRONMENT_VARIABLE, "").strip().lower() or "cuda"
            if name not in _NAMES:
                raise ValueError(f'{ENVIRONMENT_VARIABLE}: expected "cuda" or "sim", came {name!r}')
            _current = _open_cuda() if name == "cuda" else _open_sim(None)
        return _current


def given_or_current(runtime: Runtime | None) -> Runtime:
    """Return a runtime that was given as an argument, or :func:`current` for None.

    Raises:
        TypeError: it is neither.
    """
    if runtime is None:
        return current()
    # What it does is what makes it one: a runtime may be wrapped in another that counts its calls.
    if not callable(getattr(runtime, "get_device_count", None)):
        raise TypeError(
            f"runtime: expected what graphkit.use() returned, or None, came {runtime!r}"
        )
    return runtime


def probe(runtime: Runtime | None = None) -> Capabilities:
    """Find out what the driver can do, by calling it; ``runtime`` defaults to :func:`current`.

    Makes a few small graphs and destroys them again. Not to be called while a capture is live.

    Raises:
        TypeError: ``runtime`` is none.
    """
    return _probe(given_or_current(runtime))
