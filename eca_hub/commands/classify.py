"""`eca-hub classify`: classify images, and folders of images."""

import csv
import io
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eca_hub.commandline import CommandParser
from eca_hub.commands.images import STDIN, escape, find_images, read_stdin
from eca_hub.commands.outputs import check_file, not_written, output_path
from eca_hub.commands.progress import show_progress
from eca_hub.errors import BadImage, InvalidUsage
from eca_hub.releases import DEFAULT_RELEASE

if TYPE_CHECKING:
    from eca_hub.classifier import Classifier, Prediction


@dataclass(frozen=True)
class Row:
    """The result for one image: predictions or an error."""

    image: str
    predictions: "list[Prediction]"
    error: BadImage | None = None


def main(argv: list[str]) -> int:
    """Classify each image; a bad one is reported and does not stop the others."""
    parser = CommandParser(
        "classify",
        "Classify images.",
        examples=[
            "eca-hub classify apple.jpg",
            "eca-hub classify cat.jpg --model acme/eca_resnet50",
            "eca-hub classify photos/ --model runs/mine --output photos.csv",
            "cat cat.jpg | eca-hub classify - --model acme/eca_resnet50@v1",
        ],
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="Image file, folder of images, or - for stdin.")
    parser.add_argument(
        "--model",
        default=DEFAULT_RELEASE,
        help="OWNER/NAME on the hub, a folder with a package, or a model that is part of eca-hub",
    )
    parser.add_argument("--revision", help="Branch, tag or commit; the main branch when none is given.")
    parser.add_argument("--top_k", type=int, default=3, help="How many classes to print.")
    parser.add_argument("--min_score", type=float, default=0.0, help="Leave out classes with a lower score.")
    parser.add_argument("--batch_size", type=int, default=32, help="How many images to run at a time.")
    parser.add_argument("--device", default="cpu", help="Device of the network, such as cuda.")
    parser.add_argument("--output", help="Write to this .csv or .jsonl file; images that it has already are skipped.")
    parser.add_argument("--json", action="store_true", help="Print one JSON object for each image.")
    args = parser.read(argv)
    for name in ("top_k", "batch_size"):
        if args[name] < 1:
            raise InvalidUsage(f"--{name} is {args[name]}; it must be 1 or more.")
    if not 0 <= args.min_score <= 1:
        raise InvalidUsage(f"--min_score is {args.min_score}; it must be 0 to 1.")
    output = None if args.output is None else output_path("output", args.output)
    if output is not None and output.suffix not in (".csv", ".jsonl"):
        raise InvalidUsage(f"--output is {args.output!r}; the file must end in .csv or .jsonl.")
    if output is not None and args.json:
        raise InvalidUsage("--json prints and --output writes a file; give one of them. A .jsonl file has JSON.")
    if output is not None:
        check_file(output, is_appended=True)
    images = list(dict.fromkeys(each for given in args.images for each in find_images(given)))

    from eca_hub.classifier import Classifier

    classifier = Classifier.from_pretrained(args.model, args.revision, device=args.device)
    if output is not None:
        return _write_file(classifier, images, output, args.top_k, args.min_score, args.batch_size)
    num_bad = 0
    for row in _classify(classifier, images, args.top_k, args.min_score, args.batch_size):
        num_bad += row.error is not None
        print(json.dumps(_to_dict(classifier, row)) if args.json else _to_line(row), flush=True)
    return 2 if num_bad else 0


def _classify(
    classifier: "Classifier", images: list[str], top_k: int, min_score: float, batch_size: int
) -> Iterator[Row]:
    import torch

    transform = classifier.transform
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        pixels, errors = {}, {}
        for image in batch:
            try:
                source = read_stdin() if image == STDIN else image
                pixels[image] = transform.resize_and_crop(transform.decode(source))
            except BadImage as error:
                errors[image] = error
        predictions = {}
        if pixels:
            rows_NK = classifier.probabilities(torch.stack(list(pixels.values())))
            predictions = {
                image: classifier.rank(row_K, top_k, min_score) for image, row_K in zip(pixels, rows_NK, strict=True)
            }
        for image in batch:
            yield Row(image, predictions.get(image, []), errors.get(image))


def _write_file(
    classifier: "Classifier", images: list[str], path: Path, top_k: int, min_score: float, batch_size: int
) -> int:
    """Append a line for each image that the file does not have; complete lines survive a crash.

    Standard input is another image each time. Where --min_score leaves scores out, lines state the options.
    """
    top_k = min(top_k, len(classifier.config.labels))
    is_csv = path.suffix == ".csv"
    header = ["image", *(f"{name}_{rank}" for rank in range(1, top_k + 1) for name in ("label", "score")), "error"]
    header += ["revision", *(["min_score"] if min_score else [])]
    options = {"top_k": top_k, "min_score": min_score} if min_score else {}
    try:
        done = _read_done(path, header, classifier.revision, top_k, min_score) if path.is_file() else {}
        todo = [image for image in images if image == STDIN or _to_utf8(image) not in done]
        num_bad = sum(done[_to_utf8(image)] for image in set(images).difference(todo))
        with path.open("a", encoding="utf-8", errors="backslashreplace", newline="") as file:
            writer = csv.writer(file)
            if is_csv and file.tell() == 0:
                writer.writerow(header)
            for number, row in enumerate(_classify(classifier, todo, top_k, min_score, batch_size), start=1):
                num_bad += row.error is not None
                if is_csv:
                    scores = [value for each in row.predictions for value in (each.label, f"{each.score:.6f}")]
                    scores += [""] * (2 * top_k - len(scores))
                    message = row.error.message if row.error else ""
                    ending = [classifier.revision, *([min_score] if min_score else [])]
                    writer.writerow([row.image, *scores, message, *ending])
                else:
                    file.write(json.dumps({**_to_dict(classifier, row), **options}) + "\n")
                file.flush()
                show_progress(f"{number} of {len(todo)} images")
    except OSError as error:
        raise not_written(path, error) from None
    show_progress("")
    skipped = f", {len(images) - len(todo)} were there already" if len(images) > len(todo) else ""
    print(escape(f"{len(todo)} images classified{skipped}, {num_bad} of them bad; written to {path}"))
    return 2 if num_bad else 0


def _to_utf8(name: str) -> str:
    """Escape the bytes of a file name that are not UTF-8, as the file of results has them."""
    return name.encode("utf-8", "backslashreplace").decode()


def _read_done(path: Path, header: list[str], revision: str, top_k: int, min_score: float) -> dict[str, bool]:
    """Return the images of a file of results and whether each is bad, and cut an incomplete last line from it.

    A spreadsheet that saves the file may add a byte order mark, which is skipped.

    Raises:
        InvalidUsage: the file has other columns or separators, or results of another revision or other options.
    """
    content = path.read_bytes()
    complete = content[: content.rfind(b"\n") + 1]
    try:
        text = complete.decode("utf-8-sig")
        if path.suffix == ".csv":
            columns, *rows = list(csv.reader(io.StringIO(text, newline=""))) or [header]
            cells = [dict(zip(header, row, strict=True)) for row in (rows if columns == header else [])]
            results = [
                (
                    row["image"],
                    row["revision"],
                    row["error"] != "",
                    float(row["min_score"]) == min_score if min_score else row[f"label_{top_k}"] != "",
                )
                for row in cells
            ]
        else:
            columns = header
            results = [
                (
                    each["image"],
                    each["revision"],
                    "error" in each,
                    (each.get("top_k"), each.get("min_score")) == (top_k, min_score)
                    if min_score
                    else len(each.get("predictions", ())) == top_k,
                )
                for each in map(json.loads, text.splitlines())
            ]
        if not all(isinstance(image, str) for image, *_ in results):
            raise TypeError("an image is not text")
        has_these_options = all(is_bad or fits for _, _, is_bad, fits in results)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError, csv.Error):
        columns, results, has_these_options = [], [], True
    for separator, name in ((";", "semicolons"), ("\t", "tabs")):
        if len(columns) == 1 and columns[0].split(separator) == header:
            raise InvalidUsage(
                f"{path} has {name} between its columns, as a spreadsheet may save it; eca-hub writes commas.",
                hint="Save it with commas, or give a new file as --output.",
            )
    if not has_these_options:
        raise InvalidUsage(
            f"{path} exists and has results of another --top_k or --min_score than {top_k} and {min_score:g}.",
            hint="Give a new file as --output.",
        )
    if columns != header or any(each != revision for _, each, _, _ in results):
        raise InvalidUsage(
            f"{path} exists and has other columns, or results of another revision than {revision[:12]}.",
            hint="Give a new file as --output.",
        )
    if len(complete) < len(content):
        os.truncate(path, len(complete))
    return {_to_utf8(image): is_bad for image, _, is_bad, _ in results}


def _to_dict(classifier: "Classifier", row: Row) -> dict[str, Any]:
    document: dict[str, Any] = {"image": row.image, "model": classifier.model_id, "revision": classifier.revision}
    if row.error is not None:
        error = {"code": row.error.code, "message": row.error.message, "hint": row.error.hint}
        return {**document, "error": error}
    return {**document, "predictions": [asdict(prediction) for prediction in row.predictions]}


def _to_line(row: Row) -> str:
    if row.error is not None:
        text = str(row.error) if row.image != STDIN else f"{row.image}: {row.error}"
    else:
        text = f"{row.image}  " + (
            "  ".join(f"{each.label} {each.score:.3f}" for each in row.predictions) or "(no label)"
        )
    return escape(text)
