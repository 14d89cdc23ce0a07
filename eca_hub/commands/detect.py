"""`eca-hub detect`: find the objects in images, draw them, and write COCO results."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eca_hub.commandline import CommandParser
from eca_hub.commands.images import find_images
from eca_hub.errors import BadImage, InvalidConfig, InvalidUsage

if TYPE_CHECKING:
    from eca_hub.detector import Detection


def main(argv: list[str]) -> int:
    """Find the objects in each image; a broken image is reported and does not stop the others."""
    parser = CommandParser("detect", "Find the objects in images.")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="Image file, or folder of images.")
    parser.add_argument("--model", required=True, help="OWNER/NAME on the hub, or a folder with a detector package.")
    parser.add_argument("--revision", help="Branch, tag or commit; the main branch when none is given.")
    parser.add_argument("--min_score", type=float, default=0.5, help="Leave out what is less certain.")
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
    images = list(dict.fromkeys(path for given in args.images for path in find_images(given)))
    names = [Path(path).stem for path in images]
    if args.save_image and len(set(names)) < len(names):
        repeated = next(name for name in names if names.count(name) > 1)
        raise InvalidUsage(f"Two images are named {repeated}; one drawing would replace the other.")
    folder = _make_folder(args.save_image) if args.save_image else None
    if args.to and not Path(args.to).absolute().parent.is_dir():
        raise InvalidConfig(f"There is no folder {Path(args.to).absolute().parent} for {args.to}.")

    from eca_hub.detector import Detector

    detector = Detector.from_pretrained(args.model, args.revision, device=args.device)
    ids = _Ids(args.annotations, detector.config.labels)
    results: list[dict[str, Any]] = []
    num_bad = 0
    for path in images:
        try:
            found = detector.predict(path, min_score=args.min_score, max_detections=args.max_detections)
        except BadImage as error:
            num_bad += 1
            document = {"image": path, "error": {"code": error.code, "message": error.message, "hint": error.hint}}
            print(json.dumps(document) if args.json else str(error))
            continue
        results += [ids.result(path, each) for each in found]
        if folder is not None:
            _draw(path, found, folder / f"{Path(path).stem}.png")
        if args.json:
            document = {"image": path, "model": detector.model_id, "revision": detector.revision}
            print(json.dumps({**document, "detections": [_as_json(each) for each in found]}))
        else:
            objects = ", ".join(f"{each.label} {each.score:.2f} at {_format_box(each)}" for each in found)
            print(f"{path}  {objects or 'nothing found'}")
    if args.to:
        _write(Path(args.to), results)
    return 2 if num_bad else 0


class _Ids:
    """The image and category ids of a results file: those of an annotation file, or plain numbers."""

    def __init__(self, annotations: str | None, labels: tuple[str, ...]) -> None:
        self._image_ids: dict[str, Any] | None = None
        self._category_ids = {label: index for index, label in enumerate(labels, start=1)}
        if annotations is None:
            return
        try:
            document = json.loads(Path(annotations).read_bytes())
            self._image_ids = {Path(each["file_name"]).name: each["id"] for each in document["images"]}
            category_ids = {each["name"]: each["id"] for each in document["categories"]}
        except OSError as error:
            raise InvalidConfig(f"{annotations} cannot be read: {error.strerror}.") from None
        except (ValueError, KeyError, TypeError):
            raise InvalidConfig(f"{annotations} is not a COCO annotation file.") from None
        missing = [label for label in labels if label not in category_ids]
        if missing:
            raise InvalidConfig(f"{annotations} has no category {missing[0]!r}, which the detector has.")
        self._category_ids = {label: category_ids[label] for label in labels}

    def result(self, path: str, detection: "Detection") -> dict[str, Any]:
        """Return a detection as a COCO results file has it."""
        name = Path(path)
        if self._image_ids is None:
            # COCO's files are named by their id.
            image_id: Any = int(name.stem) if name.stem.isdecimal() else name.name
        elif name.name in self._image_ids:
            image_id = self._image_ids[name.name]
        else:
            raise InvalidConfig(f"The annotation file lists no image {name.name}.")
        return {"image_id": image_id, "category_id": self._category_ids[detection.label], **_coco_fields(detection)}


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


def _make_folder(folder: str) -> Path:
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidConfig(f"The folder {folder} cannot be made: {error.strerror}.") from None
    return path


def _draw(path: str, detections: list["Detection"], target: Path) -> None:
    from eca_hub.images.decode import load_image
    from eca_hub.images.draw import Shape, draw_shapes

    shapes = [Shape(f"{each.label} {each.score:.2f}", each.index, each.box, each.mask) for each in detections]
    draw_shapes(load_image(path).image, shapes).save(target)


def _write(path: Path, results: list[dict[str, Any]]) -> None:
    from eca_hub.atomic import write_atomic

    try:
        write_atomic(path, (json.dumps(results) + "\n").encode())
    except OSError as error:
        raise InvalidConfig(f"{path} cannot be written: {error.strerror}.") from None
