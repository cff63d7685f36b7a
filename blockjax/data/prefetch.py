"""Batches that wait on the device before the train step asks for them."""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from blockjax.data.iterator import TrainIterator

_POLL = 0.002  # seconds between two looks at whether the device still works


class DevicePrefetch(Iterator[Any]):
    """Puts batches on the device ahead of time, in a thread of its own.

    Attributes:
      waited: seconds for which a batch was asked for and not there, and nothing else was to be done.
    """

    def __init__(self, iterator: TrainIterator, put: Callable[[dict], Any], size: int = 2):
        """Starts nothing yet.

        Args:
          iterator: host batches, with `get_state`, `set_state` and `close`.
          put: turns a host batch into a device batch; need not wait for the copy.
          size: how many device batches wait at most.
        """
        self._iterator, self._put, self._size = iterator, put, size
        self._state = iterator.get_state()
        self._thread = None
        self.waited = 0.0

    def __next__(self) -> Any:
        return self.take(lambda: False)

    def take(self, is_busy: Callable[[], bool]) -> Any:
        """Returns the next batch.

        Args:
          is_busy: whether the device still works on earlier batches, in which time waiting costs nothing.
        """
        if self._thread is None:
            self._start()
        batch, state, error = self._get(is_busy)
        if error is not None:
            self._join()
            raise error
        self._room.release()
        self._state = state
        return batch

    def _get(self, is_busy):
        while True:
            idle_since = None if is_busy() else time.perf_counter()
            try:
                return self._ready.get(timeout=_POLL if idle_since is None else None)
            except queue.Empty:
                continue
            finally:
                if idle_since is not None:
                    self.waited += time.perf_counter() - idle_since

    def _start(self) -> None:
        self._ready = queue.SimpleQueue()
        self._room = threading.Semaphore(self._size)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._fill, daemon=True, name="device-prefetch")
        self._thread.start()

    def _fill(self) -> None:
        try:
            while self._room.acquire() and not self._stop.is_set():
                batch = self._put(next(self._iterator))
                self._ready.put((batch, self._iterator.get_state(), None))
        except BaseException as error:  # the thread that asks for the batch has to see it
            self._ready.put((None, None, error))

    def _join(self) -> None:
        if self._thread is not None:
            self._stop.set()
            self._room.release()
            self._thread.join()
            self._thread = self._ready = None

    def get_state(self) -> dict[str, Any]:
        """Returns the state after the last batch that was handed out, not after the waiting ones."""
        return self._state

    def set_state(self, state: dict[str, Any]) -> None:
        """Drops the waiting batches and continues from a state of `get_state`."""
        self._join()
        self._iterator.set_state(state)
        self._state = self._iterator.get_state()

    def close(self) -> None:
        """Stops the thread and closes the iterator; the next batch would start them again."""
        self.set_state(self._state)
        self._iterator.close()
