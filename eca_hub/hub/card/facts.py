"""What a model card states beyond the configuration: training, results, texts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Result:
    """One measured number."""

    dataset: str
    """Name of the data set, such as `scikit-learn digits`."""
    split: str
    """Split that was measured."""
    metric: str
    """Name of the metric, such as `accuracy`."""
    value: float
    """The value, 0 to 1 for an accuracy."""
    num_images: int
    """Number of images that it was measured on."""


@dataclass(frozen=True)
class CardFacts:
    """Contents of a model card beyond the configuration."""

    title: str = ""
    """Heading; the architecture when empty."""
    summary: str = ""
    """One or two sentences: what the model is for."""
    license: str = ""
    """License of the weights as the Hub spells it, if the author gave one; `other` for those that it does not know."""
    license_name: str = ""
    """Name of a license that is `other`."""
    license_link: str = ""
    """Address of its text."""
    results: tuple[Result, ...] = ()
    """Measurements of the run that trained the weights."""
    recipe: Mapping[str, str] = field(default_factory=dict)
    """Training settings: name to value."""
    curves: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """Name of a number that was measured every epoch, such as `val_top1`, to its values."""
    plots: Mapping[str, str] = field(default_factory=dict)
    """File name of a plot in the package, one of `PLOTS`, to what it shows."""
    datasets: tuple[str, ...] = ()
    """Ids of the Hub's data sets that it was trained on."""
    base_model: str = ""
    """Id of the Hub's model that it was fine-tuned from."""
    measured_on: str = ""
    """Date, hardware and software of the run."""
    command: str = ""
    """Command line that trains it again."""
    commit: str = ""
    """Git commit of the training code."""
    seed: int | None = None
    """Seed of the run."""
    limits: str = ""
    """What it is not for."""
