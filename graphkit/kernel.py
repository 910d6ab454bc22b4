"""Kernels: a device function, the layout of its arguments, and its twin in NumPy."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any, NamedTuple
from weakref import ReferenceType, WeakKeyDictionary, WeakValueDictionary, ref

import numpy as np
from numpy.typing import NDArray

from graphkit.c_signature import Parameter, opaque_parameters, parse_signature
from graphkit.errors import SimulationError
from graphkit.launch_config import check_shared_mem, dim3, launch_attributes
from graphkit.lifetime import drop_later, host_function, keep_for_capture
from graphkit.params import Args, ArgumentBlock
from graphkit.runtime import current, given_or_current
from graphkit.runtime.protocol import (
    Dim3,
    KernelSource,
    LaunchConfig,
    LoadedFunction,
    Runtime,
    TwinLaunch,
)
from graphkit.stream import runtime_of, stream_handle

__all__ = ["Kernel", "Launch", "Pointer", "kernel_of"]

# CUfunction_attribute (cuda.h).
_MAX_DYNAMIC_SHARED_SIZE_BYTES = 8


class Launch(NamedTuple):
    """The launch configuration that a twin is given.

    Attributes:
        grid: blocks along x, y, z.
        block: threads of a block along x, y, z.
        shared_mem: dynamic shared memory of a block in bytes.
    """

    grid: Dim3
    block: Dim3
    shared_mem: int

    def set_conditional(self, handle: int, value: int) -> None:
        """Do what cudaGraphSetConditional does in the kernel: set what a conditional node asks for.

        Args:
            handle: the kernel's argument, a cudaGraphConditionalHandle.
            value: the condition, an unsigned int.

        Raises:
            SimulationError: when no conditional node of the running graph has the handle.
        """
        raise SimulationError(
            f"a twin sets the condition {int(handle):#x} in a launch that no simulator runs"
        )


class _RunningLaunch(Launch):
    """The launch that a twin is given: it reaches the simulator that runs it."""

    running: TwinLaunch

    def set_conditional(self, handle: int, value: int) -> None:
        self.running.set_conditional(int(handle), int(value))


class Pointer:
    """A pointer argument, as a twin sees it: memory without a length.

    ``view`` gives the part that the kernel touches as an array. The simulator checks its bounds
    and notes it for the detection of races, so a twin should view what the kernel touches and no
    more. What a ``const T*`` points at is read-only.
    """

    __slots__ = ("_launch", "_parameter", "address")

    def __init__(self, launch: TwinLaunch, parameter: Parameter, address: int) -> None:
        self._launch = launch
        self._parameter = parameter
        self.address = address

    def __bool__(self) -> bool:
        return self.address != 0

    def view(self, shape: int | Sequence[int], offset: int = 0, dtype: Any = None) -> NDArray[Any]:
        """Return device memory as a C-ordered array.

        Args:
            shape: extents in elements.
            offset: elements between the pointer and the first element.
            dtype: element type; by default what the C type points at.

        Raises:
            SimulationError: when the memory is not all inside one live allocation.
        """
        kind = self._parameter.dtype if dtype is None else np.dtype(dtype)
        if kind is None:
            raise TypeError(f"{self._parameter.name}: expected a dtype for `{self._parameter}`")
        extents = (int(shape),) if isinstance(shape, (int, np.integer)) else tuple(shape)
        memory = self._launch.memory(
            self.address + int(offset) * kind.itemsize,
            prod(int(n) for n in extents) * kind.itemsize,
            write=not self._parameter.const,
        )
        array: NDArray[Any] = memory.view(kind)
        return array.reshape(extents)


# Which Kernel a CUfunction came from, so that nodes of captured graphs have argument names.
_known: WeakKeyDictionary[Runtime, WeakValueDictionary[int, Kernel]] = WeakKeyDictionary()


class Kernel:
    """A kernel that can be launched, captured and made a node, on either runtime.

    Args:
        code: CUDA C++ source that defines ``extern "C" __global__ void name(...)``.
        name: the kernel's name in it.
        twin: its NumPy reference, called as ``twin(launch, *arguments)`` with a :class:`Launch`,
            a :class:`Pointer` for each pointer and a NumPy scalar for each value. The simulator
            runs it.
        options: options for NVRTC.
        types: NumPy dtypes of structs passed by value, by their C name.

    The source is compiled at first use (CuPy's RawKernel). Calling a kernel launches it, with the
    argument order of CuPy: ``kernel(grid, block, args, stream=stream)``.
    """

    def __init__(
        self,
        code: str,
        name: str,
        *,
        twin: Callable[..., None] | None = None,
        options: Sequence[str] = (),
        types: Mapping[str, Any] | None = None,
    ) -> None:
        _check_source(code, name, twin, options)
        self._setup(name, parse_signature(code, name, _dtypes(types)), twin, code, options)

    def _setup(
        self,
        name: str,
        parameters: tuple[Parameter, ...],
        twin: Callable[..., None] | None = None,
        code: str = "",
        options: Sequence[str] = (),
    ) -> None:
        self.code = code
        self.options = tuple(options)
        self.name = name
        self.parameters = parameters
        self.twin = twin
        # By the runtime's id; the reference tells whether the id is still that runtime's.
        self._loaded: dict[int, tuple[ReferenceType[Runtime], LoadedFunction]] = {}
        self._lock = threading.Lock()
        self._scratch = threading.local()

    @classmethod
    def wrap(
        cls,
        function: object,
        signature: str | None = None,
        *,
        name: str | None = None,
        types: Mapping[str, Any] | None = None,
        runtime: Runtime | None = None,
    ) -> Kernel:
        """Make a Kernel of a function that is loaded already.

        Args:
            function: a CuPy RawKernel, a function of a CuPy RawModule, or a CUfunction as an int.
            signature: its parameters as C text, such as ``"const float* x, int n"``. Where it is
                missing they are read from a RawKernel's source, else from the driver
                (cuFuncGetParamInfo), which knows sizes but no names.
            name: its name; asked of the driver by default (cuFuncGetName).
            types: NumPy dtypes of structs passed by value, by their C name.
            runtime: the runtime it is loaded in; the current one by default.
        """
        runtime = given_or_current(runtime)
        inner = getattr(function, "kernel", function)
        handle = inner if isinstance(inner, int) else getattr(inner, "ptr", None)
        if not isinstance(handle, int) or isinstance(handle, bool) or not handle:
            raise TypeError(
                "function: expected a CuPy RawKernel, a RawModule's function or a CUfunction as "
                f"an int, came {type(function).__name__}"
            )
        for argument, value in (("signature", signature), ("name", name)):
            if value is not None and not isinstance(value, str):
                raise TypeError(f"{argument}: expected a str, came {type(value).__name__}")
        dtypes = _dtypes(types)
        kernel_name = name or runtime.func_get_name(handle)
        source = getattr(function, "code", None)
        if signature is not None:
            parameters = parse_signature(signature, None, dtypes)
        elif isinstance(source, str) and source:
            parameters = parse_signature(source, kernel_name, dtypes)
        else:
            parameters = opaque_parameters(runtime, handle)
        kernel = cls.__new__(cls)
        kernel._setup(kernel_name, parameters)
        kernel._check_layout(runtime, handle)
        kernel._remember(runtime, LoadedFunction(handle, function))
        return kernel

    def function(self, runtime: Runtime | None = None) -> int:
        """Return the CUfunction, loading it at first use.

        Raises:
            GraphkitError: when the source does not compile; the compiler's log is in the message.
            ValueError: when the compiled parameters differ from the signature in the source.
        """
        runtime = current() if runtime is None else runtime
        loaded = self._loaded.get(id(runtime))
        if loaded is not None and loaded[0]() is runtime:
            return loaded[1].handle
        given_or_current(runtime)  # refuses what is none, and costs no launch anything here
        with self._lock:
            loaded = self._loaded.get(id(runtime))
            if loaded is not None and loaded[0]() is runtime:  # another thread was first
                return loaded[1].handle
            if not self.code:
                raise ValueError(f"{self.name}: expected the runtime it was wrapped in, came other")
            layout = tuple((item.offset, item.size) for item in self.parameters)
            twin = None if self.twin is None else self._run_twin
            source = KernelSource(self.code, self.name, self.options, layout, twin)
            function = runtime.function_load(source)
            self._check_layout(runtime, function.handle)
            self._remember(runtime, function)
            return function.handle

    def _remember(self, runtime: Runtime, function: LoadedFunction) -> None:
        self._loaded[id(runtime)] = (ref(runtime), function)
        # The first to know a function names its arguments: wrapping it anew takes nothing away.
        _known.setdefault(runtime, WeakValueDictionary()).setdefault(function.handle, self)

    def __del__(self) -> None:
        # Unloading a module kills a live capture (seen on an H200).
        drop_later(getattr(self, "_loaded", None))

    def _check_layout(self, runtime: Runtime, handle: int) -> None:
        found = [(item.offset, item.size) for item in opaque_parameters(runtime, handle)]
        expected = [(item.offset, item.size) for item in self.parameters]
        if found != expected:
            raise ValueError(
                f"{self.name}: expected the (offset, size) of parameters that its signature says, "
                f"{expected}, came {found} from the compiled function"
            )

    def _run_twin(self, launch: TwinLaunch) -> None:
        assert self.twin is not None
        values: list[object] = []
        for parameter, raw in zip(self.parameters, launch.arguments, strict=True):
            if parameter.pointer:
                values.append(Pointer(launch, parameter, int.from_bytes(raw, "little")))
            elif parameter.dtype is not None:
                values.append(np.frombuffer(raw, parameter.dtype)[0])
            else:
                values.append(raw)
        given = _RunningLaunch(launch.grid, launch.block, launch.shared_mem)
        given.running = launch
        with host_function():  # a twin is no place for CUDA calls either
            self.twin(given, *values)

    @property
    def max_dynamic_shared_size_bytes(self) -> int:
        """Most dynamic shared memory of a block in bytes (cuFuncSetAttribute when assigned).

        More than 48 KiB must be allowed here before a launch may ask for it.
        """
        runtime = current()
        return runtime.func_get_attribute(_MAX_DYNAMIC_SHARED_SIZE_BYTES, self.function(runtime))

    @max_dynamic_shared_size_bytes.setter
    def max_dynamic_shared_size_bytes(self, nbytes: int) -> None:
        runtime = current()
        function = self.function(runtime)
        size = check_shared_mem(nbytes, "max_dynamic_shared_size_bytes")
        runtime.func_set_attribute(function, _MAX_DYNAMIC_SHARED_SIZE_BYTES, size)

    def pack(self, args: Args) -> tuple[int, Sequence[object]]:
        """Check arguments against the signature and pack them for the next call of this thread.

        CUDA copies arguments when it is given them, so one block a thread serves every launch and
        every node that is added.

        Returns:
            The address of the ``void*[]``, good until this thread packs again, and the arguments
            in order, for whoever must keep them alive.

        Raises:
            TypeError: an argument too many, too few, unknown, or of the wrong type or size.
            ValueError: a value out of range, or a freed array.
        """
        try:
            block: ArgumentBlock = self._scratch.block
        except AttributeError:  # the first time on this thread
            block = self._scratch.block = ArgumentBlock(self.parameters)
        return block.kernel_params, block.pack(args)

    def __call__(
        self,
        grid: int | Sequence[int],
        block: int | Sequence[int],
        args: Args,
        *,
        stream: object,
        shared_mem: int = 0,
        cluster: int | Sequence[int] | None = None,
        cooperative: bool = False,
        priority: int | None = None,
        programmatic: bool = False,
    ) -> None:
        """Launch the kernel on a stream (cuLaunchKernelEx).

        Args:
            grid: blocks, an int or up to three.
            block: threads of a block, an int or up to three.
            args: the arguments by position or by name.
            stream: any framework's stream; when it captures, the graph keeps the arguments alive.
            shared_mem: dynamic shared memory of a block in bytes.
            cluster: blocks of a cluster; they must divide the grid.
            cooperative: whether all blocks must run at once, for a grid-wide barrier.
            priority: priority of the launch; smaller is more urgent.
            programmatic: let this kernel start before the one ahead of it on the stream has
                ended; it must execute ``griddepcontrol.wait`` before it reads what that writes.
        """
        runtime = runtime_of(stream)
        handle = stream_handle(stream)
        kernel_params, owners = self.pack(args)
        config = LaunchConfig(
            dim3(grid, "grid"),
            dim3(block, "block"),
            check_shared_mem(shared_mem),
            handle,
            launch_attributes(grid, cluster, cooperative, priority, programmatic),
        )
        runtime.launch_kernel_ex(config, self.function(runtime), kernel_params)
        keep_for_capture(runtime, handle, (self, *owners))

    def __repr__(self) -> str:
        return f"<Kernel {self.name}({', '.join(map(str, self.parameters))})>"


def _check_source(code: object, name: object, twin: object, options: object) -> None:
    for value, argument in ((code, "code"), (name, "name")):
        if not isinstance(value, str):
            raise TypeError(f"{argument}: expected a str, came {type(value).__name__}")
    if not name:
        raise ValueError("name: expected the kernel's name, came an empty str")
    if twin is not None and not callable(twin):
        raise TypeError(f"twin: expected a function, came {type(twin).__name__}")
    # A str is a sequence of str, too: of its letters.
    if (
        isinstance(options, str)
        or not isinstance(options, Sequence)
        or not all(isinstance(option, str) for option in options)
    ):
        raise TypeError(f"options: expected a sequence of str, came {options!r}")


def _dtypes(types: object) -> dict[str, np.dtype[Any]]:
    """Return the dtypes of structs by their C name."""
    if types is None:
        return {}
    if not isinstance(types, Mapping):
        raise TypeError(
            f"types: expected NumPy dtypes by their C name, came {type(types).__name__}"
        )
    found: dict[str, np.dtype[Any]] = {}
    for name, dtype in types.items():
        if not isinstance(name, str):
            raise TypeError(f"types: expected C names, came {name!r}")
        try:
            kind: np.dtype[Any] | None = None if dtype is None else np.dtype(dtype)
        except (TypeError, ValueError):
            kind = None
        if kind is None or kind.hasobject or not kind.itemsize:
            raise TypeError(f"types[{name!r}]: expected a NumPy dtype of bytes, came {dtype!r}")
        found[name] = kind
    return found


def kernel_of(runtime: Runtime, function: int) -> Kernel | None:
    """Return the Kernel that a CUfunction was loaded for, None for anybody else's function."""
    kernels = _known.get(runtime)
    return None if kernels is None else kernels.get(function)
