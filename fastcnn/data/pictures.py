"""Pictures in files, decoded when they are asked for."""

from __future__ import annotations

import hashlib
import warnings
from array import array
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .paths import Paths
from .source import Batch

if TYPE_CHECKING:
    from PIL import Image

_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # Pillow's others may start a program


class Files:
    """Pictures in files, decoded when asked for: shorter side scaled to ``side``, then its middle (§2)."""

    def __init__(self, paths: Paths | Iterable[Path], labels: Iterable[int], side: int) -> None:
        self.paths = paths if isinstance(paths, Paths) else Paths(paths)
        self.labels, self.side = array("i", labels), side

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
        tails = zip(self.labels, self.paths.tails(), strict=True)
        lines = (b"".join((b"%d " % label, folder, b"/", name, b"\0")) for label, (folder, name) in tails)
        while part := b"".join(islice(lines, 4096)):
            digest.update(part)
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
