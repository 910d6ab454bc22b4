"""Every CUDA status: what happened, the usual cause, the fix.

The names and numbers are those of ``cudaError_t`` up to CUDA 13.5; the rest is written for people
who use CUDA graphs from Python. The driver API counts the same way: its 700 is this 700.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

__all__ = ["STATUSES", "Status", "StatusCode"]


class StatusCode(IntEnum):
    """The values of ``cudaError_t`` that graphkit itself asks about or returns."""

    INVALID_VALUE = 1
    MEMORY_ALLOCATION = 2
    INITIALIZATION_ERROR = 3
    INVALID_CONFIGURATION = 9
    INSUFFICIENT_DRIVER = 35
    INVALID_DEVICE_FUNCTION = 98
    NO_DEVICE = 100
    INVALID_DEVICE = 101
    DEVICE_UNINITIALIZED = 201
    OPERATING_SYSTEM = 304
    INVALID_RESOURCE_HANDLE = 400
    ILLEGAL_STATE = 401
    LOSSY_QUERY = 402
    NOT_READY = 600
    COOPERATIVE_LAUNCH_TOO_LARGE = 720
    NOT_PERMITTED = 800
    NOT_SUPPORTED = 801
    CAPTURE_UNSUPPORTED = 900
    CAPTURE_INVALIDATED = 901
    CAPTURE_MERGE = 902
    CAPTURE_UNMATCHED = 903
    CAPTURE_UNJOINED = 904
    CAPTURE_ISOLATION = 905
    CAPTURE_IMPLICIT = 906
    CAPTURED_EVENT = 907
    CAPTURE_WRONG_THREAD = 908
    GRAPH_EXEC_UPDATE_FAILURE = 910
    INVALID_CLUSTER_SIZE = 912


class Status(NamedTuple):
    """One CUDA status, explained.

    Attributes:
        name: the status as CUDA spells it, such as ``"cudaErrorInvalidValue"``.
        meaning: what happened.
        cause: what usually leads to it; empty where there is no usual cause.
        fix: what to do about it; empty where the meaning says it all.
    """

    name: str
    meaning: str
    cause: str = ""
    fix: str = ""


# What a status that destroys the context leaves to do.
_RESTART = "The context is lost: end the process and start again."

STATUSES: dict[int, Status] = {
    0: Status("cudaSuccess", "the call succeeded; for a query, the work asked about is done"),
    1: Status(
        "cudaErrorInvalidValue",
        "CUDA refuses an argument, and does not say which",
        "a handle of something already destroyed, a node of another graph, a grid or block "
        "of zero, a copy of another kind or size than the node was made with, a grid or "
        "shared memory above the limit",
        "check the arguments of the call, those on the line 'here' first where there is one; "
        "after a change of a node, check that it is a node of the graph that was instantiated "
        "and that only its changeable parameters differ",
    ),
    2: Status(
        "cudaErrorMemoryAllocation",
        "there is not enough memory, on the device or pinned on the host",
        "other processes or a framework's caching allocator hold it; many executable graphs"
        " add up too, at a few KB of device memory a node",
        "free arrays, empty the allocator's cache, close executable graphs that are no "
        "longer launched",
    ),
    3: Status(
        "cudaErrorInitializationError",
        "the driver and the runtime could not be started",
        "the process was forked after CUDA was used, or the driver is broken or being updated",
        "start workers with the 'spawn' method, not 'fork'; see whether nvidia-smi works",
    ),
    4: Status(
        "cudaErrorCudartUnloading",
        "the process is ending and the driver is already gone",
        "a finalizer or a daemon thread calls CUDA at interpreter exit",
        "close graphs and streams before the interpreter exits; join the threads that use them",
    ),
    5: Status(
        "cudaErrorProfilerDisabled",
        "the profiler cannot be controlled in this run",
        "a profiler was attached from outside",
        "leave out the profiler calls, or run without the outer profiler",
    ),
    6: Status(
        "cudaErrorProfilerNotInitialized",
        "the profiler was stopped before it was started (a status of older CUDA; current "
        "ones do not return it)",
    ),
    7: Status(
        "cudaErrorProfilerAlreadyStarted",
        "the profiler was started twice (a status of older CUDA; current ones do not return it)",
    ),
    8: Status(
        "cudaErrorProfilerAlreadyStopped",
        "the profiler was stopped twice (a status of older CUDA; current ones do not return it)",
    ),
    9: Status(
        "cudaErrorInvalidConfiguration",
        "no launch of this grid, block and shared memory can ever work here",
        "more than 1024 threads in a block, more shared memory than the device has, a grid "
        "dimension of zero or above 65535 in y or z",
        "make the block smaller or the grid larger; above 48 KiB of dynamic shared memory, "
        "first raise the kernel's attribute max_dynamic_shared_size_bytes",
    ),
    10: Status(
        "cudaErrorVersionTranslation",
        "the driver described a graph node in a way that this runtime cannot read",
        "the driver is newer than the runtime library",
        "install a cuda-bindings of the driver's version",
    ),
    12: Status(
        "cudaErrorInvalidPitchValue",
        "a pitch is out of range",
        "the pitch of a 2-D or 3-D copy or memset is smaller than a row, or above the "
        "device's limit",
        "give the pitch in bytes, at least the width of a row in bytes",
    ),
    13: Status(
        "cudaErrorInvalidSymbol",
        "no variable of that name is there",
        "a misspelt name, or another module was meant",
        'declare the variable extern "C", so that its name is not mangled',
    ),
    16: Status(
        "cudaErrorInvalidHostPointer",
        "an address is not one of host memory (a status of older CUDA; current ones do not "
        "return it)",
    ),
    17: Status(
        "cudaErrorInvalidDevicePointer",
        "an address is not one of device memory (a status of older CUDA; current ones do "
        "not return it)",
    ),
    18: Status("cudaErrorInvalidTexture", "the texture is not valid"),
    19: Status("cudaErrorInvalidTextureBinding", "the texture is not bound as it must be"),
    20: Status(
        "cudaErrorInvalidChannelDescriptor",
        "the channel format of a texture or surface is not valid",
        "an unknown format, or a dimension out of range",
    ),
    21: Status(
        "cudaErrorInvalidMemcpyDirection",
        "the direction of a copy is not one that CUDA knows",
        "the kind given does not fit where the two addresses lie",
        "use the kind 'default': CUDA looks at the addresses",
    ),
    22: Status(
        "cudaErrorAddressOfConstant",
        "the address of a constant was taken (a status of older CUDA; current ones do not "
        "return it)",
    ),
    23: Status(
        "cudaErrorTextureFetchFailed",
        "a texture could not be read in device emulation (a status of older CUDA; current "
        "ones do not return it)",
    ),
    24: Status(
        "cudaErrorTextureNotBound",
        "a texture was read unbound in device emulation (a status of older CUDA; current "
        "ones do not return it)",
    ),
    25: Status(
        "cudaErrorSynchronizationError",
        "a synchronization failed in device emulation (a status of older CUDA; current ones"
        " do not return it)",
    ),
    26: Status(
        "cudaErrorInvalidFilterSetting",
        "linear filtering was asked of a texture that does not hold floats",
    ),
    27: Status(
        "cudaErrorInvalidNormSetting",
        "a type that cannot be read as a normalized float was to be read so",
    ),
    28: Status(
        "cudaErrorMixedDeviceExecution",
        "device code and emulated device code were mixed (a status of older CUDA; current "
        "ones do not return it)",
    ),
    31: Status(
        "cudaErrorNotYetImplemented",
        "the call exists in name only (a status of older CUDA; current ones do not return it)",
    ),
    32: Status(
        "cudaErrorMemoryValueTooLarge",
        "an emulated address does not fit in 32 bits (a status of older CUDA; current ones "
        "do not return it)",
    ),
    34: Status(
        "cudaErrorStubLibrary",
        "the libcuda that was loaded is the stub for linking, not a driver",
        "the toolkit's folder 'stubs' is on LD_LIBRARY_PATH",
        "take that folder out of LD_LIBRARY_PATH",
    ),
    35: Status(
        "cudaErrorInsufficientDriver",
        "there is no NVIDIA driver, or one too old for this CUDA runtime",
        "a machine without a GPU, a container started without its GPUs, or cuda-bindings 13"
        " on a driver of CUDA 12",
        "see what nvidia-smi says; install the extra that fits the driver (cu12 or cu13), "
        'or update the driver; to go on without a GPU: graphkit.use("sim")',
    ),
    36: Status(
        "cudaErrorCallRequiresNewerDriver",
        "the driver is too old for this call, although not for this CUDA",
        "the call came with a later CUDA than the driver's",
        "update the driver; `graphkit info` shows what this one can do",
    ),
    37: Status("cudaErrorInvalidSurface", "the surface is not valid"),
    43: Status(
        "cudaErrorDuplicateVariableName",
        "two device variables have the same name",
        "two source files linked into one module define it",
        "make one of them static or rename it",
    ),
    44: Status(
        "cudaErrorDuplicateTextureName",
        "two textures have the same name",
        "two source files linked into one module define it",
        "rename one",
    ),
    45: Status(
        "cudaErrorDuplicateSurfaceName",
        "two surfaces have the same name",
        "two source files linked into one module define it",
        "rename one",
    ),
    46: Status(
        "cudaErrorDevicesUnavailable",
        "every device is taken or forbidden at the moment",
        "a device in exclusive or prohibited compute mode, or a kernel that never ends",
        "look at nvidia-smi for the compute mode and for other processes",
    ),
    49: Status(
        "cudaErrorIncompatibleDriverContext",
        "the current driver context cannot be used by the runtime API",
        "another library made a context of its own instead of using the primary one",
        "make the device's primary context current before the call",
    ),
    52: Status(
        "cudaErrorMissingConfiguration",
        "a kernel was launched without a launch configuration",
    ),
    53: Status(
        "cudaErrorPriorLaunchFailure",
        "an earlier emulated launch failed (a status of older CUDA; current ones do not return it)",
    ),
    65: Status(
        "cudaErrorLaunchMaxDepthExceeded",
        "a kernel launched from a kernel is nested too deeply",
    ),
    66: Status(
        "cudaErrorLaunchFileScopedTex",
        "a kernel launched from a kernel uses a file-scoped texture",
        "",
        "use texture objects",
    ),
    67: Status(
        "cudaErrorLaunchFileScopedSurf",
        "a kernel launched from a kernel uses a file-scoped surface",
        "",
        "use surface objects",
    ),
    68: Status(
        "cudaErrorSyncDepthExceeded",
        "device code synchronized at too deep a nesting",
        "",
        "raise the device limit cudaLimitDevRuntimeSyncDepth, or do not synchronize in device code",
    ),
    69: Status(
        "cudaErrorLaunchPendingCountExceeded",
        "too many launches from device code are waiting",
        "",
        "raise the device limit cudaLimitDevRuntimePendingLaunchCount",
    ),
    98: Status(
        "cudaErrorInvalidDeviceFunction",
        "the function handle is not a kernel that this call can use on this device",
        "a kernel compiled for another architecture; a function of a module that was "
        "unloaded; or the parameters of a node read by the runtime API although its "
        "function came from the driver API (a CuPy kernel, say)",
        "compile for this device; keep the module alive as long as the graph; read such "
        "nodes through the driver API, as Node.params does",
    ),
    100: Status(
        "cudaErrorNoDevice",
        "the driver works and sees no device",
        "CUDA_VISIBLE_DEVICES is empty or wrong, or the container was given no GPU",
        'check CUDA_VISIBLE_DEVICES and nvidia-smi -L; to go on without a GPU: graphkit.use("sim")',
    ),
    101: Status(
        "cudaErrorInvalidDevice",
        "there is no device of that number, or it cannot do what was asked",
        "a number counted in all devices while CUDA_VISIBLE_DEVICES shows only some",
        "number the visible devices from 0",
    ),
    102: Status(
        "cudaErrorDeviceNotLicensed",
        "the virtual GPU has no licence",
        "",
        "ask whoever runs the virtual GPU's licence server",
    ),
    103: Status(
        "cudaErrorSoftwareValidityNotEstablished",
        "a self-test of the driver or the runtime failed",
        "a damaged installation",
        "install the driver and the CUDA packages anew",
    ),
    127: Status(
        "cudaErrorStartupFailure",
        "the CUDA runtime could not start",
        "a damaged or mixed installation",
        "see that only one CUDA runtime library is on the library path",
    ),
    200: Status(
        "cudaErrorInvalidKernelImage",
        "the bytes given as a compiled kernel are not one",
        "a truncated or damaged cubin, or source text where a cubin belongs",
        "compile again; clear the kernel cache",
    ),
    201: Status(
        "cudaErrorDeviceUninitialized",
        "no valid context is current in this thread",
        "a new thread that has not used CUDA yet, or a context that another library destroyed",
        "call cudaSetDevice (or any CuPy or PyTorch call on the device) once in this thread first",
    ),
    205: Status("cudaErrorMapBufferObjectFailed", "a graphics buffer could not be mapped"),
    206: Status("cudaErrorUnmapBufferObjectFailed", "a graphics buffer could not be unmapped"),
    207: Status(
        "cudaErrorArrayIsMapped",
        "the array is mapped and cannot be destroyed",
        "",
        "unmap it first",
    ),
    208: Status("cudaErrorAlreadyMapped", "the resource is already mapped"),
    209: Status(
        "cudaErrorNoKernelImageForDevice",
        "the module holds no code for this device",
        "a cubin for another architecture: it runs on its own major version only",
        "compile for this device's compute capability, or for several, or add PTX",
    ),
    210: Status("cudaErrorAlreadyAcquired", "the resource is already acquired"),
    211: Status("cudaErrorNotMapped", "the resource is not mapped"),
    212: Status("cudaErrorNotMappedAsArray", "the resource is mapped, but not as an array"),
    213: Status("cudaErrorNotMappedAsPointer", "the resource is mapped, but not as an address"),
    214: Status(
        "cudaErrorECCUncorrectable",
        "the memory of the device had an error that ECC could not correct",
        "failing or unlucky hardware",
        _RESTART + " If it comes again, look at nvidia-smi -q -d ECC and retire the device.",
    ),
    215: Status("cudaErrorUnsupportedLimit", "this device has no such limit"),
    216: Status(
        "cudaErrorDeviceAlreadyInUse",
        "another thread or process holds the device for itself alone",
        "the compute mode is exclusive",
        "end the other process or set the compute mode to default",
    ),
    217: Status(
        "cudaErrorPeerAccessUnsupported",
        "these two devices cannot read each other's memory",
        "no NVLink or PCIe path between them, or an IOMMU in the way",
        "copy through the host instead",
    ),
    218: Status(
        "cudaErrorInvalidPtx",
        "the PTX did not compile",
        "damaged PTX, or PTX for a newer architecture than the device",
        "compile to a cubin for this device: NVRTC with --gpu-architecture=sm_XX",
    ),
    219: Status("cudaErrorInvalidGraphicsContext", "the OpenGL or DirectX context is not usable"),
    220: Status(
        "cudaErrorNvlinkUncorrectable",
        "NVLink had an error that could not be corrected",
        "failing hardware or cabling",
        _RESTART + " If it comes again, look at nvidia-smi nvlink -e.",
    ),
    221: Status(
        "cudaErrorJitCompilerNotFound",
        "PTX was to be compiled and the driver's compiler library is missing",
        "a container without libnvidia-ptxjitcompiler",
        "compile to a cubin instead of PTX",
    ),
    222: Status(
        "cudaErrorUnsupportedPtxVersion",
        "the PTX is of a newer version than this driver can read",
        "NVRTC is newer than the driver",
        "compile to a cubin instead of PTX, or take the NVRTC of the driver's CUDA",
    ),
    223: Status(
        "cudaErrorJitCompilationDisabled",
        "PTX was to be compiled and that is switched off",
        "CUDA_DISABLE_PTX_JIT is set",
        "compile to a cubin for this device, or unset the variable",
    ),
    224: Status(
        "cudaErrorUnsupportedExecAffinity",
        "this device cannot restrict a context to some of its multiprocessors so",
    ),
    225: Status(
        "cudaErrorUnsupportedDevSideSync",
        "the PTX calls cudaDeviceSynchronize on the device, which is no longer possible",
        "",
        "split the kernel, or use a graph launched from the device",
    ),
    226: Status(
        "cudaErrorContained",
        "the device had a fault and confined it to this process",
        "a bad access to a peer's memory over NVLink, or a hardware error",
        _RESTART,
    ),
    227: Status(
        "cudaErrorInsufficientLoaderVersion",
        "the fat binary needs a newer loader than this one",
        "it was compiled by a newer toolkit than the CUDA libraries at hand",
        "compile with the toolkit of those libraries, or update them; a cubin needs no loader",
    ),
    300: Status(
        "cudaErrorInvalidSource",
        "the device code given as source is not valid",
        "damaged PTX or an unknown input format",
        "compile again; load cubin bytes, not text",
    ),
    301: Status(
        "cudaErrorFileNotFound",
        "the file is not there",
        "a wrong path to a module",
        "give an absolute path",
    ),
    302: Status(
        "cudaErrorSharedObjectSymbolNotFound",
        "a shared library lacks a symbol that is needed",
        "CUDA libraries of different versions on one library path",
        "leave only one CUDA on LD_LIBRARY_PATH, or none: the wheels bring their own",
    ),
    303: Status(
        "cudaErrorSharedObjectInitFailed",
        "a shared library could not be initialized",
        "CUDA libraries of different versions on one library path",
        "leave only one CUDA on LD_LIBRARY_PATH, or none: the wheels bring their own",
    ),
    304: Status(
        "cudaErrorOperatingSystem",
        "the operating system refused what CUDA asked of it",
        "missing permissions on the device files, too little lockable memory, or a "
        "container without its GPUs",
        "look at dmesg and at the permissions of the files /dev/nvidia*",
    ),
    400: Status(
        "cudaErrorInvalidResourceHandle",
        "a handle is not, or no longer, that of a live object of this context",
        "a stream, event, graph or module that was destroyed, or that belongs to another "
        "device or process",
        "keep the Python object alive, and make the device of the object current",
    ),
    401: Status(
        "cudaErrorIllegalState",
        "the object is not in the state that this call needs",
        "cudaStreamEndCapture on a stream that does not capture: the capture has already "
        "ended, or never began",
        "end each capture once; `with graphkit.capture(stream)` does",
    ),
    402: Status(
        "cudaErrorLossyQuery",
        "the answer would leave out something that matters",
        "the edges of a graph with programmatic edges were asked for without their edge "
        "data; or the object uses what this version of the call cannot express",
        "ask with edge data, as Graph.edges does",
    ),
    500: Status(
        "cudaErrorSymbolNotFound",
        "the module has no function or variable of that name",
        "C++ mangled the name, or it is misspelt",
        'declare the kernel extern "C" __global__',
    ),
    600: Status(
        "cudaErrorNotReady",
        "the work is not done yet; no error, only the answer to a query",
        "",
        "ask again later, or synchronize",
    ),
    700: Status(
        "cudaErrorIllegalAddress",
        "a kernel touched memory that is not there",
        "an array was freed or moved while a graph still holds its address; an index past "
        "the end; a host array where a device array belongs",
        "run on the simulator, which names the kernel and the range, or under "
        "compute-sanitizer. " + _RESTART,
    ),
    701: Status(
        "cudaErrorLaunchOutOfResources",
        "the block needs more registers or shared memory than a multiprocessor has",
        "too many threads a block for this kernel's registers, or arguments of another "
        "layout than the kernel's",
        "make the block smaller, or compile with __launch_bounds__",
    ),
    702: Status(
        "cudaErrorLaunchTimeout",
        "a kernel ran longer than the display's watchdog allows",
        "the device also drives a screen, or a kernel (a WHILE node, say) never ends",
        "make the kernel shorter, or use a device without a screen. " + _RESTART,
    ),
    703: Status(
        "cudaErrorLaunchIncompatibleTexturing",
        "the kernel uses textures in a way that this launch does not allow",
    ),
    704: Status(
        "cudaErrorPeerAccessAlreadyEnabled",
        "access to that peer is already enabled",
        "",
        "enable it once per pair of devices",
    ),
    705: Status(
        "cudaErrorPeerAccessNotEnabled",
        "access to that peer was never enabled",
        "",
        "enable it before the first access",
    ),
    708: Status(
        "cudaErrorSetOnActiveProcess",
        "this must be set before CUDA is first used",
        "a library has already used the device",
        "set it at the start of the program",
    ),
    709: Status(
        "cudaErrorContextIsDestroyed",
        "the current context was destroyed, or never started",
        "a library reset the device (cudaDeviceReset) while others still use it",
        "never reset a device that others use. " + _RESTART,
    ),
    710: Status(
        "cudaErrorAssert",
        "an assert in device code failed",
        "the kernel's own check",
        "read the message on stderr. " + _RESTART,
    ),
    711: Status(
        "cudaErrorTooManyPeers",
        "no more peers can be enabled",
        "",
        "disable access to a peer that is no longer used",
    ),
    712: Status(
        "cudaErrorHostMemoryAlreadyRegistered",
        "this host memory is already pinned",
        "",
        "register each range once",
    ),
    713: Status(
        "cudaErrorHostMemoryNotRegistered",
        "this host memory is not pinned",
        "",
        "unregister only what was registered",
    ),
    714: Status(
        "cudaErrorHardwareStackError",
        "the device's call stack is damaged or overflowed",
        "deep recursion or very large local arrays in a kernel",
        "raise cudaLimitStackSize. " + _RESTART,
    ),
    715: Status(
        "cudaErrorIllegalInstruction",
        "the device met an instruction that it does not have",
        "a damaged cubin, or a jump through a wrong function pointer",
        _RESTART,
    ),
    716: Status(
        "cudaErrorMisalignedAddress",
        "a kernel read or wrote at an address that is not a multiple of the access's size",
        "a vector load (float4, say) from a slice that does not begin at a multiple of 16 "
        "bytes; a buffer rebound to a less aligned address",
        "use aligned slices, or a kernel with narrower loads. " + _RESTART,
    ),
    717: Status(
        "cudaErrorInvalidAddressSpace",
        "an instruction was given an address of the wrong memory space",
        "a shared-memory address used as a global one, or the reverse",
        _RESTART,
    ),
    718: Status(
        "cudaErrorInvalidPc",
        "the device jumped to where no code is",
        "a wrong function pointer, or the module was unloaded while a graph still launches "
        "its kernel",
        "keep the module alive as long as the graph. " + _RESTART,
    ),
    719: Status(
        "cudaErrorLaunchFailure",
        "a kernel failed in a way that the device reports without detail",
        "an access outside shared memory, or a bad address",
        "run under compute-sanitizer. " + _RESTART,
    ),
    720: Status(
        "cudaErrorCooperativeLaunchTooLarge",
        "the blocks of a cooperative launch cannot all be on the device at once",
        "the grid is larger than the device can hold at this block size and shared memory",
        "shrink the grid to the number of multiprocessors times the blocks that fit on one",
    ),
    721: Status(
        "cudaErrorTensorMemoryLeak",
        "a kernel ended without giving back its tensor memory",
        "a path through the kernel without tcgen05.dealloc",
        _RESTART,
    ),
    800: Status(
        "cudaErrorNotPermitted",
        "that is not allowed here",
        "a CUDA call inside a host node's callback, or a profiler without permission",
        "move the call out of the callback",
    ),
    801: Status(
        "cudaErrorNotSupported",
        "this device, driver or kind of node cannot do that",
        "a cluster before sm_90, a clone of a graph with allocation or conditional nodes, "
        "switching off a node that is no kernel, memcpy or memset node, or a node in a "
        "conditional body of a kind not allowed there",
        "`graphkit info` shows what this driver can do",
    ),
    802: Status(
        "cudaErrorSystemNotReady",
        "the machine is not ready for CUDA yet",
        "the NVSwitch fabric manager is not running",
        "start nvidia-fabricmanager, of the driver's own version",
    ),
    803: Status(
        "cudaErrorSystemDriverMismatch",
        "the kernel module and libcuda are of different versions",
        "the driver was updated and the old module is still loaded, or a container brings "
        "its own libcuda",
        "reboot, or load the new module; take foreign libcuda files off LD_LIBRARY_PATH",
    ),
    804: Status(
        "cudaErrorCompatNotSupportedOnDevice",
        "the forward-compatibility libcuda does not support this device",
        "a cuda-compat package on a consumer GPU",
        "remove cuda-compat from LD_LIBRARY_PATH, or update the driver",
    ),
    805: Status(
        "cudaErrorMpsConnectionFailed",
        "the MPS daemon cannot be reached",
        "the daemon is not running, or CUDA_MPS_PIPE_DIRECTORY points elsewhere",
        "start nvidia-cuda-mps-control, or unset the variable",
    ),
    806: Status(
        "cudaErrorMpsRpcFailure",
        "a call to the MPS server failed",
        "the server died",
        "restart the MPS daemon",
    ),
    807: Status(
        "cudaErrorMpsServerNotReady",
        "the MPS server takes no new clients at the moment",
        "it is recovering from another client's fault",
        "wait and try again",
    ),
    808: Status(
        "cudaErrorMpsMaxClientsReached",
        "the MPS server has as many clients as it can hold",
        "",
        "run fewer processes on the device",
    ),
    809: Status(
        "cudaErrorMpsMaxConnectionsReached",
        "the MPS server has no connections left",
        "",
        "run fewer processes on the device",
    ),
    810: Status(
        "cudaErrorMpsClientTerminated",
        "the MPS server ended this client",
        "a fault of this or another client",
        _RESTART,
    ),
    811: Status(
        "cudaErrorCdpNotSupported",
        "launches from device code are not possible here",
        "MPS, or a device that cannot",
        "launch from the host",
    ),
    812: Status(
        "cudaErrorCdpVersionMismatch",
        "two versions of launching from device code were mixed",
        "objects compiled with different settings of CUDA_FORCE_CDP1_IF_SUPPORTED",
        "compile all device code alike",
    ),
    900: Status(
        "cudaErrorStreamCaptureUnsupported",
        "that call is not possible during a stream capture, and it ended the capture",
        "waiting for the device, or waiting for or querying the capturing stream; while a global "
        "or thread_local capture is live also waiting for or querying another stream or an event, "
        "cudaMalloc, cudaFree, or instantiating a graph; capturing on the legacy default stream",
        "move the call before the capture (allocate, warm up and create library handles "
        "first); copy with pinned host memory and a stream; capture on a non-blocking "
        "stream",
    ),
    901: Status(
        "cudaErrorStreamCaptureInvalidated",
        "the capture was already dead: an earlier call had broken it",
        "the error of that earlier call was not raised or was swallowed; or another thread,"
        " or a finalizer, made a forbidden call meanwhile",
        "look for the first error, not for this one; warm up before the capture; capture in"
        " thread_local mode, not global",
    ),
    902: Status(
        "cudaErrorStreamCaptureMerge",
        "two separate captures would have become one",
        "a stream that captures waits for an event of another capture",
        "fork from the first stream by an event instead of beginning a second capture",
    ),
    903: Status(
        "cudaErrorStreamCaptureUnmatched",
        "the capture was ended on another stream than it began on",
        "cudaStreamEndCapture on a stream that only joined by a fork",
        "end it on the stream on which it began",
    ),
    904: Status(
        "cudaErrorStreamCaptureUnjoined",
        "a forked stream was not joined before the capture ended",
        "work was put on a second stream by an event, and the first stream never waited for it",
        "record an event on each forked stream at its end and let the first stream wait for"
        " it: stream.wait_event(event)",
    ),
    905: Status(
        "cudaErrorStreamCaptureIsolation",
        "captured work would depend on work outside the capture",
        "waiting for an event that was recorded before the capture began",
        "synchronize before the capture instead",
    ),
    906: Status(
        "cudaErrorStreamCaptureImplicit",
        "the legacy default stream would have to wait for the capture",
        "something used the legacy default stream (stream 0, cudaMemcpy, an array library "
        "without a current stream) while a blocking stream captures",
        "capture on a non-blocking stream, as graphkit.Stream() is, and make it the "
        "library's current stream in the body",
    ),
    907: Status(
        "cudaErrorCapturedEvent",
        "the event was last recorded in a capture and says nothing about finished work",
        "querying or synchronizing such an event, or measuring time with it",
        "use another event outside the capture, or record an event after the graph's launch",
    ),
    908: Status(
        "cudaErrorStreamCaptureWrongThread",
        "the capture was ended by another thread than began it",
        "the body of the capture moved to a worker thread",
        'begin and end it in one thread, or use mode="relaxed"',
    ),
    909: Status("cudaErrorTimeout", "a wait took longer than its limit"),
    910: Status(
        "cudaErrorGraphExecUpdateFailure",
        "the executable graph cannot take on this graph, and still is what it was",
        "another topology, another kind of node, or a parameter that an executable graph "
        "cannot change; the report names the node where CUDA does",
        "instantiate the new graph, or change only what may change: arguments, grid, block,"
        " shared memory, function",
    ),
    911: Status(
        "cudaErrorExternalDevice",
        "a device other than the GPU failed that the GPU was waiting for",
        "an external semaphore or its owner",
        "look at the other device's own log. " + _RESTART,
    ),
    912: Status(
        "cudaErrorInvalidClusterSize",
        "the cluster of this kernel cannot be placed",
        "the grid is no multiple of the cluster, more than 8 blocks in a cluster without "
        "the non-portable attribute, or too much shared memory a block",
        "make each dimension of the grid a multiple of the cluster's; keep to 8 blocks a cluster",
    ),
    913: Status(
        "cudaErrorFunctionNotLoaded",
        "the function is known by name and its code is not on the device yet",
        "modules are loaded lazily",
        "launch the kernel once before, or set CUDA_MODULE_LOADING=EAGER",
    ),
    914: Status(
        "cudaErrorInvalidResourceType",
        "a resource is of a kind that this call cannot use",
        "a green context was asked for with resources of the wrong kind",
    ),
    915: Status(
        "cudaErrorInvalidResourceConfiguration",
        "the resources given are too few or do not go together",
        "a green context was asked for with too few multiprocessors",
    ),
    917: Status(
        "cudaErrorStreamDetached",
        "the stream has lost its context",
        "its green context was destroyed",
        "make a new stream",
    ),
    918: Status(
        "cudaErrorGraphRecaptureFailure",
        "capturing into an existing graph again failed and was given up",
        "the captured work has another topology than the graph's",
        "capture a new graph and instantiate it",
    ),
    919: Status(
        "cudaErrorFabricNotReady",
        "the NVLink fabric between the devices is still being set up",
        "the machine, or its fabric manager, has only just started",
        "try again a little later; CUDA_FABRIC_INIT_TIMEOUT_MS sets how long CUDA itself waits",
    ),
    999: Status(
        "cudaErrorUnknown",
        "something inside CUDA went wrong that has no code of its own",
        "the driver is in a bad state, often after sleep or an update",
        "run a CUDA sample or nvidia-smi; restart the process, then the machine",
    ),
    10000: Status(
        "cudaErrorApiFailureBase",
        "the base of the numbers that old runtimes added to driver errors",
    ),
}
