"""The tasks that `eca-hub fit` trains for: which module, which data, and how results are written.

The data decide the task: CocoData and YoloData are for detectors, all others for classifiers. Another task is another
entry here.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml


@dataclass(frozen=True)
class Task:
    """What differs between tasks."""

    module: type[Any]
    """A `TrainingModule`."""
    data: type[Any]
    """The base of its data modules."""
    links: tuple[tuple[str, str], ...]
    """Linked options: the target gets its value from the object that the source names."""
    parse_links: tuple[tuple[str, str, Callable[[Any], Any]], ...]
    """Options that follow from others before anything is made: source, target, and the function between them."""
    preprocessing: Callable[[bytes, str], dict[str, Any]]
    """From the config.json of a package and its name to the options of the data that must be the package's."""
    results: Callable[[Any, Any, Any], Any]
    """Makes the `RunResults` of a trainer, a module and its data."""
    run_name: Callable[[Any], str]
    """From the options of the module to the end of a new run folder's name."""


def image_classification() -> Task:
    """Return the task of classifiers."""
    from eca_hub.hub.package import config_from_json
    from eca_hub.models.config import ModelConfig
    from eca_hub.train.classification_results import results_of
    from eca_hub.train.data.datamodule import ImageDataModule
    from eca_hub.train.module import ImageClassifier

    return Task(
        ImageClassifier,
        ImageDataModule,
        (
            ("data.labels", "model.labels"),
            ("data.is_multi_label", "model.multi_label"),
            ("data.image", "model.image"),
        ),
        (),
        lambda text, origin: {"image": asdict(config_from_json(text, origin=origin).image)},
        results_of,
        lambda model: (
            f"{model['attention'] or ModelConfig.attention}_{model['architecture'] or ModelConfig.architecture}"
        ),
    )


def object_detection() -> Task:
    """Return the task of detectors."""
    from eca_hub.hub.package import detector_config_from_json
    from eca_hub.models.detector_config import DetectorConfig
    from eca_hub.train.data.detection import DetectionDataModule
    from eca_hub.train.detection import DetectionModule
    from eca_hub.train.detection_results import DetectionResults

    return Task(
        DetectionModule,
        DetectionDataModule,
        (("data.labels", "model.labels"), ("data.bit_depth", "model.bit_depth")),
        (("model.detector", "data.init_args.with_masks", lambda detector: detector == "mask_rcnn"),),
        lambda text, origin: {"bit_depth": detector_config_from_json(text, origin=origin).bit_depth},
        DetectionResults,
        lambda model: (
            f"{model['detector']}_{model['attention'] or DetectorConfig.attention}_"
            f"{model['backbone'] or DetectorConfig.backbone}"
        ),
    )


TASKS = {"image-classification": image_classification, "object-detection": object_detection}
"""Name of a task, as the Hub has it, to the function that imports what it needs."""

_TASK_OF_DATA = {"CocoData": "object-detection", "YoloData": "object-detection"}


def task_for(argv: Sequence[str]) -> Task:
    """Find the task of a command line by the data that it or its YAML files name.

    Args:
        argv: The arguments after the command.
    """
    data = ""
    for previous, argument in zip(["", *argv], argv, strict=False):
        if previous in ("-c", "--config") or argument.startswith("--config="):
            data = _data_in_yaml(argument.removeprefix("--config=")) or data
        elif previous in ("--data", "--data.class_path"):
            data = argument
        elif argument.startswith(("--data=", "--data.class_path=")):
            data = argument.partition("=")[2]
    return TASKS[_TASK_OF_DATA.get(data.rpartition(".")[2], "image-classification")]()


def _data_in_yaml(path_or_text: str) -> str:
    try:
        is_file = "\n" not in path_or_text and Path(path_or_text).is_file()
        config = yaml.safe_load(Path(path_or_text).read_text(encoding="utf-8-sig") if is_file else path_or_text)
    except (OSError, ValueError, yaml.YAMLError):
        # The parser reports what is wrong with it.
        return ""
    data = config.get("data") if isinstance(config, dict) else None
    class_path = data.get("class_path") if isinstance(data, dict) else data
    return class_path if isinstance(class_path, str) else ""
