"""`eca-hub export`: export a model to ONNX, torch.export or TorchScript, and check it against Classifier."""

import importlib.util
import json
from pathlib import Path

from eca_hub.atomic import rename_synced, temporary_for
from eca_hub.commandline import CommandParser
from eca_hub.commands.progress import show_progress
from eca_hub.errors import InvalidUsage

TOLERANCE = 1e-4
"""Largest allowed difference of a probability from that of `Classifier`."""

_SUFFIXES = {"onnx": ".onnx", "torch_export": ".pt2", "torchscript": ".pt"}
_RUN = {
    "onnx": 'onnxruntime.InferenceSession("{path}").run(["logits"], {{"pixels": pixels}})[0]',
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
    path = Path(args.output or f"model{_SUFFIXES[args.to]}")
    if path.exists():
        raise InvalidUsage(f"{path} exists.", hint="Give a new file as --output.")
    if not path.absolute().parent.is_dir():
        raise InvalidUsage(f"There is no folder {path.absolute().parent}.")
    for package in ("onnx", "onnxscript", "onnxruntime") if args.to == "onnx" else ():
        if importlib.util.find_spec(package) is None:
            raise InvalidUsage(f"ONNX needs the package {package}.", hint="pip install 'eca-hub[export]'")

    import torch

    from eca_hub.classifier import Classifier
    from eca_hub.hub.export import export_network, load_exported

    classifier = Classifier.from_pretrained(args.model, args.revision)
    show_progress(f"exporting {args.model}")
    temporary = temporary_for(path)
    try:
        origin = f"{classifier.model_id}@{classifier.revision}"
        export_network(classifier.model, classifier.config, temporary, args.to, origin=origin)
        run, image, difference = load_exported(temporary, args.to), classifier.config.image, 0.0
        for num_images in (1, 3):
            size = (num_images, image.in_chans, image.height_px, image.width_px)
            pixels_NCHW = torch.randint(0, 256, size, dtype=torch.uint8)
            expected_NK = classifier.probabilities(pixels_NCHW)
            logits_NK = run(classifier.transform.normalize(pixels_NCHW))
            actual_NK = classifier.to_scores(logits_NK, classifier.config.activation)
            difference = max(difference, float((expected_NK - actual_NK).abs().max()))
        show_progress("")
        if not difference <= TOLERANCE:
            print(f"The exported network differs from Classifier by {difference:.1e}; nothing was written.")
            return 1
        rename_synced(temporary, path.absolute())
    except OSError as error:
        raise InvalidUsage(f"{path} cannot be written: {error.strerror or error}.") from None
    finally:
        temporary.unlink(missing_ok=True)
    if args.json:
        print(json.dumps({"file": str(path), "format": args.to, "origin": origin, "difference": difference}))
        return 0
    print(f"{path}: {path.stat().st_size / 2**20:.1f} MiB; probabilities within {difference:.1e} of Classifier's")
    print(f"Input: float32 (N, {image.in_chans}, {image.height_px}, {image.width_px}), any N; RGB from 0 to 1, then")
    print(f"  (x - mean) / std with mean {list(image.mean)} and std {list(image.std)}")
    print(f"Run:   logits = {_RUN[args.to].format(path=path)}")
    return 0
