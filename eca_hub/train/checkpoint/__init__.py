"""Checkpoints on disk: written atomically, verified when read, resumed to the bit."""
