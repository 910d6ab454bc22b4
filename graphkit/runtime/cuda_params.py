"""Parameter structs of cuda.bindings, filled from and read into the tuples of the seam."""

from __future__ import annotations

import ctypes
import struct
from typing import Any, Final

from graphkit.errors import GraphkitError
from graphkit.runtime.cuda_bindings import driver, runtime
from graphkit.runtime.protocol import (
    ConditionalNodeParams,
    HostNodeParams,
    KernelNodeParams,
    LaunchAttribute,
    LaunchAttributeID,
    LaunchConfig,
    MemcpyKind,
    MemcpyNodeParams,
    MemsetNodeParams,
)

__all__ = [
    "KernelBlock",
    "conditional_bodies",
    "conditional_struct",
    "host_struct",
    "launch_attribute",
    "launch_config",
    "mem_alloc_struct",
    "memcpy_struct",
    "memset_struct",
    "read_memcpy",
    "read_memset",
    "write_attribute",
]

# struct CUDA_KERNEL_NODE_PARAMS_v2 { CUfunction func; unsigned gridDimX, Y, Z, blockDimX, Y, Z,
#   sharedMemBytes; void **kernelParams, **extra; CUkernel kern; CUcontext ctx; }
# The runtime API's struct is its beginning, but a runtime older than 13.3 refuses a CUfunction in
# it with status 400; the driver takes one in every version.
_KERNEL_NODE_PARAMS: Final = struct.Struct("@P7I4xPPPP")
_pack: Final = _KERNEL_NODE_PARAMS.pack_into


class KernelBlock:
    """One CUDA_KERNEL_NODE_PARAMS and a way to write all of it at once.

    Ten setters of cuda.bindings and a new struct for each call would cost more than CUDA's own part
    of it; one pack into the struct's memory is a small part of that. CUDA reads a block during a
    call only, but the bindings let other threads run meanwhile, so a block belongs to one call at a
    time.
    """

    __slots__ = ("_memory", "params")

    def __init__(self) -> None:
        self.params: Any = driver.CUDA_KERNEL_NODE_PARAMS()
        # The struct owns this memory; the view lives as long as the block, which holds both.
        memory = (ctypes.c_ubyte * _KERNEL_NODE_PARAMS.size).from_address(self.params.getPtr())
        self._memory = memoryview(memory).cast("B")

    def fill(self, params: KernelNodeParams) -> Any:
        """Write ``params`` and return the struct."""
        function, (gx, gy, gz), (bx, by, bz), shared_mem, kernel_params, extra = params
        _pack(
            self._memory,
            0,
            function,
            gx,
            gy,
            gz,
            bx,
            by,
            bz,
            shared_mem,
            kernel_params,
            extra,
            0,
            0,
        )
        return self.params


def memcpy_struct(params: MemcpyNodeParams) -> Any:
    """Return cudaMemcpy3DParms between two pitched pointers."""
    block = runtime.cudaMemcpy3DParms()
    src, dst, extent = block.srcPtr, block.dstPtr, block.extent
    src.ptr, src.pitch, src.xsize, src.ysize = (
        params.src,
        params.src_pitch,
        params.src_pitch,
        params.src_height,
    )
    dst.ptr, dst.pitch, dst.xsize, dst.ysize = (
        params.dst,
        params.dst_pitch,
        params.dst_pitch,
        params.dst_height,
    )
    extent.width, extent.height, extent.depth = params.width, params.height, params.depth
    block.kind = runtime.cudaMemcpyKind(int(params.kind))
    return block


def read_memcpy(block: Any) -> MemcpyNodeParams:
    """Return cudaMemcpy3DParms as the seam has it: offsets become part of the addresses."""
    if int(block.srcArray) or int(block.dstArray):
        raise GraphkitError(
            "this memcpy node copies from or to a CUDA array (texture memory); "
            "graphkit knows copies between two linear allocations only"
        )
    (dst, dst_pitch, dst_height), (src, src_pitch, src_height) = (
        (
            int(pointer.ptr)
            + position.x
            + position.y * pointer.pitch
            + position.z * pointer.pitch * pointer.ysize,
            int(pointer.pitch),
            int(pointer.ysize),
        )
        for pointer, position in ((block.dstPtr, block.dstPos), (block.srcPtr, block.srcPos))
    )
    extent = block.extent
    return MemcpyNodeParams(
        dst=dst,
        dst_pitch=dst_pitch,
        dst_height=dst_height,
        src=src,
        src_pitch=src_pitch,
        src_height=src_height,
        width=int(extent.width),
        height=int(extent.height),
        depth=int(extent.depth),
        kind=MemcpyKind(int(block.kind)),
    )


def memset_struct(params: MemsetNodeParams) -> Any:
    """Return cudaMemsetParams."""
    block = runtime.cudaMemsetParams()
    block.dst = params.dst
    block.pitch = params.pitch
    block.value = params.value
    block.elementSize = params.element_size
    block.width = params.width
    block.height = params.height
    return block


def read_memset(block: Any) -> MemsetNodeParams:
    """Return cudaMemsetParams as the seam has it."""
    return MemsetNodeParams(
        dst=int(block.dst),
        pitch=int(block.pitch),
        value=int(block.value),
        element_size=int(block.elementSize),
        width=int(block.width),
        height=int(block.height),
    )


def mem_alloc_struct(nbytes: int, device: int) -> Any:
    """Return cudaMemAllocNodeParams of memory on one device; CUDA writes its ``dptr``."""
    block = runtime.cudaMemAllocNodeParams()
    block.bytesize = nbytes
    pool = block.poolProps
    pool.allocType = runtime.cudaMemAllocationType.cudaMemAllocationTypePinned
    location = pool.location
    location.type = runtime.cudaMemLocationType.cudaMemLocationTypeDevice
    location.id = device
    pool.location = location
    block.poolProps = pool
    return block


def host_struct(params: HostNodeParams) -> Any:
    """Return cudaHostNodeParams."""
    block = runtime.cudaHostNodeParams()
    block.fn = runtime.cudaHostFn_t(params.fn)
    block.userData = params.user_data
    return block


def conditional_struct(params: ConditionalNodeParams, context: Any) -> Any:
    """Return CUgraphNodeParams of a conditional node, whose kernels belong to ``context``."""
    block = driver.CUgraphNodeParams()
    block.type = driver.CUgraphNodeType.CU_GRAPH_NODE_TYPE_CONDITIONAL
    conditional = block.conditional
    conditional.handle = driver.CUgraphConditionalHandle(params.handle)
    conditional.type = driver.CUgraphConditionalNodeType(int(params.type))
    conditional.size = params.size
    conditional.ctx = context
    return block


def conditional_bodies(block: Any, size: int) -> tuple[int, ...]:
    """Return the bodies that CUDA made when the node of these parameters was added."""
    return tuple(int(body) for body in block.conditional.phGraph_out[:size])


def write_attribute(value: Any, attribute: LaunchAttribute) -> Any:
    """Write ``attribute`` into a CUlaunchAttributeValue, a union, and return it."""
    match attribute.id:
        case LaunchAttributeID.CLUSTER_DIMENSION:
            cluster = value.clusterDim
            cluster.x, cluster.y, cluster.z = attribute.value
        case LaunchAttributeID.COOPERATIVE:
            (value.cooperative,) = attribute.value
        case LaunchAttributeID.PROGRAMMATIC_STREAM_SERIALIZATION:
            (value.programmaticStreamSerializationAllowed,) = attribute.value
        case LaunchAttributeID.PRIORITY:
            (value.priority,) = attribute.value
    return value


def launch_attribute(identifier: LaunchAttributeID, value: Any) -> LaunchAttribute:
    """Read a CUlaunchAttributeValue."""
    match identifier:
        case LaunchAttributeID.CLUSTER_DIMENSION:
            cluster = value.clusterDim
            return LaunchAttribute(identifier, (int(cluster.x), int(cluster.y), int(cluster.z)))
        case LaunchAttributeID.COOPERATIVE:
            return LaunchAttribute(identifier, (int(value.cooperative),))
        case LaunchAttributeID.PROGRAMMATIC_STREAM_SERIALIZATION:
            allowed = int(value.programmaticStreamSerializationAllowed)
            return LaunchAttribute(identifier, (allowed,))
        case LaunchAttributeID.PRIORITY:
            return LaunchAttribute(identifier, (int(value.priority),))


def launch_config(config: LaunchConfig) -> Any:
    """Return CUlaunchConfig."""
    block = driver.CUlaunchConfig()
    block.gridDimX, block.gridDimY, block.gridDimZ = config.grid
    block.blockDimX, block.blockDimY, block.blockDimZ = config.block
    block.sharedMemBytes = config.shared_mem
    block.hStream = driver.CUstream(config.stream)
    attributes = []
    for attribute in config.attributes:
        entry = driver.CUlaunchAttribute()
        entry.id = driver.CUlaunchAttributeID(int(attribute.id))
        write_attribute(entry.value, attribute)
        attributes.append(entry)
    block.attrs = attributes
    block.numAttrs = len(attributes)
    return block
