"""LeNet-5 in its modern form."""

from __future__ import annotations

from ..stages import MaxPool
from ._blocks import Conv, ConvNet, Dense, Table, build

_POOL = MaxPool(2)


def _margins(size: int) -> tuple[int, int] | None:
    """MNIST's 28 pixels stand in the middle of 32 (LeCun et al. 1998, §II.B)."""
    return {28: (2, 2), 32: (0, 0)}.get(size)


# Named as in the paper, where S2 and S4 are the poolings.
TABLES = {
    "relu": Table(
        (Conv("c1", 6, 5, pool=_POOL), Conv("c3", 16, 5, pool=_POOL)),
        5,
        (Dense("c5", 120), Dense("f6", 84, dropout=True), Dense("output", dropout=True)),
        _margins,
        "28 or 32",
    ),
}


def lenet5(
    variant: str = "relu",
    num_classes: int = 10,
    *,
    dropout: float = 0.0,
    in_channels: int = 1,
    fused: bool = True,
) -> ConvNet:
    """LeNet-5: (N, in_channels, H, W) images to (N, num_classes).

    - "relu": the widths of LeCun, Bottou, Bengio & Haffner 1998 (6, 16, 120, 84, 10), with ReLU,
      max pooling and every map connected to every other; 61,706 parameters. Takes 32 x 32, and
      MNIST's 28 x 28; torch's initial weights.

    Args:
        variant: one of the above.
        num_classes: outputs of the last layer.
        dropout: probability that an input of the last two layers is dropped in training.
        in_channels: channels of the images.
        fused: False builds the same network from torch's own layers, with the same state dict.

    Raises:
        ValueError: an unknown variant; a dropout outside 0 to 1.
        RuntimeError: on the forward pass, images of a size or number of channels that don't fit.
    """
    return build("lenet5", TABLES, variant, num_classes, dropout, in_channels, fused)
