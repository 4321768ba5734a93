"""AlexNet as published, as reduced to one GPU in 2014, and as Caffe distributed it."""

from __future__ import annotations

from dataclasses import replace

from ..stages import LRN, MaxPool
from . import imagenet
from ._blocks import Conv, ConvNet, Dense, Table

_POOL = MaxPool(3, 2, ceil_mode=True)
_POOL_2014 = MaxPool(3, 2)
_LRN_2012 = LRN(5, 1e-4, 0.75, k=2, groups=2)
_LRN_ONE_GPU = LRN(5, 1e-4, 0.75, k=2)
_LRN_CAFFE = LRN(5, 1e-4, 0.75, k=1)


def _towers(lrn: LRN, bias: float, order: str = "lrn_pool") -> tuple[Conv, ...]:
    """Builds two half-width towers that meet in conv3 (Krizhevsky, Sutskever & Hinton 2012, §3.5)."""
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


def _margins_2012(size: int) -> tuple[int, int]:
    """Zeros after the image until whole windows cover it: cuda-convnet rounds their number up."""
    return 0, -(size - 11) % 4


TABLES = {
    "2012": Table(
        _towers(_LRN_2012, bias=1),
        6,
        _classifier(std=0.01, bias=1),
        published=(224,),
        margins=_margins_2012,
        near=True,
    ),
    "2014": Table(
        _CONVS_2014,
        6,
        _CLASSIFIER_2014,
        published=(224,),
        near=True,
        adaptive=True,
    ),
    "caffenet": Table(
        _towers(_LRN_CAFFE, bias=1, order="pool_lrn"),
        6,
        _classifier(std=0.005, bias=1),
        published=(227,),
        near=True,
    ),
    "bvlc": Table(
        _towers(_LRN_CAFFE, bias=0.1),
        6,
        _classifier(std=0.005, bias=0.1),
        published=(227,),
        near=True,
    ),
}


NORMS = ("published", "lrn", "batch", None)


def _with_norm(table: Table, norm: str | None) -> Table:
    """Returns the network with another normalisation, or none, in place of its own."""
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


def _in_one_tower(table: Table) -> Table:
    """Halves the kernels of all but the last convolution (Krizhevsky et al. 2012, §3.2, footnote 2)."""
    *halved, last = table.convs
    convs = [
        replace(conv, channels=conv.channels // 2, groups=1, lrn=conv.lrn and replace(conv.lrn, groups=1))
        for conv in halved
    ]
    return replace(table, convs=(*convs, replace(last, groups=1)))


def _without_overlap(table: Table) -> Table:
    """Maps pooled by 2 x 2 (Krizhevsky et al. 2012, §3.4), to the same sizes."""
    convs = [replace(conv, pool=conv.pool and MaxPool(2)) for conv in table.convs]
    return replace(table, convs=tuple(convs))


def alexnet(
    variant: str = "2012",
    num_classes: int = 1000,
    *,
    towers: int | None = None,
    norm: str | None = "published",
    overlap: bool = True,
    adaptive: bool | None = None,
    dropout: float = 0.5,
    in_channels: int = 3,
    fused: bool = True,
    weights: str | None = None,
) -> ConvNet:
    """Builds AlexNet: (N, in_channels, H, W) images to (N, num_classes).

    - "2012": Krizhevsky, Sutskever & Hinton 2012, 60,965,224 parameters. Two towers; LRN within
      each (§3.3, k = 2) after the ReLU and before the overlapping pooling (§3.4); the paper's
      initial weights (§5). alpha is divided by the window's size, as in the released code but not
      in the paper. Takes 224 x 224 (zeros at the right and bottom make it 227) and near sizes.
    - "2014": Krizhevsky 2014, "One weird trick", 61,100,840 parameters. No LRN, no towers;
      torchvision's checkpoint loads as it is. Takes 63 x 63 and larger; torch's initial weights, or
      torchvision's trained ones.
    - "caffenet": Caffe's reference network, which pools before its LRN (k = 1, across both
      towers). Takes 227 x 227 and near sizes; Caffe's initial weights.
    - "bvlc": Caffe's replica of the paper: "caffenet" with the LRN before the pooling.

    Between the last map, 256 x 6 x 6, and the first dense layer: a dense layer has a weight for each of its
    inputs, so it takes a fixed number of them. Flattening gives it all 9216 values of the map, and each place
    of the map weights of its own; then only images that give 6 x 6 will do. Adaptive average pooling makes
    6 x 6 of a map of any size, each value the mean of the part of the map that it stands for (of a map
    smaller than that, places are repeated): any image will do, but what is averaged no longer tells where in
    its part it was. Of a map that is 6 x 6 already, it changes nothing.

    Args:
        variant: one of the above.
        num_classes: outputs of the last layer.
        towers: 1: the paper's network for one GPU (§3.2, footnote 2), 59,798,312 parameters: one tower, so
            half of the kernels in each convolution, except for the last, which keeps its 256 as the dense
            layers keep theirs. None: as the variant has it, 2, or 1 for "2014".
        norm: "lrn": after the first two convolutions' ReLU (for "2014" as in its author's own one-GPU
            configuration); "batch": batch normalisation after every convolution; None: no normalisation;
            "published": as the variant has it.
        overlap: False pools 2 x 2 in steps of 2, where published 3 x 3 in steps of 2 (§3.4).
        adaptive: True averages the last map to 6 x 6, False flattens it as it is; None: as the variant has
            it, True for "2014" alone. The sizes taken, of H and of W:

            | variant | adaptive=True | adaptive=False |
            |---|---|---|
            | "2012" | at least 36 | 196 to 227 |
            | "2014" | at least 63 | 223 to 254 |
            | Caffe's | at least 39 | 199 to 230 |

            With overlap=False the same, but for "2014", which takes at least 35, or 195 to 226.
        dropout: probability that an input of the last two dense layers ("2014": of the first two)
            is dropped in training.
        in_channels: channels of the images.
        fused: False builds the same network from torch's own layers, with the same state dict.
        weights: "IMAGENET1K_V1" or "DEFAULT": torchvision's for "2014", trained on ImageNet-1k, from
            torch.hub's cache or by a download of 244 MB; :mod:`fastcnn.models.imagenet` has the classes and
            the images' preprocessing. None: initial weights.

    Raises:
        ValueError: an unknown variant or norm; towers that the variant can't have; a dropout outside 0 to 1;
            unknown weights, or another argument that does not fit them.
        OSError, RuntimeError: the weights can't be downloaded or are damaged, see ``imagenet.load``.
        RuntimeError: on the forward pass, images of a size or number of channels that don't fit.
    """
    if variant not in TABLES:
        raise ValueError(f"alexnet: variant must be one of {tuple(TABLES)}, but got {variant!r}")
    if weights is not None:
        given = {"variant": variant, "num_classes": num_classes, "towers": towers, "norm": norm}
        given |= {"overlap": overlap, "adaptive": adaptive, "in_channels": in_channels}
        imagenet.check(weights, given)
    table, name = TABLES[variant], f"alexnet({variant!r})"
    own = table.convs[1].groups
    if towers not in (None, 1, own):
        raise ValueError(
            f"{name}: towers must be {' or '.join(map(str, sorted({1, own})))}, but got {towers!r}"
        )
    if towers == 1 != own:
        table, name = _in_one_tower(table), f"alexnet({variant!r}, towers=1)"
    table = _with_norm(table, norm)
    if not overlap:
        table = _without_overlap(table)
    if adaptive is not None:
        table = replace(table, adaptive=adaptive)
    model = ConvNet(name, table, num_classes, dropout, in_channels, fused)
    if weights is not None:
        imagenet.load(model)
    return model
