"""Cache of decoded images in shared memory.

Shapes: H height, W width, C channels.
"""

import mmap
import os
from typing import Any

import numpy as np
from torch.utils.data import get_worker_info

_ENTRY_BYTES = 3 * np.dtype(np.int64).itemsize


class DecodedImageCache:
    """Decoded images by index, until the memory is full; nothing is evicted.

    The memory is an anonymous file (memfd), which all worker processes map, so it exists once for any number of
    workers and takes no more than what was stored. Each worker writes to a part of its own and reads all parts, so
    there is no lock. On systems without memfd each worker has a cache of its own.

    Args:
        num_images: Indices are below this.
        capacity_bytes: Memory for all images together.
        num_channels: C.
        num_workers: Worker processes; 0 for none.
    """

    def __init__(self, num_images: int, capacity_bytes: int, num_channels: int = 3, num_workers: int = 0) -> None:
        self._num_images = num_images
        self._num_channels = num_channels
        self._part_bytes = capacity_bytes // max(num_workers, 1)
        self._num_bytes = max(num_images * _ENTRY_BYTES + self._part_bytes * max(num_workers, 1), 1)
        self._next_byte: int | None = None
        self._file = _memory_file(self._num_bytes)
        self._map(mmap.mmap(self._file if self._file is not None else -1, self._num_bytes))

    def get(self, index: int) -> np.ndarray | None:
        """Return an image, uint8 (H, W, C), if it is stored."""
        start, height, width = self._entries_N3[index].tolist()
        if not start:
            return None
        size = height * width * self._num_channels
        return self._bytes[start : start + size].reshape(height, width, self._num_channels)

    def put(self, index: int, pixels_HWC: np.ndarray) -> None:
        """Store an image if there is room."""
        if self._next_byte is None:
            worker = get_worker_info()
            self._next_byte = self._num_images * _ENTRY_BYTES + (worker.id if worker else 0) * self._part_bytes
            self._end_byte = self._next_byte + self._part_bytes
        start, end = self._next_byte, self._next_byte + pixels_HWC.size
        if end <= self._end_byte and self._write(start, np.ascontiguousarray(pixels_HWC)):
            self._entries_N3[index] = start, *pixels_HWC.shape[:2]
            self._next_byte = end

    def __getstate__(self) -> dict[str, Any]:
        """Return the path of the memory for another process."""
        own = {"_bytes", "_entries_N3", "_file", "_next_byte"}
        state = {name: value for name, value in vars(self).items() if name not in own}
        return state | {"path": f"/proc/{os.getpid()}/fd/{self._file}"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Map the same memory, or new memory where that is impossible."""
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

    def _write(self, start: int, pixels_HWC: np.ndarray) -> bool:
        if self._file is not None:
            # Writing through the map takes over twice as long: the system first fills each new page with zeros.
            return os.pwrite(self._file, pixels_HWC.data, start) == pixels_HWC.size
        self._bytes[start : start + pixels_HWC.size] = pixels_HWC.reshape(-1)
        return True

    def _map(self, memory: mmap.mmap) -> None:
        self._bytes = np.frombuffer(memory, dtype=np.uint8)
        entries_B = self._bytes[: self._num_images * _ENTRY_BYTES]
        self._entries_N3 = entries_B.view(np.int64).reshape(self._num_images, 3)


def _memory_file(num_bytes: int) -> int | None:
    """Open an anonymous file in memory; None where the system has none."""
    if not hasattr(os, "memfd_create"):
        return None
    file = os.memfd_create("eca-hub images")
    os.ftruncate(file, num_bytes)
    return file
