"""LeNet-5, as published and in its modern forms."""

from __future__ import annotations

from dataclasses import replace

import torch

from ..stages import MaxPool
from ._blocks import Conv, ConvNet, Dense, Table
from .lenet1998 import LeNet1998

_POOL = MaxPool(2)


def _margins(size: int) -> tuple[int, int]:
    """Centres MNIST's 28 pixels in 32 (LeCun et al. 1998, §II.B)."""
    return (2, 2) if size == 28 else (0, 0)


# Named as in the paper, where S2 and S4 are the poolings.
TABLES = {
    "relu": Table(
        (Conv("c1", 6, 5, pool=_POOL), Conv("c3", 16, 5, pool=_POOL)),
        5,
        (Dense("c5", 120), Dense("f6", 84, dropout=True), Dense("output", dropout=True)),
        published=(28, 32),
        margins=_margins,
    ),
    "caffe": Table(
        (Conv("conv1", 20, 5, relu=False, pool=_POOL), Conv("conv2", 50, 5, relu=False, pool=_POOL)),
        4,
        (Dense("ip1", 500), Dense("ip2", dropout=True)),
        published=(28,),
    ),
}
_VARIANTS = ("1998", *TABLES)


def lenet5(
    variant: str = "relu",
    num_classes: int = 10,
    *,
    adaptive: bool = False,
    dropout: float = 0.0,
    in_channels: int = 1,
    fused: bool = True,
) -> torch.nn.Module:
    """Builds LeNet-5: (N, in_channels, H, W) images to (N, num_classes).

    - "relu": the widths of LeCun, Bottou, Bengio & Haffner 1998 (6, 16, 120, 84, 10), with ReLU,
      max pooling and every map connected to every other; 61,706 parameters. Takes 32 x 32, and
      MNIST's 28 x 28; torch's initial weights.
    - "1998": the paper's network, 60,000 trainable parameters. C3's maps see some of S2's (table I);
      S2 and S4 sum squares, scale and shift them; 1.7159 tanh(2a/3) after every layer; the score of a
      class is minus the squared distance of F6's 84 values to a bitmap of its digit. Takes the same
      images, 0 to 1, as "relu", and scales them itself. Its own loss is
      :func:`fastcnn.models.map_loss`; plain torch, ``fused`` or not.
    - "caffe": Caffe's example (20, 50, 500, 10), without ReLU on its convolutions; 431,080 parameters,
      28 x 28.

    Args:
        variant: one of the above.
        num_classes: outputs of the last layer.
        adaptive: True averages the last map to the size that it has for the images above, so that any of at
            least 16 x 16 are taken; see ``alexnet``.
        dropout: probability that an input of the last two layers is dropped in training.
        in_channels: channels of the images.
        fused: False builds the same network from torch's own layers, with the same state dict.

    Raises:
        ValueError: an unknown variant; a dropout outside 0 to 1; for "1998", another number of classes or
            channels than 10 and 1, dropout or adaptive.
        RuntimeError: on the forward pass, images of a size or number of channels that don't fit.
    """
    if variant not in _VARIANTS:
        raise ValueError(f"lenet5: variant must be one of {_VARIANTS}, but got {variant!r}")
    if variant == "1998":
        if (num_classes, in_channels, dropout) != (10, 1, 0):
            raise ValueError(
                "lenet5('1998'): num_classes, in_channels and dropout must be 10, 1 and 0, "
                f"but got {num_classes}, {in_channels} and {dropout}"
            )
        if adaptive:
            raise ValueError(f"lenet5('1998'): adaptive must be False, but got {adaptive!r}")
        return LeNet1998()
    table = replace(TABLES[variant], adaptive=adaptive)
    return ConvNet(f"lenet5({variant!r})", table, num_classes, dropout, in_channels, fused)
