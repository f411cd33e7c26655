"""Ctrl-C and SIGTERM as function calls, so that a training can end in a consistent state."""

import contextlib
import signal
import threading

SIGTERM_REASON = ("SIGTERM",)


@contextlib.contextmanager
def interrupt_on_signals(interrupt):
    """Calls `interrupt` at Ctrl-C, and at SIGTERM (a job's time is up, or its machine is taken away).

    Args:
        interrupt: Function that is called without arguments at each Ctrl-C, and with "SIGTERM" at the first
            SIGTERM; later ones are ignored, since they must not stop the saving.
    """

    def call(number, frame):
        if number == signal.SIGINT:
            interrupt()
        else:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            interrupt(*SIGTERM_REASON)

    if threading.current_thread() is not threading.main_thread():  # only the main thread receives signals
        yield
        return
    before = {number: signal.signal(number, call) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
