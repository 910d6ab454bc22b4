"""A request that was submitted to a pipeline: is it done, and what came out."""

from __future__ import annotations

from typing import Any

import numpy as np

from graphkit.pipeline_slot import PipelineSlot, check_timeout, values_of

__all__ = ["Request"]


class Request:
    """One request of a :class:`graphkit.Pipeline`, made by its ``submit``.

    It may be asked from any thread, also when the pipeline is closed. The result lies in the slot's
    own pinned memory until that slot is used again, ``slots`` submits later, unless the request was
    given an array for it.
    """

    __slots__ = ("_errors", "_given", "_number", "_slot")

    def __init__(self, slot: PipelineSlot, number: int, given: dict[str, Any] | None) -> None:
        self._slot = slot
        self._number = number
        self._given = given  # by name, among them outputs that it was to write to; or None
        self._errors = slot.errors  # has its number when it failed

    def done(self) -> bool:
        """Return whether the result is there, or the request failed; wait for nothing.

        Looks at a word in pinned memory that the graph itself writes: no CUDA call.
        """
        slot = self._slot
        return slot.number != self._number or slot.done(self._number)

    def wait(self, timeout: float | None = None) -> None:
        """Wait until the request is done (cudaStreamSynchronize, when that takes long).

        Args:
            timeout: seconds to wait at most.

        Raises:
            TypeError, ValueError: a timeout that is no time.
            TimeoutError: when it is not done by then.
            Exception: what the request failed with.
        """
        check_timeout(timeout)
        slot, number = self._slot, self._number
        if slot.number == number and not slot.wait(number, timeout):
            raise TimeoutError(f"request: expected it to be done within {timeout} s, came no end")
        error = self._errors.get(number)
        if error is not None:
            raise error

    def result(self, *, copy: bool = False, timeout: float | None = None) -> Any:
        """Wait for the request and return its output as a NumPy array, several as a dict by name.

        Args:
            copy: return a copy in place of a view of the slot's pinned memory, which the next
                request in this slot overwrites. An array that the request was given is returned
                as it is, without ``copy``.
            timeout: seconds to wait at most.

        Raises:
            TimeoutError: when it is not done by then.
            ValueError: when the slot was used again, and the result with that lost.
            Exception: what the request failed with.
        """
        slot, number = self._slot, self._number
        if timeout is not None:
            check_timeout(timeout)
        if slot.signal[0] < number or self._errors or not slot.by_signal:
            self.wait(timeout)
        given, outputs, lasts = self._given, slot.outputs, False
        if given is not None:
            outputs, lasts = {}, True
            for name, own in slot.outputs.items():
                outputs[name] = given.get(name, own)
                lasts = lasts and name in given
        if copy:
            outputs = {name: np.array(array) for name, array in outputs.items()}
        # Looked at last: what is copied now was not overwritten meanwhile.
        if slot.number != number and not lasts:
            raise ValueError(
                f"request: expected a result that is still there, came one of request {number} of "
                f"its slot, where request {slot.number} is now; read it before as many submits as "
                "the pipeline has slots, take result(copy=True), or submit with an array of your "
                "own for it"
            )
        return values_of(outputs)

    def __repr__(self) -> str:
        state = "done" if self.done() else "under way"
        return f"<Request {self._number} {state}>"
