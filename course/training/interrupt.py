"""Ctrl-C, but not in the middle of a step: half an optimiser's step must never be saved."""

import signal
import threading
from contextlib import contextmanager


@contextmanager
def deferred_interrupt():
    """with deferred_interrupt() as check: ...; `check()` raises the KeyboardInterrupt that came since the last call.

    A second Ctrl-C does not wait. Outside the main thread signals cannot be caught, and nothing is deferred.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    came = False
    before = signal.getsignal(signal.SIGINT)

    def remember(number, frame):
        nonlocal came
        if came:
            raise KeyboardInterrupt
        came = True

    def check():
        if came:
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, remember)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, before)
