"""A grid of training runs as a resumable queue: `grid.py` expands it, `queue.py` runs it, `results.py` collects it."""
