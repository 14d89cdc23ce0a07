"""What a network looked at, asked for one picture at a time, in a thread of its own.

Works on a copy of the network that engines do not use, because explaining listens to its modules. Few may wait: an
explanation costs several classifications. Knows neither HTTP nor queues of pictures.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from torch import Tensor

from eca_hub import Classifier, Explanation, explain_picture
from eca_service.errors import Overloaded

_MAX_WAITING = 4


class Explainer:
    """Explains the answers of one model.

    Args:
        classifier: The network as it was loaded; nobody else may use it.
        explain: Does the work.
    """

    def __init__(
        self,
        classifier: Classifier,
        explain: Callable[[Classifier, Tensor, int | None], Explanation] = lambda classifier, pixels, index: (
            explain_picture(classifier, pixels, class_index=index)
        ),
    ) -> None:
        self._classifier = classifier
        self._explain = explain
        self._num_waiting = 0
        self._thread = ThreadPoolExecutor(1, "explainer")

    async def explain(self, pixels: Tensor, class_index: int | None) -> Explanation:
        """Explain a class of a picture, the likeliest one unless told. Pixels are uint8 (3, H, W).

        Raises:
            Overloaded: several wait already.
            InvalidConfig: there is no such class, or the network has no map to look at.
        """
        if self._num_waiting >= _MAX_WAITING:
            raise Overloaded(f"{self._num_waiting} explanations are in work; no more may be.", retry_after_s=2)
        self._num_waiting += 1
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._thread, self._explain, self._classifier, pixels, class_index)
        finally:
            self._num_waiting -= 1

    def close(self) -> None:
        """Let the thread end after what it works on."""
        self._thread.shutdown(wait=False, cancel_futures=True)
