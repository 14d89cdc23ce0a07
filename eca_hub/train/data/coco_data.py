"""The data modules of detectors: COCO annotation files and YOLO text folders."""

import os
from pathlib import Path
from typing import Any

from eca_hub.errors import InvalidConfig
from eca_hub.paths import expand_home
from eca_hub.train.data.coco import read_coco
from eca_hub.train.data.detection import DetectionDataModule
from eca_hub.train.data.objects import Split
from eca_hub.train.data.source import Split as SplitName
from eca_hub.train.data.source import readable_name
from eca_hub.train.data.yolo import count_keypoint_numbers, find_images_dir, read_class_names, read_yolo


class CocoData(DetectionDataModule):
    """Objects from COCO annotation files.

    Args:
        root: Folder that all other paths are relative to; `~` is expanded in each of them.
        train_annotations: JSON file of the training split.
        train_images: Folder with its images.
        val_annotations: JSON file of the validation split.
        val_images: Folder with its images.
        test_annotations: JSON file of the test split; the validation split serves as test split where there is none.
        test_images: Folder with its images.
        options: Of all data of detectors.
    """

    def __init__(
        self,
        root: str,
        train_annotations: str = "annotations/instances_train2017.json",
        train_images: str = "train2017",
        val_annotations: str = "annotations/instances_val2017.json",
        val_images: str = "val2017",
        test_annotations: str | None = None,
        test_images: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.root = _check_root(root, "annotations/")
        self.title = readable_name(self.root.resolve().name) or "images"
        self.has_single_eval_split = test_annotations is None
        self._paths: dict[SplitName, tuple[str, str]] = {
            "train": (train_annotations, train_images),
            "val": (val_annotations, val_images),
            "test": (test_annotations or val_annotations, test_images or val_images),
        }

    def read_split(self, name: SplitName) -> Split:
        """Read a split; validation and test must have the categories of training."""
        if name == "test" and self.has_single_eval_split:
            return self.split("val")
        annotations, images = self._paths[name]
        train = None if name == "train" else self.split("train")
        classes = None if train is None else list(zip(train.category_ids, train.labels, strict=True))
        return read_coco(
            self.root / expand_home(annotations),
            self.root / expand_home(images),
            with_masks=self.with_masks,
            classes=classes,
        )


class YoloData(DetectionDataModule):
    """Objects from YOLO text folders: images/train with labels/train, or train/images with train/labels.

    Class names are read from data.yaml or classes.txt.

    Args:
        root: Folder with images and labels.
        options: Of all data of detectors.
    """

    def __init__(self, root: str, **options: Any) -> None:
        super().__init__(**options)
        self.root = _check_root(root, "data.yaml")
        self.title = readable_name(self.root.resolve().name) or "images"
        self._class_names = read_class_names(self.root)
        self._num_keypoint_numbers = count_keypoint_numbers(self.root)
        self._folders = {name: find_images_dir(self.root, name) for name in ("train", "val", "test")}
        missing = [name for name in ("train", "val") if self._folders[name] is None]
        if missing:
            raise InvalidConfig(
                f"{root} has no images of {' and '.join(missing)}.",
                hint="They are searched in images/train and images/val, train/images and valid/images, and data.yaml.",
            )
        self.has_single_eval_split = self._folders["test"] is None

    def read_split(self, name: SplitName) -> Split:
        """Read a split."""
        if name == "test" and self.has_single_eval_split:
            return self.split("val")
        folder = self._folders[name]
        assert folder is not None
        return read_yolo(
            folder, self._class_names, with_masks=self.with_masks, num_keypoint_numbers=self._num_keypoint_numbers
        )


def _check_root(root: str, content: str) -> Path:
    folder = expand_home(root)
    # Path.is_dir raises for a name that is too long or holds a NUL.
    if not os.path.isdir(folder):  # noqa: PTH112
        raise InvalidConfig(f"There is no folder {root[:200]!r}.", hint=f"Give --data.root, the folder with {content}.")
    return folder
