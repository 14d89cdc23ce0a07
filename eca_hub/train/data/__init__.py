"""Training data: batches of uint8 images, with class names and preprocessing.

Names are imported at first use, so worker processes import no Lightning.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eca_hub.train.data.csv import CsvData
    from eca_hub.train.data.datamodule import ImageDataModule
    from eca_hub.train.data.digits import DigitsData
    from eca_hub.train.data.image_folder import ImageFolderData
    from eca_hub.train.data.parquet import ParquetData
    from eca_hub.train.data.synthetic import SyntheticData
    from eca_hub.train.data.transforms import AugmentConfig
    from eca_hub.train.data.webdataset import WebDatasetData

__all__ = [
    "AugmentConfig",
    "CsvData",
    "DigitsData",
    "ImageDataModule",
    "ImageFolderData",
    "ParquetData",
    "SyntheticData",
    "WebDatasetData",
]

_MODULE_OF = {
    "AugmentConfig": "transforms",
    "CsvData": "csv",
    "DigitsData": "digits",
    "ImageDataModule": "datamodule",
    "ImageFolderData": "image_folder",
    "ParquetData": "parquet",
    "SyntheticData": "synthetic",
    "WebDatasetData": "webdataset",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
