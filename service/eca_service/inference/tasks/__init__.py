"""The tasks that a network can be asked for. To add one: a file beside this one, and its class in `TASKS`."""

from typing import Any

from eca_service.inference.tasks.classify import Classification
from eca_service.inference.tasks.embed import Embedding
from eca_service.inference.tasks.task import Task, WorkItem, run_batch

__all__ = ["TASKS", "Classification", "Embedding", "Task", "WorkItem", "run_batch"]

TASKS: tuple[type[Task[Any]], ...] = (Classification, Embedding)
"""The first one is what a network is optimized, warmed up and checked for."""
