"""torchvision's and timm's classification models, where these packages are installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import partial

from torch import nn

from .entry import Entry

# One of each architecture, mostly its smallest.
TORCHVISION = """
    alexnet convnext_tiny densenet121 efficientnet_b0 efficientnet_v2_s googlenet inception_v3 mnasnet1_0
    mobilenet_v2 mobilenet_v3_large mobilenet_v3_small regnet_x_400mf regnet_y_400mf resnet18 resnet34
    resnet50 resnext50_32x4d shufflenet_v2_x1_0 squeezenet1_0 squeezenet1_1 vgg11 vgg11_bn vgg16 vgg16_bn
    vgg19 wide_resnet50_2
"""
TIMM = """
    convnext_atto cspdarknet53 cspresnet50 darknet53 densenet121 dla34 dpn68 eca_resnet33ts edgenext_xx_small
    efficientnet_b0 efficientnet_lite0 ese_vovnet19b_dw fastvit_t8 fbnetc_100 gernet_s ghostnet_100 hgnet_tiny
    hgnetv2_b0 hrnet_w18_small inception_next_atto inception_resnet_v2 inception_v3 inception_v4 lcnet_050
    legacy_seresnet18 legacy_xception mixnet_s mnasnet_100 mobilenetv2_100 mobilenetv3_large_100
    mobilenetv3_small_100 mobilenetv4_conv_small mobileone_s0 nf_regnet_b1 nf_resnet26 nfnet_f0 regnetx_002
    regnety_002 repvgg_a0 res2net50_26w_4s resnest14d resnet18 resnet18d resnet26d resnet50 resnetblur18
    resnetv2_50 resnext50_32x4d rexnet_100 selecsls42b seresnet50 skresnet18 starnet_s1 tf_efficientnet_b0
    tf_efficientnetv2_b0 tinynet_e tresnet_m vgg11_bn vovnet39a wide_resnet50_2 xception41
"""
SIZES = {"inception_v3": 299, "inception_v4": 299, "legacy_xception": 299, "xception41": 299}


def torchvision_entries() -> list[Entry]:
    """Returns torchvision's models; none without torchvision."""
    return _entries("torchvision", TORCHVISION.split(), _of_torchvision)


def timm_entries() -> list[Entry]:
    """Returns timm's models; none without timm."""
    return _entries("timm", TIMM.split(), _of_timm)


def _entries(package: str, names: list[str], build: Callable[[str], nn.Module]) -> list[Entry]:
    if importlib.util.find_spec(package) is None:
        return []
    sizes = [SIZES.get(name, 224) for name in names]
    return [Entry(f"{package}/{n}", partial(build, n), (3, s, s)) for n, s in zip(names, sizes, strict=True)]


def _of_torchvision(name: str) -> nn.Module:
    from torchvision import models

    # Their own initialisation takes long, and warns that it will change.
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    return models.get_model(name, **options)


def _of_timm(name: str) -> nn.Module:
    import timm

    return timm.create_model(name)
