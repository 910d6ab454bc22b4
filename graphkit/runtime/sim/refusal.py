"""How a simulated call refuses: the status inside, :class:`CudaError` outside."""

from __future__ import annotations

from graphkit.statuses import StatusCode as Code

__all__ = ["Code", "Refused"]


class Refused(Exception):  # noqa: N818 - an outcome on its way to the call's own CudaError
    """A status other than success; the public call that was made turns it into CudaError."""

    def __init__(self, code: Code, detail: str) -> None:
        super().__init__(code, detail)
        self.code = code
        self.detail = detail
