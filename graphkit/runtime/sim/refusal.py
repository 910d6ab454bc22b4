"""How a simulated call refuses: the status inside, :class:`CudaError` outside."""

from __future__ import annotations

from enum import IntEnum

__all__ = ["Code", "Refused"]


class Code(IntEnum):
    """The cudaError_t values that the simulator returns."""

    INVALID_VALUE = 1
    MEMORY_ALLOCATION = 2
    INVALID_CONFIGURATION = 9
    INVALID_DEVICE_FUNCTION = 98
    INVALID_DEVICE = 101
    OPERATING_SYSTEM = 304
    INVALID_RESOURCE_HANDLE = 400
    ILLEGAL_STATE = 401
    LOSSY_QUERY = 402
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


class Refused(Exception):  # noqa: N818 - an outcome on its way to the call's own CudaError
    """A status other than success; the public call that was made turns it into CudaError."""

    def __init__(self, code: Code, detail: str) -> None:
        super().__init__(code, detail)
        self.code = code
        self.detail = detail
