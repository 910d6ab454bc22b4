"""Examples of Hypothesis, each judged by itself."""

import gc
import traceback
from contextlib import contextmanager, suppress

import graphkit as gk


@contextmanager
def judged_by_itself():
    """See that an example leaves no handle behind; where it fails, take them from the frames below.

    Hypothesis keeps the error of an example that fails, and with it the frames and their handles.
    Every other example would then fail too, and the one that is shown in the end would be the
    simplest of all instead of the one that went wrong.
    """
    try:
        yield
    except Exception as error:
        for frame, _ in traceback.walk_tb(error.__traceback__):
            with suppress(RuntimeError):  # one that is still at work
                frame.clear()
                if isinstance(frame.f_locals, dict):  # what a tracer saw of them, before 3.13
                    frame.f_locals.clear()
        gc.collect()
        raise
    # What the last launches used is kept until their events say that they are done.
    gk.current().device_synchronize()
    assert gk.live_handles() == {}
