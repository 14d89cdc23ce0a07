"""`eca-hub export`: export a model to ONNX, torch.export or TorchScript, and compare it with the library."""

import importlib.util
import json
from pathlib import Path
from typing import TYPE_CHECKING

from eca_hub.atomic import rename_synced, temporary_for
from eca_hub.commandline import CommandParser
from eca_hub.commands.outputs import check_file, not_written, output_path
from eca_hub.commands.progress import show_progress
from eca_hub.errors import InvalidUsage

if TYPE_CHECKING:
    from eca_hub.classifier import Classifier
    from eca_hub.detector import Detector
    from eca_hub.hub.export import Format

TOLERANCE = 1e-4
"""Largest allowed difference of a probability from that of `Classifier`; for a detector, of a value of the pyramid from
that of `Detector`, relative to the largest."""

_SUFFIXES = {"onnx": ".onnx", "torch_export": ".pt2", "torchscript": ".pt"}
_RUN = {
    "onnx": 'onnxruntime.InferenceSession("{path}").run({names}, {{"pixels": pixels}})',
    "torch_export": 'torch.export.load("{path}").module()(pixels)',
    "torchscript": 'torch.jit.load("{path}")(pixels)',
}


def main(argv: list[str]) -> int:
    """Export, compare the probabilities with those of Classifier, and print how to run the file."""
    parser = CommandParser(
        "export",
        "Export a model, with labels and preprocessing in the metadata of the file.",
        examples=["eca-hub export acme/eca_resnet50 --to onnx --output eca_resnet50.onnx"],
    )
    parser.add_argument("model", metavar="MODEL", help="OWNER/NAME on the hub, or a folder with a package.")
    parser.add_argument("--to", required=True, choices=list(_SUFFIXES), help="Format of the file.")
    parser.add_argument("--output", help="The file; model.onnx, model.pt2 or model.pt by default.")
    parser.add_argument("--revision", help="Branch, tag or commit; the main branch when none is given.")
    parser.add_argument("--json", action="store_true", help="Print one JSON object.")
    args = parser.read(argv)
    path = output_path("output", f"model{_SUFFIXES[args.to]}" if args.output is None else args.output)
    check_file(path)
    if path.exists():
        raise InvalidUsage(f"{path} exists.", hint="Give a new file as --output.")
    for package in ("onnx", "onnxscript", "onnxruntime") if args.to == "onnx" else ():
        if importlib.util.find_spec(package) is None:
            raise InvalidUsage(f"ONNX needs the package {package}.", hint="pip install 'eca-hub[export]'")

    from eca_hub.classifier import Classifier
    from eca_hub.detector import load_predictor

    temporary = temporary_for(path)
    predictor = load_predictor(args.model, args.revision)
    show_progress(f"exporting {args.model}")
    try:
        if isinstance(predictor, Classifier):
            difference, lines = _export_classifier(predictor, temporary, args.to)
        else:
            difference, lines = _export_detector(predictor, temporary, args.to)
        show_progress("")
        if not difference <= TOLERANCE:
            print(f"The exported network differs from the library's by {difference:.1e}; nothing was written.")
            return 1
        rename_synced(temporary, path.absolute())
    except OSError as error:
        raise not_written(path, error) from None
    finally:
        temporary.unlink(missing_ok=True)
    if args.json:
        origin = f"{predictor.model_id}@{predictor.revision}"
        print(json.dumps({"file": str(path), "format": args.to, "origin": origin, "difference": difference}))
        return 0
    print(f"{path}: {path.stat().st_size / 2**20:.1f} MiB; " + "\n".join(lines).format(path=path))
    return 0


def _export_classifier(classifier: "Classifier", path: Path, file_format: "Format") -> tuple[float, list[str]]:
    """Return the largest difference of a probability, and how to run the file."""
    import torch

    from eca_hub.hub.export import export_network, load_exported

    origin = f"{classifier.model_id}@{classifier.revision}"
    export_network(classifier.model, classifier.config, path, file_format, origin=origin)
    run, image = load_exported(path, file_format), classifier.config.image
    differences = []
    for num_images in (1, 3):
        size = (num_images, image.in_chans, image.height_px, image.width_px)
        pixels_NCHW = torch.randint(0, 256, size, dtype=torch.uint8)
        expected_NK = classifier.probabilities(pixels_NCHW)
        logits_NK = run(classifier.transform.normalize(pixels_NCHW))
        actual_NK = classifier.to_scores(logits_NK, classifier.config.activation)
        differences.append((expected_NK - actual_NK).abs().max())
    # Unlike Python's max, torch's is NaN if one of the values is.
    difference = float(torch.stack(differences).max())
    colors = "gray" if image.in_chans == 1 else "RGB"
    return difference, [
        f"probabilities within {difference:.1e} of Classifier's",
        f"Input: float32 (N, {image.in_chans}, {image.height_px}, {image.width_px}), any N; {colors} from 0 to 1, then",
        f"  (x - mean) / std with mean {list(image.mean)} and std {list(image.std)}",
        f"Run:   logits = {_run_line(file_format, ['logits'])}" + ("[0]" if file_format == "onnx" else ""),
    ]


def _export_detector(detector: "Detector", path: Path, file_format: "Format") -> tuple[float, list[str]]:
    """Return the largest relative difference of a value of the pyramid, and how to run the file."""
    import torch

    from eca_hub.hub.export import (
        MIN_SIDE_PX,
        STRIDE_PX,
        PyramidLevels,
        export_pyramid,
        level_names,
        load_exported_levels,
    )

    config, names = detector.config, level_names(detector.config)
    export_pyramid(detector.model, config, path, file_format, origin=f"{detector.model_id}@{detector.revision}")
    run, levels = load_exported_levels(path, file_format, names), PyramidLevels(detector.model)
    differences = []
    for num_images, rows, columns in ((1, 5, 7), (3, 6, 5)):
        x_N3HW = torch.randn(num_images, 3, rows * STRIDE_PX, columns * STRIDE_PX)
        with torch.no_grad():
            expected = levels(x_N3HW)
        for expected_NCHW, actual_NCHW in zip(expected, run(x_N3HW), strict=True):
            differences.append((expected_NCHW - actual_NCHW).abs().max() / expected_NCHW.abs().max().clamp_min(1e-12))
    difference = float(torch.stack(differences).max())
    return difference, [
        f"backbone and pyramid, values within {difference:.1e} of Detector's",
        "The whole detector does not export: how many boxes non-maximum suppression leaves depends on the image.",
        f"Input: float32 (N, 3, H, W), sides from {MIN_SIDE_PX} px, multiples of {STRIDE_PX}; RGB from 0 to 1, then",
        f"  (x - mean) / std with mean {list(config.mean)} and std {list(config.std)}",
        f"Run:   {', '.join(names)} = {_run_line(file_format, names)}",
    ]


def _run_line(file_format: str, names: list[str]) -> str:
    return _RUN[file_format].replace("{names}", json.dumps(names))
