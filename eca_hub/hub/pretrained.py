"""Save a network, classifier or detector, as a package, load it again, and publish it.

Weights are read into memory once and the network uses that memory. A memory map would let a change of the file change,
or crash, a running model.
"""

import dataclasses
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
from timm.data.imagenet_info import ImageNetInfo
from torch import Tensor, nn

from eca_hub.atomic import fsync_folder, rename_synced, temporary_for, write_synced
from eca_hub.errors import CheckpointMismatch, InvalidConfig, InvalidPackage
from eca_hub.hub.card.classifier_card import render_card
from eca_hub.hub.card.detector_card import render_detector_card
from eca_hub.hub.card.facts import CardFacts
from eca_hub.hub.detector_format import detector_to_dict
from eca_hub.hub.package import (
    CARD_FILE,
    CONFIG_FILE,
    FORMAT,
    LIBRARY_NAME,
    WEIGHTS_FILE,
    Package,
    check_label_text,
    check_new_folder,
    config_from_json,
    config_to_dict,
    detector_config_from_json,
    is_detector,
    is_timm_compatible,
    make_package_folder,
    new_folder,
    path_named,
    read_folder,
    to_json_text,
)
from eca_hub.hub.pull import pull
from eca_hub.hub.push import PushResult, push_folder
from eca_hub.hub.stock_timm import default_cfg_of, remove_padding, to_stock_timm
from eca_hub.hub.timm_format import config_to_timm_dict, index_labels
from eca_hub.hub.weights import Shapes, UnsupportedDtype, build_and_load, check_finite, read_tensors
from eca_hub.models.build import build_model, count_parameters, resolve_config
from eca_hub.models.complexity import count_complexity
from eca_hub.models.config import ModelConfig
from eca_hub.models.detector_config import DetectorConfig
from eca_hub.models.detectors import build_detector
from eca_hub.models.weight_init import on_meta_device


def save_pretrained(
    model: nn.Module,
    folder: str | Path | ModelConfig,
    labels: Sequence[str] | str | Path | None = None,
    *,
    config: ModelConfig | None = None,
    facts: CardFacts | None = None,
    for_timm: bool = False,
) -> Path:
    """Write a network, classifier or detector, as a package: config.json, model.safetensors and a model card.

    Where stock timm can build the network, the package is in timm's format as well: `timm.create_model("hf-hub:...")`
    and transformers load it without eca-hub, with the same outputs. An earlier package in the folder is replaced after
    every file of the new one is on the disk, and stays as it is if that fails. A crash between the renames leaves a
    folder without config.json, which is no package.

    Args:
        model: The network.
        folder: Where to; made if absent.
        labels: Class names in the order of the outputs; those of the configuration when not given.
        config: What `build_model` needs to build it again; `model.config`, which `create_model` and `load_pretrained`
            set, when not given.
        facts: Training and results for the model card.
        for_timm: Refuse a network that stock timm cannot build.

    Returns:
        The folder.

    Raises:
        InvalidConfig: there are no labels, not one for each output, or one with control characters; the network has no
            configuration; or timm cannot build it and must.
        CheckpointMismatch: the configuration describes another network, or a weight is NaN or infinite.
    """
    folder, labels, config = _accept_old_order(folder, labels, config)
    if isinstance(getattr(model, "config", None), DetectorConfig):
        return save_detector(model, folder, labels=labels, facts=facts)
    resolved = resolve_config(_config_of(model, config, labels))
    check_label_text(resolved.labels)
    check_finite(_weights_of(model), sentence="The network cannot be saved")
    _check_describes(resolved, model)
    network, document = model, config_to_dict(resolved)
    try:
        network, model_args = to_stock_timm(model, resolved)
        document = config_to_timm_dict(resolved, model_args, default_cfg_of(network))
    except InvalidConfig:
        if for_timm:
            raise
    card = render_card(resolved, count_complexity(resolved), facts or CardFacts(), is_timm=network is not model)
    return _write_package(folder, document, _weights_of(network), card)


def export_to_timm(
    model: nn.Module,
    folder: str | Path | ModelConfig,
    labels: Sequence[str] | str | Path | None = None,
    *,
    config: ModelConfig | None = None,
    facts: CardFacts | None = None,
) -> Path:
    """Write a network as a folder that stock timm loads: `timm.create_model("local-dir:FOLDER", pretrained=True)`.

    `save_pretrained` does this wherever timm can build the network; this function refuses the others. Outputs, labels
    and preprocessing stay the same. Published on a hub, `hf-hub:OWNER/NAME` loads it.

    Args:
        model: The network.
        folder: Where to; new or empty.
        labels: As for `save_pretrained`.
        config: As for `save_pretrained`.
        facts: As for `save_pretrained`.

    Raises:
        InvalidConfig: timm cannot build this network, with the reason, or the folder is not empty.
    """
    folder, labels, config = _accept_old_order(folder, labels, config)
    check_new_folder(folder)
    with new_folder(folder) as draft:
        save_pretrained(model, draft, labels=labels, config=config, facts=facts, for_timm=True)
    return path_named(folder)


def push_to_hub(
    model: nn.Module | str | Path,
    model_id: str,
    *,
    labels: Sequence[str] | None = None,
    config: ModelConfig | None = None,
    facts: CardFacts | None = None,
    **options: Any,
) -> PushResult:
    """Publish a network, a package folder or a run folder in one commit.

    Args:
        model: The network, or the folder.
        model_id: Hub `owner/name`; the repository is made if it does not exist.
        labels: Of a network, as for `save_pretrained`.
        config: Of a network, as for `save_pretrained`.
        facts: Of a network, as for `save_pretrained`.
        options: As for `eca_hub.hub.push.push_folder`: private, branch, tag, message, license, endpoint, token.

    Raises:
        InvalidPackage: the folder holds no complete package.
        UnknownName, CheckpointMismatch: as for `check_package`.
        InvalidConfig: as for `save_pretrained`, or a name is malformed.
        AccessDenied: the token is absent or may not write there.
        PushConflict: another commit was published in between, or the tag is taken; nothing was changed.
        HubUnavailable: the hub does not respond.
    """
    if isinstance(model, str | Path):
        if labels is not None or config is not None or facts is not None:
            raise InvalidConfig("A folder has its own labels and card; labels, config and facts are for a network.")
        check_package(model)
        return push_folder(model, model_id, **options)
    with tempfile.TemporaryDirectory(prefix="eca_hub_push_") as folder:
        save_pretrained(model, folder, labels=labels, config=config, facts=facts)
        return push_folder(folder, model_id, **options)


def load_pretrained(id_or_folder: str | Path, revision: str | None = None) -> tuple[nn.Module, ModelConfig]:
    """Load a network and its configuration from the Hub or from a folder.

    Args:
        id_or_folder: `owner/name` on the hub that HF_ENDPOINT names, or a folder.
        revision: Branch, tag or commit; the main branch when none is given.

    Raises:
        HubError: the package cannot be downloaded or used, or its bytes are not what the hub announced.
        CheckpointMismatch: the weights do not fit the network that config.json describes.
    """
    return read_package(pull(id_or_folder, revision))


def read_package(package: Package) -> tuple[nn.Module, ModelConfig]:
    """Build the network of a package, with its weights, in evaluation mode.

    The network uses the memory of the package's bytes, so a package makes one network.
    """
    config = config_from_json(package.config_bytes, origin=package.model_id, default_labels_for=default_labels)
    weights = _read_tensors(package)
    resolved = resolve_config(config)
    is_padded = config.attention != "none" and is_timm_compatible(package.config_bytes)

    def weights_for(shapes: Shapes) -> dict[str, Tensor]:
        return remove_padding(weights, shapes) if is_padded else weights

    sentence = f"The weights of {package.model_id} do not fit its {CONFIG_FILE}"
    model = build_and_load(lambda: build_model(resolved), weights_for, sentence=sentence)
    model.config = config  # type: ignore[assignment]
    return model.eval(), config


def check_package(folder: str | Path) -> None:
    """Check that a package can be loaded, by loading it.

    Args:
        folder: A package folder, a run folder with one in `model/`, or a release.

    Raises:
        InvalidPackage: it is no complete package, or its config.json cannot be used.
        UnknownName: config.json names an architecture or attention that does not exist.
        CheckpointMismatch: the weights are broken, do not fit the network that config.json describes, or hold NaN or
            infinity.
    """
    package = read_folder(folder)
    if is_detector(package.config_bytes):
        read_detector(package)
    else:
        read_package(package)


def save_detector(
    model: nn.Module, folder: str | Path, *, labels: Sequence[str] | None = None, facts: CardFacts | None = None
) -> Path:
    """Write a detector as a package: config.json, model.safetensors and a model card, as `save_pretrained` does.

    Args:
        model: The network, as `create_detector` makes it.
        folder: Where to; made if absent.
        labels: Class names in the order of the outputs; those of the configuration when not given.
        facts: Training and results for the model card.

    Returns:
        The folder.

    Raises:
        InvalidConfig: there are no labels, or not one for each class, or the network is no detector.
        CheckpointMismatch: a weight is NaN or infinite.
    """
    config = getattr(model, "config", None)
    if not isinstance(config, DetectorConfig):
        raise InvalidConfig("This network is no detector: it has no DetectorConfig.", hint="create_detector sets it.")
    if labels is not None:
        config = dataclasses.replace(config, labels=tuple(labels))
    if not config.labels:
        raise InvalidConfig("A package needs labels, one for each class.", hint='Give labels=["car", "dog"].')
    check_label_text(config.labels)
    num_classes = num_classes_of(model)
    if config.num_classes != num_classes:
        raise InvalidConfig(f"There are {config.num_classes} labels, and the network has {num_classes} classes.")
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    check_finite(weights, sentence="The network cannot be saved")
    card = render_detector_card(config, count_parameters(model), facts or CardFacts())
    document = {"format": FORMAT, "library_name": LIBRARY_NAME, **detector_to_dict(config)}
    return _write_package(folder, document, weights, card)


def _write_package(folder: str | Path, document: Mapping[str, Any], weights: dict[str, Tensor], card: str) -> Path:
    """Write the files of a package beside those of an earlier one, then replace them.

    Only writing needs room on the disk. The old config.json, which does not describe the new weights, is removed before
    they are renamed, and the new one is renamed last.
    """
    path = make_package_folder(folder)
    contents = {
        WEIGHTS_FILE: safetensors.torch.save(weights, metadata={"format": "pt"}),
        CARD_FILE: card.encode(),
        CONFIG_FILE: to_json_text(document).encode(),
    }
    temporaries = {path / name: temporary_for(path / name) for name in contents}
    try:
        for temporary, content in zip(temporaries.values(), contents.values(), strict=True):
            write_synced(temporary, content)
        (path / CONFIG_FILE).unlink(missing_ok=True)
        fsync_folder(path)
        for target, temporary in temporaries.items():
            rename_synced(temporary, target)
    finally:
        for temporary in temporaries.values():
            temporary.unlink(missing_ok=True)
    return path


def read_detector(package: Package) -> nn.Module:
    """Build the detector of a package, with its weights, in evaluation mode; its `config` has the labels.

    Raises:
        InvalidPackage: the package is no detector, or its config.json cannot be used.
        CheckpointMismatch: the weights do not fit the network that config.json describes.
        UnknownName: config.json names a backbone or attention that does not exist.
    """
    config = detector_config_from_json(package.config_bytes, origin=package.model_id)
    weights = _read_tensors(package)
    sentence = f"The weights of {package.model_id} do not fit its {CONFIG_FILE}"
    # Anchors are outside the state dict, so the network is built a second time, off the meta device.
    try:
        return build_and_load(lambda: build_detector(config), weights, sentence=sentence).eval()
    except InvalidConfig as error:
        # Such as one with gsop: the version that wrote it pooled regions at half their scale.
        raise InvalidPackage(
            f"{package.model_id} is a detector that this eca-hub does not build: {error.message}",
            hint="Train it again with a backbone and attention that detectors take.",
        ) from None


def num_classes_of(model: nn.Module) -> int:
    """Count the object classes of a detector by its last layer."""
    if hasattr(model, "head"):
        return int(model.get_submodule("head.classification_head").num_classes)  # type: ignore[arg-type]
    return int(model.get_submodule("roi_heads.box_predictor.cls_score").out_features) - 1  # type: ignore[arg-type]


def default_labels(num_classes: int) -> tuple[str, ...]:
    """Name the classes of a network without label names: ImageNet's for 1000, else by index."""
    return imagenet_labels() if num_classes == 1000 else index_labels(num_classes)


def imagenet_labels() -> tuple[str, ...]:
    """Name ImageNet's 1000 classes in the usual order; equal names, such as the two cranes, get their WordNet id."""
    info = ImageNetInfo()
    names = [description.partition(",")[0] for description in info.label_descriptions()]
    wordnet_ids = info.label_names()  # type: ignore[no-untyped-call]
    return tuple(
        f"{name} ({wordnet_id})" if names.count(name) > 1 else name
        for name, wordnet_id in zip(names, wordnet_ids, strict=True)
    )


def _read_tensors(package: Package) -> dict[str, Tensor]:
    try:
        return read_tensors(package.weights_bytes)
    except UnsupportedDtype as error:
        raise CheckpointMismatch(f"{WEIGHTS_FILE} of {package.model_id} cannot be used: {error}.") from None
    except ValueError as error:
        raise CheckpointMismatch(f"{WEIGHTS_FILE} of {package.model_id} is broken: {error}.") from None


def _accept_old_order(
    folder: str | Path | ModelConfig, labels: Sequence[str] | str | Path | None, config: ModelConfig | None
) -> tuple[str | Path, Sequence[str] | None, ModelConfig | None]:
    """Accept the arguments of version 0.1.0 as well: model, config, folder."""
    if isinstance(folder, ModelConfig):
        if not isinstance(labels, str | Path):
            raise InvalidConfig("save_pretrained needs a folder.", hint="save_pretrained(model, folder, labels=[...])")
        warnings.warn(
            "Give the configuration by name: save_pretrained(model, folder, config=...).", DeprecationWarning, 3
        )
        return labels, None, folder
    if isinstance(labels, str | Path) or not isinstance(labels, Iterable | None):
        raise InvalidConfig(f"labels is {str(labels)!r}; it must be a list of class names.")
    return folder, labels, config


def _config_of(model: nn.Module, config: ModelConfig | None, labels: Sequence[str] | None) -> ModelConfig:
    known = getattr(model, "config", None) if config is None else config
    if not isinstance(known, ModelConfig):
        raise InvalidConfig(
            "This network has no configuration, from which a package could be loaded again.",
            hint="create_model sets model.config for methods that have a name; or give config=ModelConfig(...).",
        )
    if labels is not None:
        known = dataclasses.replace(known, labels=tuple(labels))
    if not known.labels:
        raise InvalidConfig(
            "A package needs labels: the class names in the order of the outputs.", hint='Give labels=["cat", "dog"].'
        )
    return known


def _check_describes(config: ModelConfig, model: nn.Module) -> None:
    """Check that the configuration builds a network with the same names and shapes."""
    with on_meta_device():
        built = build_model(config).state_dict()
    actual = model.state_dict()
    differing = [name for name in built if name in actual and built[name].shape != actual[name].shape]
    if built.keys() == actual.keys() and not differing:
        return
    if built.keys() == actual.keys() and all(built[name].shape[1:] == actual[name].shape[1:] for name in differing):
        num_outputs = actual[differing[0]].shape[0]
        raise InvalidConfig(f"There are {config.num_classes} labels, and the network has {num_outputs} outputs.")
    first = sorted({*(built.keys() ^ actual.keys()), *differing})[:3]
    raise CheckpointMismatch(
        f"The configuration describes another network than the one to save: they differ in {', '.join(first)}.",
    )


def _weights_of(model: nn.Module) -> dict[str, Tensor]:
    """Return the state dict on the CPU. Tensors that share memory are copied: safetensors refuses them."""
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    times = Counter(tensor.untyped_storage().data_ptr() for tensor in weights.values())
    return {
        name: tensor.clone() if times[tensor.untyped_storage().data_ptr()] > 1 else tensor
        for name, tensor in weights.items()
    }
