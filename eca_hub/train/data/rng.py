"""Chance as a function of place, so that a run can be resumed anywhere without saving a generator.

    order of an epoch         f(seed, epoch)
    augmentation of a sample  f(seed, epoch, index)
    dropout and MixUp         f(seed, epoch, batch, process)

Nothing depends on how many workers prepare batches or how far ahead they are. Knows nothing of data or networks.
"""

import hashlib

import numpy as np
import torch
from torch import Tensor

_MASK = (1 << 63) - 1


def derive_seed(*parts: int | str) -> int:
    """Mix some numbers and words into a seed of 63 bits; other parts, or the same in another order, give another."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") & _MASK


def seed_rng(seed: int, device: torch.device | None = None) -> None:
    """Set torch's own chance, of the CPU and of the device that trains.

    Unlike torch.manual_seed, which notes a traceback for every kind of device that is not in use: that took a third of
    the time of training on small pictures, and memory without end.
    """
    torch.default_generator.manual_seed(seed)
    if device is not None and device.type == "cuda":
        torch.cuda.manual_seed(seed)


def epoch_permutation(num_images: int, seed: int, epoch: int) -> Tensor:
    """Return the order in which an epoch visits its pictures."""
    generator = torch.Generator().manual_seed(derive_seed("order", seed, epoch))
    return torch.randperm(num_images, generator=generator)


def uniforms(seed: int, index: np.ndarray, num_draws: int) -> np.ndarray:
    """Draw numbers in [0, 1) for many samples at once, each a function of its own index alone.

    Args:
        seed: Of this use and epoch.
        index: Sample numbers, (N,).
        num_draws: How many numbers a sample needs.

    Returns:
        float64 (N, num_draws).
    """
    counter = index.astype(np.uint64)[:, None] * np.uint64(num_draws) + np.arange(num_draws, dtype=np.uint64)
    # SplitMix64: Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
    with np.errstate(over="ignore"):
        state: np.ndarray = np.uint64(seed) + (counter + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state = state ^ (state >> np.uint64(31))
    drawn: np.ndarray = (state >> np.uint64(11)).astype(np.float64) / float(1 << 53)
    return drawn
