"""The lines of use in a model card: written before the package has a name, and named when it is pushed.

Knows nothing of networks, of the rest of the card, or of the hub's protocol. Needs no torch.
"""

import re

PLACEHOLDER = "OWNER/NAME"
"""Stands for the id of the model until it is known."""


def lines_of_use(model_id: str, *, is_timm: bool) -> str:
    """Write the section of a card that tells what to type.

    Args:
        model_id: Hub `owner/name`, or the placeholder.
        is_timm: Whether stock timm loads the package as well.
    """
    return (
        "## Use\n\n"
        "```python\n"
        "import eca_hub\n\n"
        f'classifier = eca_hub.Classifier.from_pretrained("{model_id}")  # this repository, or a folder\n'
        'classifier.predict("picture.png", top_k=3)\n'
        "```\n\n" + (_WITH_TIMM.format(model_id) if is_timm else "") + "```sh\n"
        f"eca-hub serve --model {model_id} --port 8000\n"
        "curl --data-binary @picture.png -H 'Content-Type: image/png' http://127.0.0.1:8000/v1/classify\n"
        "```"
    )


def name_model(card: bytes, model_id: str) -> bytes:
    """Put the id of the model into the lines of use that eca-hub wrote; every other byte of the card stays.

    Ours are the section as a whole, whatever model it named before, and single lines with the placeholder, if somebody
    wrote around them. The same card and id always give the same bytes.

    Args:
        card: README.md as it lies in the package.
        model_id: Hub `owner/name`.
    """
    text = card.decode("utf-8", "surrogateescape")
    for is_timm in (False, True):
        ours = re.escape(lines_of_use(PLACEHOLDER, is_timm=is_timm)).replace(re.escape(PLACEHOLDER), r"[\w.-]+/[\w.-]+")
        named = lines_of_use(model_id, is_timm=is_timm)
        text = re.sub(ours, lambda _, named=named: named, text)  # type: ignore[misc]
    for line in lines_of_use(PLACEHOLDER, is_timm=True).splitlines():
        if PLACEHOLDER in line:
            text = text.replace(line, line.replace(PLACEHOLDER, model_id))
    return text.encode("utf-8", "surrogateescape")


_WITH_TIMM = """```python
import timm  # eca-hub need not be installed

model = timm.create_model("hf-hub:{}", pretrained=True)
```

"""
