"""What a network learns from: pictures as uint8 pixels, with class names and preprocessing."""

from eca_hub.train.data.augment import AugmentConfig
from eca_hub.train.data.base import ImageData
from eca_hub.train.data.digits import DigitsData
from eca_hub.train.data.folder import ImageFolderData
from eca_hub.train.data.parquet import ParquetData
from eca_hub.train.data.synthetic import SyntheticData

__all__ = ["AugmentConfig", "DigitsData", "ImageData", "ImageFolderData", "ParquetData", "SyntheticData"]
