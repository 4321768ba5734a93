"""AlexNet as published, as reduced to one GPU in 2014, and as Caffe distributed it."""

from __future__ import annotations

from dataclasses import replace

from ..stages import LRN, MaxPool
from ._blocks import Conv, ConvNet, Dense, Table, build

_POOL = MaxPool(3, 2, ceil_mode=True)
_POOL_2014 = MaxPool(3, 2)
_LRN_2012 = LRN(5, 1e-4, 0.75, k=2, groups=2)
_LRN_ONE_GPU = LRN(5, 1e-4, 0.75, k=2)
_LRN_CAFFE = LRN(5, 1e-4, 0.75, k=1)


def _towers(lrn: LRN, bias: float, order: str = "lrn_pool") -> tuple[Conv, ...]:
    """Two half-width towers that meet in conv3 (Krizhevsky, Sutskever & Hinton 2012, §3.5)."""
    return (  # channels, kernel, stride, padding, groups
        Conv("conv1", 96, 11, 4, 0, 1, lrn, _POOL, order, std=0.01),
        Conv("conv2", 256, 5, 1, 2, 2, lrn, _POOL, order, std=0.01, bias=bias),
        Conv("conv3", 384, 3, 1, 1, 1, std=0.01),
        Conv("conv4", 384, 3, 1, 1, 2, std=0.01, bias=bias),
        Conv("conv5", 256, 3, 1, 1, 2, pool=_POOL, std=0.01, bias=bias),
    )


def _classifier(std: float, bias: float) -> tuple[Dense, ...]:
    return (
        Dense("fc6", 4096, std=std, bias=bias),
        Dense("fc7", 4096, dropout=True, std=std, bias=bias),
        Dense("fc8", dropout=True, std=0.01),
    )


# Named by torchvision's places, so that its checkpoint loads as it is.
_CONVS_2014 = (  # channels, kernel, stride, padding
    Conv("0", 64, 11, 4, 2, pool=_POOL_2014),
    Conv("3", 192, 5, 1, 2, pool=_POOL_2014),
    Conv("6", 384, 3, 1, 1),
    Conv("8", 256, 3, 1, 1),
    Conv("10", 256, 3, 1, 1, pool=_POOL_2014),
)
_CLASSIFIER_2014 = (
    Dense("1", 4096, dropout=True),
    Dense("4", 4096, dropout=True),
    Dense("6"),
)


def _margins_2012(size: int) -> tuple[int, int] | None:
    """Zeros after the image until whole windows cover it: cuda-convnet rounds their number up."""
    return (0, -(size - 11) % 4) if 196 <= size <= 227 else None


def _margins_2014(size: int) -> tuple[int, int] | None:
    return (0, 0) if size >= 63 else None


def _margins_caffe(size: int) -> tuple[int, int] | None:
    return (0, 0) if 199 <= size <= 230 else None


_SIZES_CAFFE = "from 199 to 230 (227 as published)"

TABLES = {
    "2012": Table(
        _towers(_LRN_2012, bias=1),
        6,
        _classifier(std=0.01, bias=1),
        _margins_2012,
        "from 196 to 227 (224 as published)",
    ),
    "2014": Table(
        _CONVS_2014,
        6,
        _CLASSIFIER_2014,
        _margins_2014,
        "at least 63 (224 as published)",
        adaptive=True,
    ),
    "caffenet": Table(
        _towers(_LRN_CAFFE, bias=1, order="pool_lrn"),
        6,
        _classifier(std=0.005, bias=1),
        _margins_caffe,
        _SIZES_CAFFE,
    ),
    "bvlc": Table(
        _towers(_LRN_CAFFE, bias=0.1),
        6,
        _classifier(std=0.005, bias=0.1),
        _margins_caffe,
        _SIZES_CAFFE,
    ),
}


NORMS = ("published", "lrn", "batch", None)


def _with_norm(table: Table, norm: str | None) -> Table:
    """The network with another normalisation, or none, in place of its own."""
    if norm not in NORMS:
        raise ValueError(f"alexnet: norm must be one of {NORMS}, but got {norm!r}")
    if norm == "published" or (norm == "lrn" and table.convs[0].lrn):
        return table
    lrn = _LRN_ONE_GPU if norm == "lrn" else None
    convs = [
        replace(conv, lrn=lrn if i < 2 else None, batch_norm=norm == "batch")
        for i, conv in enumerate(table.convs)
    ]
    return replace(table, convs=tuple(convs))


def alexnet(
    variant: str = "2012",
    num_classes: int = 1000,
    *,
    norm: str | None = "published",
    dropout: float = 0.5,
    in_channels: int = 3,
    fused: bool = True,
) -> ConvNet:
    """AlexNet: (N, in_channels, H, W) images to (N, num_classes).

    - "2012": Krizhevsky, Sutskever & Hinton 2012, 60,965,224 parameters. Two towers; LRN within
      each (§3.3, k = 2) after the ReLU and before the overlapping pooling (§3.4); the paper's
      initial weights (§5). alpha is divided by the window's size, as in the released code but not
      in the paper. Takes 224 x 224 (zeros at the right and bottom make it 227) and near sizes.
    - "2014": Krizhevsky 2014, "One weird trick", 61,100,840 parameters. No LRN, no towers;
      torchvision's checkpoint loads as it is. Takes 63 x 63 and larger; torch's initial weights.
    - "caffenet": Caffe's reference network, which pools before its LRN (k = 1, across both
      towers). Takes 227 x 227; Caffe's initial weights.
    - "bvlc": Caffe's replica of the paper: "caffenet" with the LRN before the pooling.

    Args:
        variant: one of the above.
        num_classes: outputs of the last layer.
        norm: "lrn": after the first two convolutions' ReLU (for "2014" as in its author's own one-GPU
            configuration); "batch": batch normalisation after every convolution; None: no normalisation;
            "published": as the variant has it.
        dropout: probability that an input of the last two dense layers ("2014": of the first two)
            is dropped in training.
        in_channels: channels of the images.
        fused: False builds the same network from torch's own layers, with the same state dict.

    Raises:
        ValueError: an unknown variant or norm; a dropout outside 0 to 1.
        RuntimeError: on the forward pass, images of a size or number of channels that don't fit.
    """
    tables = {name: _with_norm(table, norm) for name, table in TABLES.items()}
    return build("alexnet", tables, variant, num_classes, dropout, in_channels, fused)
