"""EfficientNet-B1 without its classifier, with torchvision's names.

Tan & Le 2019 (arXiv 1905.11946): B0's stages, made 1.1 times deeper.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

#: Beginnings of torchvision's names that are not here.
UNUSED = ("classifier.",)

_DEPTH = 1.1
#: expansion, kernel, stride, channels out, blocks (of B0); table 1 of the paper
_STAGES = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)


class SqueezeExcitation(nn.Module):
    """Scale channels by a function of their means (Hu et al. 2018, arXiv 1709.01507)."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.fc2 = nn.Conv2d(squeezed, channels, 1)
        self.activation = nn.SiLU()
        self.scale_activation = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        """(n, channels, h, w) to the same."""
        scale = self.activation(self.fc1(self.avgpool(x)))
        y: Tensor = self.scale_activation(self.fc2(scale)) * x
        return y


class MBConv(nn.Module):
    """Inverted bottleneck: widen, depthwise convolution, squeeze and excitation, narrow."""

    def __init__(self, inputs: int, outputs: int, expansion: int, kernel: int, stride: int) -> None:
        super().__init__()
        wide = inputs * expansion
        layers: list[nn.Module] = [_convolution(inputs, wide, 1)] if expansion != 1 else []
        layers.append(_convolution(wide, wide, kernel, stride, groups=wide))
        layers.append(SqueezeExcitation(wide, max(1, inputs // 4)))
        layers.append(_convolution(wide, outputs, 1, activated=False))
        self.block = nn.Sequential(*layers)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """(n, inputs, h, w) to (n, outputs, h / stride, w / stride)."""
        y: Tensor = self.block(x)
        return y + x if self.residual else y


class EfficientNetB1(nn.Module):
    """EfficientNet-B1 up to its global average pool."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [_convolution(3, 32, 3, stride=2)]
        inputs = 32
        for expansion, kernel, stride, outputs, blocks in _STAGES:
            stage: list[nn.Module] = []
            for block in range(math.ceil(blocks * _DEPTH)):
                first = block == 0
                stage.append(
                    MBConv(inputs if first else outputs, outputs, expansion, kernel, stride if first else 1)
                )
            layers.append(nn.Sequential(*stage))
            inputs = outputs
        layers.append(_convolution(inputs, 4 * inputs, 1))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images (n, 3, S, S) to features (n, 1280)."""
        y: Tensor = self.avgpool(self.features(x)).flatten(1)
        return y


def _convolution(
    inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, activated: bool = True
) -> nn.Sequential:
    """Build convolution, batch norm and, where wanted, SiLU."""
    padding = (kernel - 1) // 2
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    ]
    return nn.Sequential(*layers, nn.SiLU()) if activated else nn.Sequential(*layers)
