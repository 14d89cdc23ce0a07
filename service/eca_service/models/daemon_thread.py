"""Run blocking work that may hang, such as a request to a hub, so that it cannot delay the end of the process.

Python joins the threads of `asyncio.to_thread` at exit; daemon threads it does not.
"""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

Result = TypeVar("Result")


async def run_in_daemon_thread(work: Callable[[], Result]) -> Result:
    """Run `work` in a daemon thread and return its result; a cancelled one runs on, and its result is dropped."""
    future: Future[Any] = Future()
    future.set_running_or_notify_cancel()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="loader", daemon=True).start()
    return await asyncio.wrap_future(future)
