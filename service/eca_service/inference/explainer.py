"""Explanations, one image at a time, in a thread of their own.

Works on a copy of the network that the engines do not use, because an explanation registers hooks on its modules. Few
may be in flight: one explanation costs several classifications.
"""

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from torch import Tensor

from eca_hub import Classifier, Explanation, explain_image
from eca_service.errors import Overloaded

_MAX_IN_FLIGHT = 4


class Explainer:
    """Explains the results of one model.

    Args:
        classifier: The network as it was loaded; the explainer must be its only user.
        explain: Computes one explanation.
    """

    def __init__(
        self,
        classifier: Classifier,
        explain: Callable[[Classifier, Tensor, int | None], Explanation] = lambda classifier, pixels, index: (
            explain_image(classifier, pixels, class_index=index)
        ),
    ) -> None:
        self._classifier = classifier
        self._explain = explain
        self.num_in_flight = 0
        self.max_in_flight = _MAX_IN_FLIGHT
        self._thread = ThreadPoolExecutor(1, "explainer")

    @contextmanager
    def reserve(self) -> Iterator[None]:
        """Admit one explanation, for the length of the block: before its image is decoded.

        Raises:
            Overloaded: several are in flight already.
        """
        if self.num_in_flight >= self.max_in_flight:
            raise Overloaded(f"{self.num_in_flight} explanations are in flight; that is the limit.", retry_after_s=2)
        self.num_in_flight += 1
        try:
            yield
        finally:
            self.num_in_flight -= 1

    async def explain(self, pixels: Tensor, class_index: int | None) -> Explanation:
        """Explain a class of an image, or the most likely one. Pixels are uint8 (C, H, W).

        Raises:
            InvalidConfig: there is no such class, or the network has no map to explain.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._explain, self._classifier, pixels, class_index)

    def close(self, release: Callable[[], None]) -> None:
        """Let the thread call `release` and end, after the explanation that it works on.

        It may still work on one whose client has disconnected.
        """
        self._thread.submit(release)
        self._thread.shutdown(wait=False)
