"""Decoded pictures in memory, which all processes that prepare batches share. Knows nothing of files or chance.

Shapes: H height, W width; 3 colours, red first.
"""

import mmap
import os
from typing import Any

import numpy as np
from torch.utils.data import get_worker_info


class DecodedImageCache:
    """Pictures by number, until the memory is full; what came first stays.

    The memory is a file that only lies in memory, so it is there once however many workers there are, and takes no
    more than what was put in. Each worker fills a part of its own and all read everything: nobody waits for a lock.
    (Where a system has no such files, each worker keeps what it has decoded itself.)

    Args:
        num_pictures: Numbers run from 0 to this.
        room_bytes: Memory for all of them together.
        num_workers: Processes that prepare batches; 0 prepares them in the training process.
    """

    def __init__(self, num_pictures: int, room_bytes: int, num_workers: int = 0) -> None:
        self._num_pictures = num_pictures
        self._part_bytes = room_bytes // max(num_workers, 1)
        self._num_bytes = max(num_pictures * _ENTRY_BYTES + self._part_bytes * max(num_workers, 1), 1)
        self._next_byte: int | None = None
        self._file = _memory_file(self._num_bytes)
        self._map(mmap.mmap(self._file if self._file is not None else -1, self._num_bytes))

    def get(self, number: int) -> np.ndarray | None:
        """Return a picture, uint8 (H, W, 3), if it is there."""
        start, height, width = self._entries_N3[number].tolist()
        if not start:
            return None
        return self._bytes[start : start + height * width * 3].reshape(height, width, 3)

    def put(self, number: int, picture_HW3: np.ndarray) -> None:
        """Keep a picture if there is room."""
        if self._next_byte is None:
            worker = get_worker_info()
            self._next_byte = self._num_pictures * _ENTRY_BYTES + (worker.id if worker else 0) * self._part_bytes
            self._end_byte = self._next_byte + self._part_bytes
        start, end = self._next_byte, self._next_byte + picture_HW3.size
        if end <= self._end_byte and self._write(start, np.ascontiguousarray(picture_HW3)):
            self._entries_N3[number] = start, *picture_HW3.shape[:2]
            self._next_byte = end

    def __getstate__(self) -> dict[str, Any]:
        """Tell another process where the memory is."""
        own = {"_bytes", "_entries_N3", "_file", "_next_byte"}
        kept = {name: value for name, value in vars(self).items() if name not in own}
        return kept | {"path": f"/proc/{os.getpid()}/fd/{self._file}"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take up the same memory, or begin with none."""
        path = state.pop("path")
        vars(self).update(state, _next_byte=None)
        try:
            self._file = os.open(path, os.O_RDWR)
        except OSError:
            self._file = None
        self._map(mmap.mmap(self._file if self._file is not None else -1, self._num_bytes))

    def __del__(self) -> None:
        if self._file is not None:
            os.close(self._file)

    def _write(self, start: int, picture_HW3: np.ndarray) -> bool:
        if self._file is not None:
            # Through the map it takes over twice as long: there the system first fills each new page with zeros.
            return os.pwrite(self._file, picture_HW3.data, start) == picture_HW3.size
        self._bytes[start : start + picture_HW3.size] = picture_HW3.reshape(-1)
        return True

    def _map(self, memory: mmap.mmap) -> None:
        self._bytes = np.frombuffer(memory, dtype=np.uint8)
        entries_B = self._bytes[: self._num_pictures * _ENTRY_BYTES]
        self._entries_N3 = entries_B.view(np.int64).reshape(self._num_pictures, 3)


_ENTRY_BYTES = 3 * np.dtype(np.int64).itemsize


def _memory_file(num_bytes: int) -> int | None:
    """Open a file that lies in memory; None where the system has none."""
    if not hasattr(os, "memfd_create"):
        return None
    file = os.memfd_create("eca-hub pictures")
    os.ftruncate(file, num_bytes)
    return file
