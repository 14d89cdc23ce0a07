"""Stateless random numbers: seeds derive from (seed, epoch, index), so a run can be resumed without saving a generator.

    order of an epoch           f(seed, epoch)
    augmentation of an image    f(seed, epoch, index), or of its place in the order if images are drawn repeatedly
    dropout, MixUp and CutMix   f(seed, epoch, batch, rank)

Nothing depends on the number of workers or on how many batches they have prefetched.
"""

import hashlib

import numpy as np
import torch
from torch import Tensor

_MASK = (1 << 63) - 1


def derive_seed(*parts: int | str) -> int:
    """Hash numbers and words to a seed of 63 bits."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") & _MASK


def seed_rng(seed: int, device: torch.device | None = None) -> None:
    """Seed torch's generators, of the CPU and of the device that trains.

    torch.manual_seed also records a traceback for every kind of device that is not in use: that took a third of the
    time of training on small images, and unbounded memory.
    """
    torch.default_generator.manual_seed(seed)
    if device is not None and device.type == "cuda":
        torch.cuda.manual_seed(seed)


def epoch_permutation(num_images: int, seed: int, epoch: int) -> Tensor:
    """Return the order in which an epoch visits the images: indices, (N,)."""
    generator = torch.Generator().manual_seed(derive_seed("order", seed, epoch))
    return torch.randperm(num_images, generator=generator)


def balanced_order(targets: np.ndarray, seed: int, epoch: int) -> Tensor:
    """Draw as many indices as there are images, with replacement, each class as often as any other: (N,).

    Args:
        targets: Class indices, (N,).
        seed: Of the run.
        epoch: The epoch.
    """
    generator = np.random.default_rng(derive_seed("balanced", seed, epoch))
    by_class = np.argsort(targets, kind="stable")
    _, starts, counts = np.unique(targets[by_class], return_index=True, return_counts=True)
    drawn_N = generator.integers(len(counts), size=len(targets))
    within_N = (generator.random(len(targets)) * counts[drawn_N]).astype(np.int64)
    return torch.from_numpy(by_class[starts[drawn_N] + within_N])


def uniforms(seed: int, index: np.ndarray, num_draws: int) -> np.ndarray:
    """Draw numbers in [0, 1) for many images at once, each a function of the seed and its own index.

    Args:
        seed: Of this use and epoch.
        index: Indices of the images, (N,).
        num_draws: Numbers for an image.

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
