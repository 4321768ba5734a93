"""How much faster `fastcnn.fuse` makes models: AlexNet written the usual way, and those of tests/zoo.py.

python bench/fuse.py [--images 32]: medians of turns, in evaluation, with quartiles of the ratio.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from sweep import seconds
from torch import nn

import fastcnn

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from zoo import ENTRIES


class AlexNet(nn.Module):
    """Krizhevsky et al. 2012 as most write it: LRN across both towers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 96, 11, stride=4)
        self.conv2 = nn.Conv2d(96, 256, 5, padding=2, groups=2)
        self.conv3 = nn.Conv2d(256, 384, 3, padding=1)
        self.conv4 = nn.Conv2d(384, 384, 3, padding=1, groups=2)
        self.conv5 = nn.Conv2d(384, 256, 3, padding=1, groups=2)
        self.relu, self.dropout = nn.ReLU(inplace=True), nn.Dropout()
        self.norm, self.pool = nn.LocalResponseNorm(5, k=2.0), nn.MaxPool2d(3, 2)
        self.fc6, self.fc7, self.fc8 = nn.Linear(9216, 4096), nn.Linear(4096, 4096), nn.Linear(4096, 1000)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pool(self.norm(self.relu(self.conv1(x))))
        x = self.pool(self.norm(self.relu(self.conv2(x))))
        x = self.relu(self.conv4(self.relu(self.conv3(x))))
        x = self.pool(self.relu(self.conv5(x))).flatten(1)
        x = self.relu(self.fc7(self.dropout(self.relu(self.fc6(x)))))
        return self.fc8(self.dropout(x))


def compare(name: str, reference: Callable[[], object], ours: Callable[[], object]) -> None:
    calls = [max(1, int(5e-3 / seconds(fn, 2))) for fn in (reference, ours)]
    times = [[seconds(fn, n) for fn, n in zip((reference, ours), calls, strict=True)] for _ in range(11)]
    low, ratio, high = statistics.quantiles([a / b for a, b in times], n=4)
    took = " ".join(f"{1e3 * statistics.median(column):9.2f}" for column in zip(*times, strict=True))
    print(f"{name:28} {took}  {ratio:5.2f}  ({low:.2f} to {high:.2f})", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=32)
    images = parser.parse_args().images
    torch.set_grad_enabled(False)
    torch.manual_seed(0)
    print(f"{'':28} {'plain ms':>9} {'fused ms':>9}  ratio")
    plain, x = AlexNet().eval(), torch.randn(images, 3, 227, 227)
    fused, ours = fastcnn.fuse(copy.deepcopy(plain)), fastcnn.models.alexnet("2012").eval()
    compare("AlexNet", lambda: plain(x), lambda: fused(x))
    compare('models.alexnet("2012"), fused', lambda: ours(x), lambda: fused(x))
    for entry in ENTRIES:
        plain, x = entry.build().eval(), torch.randn(images, *entry.size[1:])
        fused = fastcnn.fuse(copy.deepcopy(plain), fold_bn=True)
        compare(entry.name, lambda plain=plain, x=x: plain(x), lambda fused=fused, x=x: fused(x))


if __name__ == "__main__":
    main()
