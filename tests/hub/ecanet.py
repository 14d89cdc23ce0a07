"""Networks as the official ECANet code has them, written from its description, to compare with.

Names of modules are those of the released files; nothing here comes from eca_hub.
"""

import torch
from torch import Tensor, nn

KERNEL_SIZES = {
    "resnet18": (3, 5, 7, 7),
    "resnet34": (3, 3, 5, 7),
    "resnet50": (3, 5, 5, 7),
    "resnet101": (3, 3, 5, 7),
    "resnet152": (3, 3, 5, 7),
}
_BLOCKS = {
    "resnet18": (1, (2, 2, 2, 2)),
    "resnet34": (1, (3, 4, 6, 3)),
    "resnet50": (4, (3, 4, 6, 3)),
    "resnet101": (4, (3, 4, 23, 3)),
    "resnet152": (4, (3, 8, 36, 3)),
}


class Gate(nn.Module):
    def __init__(self, k: int) -> None:
        super().__init__()
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.conv = nn.Conv1d(1, 1, k, padding=k // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.avg_pool(x)[:, :, 0, 0]
        weights = torch.sigmoid(self.conv(pooled[:, None, :]))[:, 0, :]
        return x * weights[:, :, None, None].expand_as(x)


class Block(nn.Module):
    """conv-bn-relu chain, gate after the last norm, then the addition."""

    def __init__(self, inputs: int, planes: int, expansion: int, stride: int, k: int | None) -> None:
        super().__init__()
        outputs = planes * expansion
        if expansion == 1:
            chain = [(inputs, planes, 3, stride), (planes, outputs, 3, 1)]
        else:
            chain = [(inputs, planes, 1, 1), (planes, planes, 3, stride), (planes, outputs, 1, 1)]
        self.length = len(chain)
        for number, (c_in, c_out, size, step) in enumerate(chain, start=1):
            self.add_module(f"conv{number}", nn.Conv2d(c_in, c_out, size, step, size // 2, bias=False))
            self.add_module(f"bn{number}", nn.BatchNorm2d(c_out))
        if k is not None:
            self.eca = Gate(k)
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for number in range(1, self.length + 1):
            y = self.get_submodule(f"bn{number}")(self.get_submodule(f"conv{number}")(y))
            if number < self.length:
                y = y.relu()
        if hasattr(self, "eca"):
            y = self.eca(y)
        shortcut = self.downsample(x) if hasattr(self, "downsample") else x
        total: Tensor = (y + shortcut).relu()
        return total


class ResNet(nn.Module):
    def __init__(self, name: str, kernel_sizes: tuple[int, ...] | None, num_classes: int) -> None:
        super().__init__()
        expansion, depths = _BLOCKS[name]
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        inputs = 64
        for stage, depth in enumerate(depths):
            planes, blocks = 64 * 2**stage, []
            for number in range(depth):
                stride = 2 if stage and not number else 1
                blocks.append(Block(inputs, planes, expansion, stride, kernel_sizes[stage] if kernel_sizes else None))
                inputs = planes * expansion
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(inputs, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.max_pool2d(self.bn1(self.conv1(x)).relu(), 3, 2, 1)
        for stage in range(1, 5):
            y = self.get_submodule(f"layer{stage}")(y)
        logits: Tensor = self.fc(y.mean((2, 3)))
        return logits


def _conv_norm(c_in: int, c_out: int, size: int = 1, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(c_in, c_out, size, stride, size // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(c_out), nn.ReLU6())


class Inverted(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int, k: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.adds = stride == 1 and inputs == outputs
        self.conv = nn.Sequential(
            *([_conv_norm(inputs, hidden)] if expansion > 1 else []),
            _conv_norm(hidden, hidden, 3, stride, groups=hidden),
            nn.Conv2d(hidden, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
            Gate(k),
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return y + x if self.adds else y


class MobileNetV2(nn.Module):
    """The gate ends every block: one neighbor below `wide_from` channels, three from there on."""

    def __init__(self, num_classes: int, wide_from: int = 96) -> None:
        super().__init__()
        layers: list[nn.Module] = [_conv_norm(3, 32, 3, 2)]
        inputs = 32
        for expansion, outputs, depth, first_stride in (
            (1, 16, 1, 1),
            (6, 24, 2, 2),
            (6, 32, 3, 2),
            (6, 64, 4, 2),
            (6, 96, 3, 1),
            (6, 160, 3, 2),
            (6, 320, 1, 1),
        ):
            for number in range(depth):
                stride = 1 if number else first_stride
                layers.append(Inverted(inputs, outputs, stride, expansion, 3 if outputs >= wide_from else 1))
                inputs = outputs
        layers.append(_conv_norm(inputs, 1280))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Dropout(0.25), nn.Linear(1280, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(x).mean((2, 3)))
        return logits


def make(name: str, *, num_classes: int = 1000, attention: bool = True) -> nn.Module:
    """Make a network with random weights and random statistics, so that every tensor matters to the output."""
    torch.manual_seed(0)
    if name == "mobilenet_v2":
        network: nn.Module = MobileNetV2(num_classes)
    else:
        network = ResNet(name, KERNEL_SIZES[name] if attention else None, num_classes)
    return randomize(network)


def randomize(network: nn.Module) -> nn.Module:
    """Give norms random weights and statistics, as training does, and kernels of gates larger ones."""
    torch.manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.uniform_(module.bias, -0.1, 0.1)
            assert module.running_mean is not None
            assert module.running_var is not None
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
        elif isinstance(module, nn.Conv1d):
            nn.init.normal_(module.weight)
    return network.eval()


def released(network: nn.Module) -> dict[str, object]:
    """Give what the official training script saves: the weights under DataParallel's names, among other things."""
    return {
        "epoch": 100,
        "arch": "eca_resnet50",
        "state_dict": {f"module.{name}": tensor for name, tensor in network.state_dict().items()},
        "best_prec1": torch.tensor(77.42),
        "optimizer": {"state": {}, "param_groups": [{"lr": 0.1, "momentum": 0.9}]},
    }
