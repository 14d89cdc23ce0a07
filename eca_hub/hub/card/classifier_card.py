"""README.md of a classifier, rendered from its configuration and from what was measured. Imports no torch."""

from typing import TYPE_CHECKING

from eca_hub.hub.card.facts import CardFacts
from eca_hub.hub.card.sections import (
    CITATION,
    MODEL_ID_PLACEHOLDER,
    NUM_SHOWN_LABELS,
    SOURCES,
    UNKNOWN_LIMITS,
    card_metadata,
    escape,
    license_section,
    results_section,
    training_section,
)
from eca_hub.models.config import ModelConfig

if TYPE_CHECKING:
    from eca_hub.models.complexity import Complexity


def render_card(
    config: ModelConfig, complexity: "Complexity | None", facts: CardFacts, *, is_timm: bool = False
) -> str:
    """Return README.md: metadata for the Hub, then a page for people.

    Args:
        config: The resolved configuration of the network.
        complexity: Its parameters and multiply-adds, if they were counted.
        facts: Training, results and texts.
        is_timm: Whether stock timm loads the package as well.
    """
    name = config.architecture if config.attention == "none" else f"{config.attention}_{config.architecture}"
    title = facts.title or name
    data = card_metadata("image-classification", title, facts, is_timm=is_timm, is_multi_label=config.is_multi_label)
    sections = [
        f"# {escape(title)}",
        facts.summary or f"A {name} image classifier with {config.num_classes} classes.",
        usage_section(MODEL_ID_PLACEHOLDER, is_timm=is_timm),
        # torchvision's MobileNetV2 has other methods than timm's networks.
        _EMBEDDINGS.format(_TORCHVISION_FEATURES if config.architecture == "mobilenet_v2" else _TIMM_FEATURES),
        results_section(facts),
        _network_section(config, name, complexity),
        training_section(facts),
        f"## Limits and bias\n\n{facts.limits or (_UNKNOWN_CLASSES if config.is_multi_label else _ONE_CLASS)}",
        license_section(facts),
        CITATION,
    ]
    return f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(section for section in sections if section) + "\n"


def usage_section(model_id: str, *, is_timm: bool) -> str:
    """Return the section of a card that shows what to type.

    Args:
        model_id: Hub `owner/name`, or the placeholder.
        is_timm: Whether stock timm loads the package as well.
    """
    return (
        "## Use\n\n"
        "```python\n"
        "import eca_hub\n\n"
        f'classifier = eca_hub.Classifier.from_pretrained("{model_id}")  # this repository, or a folder\n'
        'classifier.predict("image.png", top_k=3)\n'
        "```\n\n" + (_WITH_TIMM.format(model_id) if is_timm else "") + "```sh\n"
        f"eca-hub serve --model {model_id} --port 8000\n"
        "curl --data-binary @image.png -H 'Content-Type: image/png' http://127.0.0.1:8000/v1/classify\n"
        "```"
    )


def _network_section(config: ModelConfig, name: str, complexity: "Complexity | None") -> str:
    image = config.image
    labels = ", ".join(escape(label) for label in config.labels[:NUM_SHOWN_LABELS])
    more = f" and {config.num_classes - NUM_SHOWN_LABELS} more" if config.num_classes > NUM_SHOWN_LABELS else ""
    options = ", ".join(f"{key} = {value}" for key, value in config.attention_args.items())
    lines = [
        "## Network and preprocessing",
        "",
        f"- architecture: `{name}`" + (f", {complexity.num_parameters:,} parameters" if complexity else ""),
        *(
            [
                f"- {complexity.multiply_adds / 1e6:,.1f} million multiply-adds and "
                f"{complexity.num_activations / 1e6:,.2f} million activations for one image"
            ]
            if complexity
            else []
        ),
        f"- attention: `{config.attention}`" + (f", {options}" if options else ""),
        f"- input: {'RGB' if image.in_chans == 3 else 'gray'}, {image.height_px} x {image.width_px} px, "
        f"{image.crop_mode} crop of {image.crop:g}, {image.interpolation}",
        f"- mean {list(image.mean)}, standard deviation {list(image.std)}",
        f"- {config.num_classes} classes: {labels}{more}",
        *(["- a score is the probability of that class by itself (sigmoid)"] if config.is_multi_label else []),
        SOURCES,
    ]
    return "\n".join(lines)


_WITH_TIMM = """```python
import timm  # eca-hub need not be installed

model = timm.create_model("hf-hub:{}", pretrained=True)
```

"""

_EMBEDDINGS = """The network before its classifier gives embeddings of images, as `POST /v1/embed` does:

```python
pixels = classifier.transform(classifier.transform.decode("image.png"))[None]
network = classifier.model
embedding = {}
```"""
_TIMM_FEATURES = "network.forward_head(network.forward_features(pixels), pre_logits=True)"
_TORCHVISION_FEATURES = "network.features(pixels).mean((2, 3))"

_ONE_CLASS = f"Every image gets one of the classes above, whatever it shows. {UNKNOWN_LIMITS}"
_UNKNOWN_CLASSES = f"Only the classes above are recognized. {UNKNOWN_LIMITS}"
