"""What a network learns from: pictures as uint8 pixels, with class names and preprocessing.

Names are resolved when they are first used: a process that only prepares batches then needs no Lightning.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eca_hub.train.data.datamodule import ImageDataModule
    from eca_hub.train.data.digits import DigitsData
    from eca_hub.train.data.image_folder import ImageFolderData
    from eca_hub.train.data.parquet import ParquetData
    from eca_hub.train.data.synthetic import SyntheticData
    from eca_hub.train.data.transforms import AugmentConfig

__all__ = ["AugmentConfig", "DigitsData", "ImageDataModule", "ImageFolderData", "ParquetData", "SyntheticData"]

_HOME_OF = {
    "AugmentConfig": "transforms",
    "DigitsData": "digits",
    "ImageDataModule": "datamodule",
    "ImageFolderData": "image_folder",
    "ParquetData": "parquet",
    "SyntheticData": "synthetic",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)
