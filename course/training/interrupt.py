"""Ctrl-C and SIGTERM, but not in the middle of a step: half an optimiser's step must never be saved."""

import signal
import threading
from contextlib import contextmanager

from course.errors import Terminated


@contextmanager
def deferred_interrupt():
    """with deferred_interrupt() as came: ...; `came()` is the exception to raise at a good moment, or None.

    A second Ctrl-C does not wait. Outside the main thread signals cannot be caught, and nothing is deferred.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    pending: BaseException | None = None

    def remember(number, frame):
        nonlocal pending
        if pending is not None:
            raise pending
        pending = Terminated() if number == signal.SIGTERM else KeyboardInterrupt()

    before = {number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: pending
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
