"""Give an empty hub its first model: train a small one on real digits and publish it, unless the hub has it already.

    python -m experiments.publish_demo demo/eca_resnet20_digits

HF_ENDPOINT and HF_TOKEN say where to; ECA_SEED_EPOCHS how long to train. Knows commands, not networks.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

CONFIG = Path(__file__).parent / "configs" / "digits" / "eca.yaml"


def main(argv: list[str]) -> int:
    """Publish the one model whose id is given; return 0 when the hub has it."""
    from huggingface_hub import HfApi

    if len(argv) != 1:
        print("usage: python -m experiments.publish_demo OWNER/NAME", file=sys.stderr)
        return 2
    if HfApi().repo_exists(argv[0]) and HfApi().file_exists(argv[0], "model.safetensors"):
        print(f"{argv[0]} is there already", flush=True)
        return 0
    epochs = os.environ.get("ECA_SEED_EPOCHS", "20")
    with tempfile.TemporaryDirectory() as folder:
        run = str(Path(folder) / "run")
        _run("fit", "--config", str(CONFIG), "--run_dir", run, "--trainer.max_epochs", epochs)
        _run("push", run, argv[0])
    return 0


def _run(*command: str) -> None:
    subprocess.run([sys.executable, "-m", "eca_hub", *command], check=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
