"""A lock for calls of a microsecond."""

from __future__ import annotations

import time
from contextlib import suppress

__all__ = ["Turn"]

# Tries of a waiting thread before it sleeps for real between them.
_EAGER_TRIES = 100


class Turn(list[None]):
    """Whoever pops the one element has the turn, and appends it again afterwards.

    list.pop and list.append are atomic, and cost a fifth of a threading.Lock. The hot paths write
    them out; everything else says ``with turn:``. Not reentrant.
    """

    def __init__(self) -> None:
        super().__init__([None])

    def wait(self) -> None:
        """Take the turn as soon as another thread gives it back."""
        tries = 0
        while True:
            # The first sleeps only let other threads run; a long wait must not keep a core busy.
            time.sleep(0 if tries < _EAGER_TRIES else 50e-6)
            tries += 1
            with suppress(IndexError):
                self.pop()
                return

    def __enter__(self) -> None:
        try:
            self.pop()
        except IndexError:
            self.wait()

    def __exit__(self, *_: object) -> None:
        self.append(None)
