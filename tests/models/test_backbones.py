"""The exact parameters of every network of the paper's tables, and where attention is inserted in each."""

import contextlib
from typing import Any

import pytest
import timm
import torch
from timm.models import resnet
from torch import Tensor, nn

from eca_hub.attention import ATTENTIONS
from eca_hub.attention.eca import ECA
from eca_hub.attention.insertion import AfterBlock
from eca_hub.errors import InvalidConfig
from eca_hub.models.backbones import BACKBONES, residual_blocks
from eca_hub.models.build import count_parameters, create_model, list_models
from eca_hub.models.insertion import ResNetBlock

PARAMETERS = {
    # Vanilla networks: the counts of torchvision and timm.
    "resnet18": 11_689_512, "resnet34": 21_797_672, "resnet50": 25_557_032, "resnet101": 44_549_160,
    "resnet152": 60_192_808, "resnet200": 64_673_832, "resnext101_32x4d": 44_177_704, "mobilenet_v2": 3_504_872,
    "densenet161": 28_681_000, "densenet264": 33_337_704, "inception_v3": 23_834_568,
    # Table 2, on ResNet-50.
    "se_resnet50": 28_071_976, "se_var1_resnet50": 25_557_032, "se_var2_resnet50": 25_572_136,
    "se_var3_resnet50": 45_676_584, "se_gc1_resnet50": 26_814_504, "se_gc2_resnet50": 25_798_696,
    "se_gc3_resnet50": 25_677_864, "eca_ns_resnet50": 25_602_344,
    # Table 3: SE without bias on the other networks, and the counterparts.
    "se_resnet18": 11_776_552, "se_resnet34": 21_954_856, "se_resnet101": 49_292_328, "se_resnet152": 66_770_984,
    "se_mobilenet_v2": 3_561_800, "se_resnext101_32x4d": 48_920_872,
    "cbam_resnet50": 28_073_576, "cbam_resnet101": 49_295_628, "gc_resnet50": 25_557_032 + 2_521_741,
    "gsop_resnet50": 28_285_224, "nl_resnet50": 25_557_032 + 2_099_712, "a2_resnet50": 25_557_032 + 7_340_032,
    "aa_resnet50": 25_781_872,
    # Later methods, as timm counts them.
    "ceca_resnet50": 25_557_118, "ese_resnet50": 45_691_688, "coord_resnet50": 28_083_464,
    "ela_resnet50": 25_828_904, "strip_resnet50": 25_647_656,
    "simam_resnet50": 25_557_032, "srm_resnet50": 25_557_032 + 4 * 15_104,
}  # fmt: skip

ECA_PARAMETERS = {
    # Network: with the rule's kernels, with the released ones, with 3 everywhere.
    "resnet18": (36, 44, 24), "resnet34": (74, 72, 48), "resnet50": (86, 80, 48), "resnet101": (171, 157, 99),
    "resnet152": (256, 234, 150), "mobilenet_v2": (59, 31, 51),
}  # fmt: skip


def parameters_of(name: str, **options: object) -> int:
    with torch.device("meta"):
        model = create_model(name, **options)  # type: ignore[arg-type]
    return count_parameters(model)


# Deep networks differ from shallow ones of their family in depth only.
DEEP = ("resnet101", "resnet152", "resnet200", "resnext101_32x4d", "densenet161", "densenet264", "inception_v3")


def slow_if_deep(name: str, *values: object) -> Any:
    return pytest.param(name, *values, marks=[pytest.mark.slow] if name.endswith(DEEP) else [])


@pytest.mark.parametrize(("name", "parameters"), [slow_if_deep(*row) for row in PARAMETERS.items()])
def test_a_network_has_the_published_number_of_parameters(name: str, parameters: int) -> None:
    assert parameters_of(name) == parameters


@pytest.mark.parametrize(("name", "counts"), [slow_if_deep(*row) for row in ECA_PARAMETERS.items()])
def test_eca_has_the_published_number_of_parameters(name: str, counts: tuple[int, int, int]) -> None:
    vanilla = parameters_of(name)
    found = [parameters_of(name, attention="eca", kernel_sizes=sizes) - vanilla for sizes in ("rule", "released", 3)]
    assert tuple(found) == counts


@pytest.mark.parametrize(
    ("name", "options", "parameters"),
    [
        ("se_resnet50", {"bias": True}, 28_088_024),
        ("se_resnet18", {"bias": True}, 11_778_592),
        ("se_resnet18", {"bias": True, "min_hidden": 8}, 11_779_624),  # timm's seresnet18
        ("cbam_resnet50", {"bias": True}, 28_089_624),  # the authors' code
        ("gc_resnet50", {"reduction": 4}, 25_557_032 + 10_000_909),
        ("gc_resnet50", {"stages": [1, 2, 3, 4]}, 25_557_032 + 2_548_000),
        ("gsop_resnet50", {"stages": [2, 3, 4]}, 28_054_440),  # the paper's 28.05M
        ("eca_ns_resnet50", {"kernel_size": 5}, 25_557_032 + 5 * 15_104),
    ],
)
def test_options_count_as_derived(name: str, options: dict[str, object], parameters: int) -> None:
    assert parameters_of(name, **options) == parameters


def names_of(model: nn.Module, attention: type[nn.Module]) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, attention)]


@pytest.mark.parametrize(
    ("name", "modules"),
    [
        ("nl_resnet50", ["layer3.4.act3.attention"]),
        ("a2_resnet50", [f"layer{block}.act3.attention" for block in ("2.1", "2.3", "3.1", "3.3", "3.5")]),
        ("gsop_resnet50", ["layer1.2.se", "layer2.3.se", "layer3.5.se", "layer4.2.se"]),
        ("nl_resnet18", ["layer3.0.act2.attention"]),
        ("aa_resnet18", [f"layer{stage}.{block}.conv2" for stage in (2, 3, 4) for block in (0, 1)]),
    ],
)
def test_each_method_is_inserted_at_its_insertion_point(name: str, modules: list[str]) -> None:
    method = ATTENTIONS[name.split("_")[0]]
    assert isinstance(method, type)
    with torch.device("meta"):
        assert names_of(create_model(name), method) == modules


EVERY_FAMILY = ("resnet18", "resnet50", "resnet20", "mobilenet_v2")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in EVERY_FAMILY else [pytest.mark.slow])
        for name, backbone in BACKBONES.items()
        if backbone.widths
    ],
)
def test_every_block_gets_eca_of_its_width(name: str) -> None:
    backbone = BACKBONES[name]
    widths: list[int] = []

    def note(channels: int) -> nn.Module:
        widths.append(channels)
        return ECA(channels)

    with torch.device("meta"):
        model = create_model(name, attention=note)
    assert widths == [w for w, depth in zip(backbone.widths, backbone.depths, strict=True) for _ in range(depth)]
    assert len(names_of(model, ECA)) == sum(backbone.depths)


def test_a_network_keeps_the_class_and_the_names_that_timm_gave_it() -> None:
    with torch.device("meta"):
        vanilla, with_nl, with_eca = (create_model(name) for name in ("resnet50", "nl_resnet50", "eca_resnet50"))
    assert isinstance(with_nl, resnet.ResNet)
    assert vanilla.state_dict().keys() < with_nl.state_dict().keys()
    assert "layer1.0.se.conv.weight" in with_eca.state_dict()


def test_second_order_pooling_keeps_the_last_map_at_the_size_of_the_third() -> None:
    model = create_model("gsop_resnet18", features_only=True).eval()
    assert [tuple(y_NCHW.shape[2:]) for y_NCHW in model(torch.zeros(1, 3, 64, 64))] == [
        (32, 32), (16, 16), (8, 8), (4, 4), (4, 4),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "backbone", ["resnet18", "resnet20", "mobilenet_v2", "resnext50_32x4d", "resnetblur18", "nf_resnet26"]
)
@pytest.mark.parametrize(
    "attentions",
    [("none", "eca", "gsop", "aa"), pytest.param(tuple(ATTENTIONS), marks=pytest.mark.slow)],
    ids=["usual", "every"],
)
def test_the_stated_strides_are_those_of_the_maps(backbone: str, attentions: tuple[str, ...]) -> None:
    checked = []
    with torch.device("meta"):
        for attention in attentions:
            # A backbone does not support every method.
            with contextlib.suppress(InvalidConfig):
                model = create_model(backbone, attention=attention, features_only=True).eval()
                maps: list[Tensor] = model(torch.empty(1, 3, 128, 128))
                strides = [128 // y_NCHW.shape[2] for y_NCHW in maps]
                assert model.feature_info.reduction() == strides, attention  # type: ignore[union-attr, operator]
                checked.append(attention)
    assert "eca" in checked
    assert ("gsop" in checked) == (backbone != "nf_resnet26")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_every_resnet_of_timm_loses_the_stride_of_its_last_stage_to_second_order_pooling() -> None:
    with torch.device("meta"):
        # Deep ones differ from shallow ones in depth only.
        for name in [each for each in timm.list_models(module="resnet") if "50" in each or "26" in each]:
            model = create_model(name, attention="gsop", num_reduced=8, features_only=True).eval()
            sizes = [y_NCHW.shape[2] for y_NCHW in model(torch.empty(1, 3, 128, 128))]
            assert sizes[-2] == sizes[-1], name
            assert model.feature_info.reduction()[-1] == 128 // sizes[-1], name  # type: ignore[union-attr, operator]


def test_a_convolution_with_groups_is_not_replaced() -> None:
    assert "aa_resnet101" in list_models("aa_*")
    assert "aa_resnext101_32x4d" not in list_models("aa_*")
    for name in ("resnext101_32x4d", "resnext50_32x4d"):
        with pytest.raises(InvalidConfig, match=f"'aa' cannot be inserted into {name}, which has no 3x3 conv.* groups"):
            create_model(name, attention="aa")


@pytest.mark.parametrize("depth", [20, 32, 44, 56, 110])
def test_the_networks_for_small_images_have_as_many_layers_as_their_name_says(depth: int) -> None:
    with torch.device("meta"):
        blocks = residual_blocks(create_model(f"resnet{depth}"))
    assert 2 * len(blocks) + 2 == depth


@pytest.mark.parametrize(
    ("name", "stem", "channels", "strides"),
    [
        ("eca_resnet18", "default", [64, 64, 128, 256, 512], [2, 4, 8, 16, 32]),
        ("a2_resnet18", "small", [64, 64, 128, 256, 512], [1, 1, 2, 4, 8]),
        ("se_resnet20", "default", [16, 16, 32, 64], [1, 1, 2, 4]),
        ("eca_mobilenet_v2", "default", [16, 24, 32, 96, 320], [2, 4, 8, 16, 32]),
        ("eca_mobilenet_v2", "small", [16, 24, 32, 96, 320], [1, 1, 2, 4, 8]),
    ],
)
def test_features_only_returns_the_maps_of_the_stages(
    name: str, stem: str, channels: list[int], strides: list[int]
) -> None:
    model = create_model(name, stem=stem, features_only=True).eval()  # type: ignore[arg-type]
    maps: list[Tensor] = model(torch.zeros(1, 3, 64, 64))
    assert [y_NCHW.shape[1] for y_NCHW in maps] == channels
    assert [64 // y_NCHW.shape[2] for y_NCHW in maps] == strides
    assert model.feature_info.channels() == channels  # type: ignore[union-attr, operator]
    assert model.feature_info.reduction() == strides  # type: ignore[union-attr, operator]


def test_features_are_those_of_the_whole_network() -> None:
    whole = create_model("eca_resnet18").eval()
    stages = create_model("eca_resnet18", features_only=True).eval()
    stages.load_state_dict(whole.state_dict(), strict=False)
    x_NCHW = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(stages(x_NCHW)[-1], whole.forward_features(x_NCHW))  # type: ignore[operator]


def test_mobilenet_has_eca_at_the_end_of_every_block() -> None:
    model = create_model("eca_mobilenet_v2")
    blocks = list(model.get_submodule("features").children())[1:-1]
    assert len(blocks) == 17
    assert all(isinstance(block.get_submodule("conv")[-1], ECA) for block in blocks)  # type: ignore[index]


def test_the_last_norm_of_a_block_starts_at_one_as_in_the_paper() -> None:
    blocks = residual_blocks(create_model("resnet20"))
    assert isinstance(blocks[0], ResNetBlock)
    assert all((block.body.bn2.weight == 1).all() for block in blocks)  # type: ignore[union-attr]


def test_insertion_after_blocks_is_spread_over_a_stage() -> None:
    assert AfterBlock({2: 2, 3: 3}).blocks((3, 4, 6, 3)) == ["2.2", "2.4", "3.2", "3.4", "3.6"]
    assert AfterBlock({3: 1}, last=-2).blocks((3, 4, 23, 3)) == ["3.22"]
    assert AfterBlock({3: 1}, last=-2).blocks((1, 1, 1)) == ["3.1"]
    assert AfterBlock({2: 2, 3: 3}).blocks((2, 2, 2, 2)) == ["2.1", "2.2", "3.1", "3.2"]
    assert AfterBlock({4: 1}).blocks((3, 3, 3)) == []


@pytest.mark.parametrize("name", ["eca_resnet20", "se_mobilenet_v2", "aa_resnet20", "gsop_resnet20", "nl_resnet20"])
def test_small_images_work_forward_and_backward(name: str) -> None:
    torch.manual_seed(0)
    model = create_model(name, num_classes=3, stem="small")
    logits_NK = model(torch.randn(2, 3, 32, 32))
    logits_NK.square().sum().backward()
    assert logits_NK.shape == (2, 3)
    assert all(parameter.grad is not None for parameter in model.parameters())
