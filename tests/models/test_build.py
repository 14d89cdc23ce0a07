"""From names and configurations to networks: resolved options, refused options, and what a package stores."""

import copy
import dataclasses
import json
import pickle
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

import eca_hub
from eca_hub.attention import ATTENTIONS
from eca_hub.errors import EcaHubError, InvalidConfig, UnknownName
from eca_hub.models.backbones import BACKBONES
from eca_hub.models.build import (
    build_model,
    check_materialized,
    count_parameters,
    create_model,
    list_models,
    resolve_config,
    split_name,
)
from eca_hub.models.complexity import count_complexity
from eca_hub.models.config import ImageConfig, ModelConfig
from eca_hub.models.detector_config import DetectorConfig
from eca_hub.models.insertion import is_inserted

TINY = ImageConfig(height_px=16, width_px=16, crop=1.0)


class Halve(nn.Module):
    """A user's attention."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return x_NCHW / 2


@pytest.mark.parametrize(
    ("name", "args", "resolved"),
    [
        ("eca_resnet50", {}, {"kernel_sizes": [5, 5, 5, 7]}),
        ("eca_resnet50", {"kernel_sizes": "released"}, {"kernel_sizes": [3, 5, 5, 7]}),
        ("eca_resnet18", {"kernel_sizes": "released"}, {"kernel_sizes": [3, 5, 7, 7]}),
        ("eca_mobilenet_v2", {"kernel_sizes": "released"}, {"kernel_sizes": [1, 1, 1, 1, 3, 3, 3]}),
        ("eca_resnet50", {"kernel_sizes": 9}, {"kernel_sizes": [9, 9, 9, 9]}),
        ("eca_resnet50", {"kernel_sizes": (3, 3, 5, 9)}, {"kernel_sizes": [3, 3, 5, 9]}),
        ("eca_resnet50", {"gamma": 1, "b": 0.0}, {"kernel_sizes": [9, 9, 11, 11]}),
        ("eca_resnet20", {"kernel_sizes": "linear", "gamma": 8.0}, {"kernel_sizes": [3, 5, 9]}),
        ("eca_resnet20", {"mapping": "linear", "gamma": 8.0}, {"kernel_sizes": [3, 5, 9]}),
        ("eca_resnet20", {"stages": [2, 3]}, {"kernel_sizes": [3, 3, 3], "stages": [2, 3]}),
        ("se_resnet50", {}, {"reduction": 16, "bias": False, "min_hidden": 1}),
        ("se_mobilenet_v2", {}, {"reduction": 8, "bias": False, "min_hidden": 1}),
        ("se_mobilenet_v2", {"reduction": 16}, {"reduction": 16, "bias": False, "min_hidden": 1}),
        ("se_var1_resnet50", {}, {}),
        ("nl_resnet50", {}, {"after": ["3.5"], "reduction": 2, "scaled": False}),
        ("a2_resnet18", {"after": ["2.2"]}, {"after": ["2.2"], "reduction": 2}),
        ("gc_resnet50", {}, {"stages": [2, 3, 4], "reduction": 16}),
        ("gsop_resnet50", {}, {"strides": [2, 1, 1, 1], "num_reduced": 128}),
        ("aa_resnet50", {}, {"map_sizes_px": [56, 28, 14, 7], "stages": [2, 3, 4], "num_heads": 8}),
    ],
)
def test_every_option_is_resolved(name: str, args: dict[str, Any], resolved: dict[str, Any]) -> None:
    once = resolve_config(ModelConfig(name, attention_args=args))
    assert once.attention_args == resolved
    assert resolve_config(once) == once


@pytest.mark.parametrize(
    ("name", "args", "resolved"),
    [
        ("eca_resnet18", {"kernel_sizes": np.array([3, 5, 5, 7])}, {"kernel_sizes": [3, 5, 5, 7]}),
        ("eca_resnet20", {"kernel_sizes": np.int64(3)}, {"kernel_sizes": [3, 3, 3]}),
        ("eca_resnet20", {"stages": (np.int64(2), 3)}, {"kernel_sizes": [3, 3, 3], "stages": [2, 3]}),
        ("simam_resnet20", {"strength": np.float32(0.5)}, {"strength": 0.5}),
    ],
)
def test_numbers_of_numpy_become_those_of_python(name: str, args: dict[str, Any], resolved: dict[str, Any]) -> None:
    found = resolve_config(ModelConfig(name, attention_args=args)).attention_args
    assert json.dumps(found) == json.dumps(resolved)


@pytest.mark.parametrize(
    "config",
    [
        ImageConfig(crop=np.float32(0.5)),  # type: ignore[arg-type]
        DetectorConfig(
            min_score=np.float32(0.5),  # type: ignore[arg-type]
            nms_iou=np.float32(0.5),  # type: ignore[arg-type]
            max_detections=np.int64(5),  # type: ignore[arg-type]
        ),
    ],
)
def test_a_configuration_with_numbers_of_numpy_can_be_stored(config: ImageConfig | DetectorConfig) -> None:
    assert json.loads(json.dumps(dataclasses.asdict(config)))


def test_augmented_convolutions_depend_on_the_image_size() -> None:
    config = ModelConfig("resnet18", "aa", image=TINY, stem="small")
    assert resolve_config(config).attention_args["map_sizes_px"] == [16, 8, 4, 2]


# A gate, a norm and a replaced layer; the others are slow tests.
USUAL = ("eca", "gsop", "aa")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("eca_mobilenet_v2", marks=pytest.mark.slow),
        "resnet20",
        *(
            pytest.param(f"{attention}_resnet20", marks=[] if attention in USUAL else [pytest.mark.slow])
            for attention in ATTENTIONS
        ),
    ],
)
def test_a_package_gives_back_the_same_network(name: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    config = ModelConfig(name, split_name(name)[1], labels=("cat", "dog"), image=TINY)
    model = build_model(config).eval()
    for parameter in model.parameters():
        parameter.data += 0.01 * torch.randn_like(parameter)
    eca_hub.save_pretrained(model, tmp_path, config=config)
    loaded, its_config = eca_hub.load_pretrained(tmp_path)
    x_NCHW = torch.randn(2, 3, 16, 16)
    with torch.inference_mode():
        expected_NK = model(x_NCHW)
        first_NK = loaded(x_NCHW)
        # Its weights lie elsewhere in memory than those that were saved, which moves the last bits.
        torch.testing.assert_close(first_NK, expected_NK)
        again, _ = eca_hub.load_pretrained(tmp_path)
        assert torch.equal(again(x_NCHW), first_NK)
        assert torch.equal(copy.deepcopy(loaded)(x_NCHW), expected_NK)
    assert its_config == resolve_config(its_config)


@pytest.mark.parametrize("attention", [Halve, lambda channels: Halve(channels)])
def test_any_callable_is_an_attention(attention: Any) -> None:
    model = create_model("resnet20", attention=attention)
    found = [module.channels for module in model.modules() if isinstance(module, Halve)]
    assert found == [16] * 3 + [32] * 3 + [64] * 3


def test_a_partial_method_is_inserted_where_the_method_declares() -> None:
    with torch.device("meta"):
        model = create_model("resnet50", attention=partial(partial(ATTENTIONS["nl"], reduction=4), scaled=True))
        by_name = create_model("nl_resnet50", reduction=4, scaled=True)
    assert list(model.state_dict()) == list(by_name.state_dict())


def test_a_timm_network_can_be_named_with_its_tag() -> None:
    assert resolve_config(ModelConfig("eca_resnet18.a1_in1k")).architecture == "resnet18.a1_in1k"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"architecture": "eca_resnet5"}, ["no architecture 'eca_resnet5'", "eca_resnet50", "eca-hub models"]),
        ({"architecture": "resnet18.a1_in2k"}, ["no architecture 'resnet18.a1_in2k'", "'resnet18.a1_in1k'"]),
        ({"architecture": "eca_resnet18.typo"}, ["no architecture 'eca_resnet18.typo'"]),
        ({"architecture": "resnet18."}, ["no architecture 'resnet18.'"]),
        ({"architecture": "tv_resnet34.typo"}, ["no architecture 'tv_resnet34.typo'"]),
        ({"architecture": "resnet20", "attention": "ecaa"}, ["no attention 'ecaa'", "'eca'"]),
        (
            {"architecture": "mobilenet_v2", "attention": "nl"},
            ["'nl' cannot be inserted into mobilenet_v2", "resnet50", "after"],
        ),
        (
            {"architecture": "aa_mobilenet_v2"},
            ["'aa' cannot be inserted into mobilenet_v2", "resnet50", "no 3x3 convolution"],
        ),
        ({"architecture": "eca_densenet161"}, ["'eca' cannot be inserted into densenet161", "mobilenet_v2"]),
        ({"architecture": "densenet161", "attention": Halve}, ["'Halve' cannot be inserted into densenet161"]),
        (
            {"architecture": "mobilenet_v2", "attention": partial(ATTENTIONS["nl"], reduction=4)},
            ["'NonLocal' cannot be inserted into mobilenet_v2"],
        ),
        ({"architecture": "densenet161", "stem": "small"}, ["densenet161 has no small stem"]),
        ({"architecture": "eca_resnet20", "kernel_sizes": 4}, ["kernel_sizes is 4", "odd"]),
        ({"architecture": "eca_resnet20", "kernel_sizes": -3}, ["kernel_sizes is -3", "1 to 4096"]),
        ({"architecture": "eca_resnet20", "kernel_sizes": [3, 3]}, ["kernel_sizes is [3, 3]", "3 of them"]),
        ({"architecture": "eca_resnet20", "kernel_sizes": True}, ["kernel_sizes is True"]),
        ({"architecture": "eca_resnet20", "kernel_sizes": "released"}, ["No ECA weights", "resnet50"]),
        ({"architecture": "eca_resnet20", "kernel_sizes": 3, "gamma": 1.0}, ["kernel_sizes is 3", "gamma"]),
        ({"architecture": "eca_resnet20", "gamma": 0.0}, ["gamma 0.0"]),
        ({"architecture": "eca_resnet20", "kernel_size": 3}, ["does not take 'kernel_size'", "kernel_sizes"]),
        ({"architecture": "eca_resnet20", "stages": [4]}, ["stages is [4]", "1 to 3"]),
        ({"architecture": "nl_resnet20", "after": ["4.1"]}, ["after is ['4.1']", "1.1 to 3.3"]),
        ({"architecture": "se_resnet20", "reduction": 64}, ["resnet20 at 16 channels", "reduction is 64"]),
        ({"architecture": "se_resnet20", "reduction": "4"}, ["reduction is '4'", "whole number"]),
        ({"architecture": "se_resnet20", "bias": 1}, ["bias is 1", "true or false"]),
        ({"architecture": "simam_resnet20", "strength": float("nan")}, ["strength is nan"]),
        ({"architecture": "simam_resnet20", "strength": 0}, ["strength is 0", "above 0"]),
        ({"architecture": "se_gc2_mobilenet_v2"}, ["mobilenet_v2 at 24 channels", "groups of 16"]),
        ({"architecture": "resnet20", "attention": "none", "k": 3}, ["none, which takes no options", "k"]),
        ({"architecture": "resnet20", "attention": Halve, "k": 3}, ["takes no options here", "k"]),
        ({"architecture": "eca_resnet20", "attention": "se"}, ["'eca_resnet20' names attention 'eca'"]),
        ({"architecture": "eca_resnet20", "attention": Halve}, ["'eca_resnet20' names attention 'eca'"]),
        ({"architecture": "resnet20", "num_classes": 0}, ["num_classes is 0"]),
        ({"architecture": "resnet20", "num_classes": "10"}, ["num_classes is '10'", "whole number, 1 to 100000"]),
        ({"architecture": "resnet20", "num_classes": 10.0}, ["num_classes is 10.0"]),
        ({"architecture": "resnet20", "num_classes": True}, ["num_classes is True"]),
        ({"architecture": None}, ["architecture is None", "'resnet50'"]),
        ({"architecture": ["resnet20"]}, ["architecture is ['resnet20']"]),
        ({"architecture": "resnet20", "attention": 3}, ["attention is 3", "callable"]),
        ({"architecture": "resnet20", "attention": eca_hub.ECA(64)}, ["an instance of ECA", "give the class"]),
        ({"architecture": "resnet20", "attention": lambda channels: None}, ["returned None", "torch.nn.Module"]),
        ({"architecture": "nf_resnet26", "attention": lambda channels: None}, ["returned None", "torch.nn.Module"]),
        ({"architecture": "resnet20", "stem": "tiny"}, ["stem is 'tiny'", "default, small"]),
        ({"architecture": "resnet18", "attention": Halve, "stem": "tiny"}, ["stem is 'tiny'"]),
        ({"architecture": "eca_resnet20", "kernel_sizes": 10**13 + 1}, ["kernel_sizes is 10000000000001", "1 to 4096"]),
        ({"architecture": "eca_resnet20", "kernel_sizes": [3, 3, 10**20 + 1]}, ["kernel_sizes is [3, 3, 1000"]),
        ({"architecture": "eca_resnet20", "gamma": 1e-320}, ["gamma 1e-320", "at most 4095"]),
        ({"architecture": "eca_resnet20", "b": 10**400}, ["b is 1000", "up to 4096"]),
        ({"architecture": "gsop_resnet20", "num_reduced": 10**10}, ["num_reduced is 10000000000", "up to 4096"]),
        ({"architecture": "gsop_resnet20", "strides": 0}, ["strides is 0", "1 to 4096"]),
        ({"architecture": "cbam_resnet20", "kernel_size": 10**10 + 1}, ["kernel_size is 10000000001", "up to 4096"]),
        ({"architecture": "aa_resnet20", "map_sizes_px": 10**15}, ["map_sizes_px is 1000000000000000", "1 to 4096"]),
        ({"architecture": "simam_resnet20", "strength": 1e308}, ["strength is 1e+308", "up to 4096"]),
    ],
)
def test_a_wrong_argument_gets_one_clear_sentence(arguments: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(EcaHubError) as caught:
        create_model(**arguments)
    assert isinstance(caught.value, InvalidConfig | UnknownName)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("attention", ["se", "none"])
def test_a_configuration_with_two_attentions_is_refused(attention: str) -> None:
    with pytest.raises(InvalidConfig, match=f"names attention 'eca', but attention is '{attention}'"):
        resolve_config(ModelConfig("eca_resnet20", attention))
    # ModelConfig's own default is as good as none.
    assert resolve_config(ModelConfig("se_resnet20")).attention == "se"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"stem": "tiny"}, "stem is 'tiny'; it must be one of default, small"),
        ({"problem_type": "labels"}, "problem_type is 'labels'"),
        ({"labels": "cat"}, "labels is 'cat'; give a list of names"),
        ({"labels": None}, "labels is None"),
        ({"labels": ["cat", 3]}, "Label 1 is 3"),
        ({"architecture": 5}, "architecture is 5"),
        ({"attention": 5}, "attention is 5"),
        ({"attention_args": ["kernel_sizes"]}, r"attention_args is \['kernel_sizes'\]"),
    ],
)
def test_a_configuration_with_a_value_of_another_kind_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidConfig, match=message):
        ModelConfig(**fields)


def test_a_pattern_that_is_no_string_is_refused() -> None:
    with pytest.raises(InvalidConfig, match="pattern is 5"):
        list_models(5)  # type: ignore[arg-type]


def test_every_listed_name_is_a_network_and_can_be_made() -> None:
    names = list_models()
    assert len(names) == len(set(names))
    assert {"resnet50", "eca_resnet50", "se_var3_resnet18", "eca_mobilenet_v2", "densenet264"} <= set(names)
    assert not {"nl_mobilenet_v2", "aa_mobilenet_v2", "eca_densenet161"} & set(names)
    with torch.device("meta"):
        for name in list_models("*_resnet20"):
            create_model(name)
        for name in ("se_gc1_mobilenet_v2", "se_gc2_mobilenet_v2"):
            assert name not in names
            with pytest.raises(InvalidConfig, match=r"at 24 channels: 24 channels cannot .* inserted into resnet18, "):
                create_model(name)


def test_listing_follows_a_pattern() -> None:
    assert list_models("eca_resnet*") == sorted(f"eca_{name}" for name in BACKBONES if name.startswith("resnet"))


@pytest.mark.parametrize(
    ("name", "num_slots"),
    [
        ("resnet26d", 8),
        ("nf_resnet26", 8),
        *(
            pytest.param(*row, marks=pytest.mark.slow)
            for row in (("skresnet18", 8), ("resnext26ts", 8), ("mixnet_s", 13))
        ),
    ],
)
def test_other_networks_of_timm_take_attention_if_they_have_a_slot(name: str, num_slots: int) -> None:
    with torch.device("meta"):
        model = create_model(name, attention="eca", num_classes=5)
        inserted = [module for module in model.modules() if isinstance(module, eca_hub.ECA)]
        assert model(torch.empty(2, 3, 64, 64)).shape == (2, 5)
    assert len(inserted) == num_slots


def test_attention_of_this_library_replaces_that_of_a_timm_network() -> None:
    with torch.device("meta"):
        model = create_model("eca_seresnet50")
    assert count_parameters(model) == 25_557_118


def test_a_timm_network_without_a_slot_is_built_and_refuses_attention() -> None:
    with torch.device("meta"):
        create_model("mobilenetv3_small_050")
    with pytest.raises(InvalidConfig, match=r"'nl' .* resnext26ts, which has no slot after its blocks"):
        create_model("nl_resnext26ts")
    with pytest.raises(InvalidConfig, match="'eca' cannot be inserted into vit_tiny_patch16_224, which has no slot"):
        create_model("eca_vit_tiny_patch16_224")


@pytest.mark.parametrize("name", ["efficientnet_b0", "nf_resnet26"])
def test_a_method_without_biases_is_inserted_where_timm_would_initialize_them(name: str) -> None:
    torch.manual_seed(0)
    model = create_model(name, num_classes=3, attention="se")
    inserted = [module for module in model.modules() if is_inserted(module)]
    assert inserted
    assert all(parameter.abs().sum() > 0 for module in inserted for parameter in module.parameters())
    assert model.eval()(torch.randn(1, 3, 64, 64)).isfinite().all()


def test_zero_initialized_layers_survive_timms_initialization() -> None:
    x_NCHW = torch.randn(2, 256, 4, 4)
    model = create_model("gc_nf_resnet26", stages=[1, 2, 3, 4])
    first = next(module for module in model.modules() if isinstance(module, ATTENTIONS["gc"]))  # type: ignore[arg-type]
    assert torch.equal(first(x_NCHW), x_NCHW)


@pytest.mark.slow
def test_timm_families_that_take_attention_are_listed() -> None:
    names = list_models("*", with_timm=True)
    assert {"eca_resnet26d", "se_nf_resnet26", "gc_skresnet18", "eca_res2net50_26w_4s"} <= set(names)
    assert not any(name.startswith(("eca_vit_", "eca_maxvit_")) for name in names)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet20", "resnet18", "mobilenet_v2"])
def test_a_whole_network_can_be_exported_and_compiled(name: str) -> None:
    model, x_NCHW = create_model(f"eca_{name}", num_classes=3).eval(), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected_NK = model(x_NCHW)
        exported = torch.export.export(model, (x_NCHW,)).module()
        torch.testing.assert_close(exported(x_NCHW), expected_NK)
        compiled = torch.compile(model, backend="aot_eager")
        torch.testing.assert_close(compiled(x_NCHW), expected_NK)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_every_member_of_a_timm_resnet_family_takes_eca() -> None:
    with torch.device("meta"):
        for name in timm.list_models(module="resnet"):
            create_model(f"eca_{name}")


@pytest.mark.parametrize(
    "name",
    [
        "eca_resnet18",
        "eca_resnet20",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("mobilenet_v2", "resnet26d")),
    ],
)
def test_a_configuration_with_one_input_channel_builds_a_gray_network(name: str) -> None:
    image = ImageConfig(64, 64, in_chans=1)
    config = ModelConfig(name, split_name(name)[1], labels=("a", "b"), image=image)
    assert build_model(config).eval()(torch.zeros(1, 1, 64, 64)).shape == (1, 2)
    assert count_complexity(config).num_parameters == count_parameters(build_model(config))


def test_a_network_has_its_configuration() -> None:
    model = create_model("eca_resnet20", num_classes=2, kernel_sizes=5)
    assert model.config == resolve_config(ModelConfig("eca_resnet20", attention_args={"kernel_sizes": 5}))
    assert copy.deepcopy(model).config == model.config
    assert pickle.loads(pickle.dumps(model)).config == model.config
    assert "config" not in "".join(model.state_dict())
    assert create_model("resnet20", attention=Halve).config is None
    assert create_model("eca_resnet20", features_only=True).config is None


def test_the_old_name_of_the_default_stem_is_accepted_with_a_warning() -> None:
    with pytest.warns(FutureWarning, match="'own' is now called 'default'"):
        config = ModelConfig("resnet20", "none", stem="own")  # type: ignore[arg-type]
    assert config.stem == "default"


def test_tensors_left_on_meta_are_named() -> None:
    with torch.device("meta"):
        model = build_model(ModelConfig("resnetblur18", "none", labels=("a", "b")))
    weights = {name: torch.zeros(tensor.shape) for name, tensor in model.state_dict().items()}
    model.load_state_dict(weights, strict=True, assign=True)
    with pytest.raises(AssertionError, match=r"meta device: .*aa"):
        check_materialized(model)


@pytest.mark.parametrize(
    ("architecture", "timm_args", "reason"),
    [
        ("resnet18", {"act_layer": "nope"}, "timm cannot build resnet18"),
        ("resnet18", {"block": 1}, "timm cannot build resnet18"),
        ("resnet18", {"nothing": 1}, "timm cannot build resnet18"),
        ("resnet18", {"layers": [6000, 1, 1, 1]}, "layers adds up to 6003 blocks; 512 are allowed"),
        ("resnet18", {"channels": [64, 128, 256, 99999999]}, "channels has 99999999"),
        ("vit_tiny_patch16_224", {"depth": 6000}, "depth adds up to 6000 blocks"),
    ],
)
def test_arguments_of_a_package_that_timm_cannot_use_are_refused(
    architecture: str, timm_args: dict[str, Any], reason: str
) -> None:
    config = ModelConfig(architecture, "none", labels=("a", "b"), timm_args=timm_args)
    with torch.device("meta"), pytest.raises(InvalidConfig, match=reason):
        build_model(config)


def test_the_number_of_modules_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eca_hub.models.timm_args.MAX_MODULES", 50)
    config = ModelConfig("resnet18", "none", labels=("a", "b"), timm_args={"stem_width": 32})
    with torch.device("meta"), pytest.raises(InvalidConfig, match="more than 50 modules"):
        build_model(config)
