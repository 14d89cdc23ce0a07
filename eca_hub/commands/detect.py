"""`eca-hub detect`: find the objects in images, draw them, and write COCO results."""

import io
import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eca_hub.atomic import write_atomic
from eca_hub.commandline import CommandParser
from eca_hub.commands.images import STDIN, escape, find_images, read_stdin
from eca_hub.commands.outputs import check_file, not_written, output_path
from eca_hub.commands.streams import discard_output
from eca_hub.errors import BadImage, InvalidConfig, InvalidUsage

if TYPE_CHECKING:
    from eca_hub.detector import Detection, Detector

_MAX_DIGITS = 18
"""Of a file name that is a number of 64 bits."""


def main(argv: list[str]) -> int:
    """Find the objects in each image; a broken image is reported and does not stop the others."""
    parser = CommandParser("detect", "Find the objects in images.")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="Image file, folder of images, or - for stdin.")
    parser.add_argument("--model", required=True, help="OWNER/NAME on the hub, or a folder with a detector package.")
    parser.add_argument("--revision", help="Branch, tag or commit; the main branch when none is given.")
    parser.add_argument(
        "--min_score",
        type=float,
        help="Lowest score of what is returned; by default 0.5, or the detector's own minimum if it is higher.",
    )
    parser.add_argument("--max_detections", type=int, default=100, help="Objects of an image at most.")
    parser.add_argument("--save_image", metavar="DIR", help="Draw boxes, masks, labels and scores into copies in DIR.")
    parser.add_argument("--to", metavar="FILE", help="Write a COCO results file.")
    parser.add_argument(
        "--annotations", metavar="FILE", help="COCO file whose image and category ids --to uses, by name."
    )
    parser.add_argument("--device", default="cpu", help="Where to run, such as cpu or cuda.")
    parser.add_argument("--json", action="store_true", help="Print one JSON object an image.")
    args = parser.read(argv)
    if args.annotations and not args.to:
        raise InvalidUsage("--annotations has the ids for --to, which is not given.")
    paths = {
        name: None if args[name] is None else output_path(name, args[name])
        for name in ("to", "annotations", "save_image")
    }
    to, annotations, folder = paths["to"], paths["annotations"], paths["save_image"]
    if args.max_detections < 1:
        raise InvalidUsage(f"--max_detections is {args.max_detections}; it must be 1 or more.")
    if args.min_score is not None and not 0 <= args.min_score <= 1:
        raise InvalidUsage(f"--min_score is {args.min_score}; it must be 0 to 1.")
    images = list(dict.fromkeys(path for given in args.images for path in find_images(given)))
    names = [Path(path).stem for path in images]
    if folder is not None and len(set(names)) < len(names):
        repeated = next(name for name in names if names.count(name) > 1)
        raise InvalidUsage(f"Two images are named {repeated}; one drawing would replace the other.")
    drawings = {} if folder is None else {path: folder / f"{Path(path).stem}.png" for path in images}
    if folder is not None and folder.exists() and not folder.is_dir():
        raise InvalidUsage(f"--save_image is {folder}, which is a file and not a folder.")
    for drawing in drawings.values():
        check_file(drawing, makes_folder=True)
    if to is not None:
        check_file(to)
    _check_overlap(
        [*drawings.values(), *([to] if to else [])],
        [*images, *([str(annotations)] if annotations else [])],
    )
    ids = _Ids(None if annotations is None else str(annotations), images) if to else None

    from eca_hub.detector import Detector

    detector = Detector.from_pretrained(args.model, args.revision, device=args.device)
    detector.check_options(args.min_score, args.max_detections)
    if ids is not None:
        ids.check_labels(detector.config.labels)
    if folder is not None:
        _make_folder(folder)
    results: list[dict[str, Any]] = []
    num_done = num_bad = 0
    try:
        for path in images:
            try:
                source = read_stdin() if path == STDIN else path
                detections = detector.predict(source, min_score=args.min_score, max_detections=args.max_detections)
            except BadImage as error:
                num_done, num_bad = num_done + 1, num_bad + 1
                line = _describe_error(path, error, as_json=args.json)
            else:
                if ids is not None:
                    results += [ids.result(path, each) for each in detections]
                num_done += 1
                if path in drawings:
                    _draw(source, detections, drawings[path], detector.config.bit_depth)
                line = _describe(path, detections, detector, as_json=args.json)
            _print_line(line, writes_files=bool(to or drawings))
    finally:
        # An error or Ctrl-C keeps what was found before it.
        if to is not None and num_done:
            _write(to, (json.dumps(results) + "\n").encode())
            if num_done < len(images):
                print(f"{to} has the results of {num_done} of {len(images)} images.", file=sys.stderr)
    return 2 if num_bad else 0


def _describe_error(path: str, error: BadImage, *, as_json: bool) -> str:
    if as_json:
        return json.dumps({"image": path, "error": {"code": error.code, "message": error.message, "hint": error.hint}})
    return escape(f"{path}: {error}" if path == STDIN else str(error))


def _describe(path: str, detections: list["Detection"], detector: "Detector", *, as_json: bool) -> str:
    if as_json:
        document = {"image": path, "model": detector.model_id, "revision": detector.revision}
        return json.dumps({**document, "detections": [_as_json(each) for each in detections]})
    objects = ", ".join(f"{each.label} {each.score:.2f} at {_format_box(each)}" for each in detections)
    return escape(f"{path}  {objects or 'nothing found'}")


def _print_line(line: str, *, writes_files: bool) -> None:
    """Print a line; files are also written when the reader of the output, such as `head`, has exited."""
    try:
        print(line, flush=True)
    except BrokenPipeError:
        if not writes_files:
            raise
        discard_output()


class _Ids:
    """The image and category ids of a results file: those of an annotation file, or plain numbers.

    Raises:
        InvalidConfig: the annotation file cannot be read, or does not list each image once; two images have one id.
    """

    def __init__(self, annotations: str | None, images: list[str]) -> None:
        self._annotations = annotations
        self._category_ids: dict[str, Any] = {}
        self._image_ids = {path: _number_or_name(Path(path)) for path in images}
        if annotations is not None:
            listed, self._category_ids = _read_annotations(annotations)
            for path in images:
                entries = listed.get(Path(path).name, [])
                if len(entries) != 1:
                    times = "no image" if not entries else f"{len(entries)} images"
                    raise InvalidConfig(
                        f"{annotations} lists {times} {Path(path).name}; --to needs the id of each image."
                    )
                _check_size(path, entries[0], annotations)
                self._image_ids[path] = entries[0]["id"]
        path_of: dict[int | str, str] = {}
        for path, image_id in self._image_ids.items():
            if path_of.setdefault(image_id, path) != path:
                raise InvalidConfig(f"{path_of[image_id]} and {path} have the same id {image_id} in --to.")

    def check_labels(self, labels: tuple[str, ...]) -> None:
        """Refuse labels of the detector that the annotation file does not have; without a file, number them.

        Raises:
            InvalidConfig: the file has no such category.
        """
        if self._annotations is None:
            self._category_ids = {label: index for index, label in enumerate(labels, start=1)}
            print(
                f"--to: category ids are 1 to {len(labels)}, in the order of the labels; --annotations takes those of "
                "a COCO file.",
                file=sys.stderr,
            )
        for label in labels:
            if label not in self._category_ids:
                raise InvalidConfig(f"{self._annotations} has no category {label!r}, which the detector has.")

    def result(self, path: str, detection: "Detection") -> dict[str, Any]:
        """Return a detection as a COCO results file has it."""
        ids = {"image_id": self._image_ids[path], "category_id": self._category_ids[detection.label]}
        return {**ids, **_coco_fields(detection)}


def _number_or_name(path: Path) -> int | str:
    """Return the id of an image: COCO's files are named by it."""
    is_number = path.stem.isdecimal() and len(path.stem) <= _MAX_DIGITS
    return int(path.stem) if is_number else path.name


def _check_size(path: str, entry: Mapping[str, Any], annotations: str) -> None:
    """Refuse an image whose annotations are in other coordinates than its detections would be.

    Raises:
        InvalidConfig: the annotation file has another size of it.
    """
    from eca_hub.images.sizes import read_sizes

    try:
        _, (width, height) = read_sizes(path)
    except (BadImage, OSError):
        # It is reported when it is decoded.
        return
    annotated = (entry.get("width"), entry.get("height"))
    if None not in annotated and annotated != (width, height):
        raise InvalidConfig(
            f"{annotations} has {annotated[0]} x {annotated[1]} px for {Path(path).name}, which is displayed with "
            f"{width} x {height}: its boxes would be in other coordinates.",
            hint="Save the image without an EXIF orientation, or give the annotations of this size.",
        )


def _read_annotations(path: str) -> tuple[dict[str, list[dict[str, Any]]], dict[str, Any]]:
    """Read the images of each name, and the id of each category, from a COCO file.

    Raises:
        InvalidConfig: it cannot be read, is no such file, or has two categories of one name or id.
    """
    images: dict[str, list[dict[str, Any]]] = {}
    try:
        document = json.loads(Path(path).read_bytes())
        for image in document["images"]:
            if not isinstance(image["id"], int | str):
                raise TypeError("an id is neither a number nor text")
            # Tools on Windows write `folder\\name`; a name may also have a backslash in it.
            for name in {Path(each).name for each in (image["file_name"], image["file_name"].replace("\\", "/"))}:
                images.setdefault(name, []).append(image)
        categories = [(category["name"], category["id"]) for category in document["categories"]]
        for position, kind in ((0, "name"), (1, "id")):
            for value, times in Counter(category[position] for category in categories).items():
                if times > 1:
                    raise InvalidConfig(f"{path} has {times} categories with the {kind} {value!r}; one is needed.")
        return images, dict(categories)
    except OSError as error:
        raise InvalidConfig(f"{path} cannot be read: {error.strerror}.") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise InvalidConfig(f"{path} is not a COCO annotation file.") from None


def _coco_fields(detection: "Detection") -> dict[str, Any]:
    left, top, right, bottom = detection.box
    fields: dict[str, Any] = {"bbox": [left, top, right - left, bottom - top], "score": detection.score}
    return fields if detection.mask is None else {**fields, "segmentation": detection.mask.to_rle()}


def _as_json(detection: "Detection") -> dict[str, Any]:
    fields = _coco_fields(detection)
    box = dict(zip(("xmin", "ymin", "xmax", "ymax"), detection.box, strict=True))
    document = {"label": detection.label, "index": detection.index, "score": detection.score, "box": box}
    return {**document, "mask": fields["segmentation"]} if "segmentation" in fields else document


def _format_box(detection: "Detection") -> str:
    return "({:.0f}, {:.0f}, {:.0f}, {:.0f})".format(*detection.box)


def _check_overlap(outputs: Iterable[Path], inputs: Iterable[str]) -> None:
    """Refuse to write over one of the inputs or another output, under whatever name.

    Raises:
        InvalidUsage: an output is one of these.
    """
    input_paths = {os.path.realpath(path) for path in inputs if "\0" not in path}
    targets = set()
    for output in outputs:
        target = os.path.realpath(output)
        if target in input_paths:
            raise InvalidUsage(
                f"{output} would be written over one of the inputs.", hint="Give another folder or file."
            )
        if target in targets:
            raise InvalidUsage(f"{output} would be written twice.", hint="Give another folder or file.")
        targets.add(target)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidConfig(f"The folder {folder} cannot be made: {error.strerror}.") from None


def _draw(source: str | bytes, detections: list["Detection"], target: Path, bit_depth: int | None) -> None:
    from eca_hub.images.decode import load_image
    from eca_hub.images.draw import Shape, draw_shapes

    shapes = [Shape(f"{each.label} {each.score:.2f}", each.index, each.box, each.mask) for each in detections]
    content = io.BytesIO()
    draw_shapes(load_image(source, bit_depth=bit_depth).image, shapes).save(content, "PNG")
    _write(target, content.getvalue())


def _write(path: Path, content: bytes) -> None:
    try:
        write_atomic(path, content)
    except OSError as error:
        raise not_written(path, error) from None
