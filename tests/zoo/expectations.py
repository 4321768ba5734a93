"""The chains that `fastcnn.fuse` is to find in each network."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from . import architectures, classics, flow, layers, styles

Chains = list[tuple[str, ...]]


@dataclass(frozen=True)
class Entry:
    """A network, and the chains that run in it, in order, of the kinds conv, bn, relu, lrn and pool.

    A chain is listed once for each place in a forward, however often that forward runs.

    Args:
        build: returns the network anew.
        size: of an input.
        chains: in evaluation, batch norms left as they are.
        chains_folded: in evaluation with batch norms folded, where that differs.
        training_chains: in training, batch norms to be folded or not, where that differs from ``chains``.
    """

    name: str
    build: Callable[[], nn.Module]
    size: tuple[int, ...]
    chains: Chains
    chains_folded: Chains | None = None
    training_chains: Chains | None = None


def expect(build, *chains, size, folded=None, training=None):
    """Returns the entry of a network; a chain is written as a string, "conv relu pool"."""

    def split(chains):
        return None if chains is None else [tuple(chain.split()) for chain in chains]

    return Entry(build.__name__, build, size, split(chains), split(folded), split(training))


INCEPTION = [*5 * ["conv relu"], "pool", "conv relu"]
INCEPTION_FOLDED = [*5 * ["conv bn relu"], "pool", "conv bn relu"]

ENTRIES = (
    expect(
        classics.AlexNet,
        *2 * ["conv relu lrn pool"],
        *2 * ["conv relu"],
        "conv relu pool",
        size=(2, 3, 67, 67),
    ),
    expect(classics.TwoTowers, *4 * ["conv relu lrn pool"], "conv relu", size=(2, 3, 47, 47)),
    expect(
        classics.CaffeNet,
        *2 * ["conv relu pool lrn"],
        *2 * ["conv relu"],
        "conv relu pool",
        size=(2, 3, 67, 67),
    ),
    expect(
        classics.zfnet, *2 * ["conv relu pool lrn"], *2 * ["conv relu"], "conv relu pool", size=(2, 3, 64, 64)
    ),
    expect(
        classics.VGGCNNM,
        *2 * ["conv relu lrn pool"],
        *2 * ["conv relu"],
        "conv relu pool",
        size=(2, 3, 64, 64),
    ),
    expect(
        classics.GoogLeNet,
        "conv relu pool lrn",
        "conv relu",
        "conv relu lrn pool",
        *INCEPTION,
        *INCEPTION,
        "pool",
        *INCEPTION,
        size=(2, 3, 64, 64),
    ),
    expect(
        classics.GoogLeNetBN,
        *5 * ["pool"],
        size=(2, 3, 64, 64),
        folded=[
            "conv bn relu pool",
            "conv bn relu",
            "conv bn relu pool",
            *INCEPTION_FOLDED,
            "pool",
            *INCEPTION_FOLDED,
        ],
    ),
    expect(classics.TensorFlowTutorial, "conv relu pool lrn", "conv relu lrn pool", size=(2, 3, 24, 24)),
    expect(
        classics.network_in_network,
        *2 * ["conv relu", "conv relu", "conv relu pool"],
        *3 * ["conv relu"],
        size=(2, 3, 32, 32),
    ),
    expect(classics.cuda_convnet, *2 * ["conv lrn pool"], size=(2, 3, 32, 32)),
    expect(
        architectures.VGGBN,
        *3 * ["pool"],
        size=(2, 3, 32, 32),
        folded=["conv bn relu pool", *2 * ["conv bn relu", "conv bn relu pool"]],
    ),
    expect(
        architectures.ResNet, "pool", size=(2, 3, 64, 64), folded=["conv bn relu pool", *2 * ["conv bn relu"]]
    ),
    expect(architectures.pre_activation_resnet, size=(2, 3, 16, 16), folded=2 * ["conv bn relu"]),
    expect(
        architectures.SqueezeNet,
        "conv relu pool",
        *6 * ["conv relu"],
        "pool",
        *4 * ["conv relu"],
        size=(2, 3, 48, 48),
    ),
    expect(architectures.mobilenet_v2, size=(2, 3, 32, 32)),
    expect(
        architectures.UNet, *2 * ["conv relu", "conv relu", "pool"], *6 * ["conv relu"], size=(2, 1, 32, 32)
    ),
    expect(architectures.SegNet, *3 * ["conv relu"], size=(2, 3, 32, 32)),
    expect(classics.lenet, size=(2, 1, 32, 32)),
    expect(architectures.c3d, size=(2, 3, 4, 16, 16)),
    expect(architectures.TextCNN, *3 * ["conv relu"], size=(2, 1, 12, 8)),
    expect(architectures.CBAM, "conv relu", size=(2, 3, 16, 16)),
    expect(architectures.Autoencoder, *2 * ["conv relu pool"], size=(2, 1, 28, 28)),
    expect(styles.Functional, "conv relu lrn pool", "conv relu pool", size=(2, 3, 32, 32)),
    expect(styles.Methods, *2 * ["conv relu pool"], size=(2, 3, 24, 24)),
    expect(styles.EveryReLU, *8 * ["conv relu"], size=(2, 4, 12, 12)),
    expect(
        styles.SharedStages, *2 * ["conv relu lrn pool"], "conv relu", "conv relu pool", size=(2, 3, 40, 40)
    ),
    expect(styles.Mnist, "conv pool relu", "pool relu", size=(4, 1, 28, 28)),
    expect(styles.pool_first_then_norm, "conv pool relu lrn", "conv pool lrn", size=(2, 1, 28, 28)),
    expect(styles.relu_after_norm, "conv lrn", "pool", "conv pool lrn", size=(2, 3, 24, 24)),
    expect(styles.ModuleLists, *3 * ["conv relu", "conv relu pool"], size=(2, 3, 32, 32)),
    expect(styles.ModuleDicts, "conv relu pool", "conv relu lrn", size=(2, 3, 20, 20)),
    expect(styles.lambdas, *3 * ["conv relu"], size=(4, 784)),
    expect(styles.LayerByLayer, *2 * ["relu pool"], size=(2, 1, 28, 28), folded=2 * ["conv bn relu pool"]),
    expect(
        styles.nested,
        "conv relu",
        "conv relu pool lrn",
        "conv relu",
        "pool",
        "conv relu",
        size=(2, 3, 32, 32),
    ),
    expect(
        styles.Inherited,
        *2 * ["conv relu lrn pool"],
        *2 * ["conv relu"],
        "conv relu pool",
        size=(2, 3, 67, 67),
    ),
    expect(styles.ViewBySize, "conv relu pool", size=(2, 3, 20, 20)),
    expect(styles.two_norms, "conv relu lrn", "lrn pool", size=(2, 3, 20, 20)),
    expect(styles.even_norm, "conv relu lrn pool", size=(2, 3, 20, 20)),
    expect(styles.pool_then_conv, "pool", "conv relu", size=(2, 3, 24, 24)),
    expect(styles.NormAndPool, "lrn pool", size=(2, 6, 13, 13)),
    expect(styles.norm_after_relu, "conv relu", "pool", "conv relu", size=(2, 1, 16, 16)),
    expect(
        styles.FunctionalBN,
        "pool relu",
        "relu pool",
        size=(2, 1, 28, 28),
        folded=["conv bn pool relu", "conv bn relu pool"],
    ),
    expect(styles.FewShot, *3 * ["relu pool"], size=(4, 1, 28, 28)),
    expect(layers.homemade_norm, "conv relu", "pool", size=(2, 3, 47, 47)),
    expect(flow.FunctionalDropout, "conv relu", "pool relu", "conv relu pool", size=(2, 3, 24, 24)),
    expect(layers.RawParameters, "conv relu pool", "conv relu", "conv lrn", size=(2, 3, 20, 20)),
    expect(layers.Trident, *3 * ["conv relu"], size=(2, 3, 16, 16)),
    expect(layers.SharedConv, *2 * ["conv relu pool"], size=(2, 8, 24, 24)),
    expect(layers.Recurrent, "relu pool", size=(2, 8, 16, 16), folded=["conv bn relu", "conv bn relu pool"]),
    expect(layers.Siamese, *2 * ["conv relu pool"], size=(2, 1, 24, 24)),
    expect(layers.reflect, "relu pool", "conv relu", size=(2, 3, 20, 20)),
    expect(layers.WeightStandardised, "relu pool", "conv relu", size=(2, 3, 20, 20)),
    expect(layers.weight_normalised, "relu pool", size=(2, 3, 20, 20)),
    expect(flow.Fork, "conv relu", "relu pool", size=(2, 3, 16, 16)),
    expect(flow.FeatureTuple, *2 * ["conv relu", "conv relu", "pool"], "conv relu", size=(2, 3, 24, 24)),
    expect(flow.FeatureDict, "conv relu", "pool", "conv relu lrn", "pool", size=(2, 3, 24, 24)),
    expect(flow.Perceptual, "conv relu", "pool", "conv relu", size=(2, 3, 24, 24)),
    expect(flow.InplaceReadAgain, "pool", size=(2, 3, 16, 16)),
    expect(flow.InplaceStatement, "pool", "pool", size=(2, 3, 20, 20)),
    expect(flow.ControlFlow, "conv relu lrn pool", "conv relu pool", "conv relu", size=(2, 3, 24, 24)),
    expect(flow.FrozenTrunk, "conv relu lrn pool", "conv relu pool", size=(2, 3, 24, 24)),
    expect(flow.GradCAM, "conv relu lrn pool", "conv relu pool", size=(2, 3, 24, 24)),
    expect(
        flow.stochastic_depth,
        "conv relu pool",
        "conv relu",
        "conv relu",
        "pool",
        size=(2, 3, 24, 24),
        training=["conv relu pool", "pool"],
    ),
    expect(
        flow.AuxiliaryHead,
        *2 * ["conv relu pool"],
        size=(2, 3, 24, 24),
        training=["conv relu pool", "conv relu", "conv relu pool"],
    ),
    expect(flow.OptionalMask, "conv relu pool", "conv relu lrn", size=(2, 3, 24, 24)),
)
