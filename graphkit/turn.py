"""A lock for calls of a microsecond."""

from __future__ import annotations

import time

from graphkit.errors import CudaError
from graphkit.lifetime import in_host_function
from graphkit.statuses import StatusCode

__all__ = ["Turn"]

# Tries of a waiting thread before it sleeps for real between them.
_EAGER_TRIES = 100


class Turn(list[None]):
    """Whoever pops the one element has the turn, and appends it again afterwards.

    list.pop and list.append are atomic, and together cheaper than a threading.Lock. The hot paths
    write them out; everything else says ``with turn:``. An interrupt (KeyboardInterrupt) comes out
    of pop when that is done: the turn is given back. Not reentrant.
    """

    def __init__(self) -> None:
        super().__init__([None])

    def wait(self) -> None:
        """Take the turn as soon as another thread gives it back.

        Raises:
            CudaError: inside of a host function (800): this thread itself may have the turn.
        """
        if in_host_function():
            code = int(StatusCode.NOT_PERMITTED)
            raise CudaError("GraphExec", code, "a host function must not call CUDA")
        tries = 0
        while True:
            # The first sleeps only let others run; a long wait must not keep a core busy.
            time.sleep(0 if tries < _EAGER_TRIES else 50e-6)
            tries += 1
            try:
                self.pop()
            except IndexError:
                continue
            except BaseException:
                self.append(None)
                raise
            return

    def __enter__(self) -> None:
        try:
            self.pop()
        except IndexError:
            self.wait()
        except BaseException:
            self.append(None)
            raise

    def __exit__(self, *_: object) -> None:
        self.append(None)
