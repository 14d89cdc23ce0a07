"""How fast detectors train and detect, beside torchvision's own model and beside the bare loop, all in one run.

    python -m experiments.bench.detection                    Faster R-CNN on ResNet-50 with a feature pyramid, 320 px
    python -m experiments.bench.detection --quick            two rounds of small images: does it run?
    python -m experiments.bench.detection --detector mask_rcnn --side_px 480 --rounds 9

Three networks with the same weights take turns, a step each in every round, and medians are compared: torchvision's
own, ours without attention, ours with ECA. Then `eca-hub fit` trains the network with ECA on JPEG files and a COCO
annotation file; after each of its steps, loading and callbacks included, the bare step is timed on the same images.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

import eca_hub
from eca_hub.commandline import CommandParser
from eca_hub.errors import InvalidConfig, InvalidUsage
from experiments.bench.bare_steps import train_step
from experiments.bench.training_images import synthetic
from experiments.program import run_program

_REFERENCES = {
    "faster_rcnn": "fasterrcnn_resnet50_fpn",
    "mask_rcnn": "maskrcnn_resnet50_fpn",
    "retinanet": "retinanet_resnet50_fpn",
}
_NUM_CLASSES = 80
_NUM_OBJECTS = 7
"""Of an image, as in COCO on average."""
_ECA_AIM, _PIPELINE_AIM = 1.03, 1.10


def main(argv: list[str]) -> int:
    """Measure and print."""
    parser = CommandParser("bench detection", "Measure detectors beside torchvision's and beside the bare loop.")
    parser.add_argument("--detector", choices=list(_REFERENCES), default="faster_rcnn")
    parser.add_argument("--side_px", type=int, default=320, help="Shorter side of the images; the other is 4/3 of it.")
    parser.add_argument("--batch_size", type=int, default=2, help="Images of a training step.")
    parser.add_argument("--rounds", type=int, default=9, help="Steps of each network, and steps of eca-hub fit.")
    parser.add_argument("--quick", action="store_true", help="Two rounds of 96 px: does it run?")
    parser.add_argument("--json", action="store_true", help="Print one JSON object.")
    args = parser.read(argv)
    if args.quick:
        args.side_px, args.rounds = 96, 2
    if args.side_px < 32 or args.batch_size < 1 or args.rounds < 1:
        raise InvalidUsage("--side_px must be 32 or more, --batch_size and --rounds 1 or more.")
    networks = make_networks(args.detector, args.side_px)
    training, inference = measure(networks, args.detector, args.side_px, args.batch_size, args.rounds)
    with tempfile.TemporaryDirectory() as folder:
        pipeline = measure_fit(Path(folder), args.detector, args.side_px, args.batch_size, args.rounds)
    results = {"training": training, "inference": inference, "pipeline": pipeline, "batch_size": args.batch_size}
    if args.json:
        print(json.dumps(results))
    else:
        print(f"{args.detector}, ResNet-50 with a pyramid, {args.side_px} px, {torch.get_num_threads()} threads")
        print_report(results)
    return 0


def make_networks(detector: str, side_px: int) -> dict[str, nn.Module]:
    """Make the three networks, with equal weights where they have the same tensors."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"min_size": side_px, "max_size": 2 * side_px}
    reference = torchvision.models.get_model(
        _REFERENCES[detector],
        weights=None,
        weights_backbone=None,
        num_classes=_NUM_CLASSES + (detector != "retinanet"),
        **sizes,
    )
    networks = {"torchvision": reference}
    weights = reference.state_dict()
    for name, attention in (("ours", "none"), ("ours, ECA", "eca")):
        options: dict[str, Any] = {"min_side_px": side_px, "max_side_px": 2 * side_px}
        network = eca_hub.create_detector(detector, attention=attention, num_classes=_NUM_CLASSES, **options)  # type: ignore[arg-type]
        own = network.state_dict()
        network.load_state_dict(
            {key: tensor for key, tensor in weights.items() if key in own and tensor.shape == own[key].shape},
            strict=False,
        )
        networks[name] = network
    return networks


def measure(
    networks: Mapping[str, nn.Module], detector: str, side_px: int, batch_size: int, rounds: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Return the median seconds of a training step and of an image, of each network."""
    images = [torch.rand(3, side_px, side_px * 4 // 3) for _ in range(batch_size)]
    targets = [objects(side_px, with_masks=detector == "mask_rcnn") for _ in images]
    # torchvision counts the background among the classes of two of its models.
    first = 0 if detector == "retinanet" else 1
    torchvision_targets = [{**target, "labels": target["labels"] + first} for target in targets]
    training: dict[str, Callable[[], object]] = {}
    inference: dict[str, Callable[[], object]] = {}
    for name, network in networks.items():
        optimizer = torch.optim.SGD(network.parameters(), lr=1e-9, momentum=0.9, weight_decay=1e-4)
        given = torchvision_targets if name == "torchvision" else targets
        training[name] = lambda network=network, optimizer=optimizer, given=given: train_step(  # type: ignore[misc]
            network.train(), optimizer, list(images), given
        )
        inference[name] = lambda network=network: detect(network, images[0])  # type: ignore[misc]
    return in_turns(training, rounds), in_turns(inference, rounds)


@torch.inference_mode()
def detect(network: nn.Module, image: Tensor) -> None:
    """Find the objects of one image."""
    network.eval()([image])


def objects(side_px: int, *, with_masks: bool) -> dict[str, Tensor]:
    """Make up the objects of an image."""
    corner_N2 = torch.rand(_NUM_OBJECTS, 2) * side_px * 0.6
    size_N2 = side_px * (0.1 + 0.3 * torch.rand(_NUM_OBJECTS, 2))
    target = {
        "boxes": torch.cat([corner_N2, corner_N2 + size_N2], dim=1),
        "labels": torch.randint(_NUM_CLASSES, (_NUM_OBJECTS,)),
    }
    if with_masks:
        target["masks"] = torch.ones(_NUM_OBJECTS, side_px, side_px * 4 // 3, dtype=torch.uint8)
    return target


def in_turns(works: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return the median seconds of each, after one round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(rounds + 1):
        for name, work in works.items():
            began_s = time.perf_counter()
            work()
            if turn:
                seconds[name].append(time.perf_counter() - began_s)
    return {name: statistics.median(each) for name, each in seconds.items()}


def measure_fit(work: Path, detector: str, side_px: int, batch_size: int, rounds: int) -> dict[str, float]:
    """Return the median seconds of a step of `eca-hub fit` and of the bare step that follows it."""
    write_coco(work / "coco", batch_size * (rounds + 1))
    options = {
        "data": "CocoData",
        "data.root": work / "coco",
        "data.batch_size": batch_size,
        "model.detector": detector,
        "model.backbone": "resnet50",
        "model.attention": "eca",
        "model.min_side_px": side_px,
        "model.max_side_px": 2 * side_px,
        "model.lr_batch_size": 0,
        "model.optim.lr": 1e-9,
        "trainer.max_epochs": 1,
        "trainer.accelerator": "cpu",
        "trainer.callbacks": "experiments.bench.bare_steps.BareSteps",
        "trainer.callbacks.init_args.file": work / "seconds.json",
    }
    options_argv = [argument for name, value in options.items() for argument in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "eca_hub", "fit", *options_argv, "--run_dir", str(work / "run")]
    environment = os.environ | {"ECA_TRAIN_IMPORTS": "experiments.bench.bare_steps"}
    completed = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if completed.returncode:
        raise InvalidConfig(f"eca-hub fit ended with {completed.returncode}: {completed.stderr[-1500:]}")
    seconds: dict[str, list[float]] = json.loads((work / "seconds.json").read_text())
    return {name: statistics.median(each) for name, each in seconds.items()}


def write_coco(root: Path, num_images: int) -> None:
    """Write JPEG files as detailed as photos, and an annotation file for training and validation."""
    (root / "annotations").mkdir(parents=True)
    for split, number_of_images in (("train2017", num_images), ("val2017", 1)):
        (root / split).mkdir()
        document: dict[str, list[dict[str, Any]]] = {"images": [], "annotations": [], "categories": []}
        document["categories"] = [{"id": index + 1, "name": f"class {index}"} for index in range(_NUM_CLASSES)]
        for number, (content, _) in enumerate(synthetic("photos", number_of_images), start=1):
            name = f"{number:06}.jpg"
            (root / split / name).write_bytes(content)
            # The size of `synthetic`'s photos.
            document["images"].append({"id": number, "file_name": name, "width": 348, "height": 348})
            for x1, y1, x2, y2 in objects(348, with_masks=False)["boxes"].tolist():
                outline = [x1, y1, x2, y1, x2, y2, x1, y2]
                document["annotations"].append(
                    {
                        "id": len(document["annotations"]) + 1,
                        "image_id": number,
                        "category_id": 1 + len(document["annotations"]) % _NUM_CLASSES,
                        "bbox": [x1, y1, x2 - x1, y2 - y1],
                        "area": (x2 - x1) * (y2 - y1),
                        "iscrowd": 0,
                        "segmentation": [outline],
                    }
                )
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(document))


def print_report(results: Mapping[str, Any]) -> None:
    """Print images a second, and each ratio of seconds beside its aim."""
    training, inference, pipeline = results["training"], results["inference"], results["pipeline"]
    print(f"{'images/s':<16}{'training step':>14}{'inference':>12}")
    for name in training:
        print(f"{name:<16}{results['batch_size'] / training[name]:>14.2f}{1 / inference[name]:>12.2f}")

    def ratios(name: str, other: str, title: str, aim: str) -> None:
        step, image = training[name] / training[other], inference[name] / inference[other]
        print(f"{title:<40}{step:.3f} training, {image:.3f} inference{aim}")

    ratios("ours", "torchvision", "time of ours, of torchvision's", "")
    ratios("ours, ECA", "ours", "time with ECA, of without", f"   (aim at most {_ECA_AIM:g})")
    ratio = pipeline["trainer"] / pipeline["bare"]
    print(f"{'time of a step of eca-hub fit, of bare':<40}{ratio:.3f}   (aim at most {_PIPELINE_AIM:g})")


if __name__ == "__main__":
    run_program(main)
