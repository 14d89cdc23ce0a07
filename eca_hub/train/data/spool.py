"""A temporary file of many records, for random access to what can only be read in order.

It is written at the first access, has no name, and is removed with the process that wrote it; worker processes open it
through /proc.

Shapes: N records.
"""

import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterable
from typing import IO, Any

import numpy as np

from eca_hub.errors import InvalidConfig


class Spool:
    """Records of a kind, some bytes and a name, by index.

    Args:
        records: Yields the records in order; called at the first access. It raises InvalidConfig where it cannot read
            them: an OSError is one of the temporary file.
        num_bytes: About how much they take, to check the free space.
    """

    def __init__(self, records: Callable[[], Iterable[tuple[int, bytes, str]]], num_bytes: int) -> None:
        self._records = records
        self._num_bytes = num_bytes
        self._file: int | None = None
        self._lock = threading.Lock()

    def read(self, index: int) -> tuple[int, bytes]:
        """Return kind and bytes of a record."""
        file = self._open()
        start, size = int(self._starts_N[index]), int(self._sizes_N[index])
        return int(self._kinds_N[index]), os.pread(file, size, start)

    def name(self, index: int) -> str:
        """Return the name of a record."""
        self._open()
        return self._names[index]

    def __getstate__(self) -> dict[str, Any]:
        """Write the file before another process gets its path."""
        file = self._open()
        state = {name: value for name, value in vars(self).items() if name not in ("_file", "_lock")}
        return state | {"path": f"/proc/{os.getpid()}/fd/{file}"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Open the file of the other process; without /proc, write another one at the first access."""
        path = state.pop("path")
        vars(self).update(state, _file=None, _lock=threading.Lock())
        if os.path.exists(path):  # noqa: PTH110  a link to a file without a name
            self._file = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if self._file is not None:
            os.close(self._file)

    def _open(self) -> int:
        with self._lock:
            if self._file is None:
                self._file = self._write()
            return self._file

    def _write(self) -> int:
        folder = "a temporary file"
        try:
            folder = tempfile.gettempdir()
            if shutil.disk_usage(folder).free < self._num_bytes:
                raise InvalidConfig(
                    f"Unpacking the images takes {self._num_bytes / 2**30:.1f} GiB in {folder}, which has less free.",
                    hint="Set TMPDIR to a folder on a larger disk.",
                )
            with tempfile.TemporaryFile() as file:
                return self._write_into(file)
        except OSError as error:
            raise InvalidConfig(
                f"The images cannot be unpacked into {folder}: {error.strerror or error}.",
                hint="Set TMPDIR to a folder on a larger disk.",
            ) from None

    def _write_into(self, file: IO[bytes]) -> int:
        kinds, sizes, names = list[int](), list[int](), list[str]()
        for kind, content, name in self._records():
            file.write(content)
            kinds.append(kind)
            sizes.append(len(content))
            names.append(name)
        file.flush()
        self._kinds_N, self._sizes_N = np.array(kinds, dtype=np.int8), np.array(sizes, dtype=np.int64)
        self._starts_N = np.cumsum(self._sizes_N) - self._sizes_N
        self._names = names
        return os.dup(file.fileno())
