"""The queues of ``ndshare bench queue``, each with a process that puts into it.

Every link does what its documentation recommends for arrays; who pickles in another thread after `put` has
returned gets a fresh array each time, the others one buffer that is filled again.
"""

from __future__ import annotations

import multiprocessing
from multiprocessing import shared_memory
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

FRAMES_AHEAD = 4  # most frames in a queue
MESSAGES_AHEAD = 1000  # of a bounded queue of small messages
MESSAGE = b"x" * 1000

Frame = npt.NDArray[np.float32]


class Link:
    """A queue, a process that puts, and this process, which gets.

    Parameters
    ----------
    workers : int
        Not used: there is one on each side.
    """

    name: ClassVar[str]
    module: ClassVar[str]  # what has to be importable
    reuses: ClassVar[bool] = True  # whether `put` has done with an array when it returns

    def __init__(self, workers: int) -> None:  # noqa: ARG002 - as the peers of the other faces
        context = multiprocessing.get_context("spawn")
        self.frames, self.messages, self.bounded = self.make(context)
        self._orders, theirs = context.Pipe()
        self._producer = context.Process(
            target=_produce, args=(type(self), theirs, self.frames, self.messages, self.bounded)
        )
        self._producer.start()
        theirs.close()

    def make(self, context: Any) -> tuple[Any, Any, Any]:
        """Return a queue for frames, one for small messages, and the same with a bound."""
        return context.Queue(FRAMES_AHEAD), context.Queue(), context.Queue(MESSAGES_AHEAD)

    @staticmethod
    def put_frame(queue: Any, frame: Frame) -> None:
        """Hand a frame over."""
        queue.put(frame)

    @staticmethod
    def get_frame(queue: Any) -> Any:
        """Return the next frame."""
        return queue.get()

    @staticmethod
    def drop(frame: Any) -> None:
        """Give a frame back."""

    def run_frames(self, count: int, edge: int, shared: bool = False) -> float:
        """Have frames made and look at each of them; return a checksum."""
        self._orders.send(("frames", count, edge, shared))
        total = 0.0
        for _ in range(count):
            frame = self.get_frame(self.frames)
            total += float(frame[:: max(1, edge // 30), :: max(1, edge // 30)].mean())
            self.drop(frame)
        return total

    def run_messages(self, count: int, bounded: bool = False) -> int:
        """Take small messages out; return how many bytes they had."""
        queue = self.bounded if bounded else self.messages
        self._orders.send(("bounded" if bounded else "messages", count, 0, False))
        return sum(len(queue.get()) for _ in range(count))

    def close(self) -> None:
        """End the process and the queues."""
        self._orders.send(None)
        self._producer.join()
        self._producer.close()
        self._orders.close()
        for queue in (self.frames, self.messages, self.bounded):
            if hasattr(queue, "close"):
                queue.close()
            if hasattr(queue, "join_thread"):
                queue.join_thread()


def _produce(link: type[Link], orders: Any, frames: Any, messages: Any, bounded: Any) -> None:
    import ndshare

    buffers: dict[int, Frame] = {}
    while (order := orders.recv()) is not None:
        what, count, edge, shared = order
        if what != "frames":
            queue = bounded if what == "bounded" else messages
            for _ in range(count):
                queue.put(MESSAGE)
            continue
        for number in range(count):
            if shared:
                frame = ndshare.empty((edge, edge), np.float32)
            elif link.reuses:
                frame = buffers.setdefault(edge, np.empty((edge, edge), np.float32))
            else:
                frame = np.empty((edge, edge), np.float32)
            frame.fill(number)
            link.put_frame(frames, frame)
            del frame


class Ndshare(Link):
    """The subject."""

    name = "ndshare"
    module = "ndshare"

    def make(self, context: Any) -> tuple[Any, Any, Any]:  # noqa: ARG002, D102
        import ndshare

        return ndshare.Queue(FRAMES_AHEAD), ndshare.Queue(), ndshare.Queue(MESSAGES_AHEAD)


class Multiprocessing(Link):
    """`multiprocessing.Queue`: a pipe, and a thread that pickles."""

    name = "multiprocessing"
    module = "multiprocessing"
    reuses = False


class SharedMemory(Link):
    """By hand: a new `SharedMemory` per frame, its name through a queue, unlinked by the receiver."""

    name = "shared_memory"
    module = "multiprocessing"

    @staticmethod
    def put_frame(queue: Any, frame: Frame) -> None:  # noqa: D102
        memory = shared_memory.SharedMemory(create=True, size=frame.nbytes)
        copy: Frame = np.ndarray(frame.shape, frame.dtype, memory.buf)
        copy[...] = frame
        del copy
        queue.put((memory.name, frame.shape, frame.dtype.str))
        memory.close()

    @staticmethod
    def get_frame(queue: Any) -> Any:  # noqa: D102
        name, shape, dtype = queue.get()
        memory = shared_memory.SharedMemory(name)
        return _Attached(np.ndarray(shape, dtype, memory.buf), memory)

    @staticmethod
    def drop(frame: Any) -> None:  # noqa: D102
        memory, frame.array = frame.memory, None
        memory.close()
        memory.unlink()


class _Attached:
    """An array and the memory it lies in."""

    def __init__(self, array: Any, memory: Any) -> None:
        self.array = array
        self.memory = memory

    def __getitem__(self, key: Any) -> Any:
        return self.array[key]


class Torch(Link):
    """`torch.multiprocessing.Queue`: tensors in shared memory."""

    name = "torch"
    module = "torch"
    reuses = False

    def make(self, context: Any) -> tuple[Any, Any, Any]:  # noqa: ARG002, D102
        import torch.multiprocessing

        return super().make(torch.multiprocessing.get_context("spawn"))

    @staticmethod
    def put_frame(queue: Any, frame: Frame) -> None:  # noqa: D102
        import torch

        queue.put(torch.from_numpy(frame))

    @staticmethod
    def get_frame(queue: Any) -> Any:  # noqa: D102
        return queue.get().numpy()


class FasterFifo(Link):
    """faster-fifo: a ring buffer of pickles in shared memory."""

    name = "faster-fifo"
    module = "faster_fifo"

    def make(self, context: Any) -> tuple[Any, Any, Any]:  # noqa: ARG002, D102
        import faster_fifo

        small = [faster_fifo.Queue(max_size_bytes=size) for size in (100_000_000, 1_100_000)]
        return faster_fifo.Queue(max_size_bytes=FRAMES_AHEAD * 37_000_000), *small


LINKS = {link.name: link for link in (Ndshare, Multiprocessing, SharedMemory, Torch, FasterFifo)}
ALWAYS = ("ndshare", "multiprocessing", "shared_memory")
