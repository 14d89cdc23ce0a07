"""Training data: batches of uint8 images, with class names and preprocessing.

Names are imported at first use, so worker processes import no Lightning.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eca_hub.train.data.coco_data import CocoData, YoloData
    from eca_hub.train.data.csv import CsvData
    from eca_hub.train.data.datamodule import ImageDataModule
    from eca_hub.train.data.detection import DetectionDataModule
    from eca_hub.train.data.detection_dataset import DetectionAugmentConfig
    from eca_hub.train.data.digits import DigitsData
    from eca_hub.train.data.image_folder import ImageFolderData
    from eca_hub.train.data.parquet import ParquetData
    from eca_hub.train.data.synthetic import SyntheticData
    from eca_hub.train.data.transforms import AugmentConfig
    from eca_hub.train.data.webdataset import WebDatasetData
    from eca_hub.train.data.webdataset_stream import WebDatasetStreamData

__all__ = [
    "AugmentConfig",
    "CocoData",
    "CsvData",
    "DetectionAugmentConfig",
    "DetectionDataModule",
    "DigitsData",
    "ImageDataModule",
    "ImageFolderData",
    "ParquetData",
    "SyntheticData",
    "WebDatasetData",
    "WebDatasetStreamData",
    "YoloData",
]

_MODULE_OF = {
    "AugmentConfig": "transforms",
    "CsvData": "csv",
    "CocoData": "coco_data",
    "DetectionAugmentConfig": "detection_dataset",
    "DetectionDataModule": "detection",
    "DigitsData": "digits",
    "ImageDataModule": "datamodule",
    "ImageFolderData": "image_folder",
    "ParquetData": "parquet",
    "SyntheticData": "synthetic",
    "WebDatasetData": "webdataset",
    "WebDatasetStreamData": "webdataset_stream",
    "YoloData": "coco_data",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
