"""The tasks that a network can be asked for. To add one: a file beside this one, and its class in a tuple below."""

from typing import Any

from eca_service.inference.tasks.classify import Classification
from eca_service.inference.tasks.detect import DetectedObject, MaskFormat, ObjectDetection
from eca_service.inference.tasks.embed import Embedding
from eca_service.inference.tasks.task import Task, WorkItem, run_batch

__all__ = [
    "CLASSIFIER_TASKS",
    "DETECTOR_TASKS",
    "TASKS",
    "Classification",
    "DetectedObject",
    "Embedding",
    "MaskFormat",
    "ObjectDetection",
    "Task",
    "WorkItem",
    "run_batch",
]

CLASSIFIER_TASKS: tuple[type[Task[Any]], ...] = (Classification, Embedding)
"""Of a classifier; the first one is what it is optimized, warmed up and checked for."""
DETECTOR_TASKS: tuple[type[Task[Any]], ...] = (ObjectDetection,)
"""Of a detector; the first one is what it is warmed up for."""
TASKS = (*CLASSIFIER_TASKS, *DETECTOR_TASKS)
