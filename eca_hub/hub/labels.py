"""What to call classes that come without names: 1000 of them are ImageNet's."""

from timm.data.imagenet_info import ImageNetInfo

from eca_hub.hub.timm_config import numbers


def usual_labels(num_classes: int) -> tuple[str, ...]:
    """Name the classes of a network that brings no names: ImageNet's for a thousand, else their numbers."""
    return imagenet_labels() if num_classes == 1000 else numbers(num_classes)


def imagenet_labels() -> tuple[str, ...]:
    """Name the 1000 classes of ImageNet in the usual order; the two cranes and the like carry their WordNet number."""
    info = ImageNetInfo()
    names = [description.partition(",")[0] for description in info.label_descriptions()]
    numbers = info.label_names()  # type: ignore[no-untyped-call]
    return tuple(
        f"{name} ({number})" if names.count(name) > 1 else name for name, number in zip(names, numbers, strict=True)
    )
