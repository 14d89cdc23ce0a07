"""`eca-hub classify`: name what is in pictures."""

import json
from dataclasses import asdict

from eca_hub.commandline import CommandParser
from eca_hub.errors import BadImage, InvalidUsage


def main(argv: list[str]) -> int:
    """Classify each picture; a bad one is said and does not stop the others."""
    parser = CommandParser("classify", "Name what is in pictures.")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="Path of a picture.")
    parser.add_argument("--model", required=True, help="OWNER/NAME on the hub, or a folder with a package.")
    parser.add_argument("--revision", help="Branch, tag or commit; the main branch when none is given.")
    parser.add_argument("--top_k", type=int, default=3, help="How many classes to name.")
    parser.add_argument("--device", default="cpu", help="Where to run, such as cpu or cuda.")
    parser.add_argument("--json", action="store_true", help="Print one JSON object a picture.")
    args = parser.read(argv)
    if args.top_k < 1:
        raise InvalidUsage(f"--top_k is {args.top_k}; it must be 1 or more.")

    from eca_hub.classifier import Classifier

    classifier = Classifier.from_pretrained(args.model, args.revision, device=args.device)
    num_bad = 0
    for path in args.images:
        try:
            predictions = classifier.predict(path, top_k=args.top_k)
        except BadImage as error:
            num_bad += 1
            answer = {"image": path, "error": {"code": error.code, "message": error.message, "hint": error.hint}}
            print(json.dumps(answer) if args.json else str(error))
            continue
        if args.json:
            answer = {"image": path, "model": classifier.model_id, "revision": classifier.revision}
            print(json.dumps({**answer, "predictions": [asdict(prediction) for prediction in predictions]}))
        else:
            print(f"{path}  " + "  ".join(f"{each.label} {each.score:.3f}" for each in predictions))
    return 2 if num_bad else 0
