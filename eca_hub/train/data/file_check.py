"""Checks of the files of a split before training: whether they can be read, and begin as images do."""

import time

import numpy as np

from eca_hub.errors import InvalidConfig, NotAnImage
from eca_hub.images.containers import sniff_format
from eca_hub.train.data.source import Source, Split, is_lfs_pointer

_NUM_PROBED = 16
_CHECK_S = 3.0
"""Time to look at the first bytes of the files of a split."""


def check_readable(source: Source, split: Split, title: str) -> None:
    """Try some images of a split: data that were not fetched show before the start.

    Raises:
        InvalidConfig: of the files tried, each is missing or a pointer of Git LFS.
    """
    reasons = []
    for index in np.unique(np.linspace(0, len(source.targets) - 1, _NUM_PROBED).astype(int)).tolist():
        try:
            if not is_lfs_pointer(source.read(index)):
                return
            reasons.append(f"{source.name(index)} is a pointer of Git LFS.")
        except OSError as error:
            reasons.append(f"{source.name(index)}: {error.strerror or error}.")
    if reasons:
        hint = (
            "`git lfs pull` fetches the images."
            if "Git LFS" in reasons[0]
            else ("If they are links, fetch or mount what they point to (`dvc pull`, `git annex get`).")
        )
        raise InvalidConfig(
            f"The images of the {split} split of {title} cannot be read; {len(reasons)} were tried. The first: "
            f"{reasons[0]}",
            hint=hint,
        )


def check_format(source: Source, split: Split, title: str, max_bad_samples: int) -> str | None:
    """Look at the first bytes of as many images as `_CHECK_S` allows, in random order; return a remark if not of all.

    Raises:
        InvalidConfig: more files than allowed are no images, or cannot be read.
    """
    num_images, num_checked, bad = len(source.targets), 0, list[str]()
    end_s = time.monotonic() + _CHECK_S
    for index in np.random.default_rng(0).permutation(num_images).tolist():
        try:
            content = source.read(index)
            if is_lfs_pointer(content):
                bad.append(f"{source.name(index)}: a pointer of Git LFS")
            else:
                sniff_format(content)
        except (NotAnImage, OSError) as error:
            reason = error.strerror if isinstance(error, OSError) else None
            bad.append(f"{source.name(index)}: {reason or error}")
        num_checked += 1
        if time.monotonic() > end_s:
            break
    if len(bad) > max_bad_samples:
        raise InvalidConfig(
            f"Broken images: {len(bad)}, and --data.max_bad_samples allows {max_bad_samples}. They are among "
            f"{num_checked} files of the {split} split of {title}; the first: {bad[0].rstrip('.')}.",
            hint=f"Repair or remove them, or give --data.max_bad_samples {len(bad)} to leave them out.",
        )
    if num_checked < num_images:
        return (
            f"{num_checked} of the {num_images} images of the {split} split were looked at in {_CHECK_S:g} s; the "
            "others are checked when they are decoded."
        )
    return None
