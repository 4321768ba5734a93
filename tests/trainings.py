"""Images that are easy to tell apart, trainings on them, and what these leave."""

import csv
import gzip

import torch
from PIL import Image
from safetensors import safe_open

from fastcnn.cli import main

# What is written into files here, and read by the code under test.


def write_idx(path, values, pack=gzip.compress):
    sizes = b"".join(size.to_bytes(4, "big") for size in values.shape)
    path.write_bytes(pack(bytes([0, 0, 8, values.dim()]) + sizes + bytes(values.flatten().tolist())))


def write_mnist(folder, count=96, classes=3):
    """Each class a bright row of its own under noise (of the first four), half of the images for testing."""
    folder.mkdir(exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    for part in ("train", "t10k"):
        labels = torch.arange(count) % classes
        values = torch.randint(101, (count, 28, 28), generator=generator)
        values[torch.arange(count), (5 + 7 * labels) % 28] = 255
        write_idx(folder / f"{part}-images-idx3-ubyte.gz", values)
        write_idx(folder / f"{part}-labels-idx1-ubyte", labels, bytes)
    return folder


def write_pictures(folder, count=10, classes=("blue", "green", "red"), suffix="png"):
    """Of each class's own colour, 40 x 50 pixels."""
    for i, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for j in range(count):
            colour = [20 + 3 * j] * 3
            colour[2 - i] = 200
            Image.new("RGB", (50, 40), tuple(colour)).save(folder / name / f"{j}.{suffix}")
    return folder


def log_of(out):
    with open(out / "log.csv") as file:
        return list(csv.DictReader(file))


def weights_of(out):
    with safe_open(out / "model.safetensors", "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def train(data, out, *options):
    """On a few images, with small steps; the status."""
    small = ["--batch", "16", "--epochs", "2", "--dtype", "float32", "--workers", "0"]
    return main(["train", "--data", str(data), "--out", str(out), *small, *options])
