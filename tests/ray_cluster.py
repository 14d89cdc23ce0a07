"""Nodes of a Ray cluster as processes of this machine."""

from typing import Any

NUM_TRIES = 3


def add_node(cluster: Any, **options: Any) -> Any:
    """Start a node; Ray gives up after 30 s, within which a busy machine may not start the processes of one."""
    for num_left in reversed(range(NUM_TRIES)):
        try:
            # It is registered when the call returns; `wait` would also require that no failed one came up late.
            return cluster.add_node(num_cpus=1, wait=False, **options)
        except Exception as error:
            if not num_left or "timed out during startup" not in str(error):
                raise
    raise AssertionError
