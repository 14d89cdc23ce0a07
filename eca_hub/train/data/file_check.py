"""Checks of the files of a split before training: whether they can be read, and begin as images do."""

import dataclasses
import time
from collections.abc import Sequence

import numpy as np

from eca_hub.errors import BadImage, InvalidConfig
from eca_hub.images.containers import sniff_format
from eca_hub.train.data.source import Source, Split, broken_reason, count_classes, pointer_in

_NUM_PROBED = 16
_CHECK_S = 3.0
"""Time to look at the first bytes of the files of a split."""


def check_readable(source: Source, split: Split, title: str) -> None:
    """Read some images of a split, so that data that were not fetched are reported before training.

    Raises:
        InvalidConfig: of the files tried, each is missing or a pointer of Git LFS or git-annex.
    """
    reasons, hint = [], ""
    for index in np.unique(np.linspace(0, len(source.targets) - 1, _NUM_PROBED).astype(int)).tolist():
        try:
            if (pointer := pointer_in(source.read(index))) is None:
                return
            reasons.append(f"{source.name(index)} is a pointer of {pointer.tool}.")
            hint = f"`{pointer.command}` fetches the images."
        except BadImage:
            # It is there, and FormatCheck says what is wrong with it.
            return
        except OSError as error:
            reasons.append(f"{source.name(index)}: {error.strerror or error}.")
            if error.errno:
                hint = "If they are links, fetch or mount what they point to (`dvc pull`, `git annex get`)."
    if reasons:
        raise InvalidConfig(
            f"The images of the {split} split of {title} cannot be read; {len(reasons)} were tried. The first: "
            f"{reasons[0]}",
            hint=hint,
        )


@dataclasses.dataclass
class FormatCheck:
    """What the first bytes of the files of all splits have shown."""

    num_checked: int = 0
    bad: list[str] = dataclasses.field(default_factory=list)
    """Name of each file that is no image or cannot be read, and why."""
    splits: list[Split] = dataclasses.field(default_factory=list)
    """Those of bad files."""
    lost: str = ""
    """What is left without an image: a split, or classes to be learned; and a broken file of it."""
    remarks: list[str] = dataclasses.field(default_factory=list)

    def look_at(self, source: Source, split: Split, title: str, labels: Sequence[str] = ()) -> None:
        """Look at the first bytes of as many images of a split as `_CHECK_S` allows, in random order."""
        num_images, num_checked, bad_indices = len(source.targets), 0, list[int]()
        end_s = time.monotonic() + _CHECK_S
        for index in np.random.default_rng(0).permutation(num_images).tolist():
            if reason := _reason_of(source, index):
                self.bad.append(f"{source.name(index)}: {reason}")
                bad_indices.append(index)
            num_checked += 1
            if time.monotonic() > end_s:
                break
        self.num_checked += num_checked
        if bad_indices:
            self.splits.append(split)
        if len(bad_indices) == num_images:
            self.lost = f"Every image of the {split} split of {title} is broken; the first: {self.bad[-num_images]}"
        elif split == "train" and bad_indices:
            counts_K = count_classes(source.targets, len(labels))
            is_lost_K = (counts_K > 0) & (counts_K == count_classes(source.targets[bad_indices], len(labels)))
            if lost := [label for label, is_lost in zip(labels, is_lost_K, strict=True) if is_lost]:
                names = ", ".join(lost[:5])
                self.lost = f"Every image of {names} in the train split of {title} is broken; the first: {self.bad[0]}"
        if num_checked < num_images:
            self.remarks.append(
                f"{num_checked} of the {num_images} images of the {split} split were looked at in {_CHECK_S:g} s; the "
                "others are checked when they are decoded."
            )

    def raise_if_too_many(self, max_bad_samples: int, title: str) -> None:
        """Compare with the number that is allowed in all splits together, as in the run.

        Raises:
            InvalidConfig: more files are broken, or all of a split or of a class that is to be learned.
        """
        among = f". They are among {self.num_checked} files of {title}, in the splits {', '.join(self.splits)}"
        check_number(self.bad, max_bad_samples, among)
        if self.lost:
            raise InvalidConfig(f"{self.lost.rstrip('.')}.", hint="Repair the images, or remove the class or split.")


def check_number(bad: Sequence[str], max_bad_samples: int, among: str = "") -> None:
    """Check that no more files are broken than allowed; `among` says where they are.

    Raises:
        InvalidConfig: there are more.
    """
    if len(bad) > max_bad_samples:
        raise InvalidConfig(
            f"Broken images: {len(bad)}, and --data.max_bad_samples allows {max_bad_samples}{among}; the first: "
            f"{bad[0].rstrip('.')}.",
            hint=f"Repair or remove them, or give --data.max_bad_samples {len(bad)} to leave them out.",
        )


def _reason_of(source: Source, index: int) -> str:
    """Why a file is not an image; an empty string if it begins like one."""
    content = b""
    try:
        content = source.read(index)
        sniff_format(content)
    except (BadImage, OSError) as error:
        return broken_reason(error, content)
    return ""
