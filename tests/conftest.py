"""Fixtures that several test packages share: a tiny package on disk, and generated images."""

import gc
import io
import logging
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest
from huggingface_hub import constants
from PIL import Image

import eca_hub

if TYPE_CHECKING:
    from eca_hub.models.detector_config import DetectorName

# Examples of each property: enough to run its code by default, and with --hypothesis-profile thorough to search.
hypothesis.settings.register_profile("default_run", max_examples=15, deadline=None)
hypothesis.settings.register_profile("thorough", max_examples=300, deadline=None)
hypothesis.settings.load_profile("default_run")

SOAK_FILES = (
    "attention/test_every_method.py",
    "experiments/test_bench_soak.py",
    "experiments/test_bench_training.py",
    "hub/convert/test_checkpoint.py",
    "service/api/test_schema_fuzz.py",
    "service/inference/test_decoding_flood.py",
    "service/optimize/test_compile.py",
    "service/test_ray_app.py",
    "sweep/test_ray_launcher.py",
    "train/checkpoint/test_store.py",
    "train/distributed/test_hosts.py",
    "train/distributed/test_processes.py",
    "train/test_compile.py",
)
"""Files whose slow tests take longer than CI has: `pytest -m soak` runs them."""


def pytest_configure() -> None:
    """Run the programs of tests as users do, whatever the environment says: with buffers, and compiled once."""
    sys.dont_write_bytecode = False
    for name in ("PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED"):
        os.environ.pop(name, None)


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """Let the garbage collector pass over what was imported: a million objects that stay.

    The process that only hands out tests does not collect them, and never imports torch.
    """
    import torch

    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the slow tests of those files, before pytest selects by marks; a test of the soak is a slow one."""
    for item in items:
        if item.get_closest_marker("slow") and item.path.as_posix().endswith(SOAK_FILES):
            item.add_marker("soak")
        elif item.get_closest_marker("soak"):
            item.add_marker("slow")


_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"))
_SET_BY_RUNS = ("PL_GLOBAL_SEED", "PL_SEED_WORKERS")
"""Lightning keeps the seed of a run in the environment of its process: removed after each test."""
_READ_HERE = ("ECA_", "HF_", "LOCAL_RANK", "MASTER_", "NODE_RANK", "NO_PROXY", "OMP_", "RANK", "SLURM_", "WORLD_SIZE")
"""How the variables begin that this project and its launchers read; libraries set others when they are imported."""
_LIGHTNING_RANK = "lightning.fabric.utilities.rank_zero"


def state_of_the_process() -> Mapping[str, object]:
    """What a test may change for the tests after it in the same process; a module that is not imported is left out."""
    import torch

    environment = {name: value for name, value in os.environ.items() if name.startswith(_READ_HERE)}
    root, lightning = logging.getLogger(), sys.modules.get(_LIGHTNING_RANK)
    return {
        **{f"the variable {name}": value for name, value in environment.items()},
        "the working directory": _working_directory(),
        # Some libraries add a folder of their own when they are imported.
        "sys.path": tuple(path for path in sys.path if "site-packages" not in path),
        "the signal handlers": tuple(signal.getsignal(number) for number in _SIGNALS),
        "the root logger": (root.level, root.disabled, logging.root.manager.disable),
        "the rank of Lightning": lightning.rank_zero_only.rank if lightning else 0,
        "the number of threads of torch": torch.get_num_threads(),
        "the default type of torch": torch.get_default_dtype(),
        "the deterministic algorithms of torch": torch.are_deterministic_algorithms_enabled(),
        "the gradient mode of torch": torch.is_grad_enabled(),
        "the limit of Pillow": Image.MAX_IMAGE_PIXELS,
        "the settings of huggingface_hub": (constants.ENDPOINT, constants.HF_HUB_CACHE, constants.HF_HUB_OFFLINE),
    }


def _working_directory() -> Path | None:
    try:
        return Path.cwd()
    except FileNotFoundError:
        # A test that failed has left it and removed it.
        return None


@pytest.fixture(autouse=True)
def nothing_is_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail the test of the default run that changes the process for the tests after it, not those that suffer."""
    if request.node.get_closest_marker("slow"):
        yield
        return
    before = state_of_the_process()
    yield
    for name in _SET_BY_RUNS:
        os.environ.pop(name, None)
    after = state_of_the_process()
    if after != before:
        changed = sorted(name for name in {*before, *after} if before.get(name) != after.get(name))
        changes = "; ".join(f"{name} was {before.get(name)!r} and is {after.get(name)!r}" for name in changed)
        pytest.fail(f"This test changes the process for those after it: {changes}.", pytrace=False)


LABELS = ("cat", "dog", "eel")
TINY = eca_hub.ModelConfig(
    "resnet20", "eca", labels=LABELS, image=eca_hub.ImageConfig(height_px=16, width_px=16, crop=1.0)
)


@pytest.fixture(scope="session")
def tiny_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package of an ECA-ResNet-20 with three classes and random weights."""
    import torch

    torch.manual_seed(0)
    model = eca_hub.create_model("eca_resnet20", num_classes=len(LABELS))
    return eca_hub.save_pretrained(model, tmp_path_factory.mktemp("package"), config=TINY)


@pytest.fixture(scope="session")
def damaged_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package like `tiny_package` whose weights are finite and whose outputs are NaN: a variance is negative."""
    import torch

    torch.manual_seed(0)
    model = eca_hub.create_model("eca_resnet20", num_classes=len(LABELS))
    norm = next(module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d))
    assert norm.running_var is not None
    norm.running_var[0] = -1.0
    return eca_hub.save_pretrained(model, tmp_path_factory.mktemp("damaged"), config=TINY)


@pytest.fixture(scope="session")
def detector_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Mask R-CNN with random weights, which finds something everywhere."""
    return save_tiny_detector(tmp_path_factory.mktemp("detector"), side_px=32)


def save_tiny_detector(folder: Path, kind: "DetectorName" = "mask_rcnn", *, seed: int = 0, side_px: int = 64) -> Path:
    """A detector that was never trained; with few detections, because each costs a pass of the mask head."""
    import torch

    from eca_hub.hub.pretrained import save_detector

    torch.manual_seed(seed)
    # An untrained RetinaNet gives every anchor about 0.01.
    least = {"min_score": 0.001} if kind == "retinanet" else {}
    small: dict[str, Any] = {"min_side_px": side_px, "max_side_px": side_px * 3 // 2, "max_detections": 4, **least}
    model = eca_hub.create_detector(kind, backbone="resnet18", num_classes=2, **small)
    return save_detector(model, folder, labels=("bar", "disk"))


def make_image(
    width: int = 40, height: int = 30, *, mode: str = "RGB", file_format: str = "PNG", **options: object
) -> bytes:
    """Make the bytes of an image that is darker at the left and the top."""
    gradient = Image.linear_gradient("L").resize((width, height))
    sideways = gradient.transpose(Image.Transpose.ROTATE_90).resize((width, height))
    image = Image.merge("RGB", (gradient, sideways, gradient)).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, format=file_format, **options)
    return buffer.getvalue()
