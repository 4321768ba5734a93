"""Every row of docs/migration.md: its right side, run, against its left side's formula, written out here."""

import hashlib
import re
from pathlib import Path

import published
import pytest
import torch
from torch.nn import functional as F

import fastcnn
from fastcnn import LRN, MaxPool
from fastcnn.models import alexnet, imagenet, load_caffe, load_weights
from fastcnn.nn import ConvBlock2d
from fastcnn.testing import assert_close

PAGE = Path(__file__).parents[1] / "docs" / "migration.md"
NAMES = {
    "F": F,
    "LRN": LRN,
    "MaxPool": MaxPool,
    "ConvBlock2d": ConvBlock2d,
    "alexnet": alexnet,
    "fastcnn": fastcnn,
    "load_caffe": load_caffe,
    "load_weights": load_weights,
    "torch": torch,
}


def rows():
    """By the tables' first cells, without their backquotes, the code in their second cells."""
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    cells = [line.strip("| ").split(" | ") for line in lines]
    code = [(first.replace("`", ""), re.findall("`([^`]+)`", second)) for first, second, *_ in cells]
    return dict(row for row in code if row[0] != "theirs")


def result(row, x):
    """Returns what a row's code gives for x: itself, or by its layer or its LRN's or MaxPool's epilogue."""
    (code,) = rows()[row]
    value = eval(code, NAMES | {"x": x})
    if isinstance(value, LRN):
        return fastcnn.functional.epilogue(x, relu=False, lrn=value)
    if isinstance(value, MaxPool):
        return fastcnn.functional.epilogue(x, relu=False, pool=value)
    return value(x) if isinstance(value, torch.nn.Module) else value


def model(row, **names):
    """The model that a row's code makes, in evaluation mode."""
    names = NAMES | names
    exec("\n".join(rows()[row]), names)
    return names["model"].eval()


def across(x, a, back, ahead, beta=0.75, k=1.0):
    """y = x (k + a sum x^2)^-beta over the channels c - back to c + ahead."""
    y = torch.empty_like(x)
    for c in range(x.shape[1]):
        squares = sum(x[:, j] ** 2 for j in range(max(c - back, 0), min(c + ahead + 1, x.shape[1])))
        y[:, c] = x[:, c] * (k + a * squares) ** -beta
    return y


def within_towers(x, a):
    return torch.cat([across(tower, a, 2, 2, k=2) for tower in x.chunk(2, dim=1)], dim=1)


def within_channels(x, alpha, n, beta):
    """Caffe's WITHIN_CHANNEL: y = x (1 + alpha / n^2 sum x^2)^-beta over a square of n rows and columns."""
    y = torch.empty_like(x)
    for h in range(x.shape[2]):
        for w in range(x.shape[3]):
            square = x[:, :, max(h - n // 2, 0) : h + n // 2 + 1, max(w - n // 2, 0) : w + n // 2 + 1]
            y[:, :, h, w] = x[:, :, h, w] * (1 + alpha / n**2 * (square**2).sum((2, 3))) ** -beta
    return y


NORMS = {
    "torch nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=2.0)": lambda x: across(x, 1e-4 / 5, 2, 2, k=2),
    "torch nn.LocalResponseNorm(4, alpha=1e-4)": lambda x: across(x, 1e-4 / 4, 2, 1),
    "Caffe lrn_param { local_size: 5 alpha: 1e-4 beta: 0.75 }": lambda x: across(x, 1e-4 / 5, 2, 2),
    "TensorFlow tf.nn.local_response_normalization"
    "(x, depth_radius=4, bias=1, alpha=0.001 / 9, beta=0.75)": lambda x: across(x, 0.001 / 9, 4, 4),
    "TensorFlow tf.nn.local_response_normalization(x)": lambda x: across(x, 1, 5, 5, beta=0.5),
    "ONNX LRN(size=5, alpha=1e-4, beta=0.75, bias=1)": lambda x: across(x, 1e-4 / 5, 2, 2),
    "ONNX LRN(size=4, alpha=1e-4, beta=0.75, bias=1)": lambda x: across(x, 1e-4 / 4, 1, 2),
    "cuda-convnet2 type=cmrnorm size=5 scale=0.0001 pow=0.75 minDiv=2": lambda x: across(
        x, 1e-4 / 5, 2, 2, k=2
    ),
    "the paper's formula, n = 5, α = 1e-4, β = 0.75, k = 2": lambda x: across(x, 1e-4, 2, 2, k=2),
    "the paper's two GPUs, each normalising its own channels": lambda x: within_towers(x, 1e-4),
    "Caffe lrn_param { norm_region: WITHIN_CHANNEL local_size: 3 alpha: 5e-5 beta: 0.75 }": lambda x: (
        within_channels(x, 5e-5, 3, 0.75)
    ),
}


def maxima(x, before, windows):
    """Maxima of ``windows(size)`` windows of 3, 2 apart, the first of which starts at -before(size)."""

    def spans(size):
        starts = [2 * i - before(size) for i in range(windows(size))]
        return [slice(max(start, 0), start + 3) for start in starts]

    height, width = x.shape[2:]
    lines = [torch.stack([x[:, :, r, c].amax((2, 3)) for c in spans(width)], -1) for r in spans(height)]
    return torch.stack(lines, -2)


def at_the_edge(size):
    return 0


def covering(size):
    """How many windows it takes to cover all of size."""
    return -(-(size - 3) // 2) + 1


def caffes_padded(size):
    """Those that cover size and a pixel at each end, less one that would start past the image."""
    windows = covering(size + 2)
    return windows - 1 if (windows - 1) * 2 >= size + 1 else windows


def same(size):
    """TensorFlow's "SAME": half as many windows, what they lack of pixels split, the odd one behind."""
    return -(-size // 2)


def sames_before(size):
    return max((same(size) - 1) * 2 + 3 - size, 0) // 2


EVEN, ODD = [(4, 6), (14, 18)], [(3, 5), (13, 15)]
EVERY = [*EVEN, *ODD, (13, 14), (6, 3)]
POOLS = {
    "torch nn.MaxPool2d(3, stride=2)": (EVERY, at_the_edge, lambda size: (size - 3) // 2 + 1),
    "Caffe pooling_param { pool: MAX kernel_size: 3 stride: 2 }": (EVERY, at_the_edge, covering),
    "Caffe pooling_param { pool: MAX kernel_size: 3 stride: 2 pad: 1 }": (
        EVERY,
        lambda size: 1,
        caffes_padded,
    ),
    "cuda-convnet2 type=pool pool=max start=0 sizeX=3 stride=2": (EVERY, at_the_edge, covering),
    'TensorFlow tf.nn.max_pool2d(x, 3, 2, "VALID")': (
        EVERY,
        at_the_edge,
        lambda size: -(-(size - 3 + 1) // 2),
    ),
    'TensorFlow tf.nn.max_pool2d(x, 3, 2, "SAME"), H and W even': (EVEN, sames_before, same),
    'TensorFlow tf.nn.max_pool2d(x, 3, 2, "SAME"), H and W odd': (ODD, sames_before, same),
}


def caffes_norm(x):
    return across(x, 1e-4 / 5, 2, 2)


POOL_FIRST = {
    "Caffe bvlc_reference_caffenet": True,
    "Caffe bvlc_alexnet": False,
}
TOWERS = "the paper's two towers"
TORCHVISION = {
    'torchvision alexnet(weights="IMAGENET1K_V1")': "hub/checkpoints/alexnet-owt-{}.pth",
    'torchvision alexnet() and load_state_dict(torch.load("alexnet-owt-7be5be79.pth"))': (
        "alexnet-owt-7be5be79.pth"
    ),
}  # where the checkpoint is; {} is how its SHA-256 begins
BLOCK = "Caffe conv2 (pad: 2, group: 2), relu2, pool2, norm2"


def torchvisions_image(x):
    means, deviations = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    return torch.stack([(x[:, c] / 255 - means[c]) / deviations[c] for c in range(3)], 1)


def caffes_image(x):
    red, green, blue = x.unbind(1)
    return torch.stack([blue - 104.007, green - 116.669, red - 122.679], 1)


IMAGES = {
    "torchvision: 0 to 1, less the mean, by the standard deviation": torchvisions_image,
    "Caffe: blue, green, red, 0 to 255, less the mean": caffes_image,
    'Caffe, after load_caffe(model, blobs, channels="RGB")': lambda x: torch.stack(
        caffes_image(x).unbind(1)[::-1], 1
    ),
    "TensorFlow: x is (N, H, W, 3)": lambda x: torch.stack([x[..., c] for c in range(3)], 1),
}


def test_every_row_is_tested():
    assert set(rows()) == {*NORMS, *POOLS, *POOL_FIRST, *IMAGES, *TORCHVISION, TOWERS, BLOCK}


@pytest.mark.parametrize("row", NORMS)
def test_norm(row):
    torch.manual_seed(0)
    x = torch.randn(2, 24, 5, 4, dtype=torch.float64) * 50
    assert_close(result(row, x), NORMS[row](x))


@pytest.mark.parametrize("row", POOLS)
def test_pool(row):
    sizes, before, windows = POOLS[row]
    for height, width in sizes:
        x = torch.randn(2, 3, height, width, dtype=torch.float64)
        assert torch.equal(result(row, x), maxima(x, before, windows))


@pytest.mark.parametrize("row", IMAGES)
def test_image(row):
    x = torch.rand(2, 3, 4, 3) * 255  # a size that is (N, H, W, 3) as well
    assert_close(result(row, x), IMAGES[row](x))


def test_tensorflows_images_are_not_copied():
    x = torch.rand(2, 5, 4, 3)
    view = result("TensorFlow: x is (N, H, W, 3)", x)
    assert view.data_ptr() == x.data_ptr()
    assert view.is_contiguous(memory_format=torch.channels_last)


@torch.no_grad()
@pytest.mark.parametrize("row", TORCHVISION)
def test_torchvisions_model(row, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    theirs, images = published.torchvisions_alexnet(), torch.randn(1, 3, 224, 224)
    torch.save(theirs.state_dict(), "w.pth")
    path = Path(TORCHVISION[row].format(hashlib.sha256(Path("w.pth").read_bytes()).hexdigest()[:8]))
    path.parent.mkdir(parents=True, exist_ok=True)
    Path("w.pth").rename(path)
    monkeypatch.setattr(imagenet, "URL", f"http://nowhere.invalid/{path.name}")  # the cache is enough
    ours = model(row)
    path.unlink()  # pytest would keep its 244 MB
    published.assert_same_outputs(ours(images), theirs(images))


@pytest.fixture(scope="module")
def blobs():
    return published.draw_blobs()


@torch.no_grad()
@pytest.mark.parametrize("row", POOL_FIRST)
def test_caffes_model(row, blobs):
    images = published.draw_images()
    theirs = published.caffes_network(blobs, images, POOL_FIRST[row], caffes_norm)
    published.assert_same_outputs(model(row, blobs=blobs)(images), theirs)


@torch.no_grad()
def test_the_papers_model(blobs):
    ours, images = model(TOWERS), published.draw_images()[..., :224, :224]
    for p, blob in zip(ours.parameters(), (blob for pair in blobs.values() for blob in pair), strict=True):
        p.copy_(blob)
    padded = F.pad(images, (0, 3, 0, 3))
    theirs = published.caffes_network(blobs, padded, False, lambda x: within_towers(x, 1e-4 / 5))
    published.assert_same_outputs(ours(images), theirs)


@torch.no_grad()
def test_caffes_block():
    x = torch.randn(1, 96, 9, 8, dtype=torch.float64) * 50
    block = model(BLOCK).double()
    halves = zip(x.chunk(2, 1), block.weight.chunk(2), block.bias.chunk(2), strict=True)
    convolved = torch.cat([F.conv2d(*half, padding=2) for half in halves], 1)
    assert_close(block(x), caffes_norm(maxima(convolved.clamp(min=0), at_the_edge, covering)))


def onnx_lrn(size, channels):
    """ONNX's LRN, for as many images as channels: its reference counts images where it means channels."""
    onnx = pytest.importorskip("onnx")
    shape = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [channels, channels, 3, 2])
    y = onnx.helper.make_empty_tensor_value_info("y")
    node = onnx.helper.make_node("LRN", ["x"], ["y"], size=size, alpha=0.1, beta=0.75, bias=1.5)
    graph = onnx.helper.make_graph([node], "lrn", [shape], [y])
    opset = onnx.helper.make_opsetid("", 13)
    return onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8)


@pytest.mark.parametrize("size", [1, 3, 5, 7])
def test_odd_windows_against_onnx_runtime(size):
    runtime = pytest.importorskip("onnxruntime")
    x = torch.randn(8, 8, 3, 2)
    session = runtime.InferenceSession(
        onnx_lrn(size, channels=8).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (y,) = session.run(None, {"x": x.numpy()})
    assert_close(fastcnn.functional.local_response_norm(x, size, 0.1, 0.75, 1.5), torch.from_numpy(y))


@pytest.mark.parametrize("size", [2, 4, 5, 6])
def test_windows_against_onnxs_reference(size):
    """Even ones too, which ONNX Runtime refuses."""
    reference = pytest.importorskip("onnx.reference")
    x = torch.randn(8, 8, 3, 2)
    (y,) = reference.ReferenceEvaluator(onnx_lrn(size, channels=8)).run(None, {"x": x.numpy()})
    ours = fastcnn.functional.local_response_norm(x.flip(1), size, 0.1, 0.75, 1.5).flip(1)
    assert_close(ours, torch.from_numpy(y))
