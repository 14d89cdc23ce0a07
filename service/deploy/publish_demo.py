"""Publish a first model on an empty hub: train a small one on real digits, unless the hub has it already.

    python publish_demo.py CONFIG OWNER/NAME

HF_ENDPOINT and HF_TOKEN name the hub and the key; ECA_DEMO_EPOCHS is the length of the training. The train stage of the
image runs it (service/Dockerfile).
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path


def main(argv: list[str]) -> int:
    """Publish one model; return 0 when the hub has it."""
    from huggingface_hub import HfApi

    if len(argv) != 2:
        print("usage: python publish_demo.py CONFIG OWNER/NAME", file=sys.stderr)
        return 2
    config, model_id = argv
    if HfApi().repo_exists(model_id) and HfApi().file_exists(model_id, "model.safetensors"):
        print(f"{model_id} is published already", flush=True)
        return 0
    epochs = os.environ.get("ECA_DEMO_EPOCHS", "20")
    with tempfile.TemporaryDirectory() as folder:
        options = ["--config", config, "--run_dir", str(Path(folder) / "run"), "--trainer.max_epochs", epochs]
        command = [sys.executable, "-m", "eca_hub", "fit", *options, "--push_to", model_id]
        return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
