"""Images a second that training gets, by one core: from files and packed, beside ImageFolder's way.

python bench/input.py [--pictures N]; each way in turns, medians of five.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import torch
from PIL import Image

from fastcnn.cli import main as fastcnn
from fastcnn.data import find, folders
from fastcnn.models import imagenet
from fastcnn.training import augment

ROUNDS = 5
BATCH = 128


def photographs(folder: Path, count: int) -> None:
    """JPEGs of 500 x 375 pixels and some 100 kB, as of ImageNet: smooth shapes under noise."""
    draw = torch.Generator().manual_seed(0)
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
        for i in range(count // 2):
            coarse = torch.rand(1, 3, 24, 32, generator=draw)
            pixels = torch.nn.functional.interpolate(coarse, (375, 500), mode="bicubic")[0]
            pixels = (pixels + 0.06 * torch.randn(pixels.shape, generator=draw)).clamp(0, 1)
            values = (255 * pixels.permute(1, 2, 0)).byte().contiguous().numpy()
            Image.fromarray(values).save(folder / name / f"{i}.jpg", quality=90)


def image_folder(paths: list[Path]) -> None:
    """What torchvision's ImageFolder does with a RandomCrop of the shorter side's 256, by the same calls."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (imagenet.MEAN, imagenet.STD))
    crops = []
    for path in paths:
        with open(path, "rb") as file:
            image = Image.open(file).convert("RGB")
        image = image.resize((341, 256), Image.Resampling.BILINEAR)
        x, y = torch.randint(118, (1,)).item(), torch.randint(33, (1,)).item()
        image = image.crop((x, y, x + 224, y + 224))
        if torch.rand(1) < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(224, 224, 3)
        crops.append((pixels.permute(2, 0, 1).contiguous().float() / 255 - mean) / std)
    torch.stack(crops)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=1024)
    count = parser.parse_args().pictures
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        source, packed = Path(name) / "pictures", Path(name) / "packed"
        photographs(source, count)
        size = sum(path.stat().st_size for path in source.glob("*/*")) / count
        start = time.perf_counter()
        if fastcnn(["pack", str(source), str(packed), "--workers", "0"]):
            sys.exit(1)
        rates: dict[str, list[float]] = {"pack": [count / (time.perf_counter() - start)]}
        files, array = folders.pictures(source, 256, 224).train, find(str(packed), None)
        numbers = torch.randperm(len(files), generator=torch.Generator().manual_seed(0))[:BATCH].tolist()
        draws = augment.draw(BATCH, 32, 3, seed=0)
        known = augment.Statistics(
            torch.full((3,), 120.0), torch.full((3,), 60.0), torch.eye(3), torch.ones(3)
        )
        made = augment.Augment(known, 224, scaled=False, mirrored=True, colour=True)

        def pixels() -> torch.Tensor:
            return array.train.__getitems__(numbers).images

        ways: dict[str, Callable[[], object]] = {
            "files, decoded and scaled": lambda: files.__getitems__(numbers),
            "ImageFolder's way": lambda: image_folder([files.paths[i] for i in numbers]),
            "packed, with the paper's augmentation": lambda: made.drawn(pixels(), draws),
            "packed, augmented by the device": pixels,
        }
        for work in ways.values():
            work()
        for _ in range(ROUNDS):
            for way, work in ways.items():
                start = time.perf_counter()
                work()
                rates.setdefault(way, []).append(BATCH / (time.perf_counter() - start))
    print(f"{count} JPEGs of 500 x 375, {size / 1000:.0f} kB; one thread; torch {torch.__version__}")
    for way, found in rates.items():
        print(f"{statistics.median(found):8,.0f} images/s  {way} ({min(found):,.0f} to {max(found):,.0f})")


if __name__ == "__main__":
    main()
