"""Trained models that are part of this package: each is a folder here, with the three files of a package.

They load by name without a hub: `Classifier.from_pretrained("eca_mobilenet_v2.photos34")`. The name is that of the
network and of the data set. Imports no torch and reads no file.
"""

from pathlib import Path

DEFAULT_RELEASE = "eca_mobilenet_v2.photos34"
"""What `eca-hub serve` and `eca-hub classify` run without --model."""

RELEASES = {
    DEFAULT_RELEASE: "34 kinds of fruit and vegetables, on photos from shops",
    "eca_resnet20.cifar10": "ten kinds of animals and vehicles at 32 px, for research",
}
"""Name to what it classifies."""


def list_releases() -> list[str]:
    """Return the names of the trained models in this package; the default one comes first."""
    return list(RELEASES)


def release_folder(name: str) -> Path | None:
    """Return the folder of a release, or None if there is no release of that name."""
    return Path(__file__).parent / name if name in RELEASES else None
