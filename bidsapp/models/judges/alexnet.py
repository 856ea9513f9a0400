"""AlexNet's convolutional layers, with torchvision's names.

Krizhevsky 2014, "One weird trick for parallelizing convolutional neural networks" (arXiv 1404.5997).
"""

from __future__ import annotations

from torch import Tensor, nn

#: Beginnings of torchvision's names that are not here: features need no classifier.
UNUSED = ("classifier.",)


class AlexNet(nn.Module):
    """Features of AlexNet; ``AlexNet(2)`` of the literature is layer 4, ``AlexNet(5)`` layer 11."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 64, kernel_size=11, stride=4, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(kernel_size=3, stride=2),
            nn.Conv2d(64, 192, kernel_size=5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(kernel_size=3, stride=2),
            nn.Conv2d(192, 384, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.Conv2d(384, 256, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.Conv2d(256, 256, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(kernel_size=3, stride=2),
        )

    def forward(self, x: Tensor, layer: int = 12) -> Tensor:
        """Output of ``features[layer]``: normalised images (n, 3, S, S) to (n, channels, h, w)."""
        y: Tensor = self.features[: layer + 1](x)
        return y
