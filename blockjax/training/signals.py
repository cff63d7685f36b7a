"""Signals end a run at a step, not in the middle of one."""

import contextlib
import signal

from absl import logging


@contextlib.contextmanager
def caught_signals():
    """Collects SIGTERM and SIGINT instead of dying of them; a second one has its usual effect.

    A signal that is ignored, as Ctrl-C is by a background job of a script, stays so.
    """
    caught, before = [], {}

    def catch(number, frame):
        del frame
        caught.append(number)
        signal.signal(number, before[number])

    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            if signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, catch)
    except ValueError:  # not the main thread, as in some notebooks
        logging.info("signals are not caught outside the main thread")
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
