"""Measure the gates of a network's attention, averaged over the images of a class.

Shapes: N images, C channels.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from eca_hub.classifier import Classifier
from eca_hub.errors import InvalidUsage
from eca_hub.explain import Gates, explain_image
from eca_hub.images.decode import ImageSource
from eca_hub.sweep.results import Row


def mean_gates(classifier: Classifier, images: Mapping[str, Sequence[ImageSource]]) -> list[Row]:
    """Average the gates of the last attention module of each stage.

    Args:
        classifier: The network.
        images: Label to images of that class.

    Returns:
        A row for each stage, label and channel: stage, module, label, channel, gate; the table that `eca-hub report`
        reads beside the results, as `results_gates.csv`.

    Raises:
        InvalidUsage: the network has no attention.
    """
    rows: list[Row] = []
    for label, sources in images.items():
        explained = [_last_of_stages(explain_image(classifier, source).gates) for source in sources]
        if not explained[0]:
            raise InvalidUsage(f"{classifier.model_id} has no attention, so it has no gates.")
        for position, last in enumerate(explained[0]):
            mean_C = np.mean([stages[position].values for stages in explained], axis=0)
            rows += [
                {"stage": last.stage, "module": last.name, "label": label, "channel": channel, "gate": round(gate, 5)}
                for channel, gate in enumerate(mean_C.tolist())
            ]
    return rows


def _last_of_stages(gates: Sequence[Gates]) -> list[Gates]:
    return list({each.stage: each for each in gates}.values())
