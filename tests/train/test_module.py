"""The network in training: what it starts from, what learns, what is counted, what is averaged."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import eca_hub
from eca_hub.errors import InvalidConfig, NonFiniteScores
from eca_hub.models.build import build_model
from eca_hub.models.config import ModelConfig
from eca_hub.models.regularization import set_drop_rates
from eca_hub.train.data.dataset import Batch
from eca_hub.train.module import ImageClassifier
from eca_hub.train.optim import OptimConfig, make_optimizer
from eca_hub.train.transfer import batch_norms, freeze_parameters, head_names, train_head_only
from tests.conftest import LABELS, TINY


def test_a_package_with_the_same_labels_starts_as_it_is(tiny_package: Path) -> None:
    module = ImageClassifier(from_pretrained=str(tiny_package), labels=LABELS, image=TINY.image)
    model, _ = eca_hub.load_pretrained(tiny_package)
    pixels = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    expected = model(eca_hub.EvalTransform(TINY.image).normalize(pixels))
    torch.testing.assert_close(module.eval()(pixels), expected)


def test_a_package_with_other_labels_gets_a_new_head_and_keeps_the_rest(tiny_package: Path) -> None:
    module = ImageClassifier(from_pretrained=str(tiny_package), labels=("a", "b", "c", "d"), image=TINY.image)
    before, _ = eca_hub.load_pretrained(tiny_package)
    changed = {
        name for name, tensor in module.model.state_dict().items() if not tensor.equal(before.state_dict()[name])
    }
    assert changed == {"fc.weight", "fc.bias"} == head_names(TINY)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"architecture": "resnet50"}, r"--model.architecture is resnet50, but the package .* has resnet20"),
        ({"attention": "se"}, r"--model.attention is se, but the package .* has eca"),
        ({"architecture": "se_resnet20"}, r"--model.attention is se, but the package .* has eca"),
        ({"stem": "small"}, r"--model.stem is small, but the package .* has default"),
        ({"attention_args": {"kernel_size": 9}}, r"--model.attention_args is .*, but the package .* has"),
    ],
)
def test_options_that_contradict_the_package_are_refused(
    options: dict[str, Any], sentence: str, tiny_package: Path
) -> None:
    with pytest.raises(InvalidConfig, match=sentence):
        ImageClassifier(from_pretrained=str(tiny_package), labels=LABELS, image=TINY.image, **options)


def test_options_that_repeat_the_package_are_accepted(tiny_package: Path) -> None:
    module = ImageClassifier("eca_resnet20", "eca", from_pretrained=str(tiny_package), labels=LABELS, image=TINY.image)
    assert (module.config.architecture, module.config.attention) == ("resnet20", "eca")


def test_a_linear_probe_changes_the_head_alone(tiny_package: Path) -> None:
    module = ImageClassifier(from_pretrained=str(tiny_package), labels=("a", "b"), image=TINY.image, freeze="backbone")
    module.train()
    before = {name: tensor.clone() for name, tensor in module.model.state_dict().items()}
    optimizer = make_optimizer(OptimConfig(), module.model)
    pixels = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)
    torch.autograd.backward(nn.functional.cross_entropy(module(pixels), torch.tensor([0, 1, 0, 1])))
    optimizer.step()
    changed = {name for name, tensor in module.model.state_dict().items() if not tensor.equal(before[name])}
    assert changed == {"fc.weight", "fc.bias"}


def test_a_linear_probe_drops_features_before_the_head_and_keeps_the_statistics_of_the_norms(
    tiny_package: Path,
) -> None:
    module = ImageClassifier(
        from_pretrained=str(tiny_package), labels=LABELS, image=TINY.image, freeze="backbone", drop_rate=0.5
    ).train()
    before = {name: buffer.clone() for name, buffer in module.model.named_buffers()}
    pixels = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)
    assert not torch.equal(module(pixels), module(pixels))
    assert all(torch.equal(buffer, before[name]) for name, buffer in module.model.named_buffers())
    module.eval()
    assert torch.equal(module(pixels), module(pixels))


def test_a_linear_probe_with_stochastic_depth_is_refused_because_a_frozen_backbone_drops_nothing(
    tiny_package: Path,
) -> None:
    with pytest.raises(InvalidConfig, match=r"drop_path_rate is 0.1, and model.freeze is backbone") as refused:
        ImageClassifier(
            from_pretrained=str(tiny_package), labels=LABELS, image=TINY.image, freeze="backbone", drop_path_rate=0.1
        )
    assert refused.value.hint == "Leave out --model.drop_path_rate, or give --model.freeze norms or none."


@pytest.mark.parametrize("name", ["mobilenet_v2", "convnext_atto"])
def test_dropout_that_is_a_layer_beside_the_head_works_in_a_linear_probe(name: str) -> None:
    config = ModelConfig(name, "none", labels=LABELS)
    model = build_model(config)
    set_drop_rates(model, config, drop_rate=0.5)
    freeze_parameters(model, config, "backbone")
    train_head_only(model)
    assert [each.training for each in model.modules() if isinstance(each, nn.Dropout) and each.p == 0.5] == [True]
    assert not any(norm.training for norm in batch_norms(model))


def test_frozen_norms_keep_weights_and_statistics() -> None:
    module = ImageClassifier("resnet20", labels=LABELS, image=TINY.image, freeze="norms")
    for _ in range(2):
        assert all(not norm.training for norm in batch_norms(module.model))
        assert module.model.training
        module.eval()
        module.train()
    assert not any(parameter.requires_grad for norm in batch_norms(module.model) for parameter in norm.parameters())


def test_a_teacher_of_other_classes_is_refused(tiny_package: Path) -> None:
    with pytest.raises(InvalidConfig, match=r"The teacher .* has 3 classes, the data have 2"):
        ImageClassifier("resnet20", labels=("a", "b"), image=TINY.image, distill_from=str(tiny_package))


@pytest.mark.parametrize("option", ["from_pretrained", "distill_from"])
def test_a_package_of_other_channels_than_the_data_is_refused(option: str, tiny_package: Path) -> None:
    gray = dataclasses.replace(TINY.image, in_chans=1, mean=(0.5,), std=(0.5,))
    network = "resnet20" if option == "distill_from" else None
    with pytest.raises(InvalidConfig, match=r"takes images of 3 channels, and --data.image.in_chans is 1. Give --data"):
        ImageClassifier(network, labels=LABELS, image=gray, **{option: str(tiny_package)})  # type: ignore[arg-type]


def test_a_teacher_is_in_no_checkpoint(tiny_package: Path) -> None:
    module = ImageClassifier("resnet20", labels=LABELS, image=TINY.image, distill_from=str(tiny_package))
    assert {name.split(".")[0] for name in module.state_dict()} == {"model", "metrics"}


def test_distillation_is_the_cross_entropy_and_the_softened_divergence_from_the_teacher(
    tiny_package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hinton et al. 2015: (1 - a) CE(student, truth) + a T^2 KL(teacher / T || student / T)."""
    options: dict[str, Any] = {"distill_alpha": 0.7, "distill_temperature": 3.0}
    module = ImageClassifier(
        "resnet20", labels=LABELS, image=TINY.image, distill_from=str(tiny_package), **options
    ).eval()
    monkeypatch.setattr(ImageClassifier, "trainer", SimpleNamespace(current_epoch=0, global_rank=0, loggers=[]))
    pixels, targets = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8), torch.tensor([0, 1, 2, 0])
    loss = module.training_step(Batch(pixels, targets, torch.arange(4)), 0)
    student = module(pixels)
    teacher, config = eca_hub.load_pretrained(tiny_package)
    taught = teacher(eca_hub.EvalTransform(config.image).normalize(pixels))
    soft, wanted = (student / 3).softmax(1), (taught / 3).softmax(1)
    divergence = (wanted * (wanted.log() - soft.log())).sum(1).mean()
    expected = 0.3 * nn.functional.cross_entropy(student, targets) + 0.7 * 9 * divergence
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize(
    "options",
    [{"label_smoothing": 1.0}, {"ema_decay": -0.1}, {"drop_rate": 1.0}, {"distill_temperature": 0.0}],
)
def test_shares_that_cannot_work_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(InvalidConfig, match=next(iter(options))):
        ImageClassifier("resnet20", labels=LABELS, **options)  # type: ignore[arg-type]


def test_adaptive_clipping_limits_the_gradients_by_the_weights_except_in_the_head() -> None:
    module = ImageClassifier("resnet20", labels=LABELS, image=TINY.image, optim=OptimConfig(agc=0.01))
    module._head = module.head_weights()
    for parameter in module.model.parameters():
        parameter.grad = torch.full_like(parameter, 100.0)
    module.on_before_optimizer_step(make_optimizer(module.optim_config, module.model))
    for name, parameter in module.model.named_parameters():
        assert parameter.grad is not None
        if name in {"fc.weight", "fc.bias"}:
            assert bool((parameter.grad == 100).all())
        elif parameter.ndim == 4:
            ratio = parameter.grad.flatten(1).norm(dim=1) / parameter.detach().flatten(1).norm(dim=1).clamp(min=1e-3)
            assert float(ratio.max()) <= 0.0101


def test_a_batch_of_one_image_is_refused_where_norms_would_see_one_value() -> None:
    small = eca_hub.ImageConfig(height_px=32, width_px=32)
    module = ImageClassifier("resnet18", labels=LABELS, image=small)
    module.check_batch(2)
    with pytest.raises(InvalidConfig, match=r"A batch of one image of 32 x 32 px has a feature map of 1 x 1"):
        module.check_batch(1)
    ImageClassifier("resnet18", labels=LABELS, image=small, freeze="norms").check_batch(1)
    ImageClassifier("resnet20", labels=LABELS, image=small).check_batch(1)


@pytest.mark.parametrize("step", ["predict_step", "test_step", "validation_step"])
def test_an_evaluation_ends_with_an_error_when_the_network_gives_no_finite_scores(
    step: str, damaged_package: Path
) -> None:
    module = ImageClassifier(from_pretrained=str(damaged_package), labels=LABELS, image=TINY.image).eval()
    module.trainer = SimpleNamespace(state=SimpleNamespace(fn="test"))  # type: ignore[assignment]
    batch = Batch(torch.zeros(1, 3, 16, 16, dtype=torch.uint8), torch.zeros(1, dtype=torch.long), torch.zeros(1))
    with pytest.raises(NonFiniteScores, match="gives no finite scores for this image"):
        getattr(module, step)(batch, 0)
