"""`--model.compile true` writes the same package, with the same names of weights."""

import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch

import eca_hub
from tests.train.runs import fit

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU"),
    # Of torch's own compiler.
    pytest.mark.filterwarnings("default"),
]
CONFIG = """
model: {architecture: resnet20, optim: {lr: 0.05}}
data:
  class_path: SyntheticData
  init_args: {num_train: 16, num_eval: 8, batch_size: 8, image: {height_px: 8, width_px: 8, crop: 1.0}}
trainer: {max_epochs: 1, accelerator: cpu, devices: 1}
"""


def test_a_compiled_run_writes_the_weights_of_an_uncompiled_one(tmp_path: Path) -> None:
    weights = []
    for name in ("true", "false"):
        run_dir = tmp_path / name
        assert fit(run_dir, "--model.compile", name, config=CONFIG) == 0
        weights.append(safetensors.torch.load_file(run_dir / "model" / "model.safetensors"))
        assert not any(
            "_orig_mod" in path.read_bytes().decode("latin-1") for path in run_dir.glob("checkpoints/*.ckpt")
        )
    model, _ = eca_hub.load_pretrained(tmp_path / "true")
    assert weights[0].keys() == weights[1].keys() == model.state_dict().keys()
    torch.testing.assert_close(*weights, atol=1e-4, rtol=1e-3)
