"""Forwards written in every way that Python allows: fused, they give the same and leave the same behind."""

import collections
import contextlib
import copy
import dataclasses
import functools
import io
import itertools
import math
import operator
import random
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

import fastcnn

IMAGES = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))
SEEN = []
SCALE = torch.tensor(1.5)
STEPS = 0
Pair = collections.namedtuple("Pair", ["first", "second"])


@pytest.fixture(autouse=True)
def one_thread():
    """Keeps small convolutions from waiting for threads of a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@dataclasses.dataclass
class Result:
    maps: torch.Tensor
    mean: torch.Tensor


def pooled(x, kernel_size):
    return F.max_pool2d(x, kernel_size)


class Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, grad):
        return grad * 3


class Doubling(nn.ReLU):
    def __call__(self, x):
        return super().__call__(x) * 2


class Counter:
    count = 0


@functools.cache
def factor_of(size):
    return 2.0 if size == 2 else 3.0


class Base(nn.Module):
    """A chain of layers; what a forward below needs besides."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.relu = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU()
        self.lrn, self.pool = nn.LocalResponseNorm(3, 0.5), nn.MaxPool2d(2)
        self.second = nn.Conv2d(6, 6, 3, padding=1)
        self.layers = [nn.ReLU(), nn.MaxPool2d(2)]
        self.table = {"act": nn.ReLU(), "pool": nn.MaxPool2d(3, 1)}
        self.act = functools.partial(pooled, kernel_size=2)
        self.calls, self.last = 0, None
        self.drop, self.counter = nn.Dropout(0.5), itertools.count(1)

    @contextlib.contextmanager
    def entered(self):
        self.calls += 1
        yield

    def block(self, x):
        return self.pool(self.lrn(self.relu(self.bn(self.conv(x)))))

    def features(self, x):
        return F.relu(self.second(self.block(x)))


FORWARDS = {}


def forward(function):
    FORWARDS[function.__name__] = function
    return function


@forward
def any_arguments(self, *args, **kwargs):
    return self.block(*args, **kwargs)


@forward
def default_arguments(self, x, scale=2.0, *, shift=1.0, pool=True):
    x = self.relu(self.conv(x)) * scale + shift
    return self.pool(x) if pool else x


@forward
def a_tuple(self, x):
    x = self.relu(self.conv(x))
    return x, self.pool(x)


@forward
def a_list(self, x):
    x = self.relu(self.conv(x))
    return [x, [self.pool(x), 3]]


@forward
def a_dict(self, x):
    x = self.relu(self.conv(x))
    return {"out": x, "pooled": self.pool(x), "size": x.shape}


@forward
def an_ordered_dict(self, x):
    out = collections.OrderedDict()
    out["x"] = self.relu(self.conv(x))
    out["y"] = self.pool(out["x"])
    return out


@forward
def a_named_tuple(self, x):
    x = self.relu(self.conv(x))
    return Pair(x, second=self.pool(x))


@forward
def a_dataclass(self, x):
    x = self.block(x)
    result = Result(x, x.mean())
    return (type(result).__name__, result.maps, result.mean)


@forward
def a_number(self, x):
    return self.block(x), float(x.shape[2]), x.dim()


@forward
def nothing(self, x):
    self.last = self.block(x)


@forward
def lists_of_layers(self, x):
    x = self.conv(x)
    for layer in self.layers:
        x = layer(x)
    return self.table["pool"](self.table["act"](self.second(x)))


@forward
def partials(self, x):
    return self.act(F.relu(self.conv(x)))


@forward
def layers_made_inside(self, x):
    return nn.MaxPool2d(2)(nn.ReLU()(self.conv(x)))


@forward
def a_convolution_made_inside(self, x):
    made = nn.Conv2d(6, 2, 1)
    return F.relu(made(self.relu(self.conv(x))))


@forward
def asks_isinstance(self, x):
    if not isinstance(self.relu, nn.ReLU) or not isinstance(x, torch.Tensor):
        raise TypeError(type(x))
    return self.block(x)


@forward
def asks_type(self, x):
    y = self.block(x)
    if type(y) is not torch.Tensor:
        return x
    return y, type(x).__name__, type(self).__name__, self.__class__.__qualname__


@forward
def prints(self, x):
    y = self.block(x)
    print("shape", tuple(y.shape))
    return y


@forward
def counts_in_a_global(self, x):
    global STEPS
    STEPS += 1
    return self.block(x) * STEPS


@forward
def appends_to_a_list(self, x):
    SEEN.append(tuple(x.shape))
    return self.block(x)


@forward
def counts_calls(self, x):
    self.calls += 1
    return self.block(x) * self.calls


@forward
def keeps_the_last(self, x):
    self.last = self.relu(self.conv(x))
    return self.pool(self.last)


@forward
def keeps_in_a_table(self, x):
    y = self.relu(self.conv(x))
    self.table["last"] = tuple(y.shape)
    return self.pool(y)


@forward
def draws_torch_random(self, x):
    x = x + torch.randn(x.shape) * 0.1
    return self.block(x)


@forward
def draws_rand_like(self, x):
    return self.block(x * torch.rand_like(x)) + torch.rand(())


@forward
def draws_bernoulli(self, x):
    y = self.relu(self.conv(x))
    return self.pool(y * torch.bernoulli(torch.full_like(y, 0.5)))


@forward
def draws_a_permutation(self, x):
    y = self.relu(self.conv(x))
    return self.pool(y[:, torch.randperm(y.shape[1])])


@forward
def draws_numpy(self, x):
    return self.block(x) * float(np.random.rand())


@forward
def draws_python(self, x):
    return self.block(x) * random.random()


@forward
def drops_layers_at_random(self, x):
    y = self.relu(self.conv(x))
    if torch.rand(1).item() > 0.5:
        y = self.relu(self.second(y))
    return self.pool(y)


@forward
def drops(self, x):
    return self.pool(self.relu(self.drop(self.conv(x))))


@forward
def drops_always(self, x):
    return F.dropout(self.block(x), 0.5)


@forward
def drops_by_flag(self, x):
    return F.dropout2d(self.relu(self.conv(x)), 0.5, training=self.training)


@forward
def without_gradients(self, x):
    with torch.no_grad():
        y = self.block(x)
    return self.second(y)


@forward
def in_inference_mode(self, x):
    with torch.inference_mode():
        y = self.pool(self.relu(self.conv(x)))
    return y.clone() + 1


@forward
def gradients_off_and_on(self, x):
    previous = torch.is_grad_enabled()
    torch.set_grad_enabled(False)
    y = self.relu(self.conv(x))
    torch.set_grad_enabled(previous)
    return self.pool(self.relu(self.second(y)))


@forward
def in_autocast(self, x):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = self.pool(self.relu(self.conv(x)))
    return y.float()


@forward
def a_function_of_ones_own(self, x):
    return self.pool(self.relu(Double.apply(self.relu(self.conv(x)))))


@forward
def checkpoints(self, x):
    return checkpoint(self.block, x, use_reentrant=False)


@forward
def checkpoints_a_layer(self, x):
    return self.pool(checkpoint(nn.Sequential(self.conv, self.relu), x, use_reentrant=False))


@forward
def checkpoints_a_sequence(self, x):
    body = nn.Sequential(self.conv, self.relu, self.pool, self.second, self.relu)
    return checkpoint_sequential(body, 2, x, use_reentrant=False)


@forward
def asks_scripting(self, x):
    if torch.jit.is_scripting() or torch.jit.is_tracing():
        return x
    return self.block(x)


@forward
def asks_compiling(self, x):
    if torch.compiler.is_compiling() or torch.compiler.is_exporting():
        return x
    return self.block(x)


@forward
def asks_for_fx(self, x):
    y = self.block(x)
    return y if not isinstance(y, torch.fx.Proxy) else y + 1


@forward
def catches(self, x):
    try:
        y = self.relu(self.conv(x))
        y = y.view(3, 5, 7)
    except RuntimeError:
        y = self.pool(self.relu(self.conv(x)))
    return y


@forward
def catches_all(self, x):
    try:
        if x.mean() > 100:
            raise ValueError
        y = self.block(x)
    except Exception:
        y = x
    return y


@forward
def catches_what_is_bare(self, x):
    try:
        value = x.sum().item()
    except:  # noqa: E722
        value = 7.0
    finally:
        y = self.block(x)
    return y * math.tanh(value)


@forward
def a_generator(self, x):
    def steps(y):
        for layer in (self.conv, self.relu, self.pool):
            y = layer(y)
            yield y

    return list(steps(x))[-1]


@forward
def a_generator_expression(self, x):
    y = self.relu(self.conv(x))
    return torch.cat([self.pool(z) for z in y.split(1, 0)]), sum(z.mean() for z in y)


@forward
def iterates_over_a_batch(self, x):
    return torch.stack([self.pool(self.relu(self.conv(image[None]))) for image in x])


@forward
def unpacks_a_batch(self, x):
    a, b = x
    return self.pool(self.relu(self.conv(torch.stack([b, a]))))


@forward
def recursion(self, x, depth=3):
    if depth == 0:
        return self.pool(x)
    return (
        recursion(self, self.relu(self.conv(x)), depth - 1) if depth == 3 else recursion(self, x, depth - 1)
    )


@forward
def asks_the_shape(self, x):
    y = self.relu(self.conv(x))
    if x.shape[0] > 1:
        y = y * 2
    if x.size(-1) % 2:
        y = y[..., 1:]
    return self.pool(y)


@forward
def asks_the_size(self, x):
    y = self.relu(self.conv(x))
    if max(y.shape[2:]) > 9 and len(y) != 1 and y.numel() > 3:
        y = self.pool(y)
    return y


@forward
def loops_while_large(self, x):
    y = self.conv(x)
    while y.shape[-1] > 3:
        y = self.pool(self.relu(self.second(y)))
    return y


@forward
def loops_by_value(self, x):
    y = self.relu(self.conv(x))
    for _ in range(int(x.abs().mean().item() * 3) + 1):
        y = self.relu(self.second(y))
    return y


@forward
def pools_by_size(self, x):
    y = self.relu(self.conv(x))
    return F.avg_pool2d(y, y.size()[2:]).flatten(1)


@forward
def max_pools_by_size(self, x):
    y = self.relu(self.conv(x))
    return F.max_pool2d(y, kernel_size=y.size()[2:]).flatten(1)


@forward
def max_pools_by_one_size(self, x):
    y = self.relu(self.conv(x))
    return F.max_pool2d(y, y.shape[-1] // 2), F.max_pool2d(y, (y.shape[2], 2), stride=1)


@forward
def max_pools_by_a_float_of_size(self, x):
    y = self.relu(self.conv(x))
    return F.max_pool2d(y, int(y.shape[-1] / 2)), F.max_pool2d(y, math.ceil(y.shape[-1] / 3))


@forward
def pyramid(self, x):
    y = self.relu(self.conv(x))
    n, _, h, w = y.size()
    levels = []
    for i in (1, 2, 3):
        size = (math.ceil(h / i), math.ceil(w / i))
        levels.append(F.max_pool2d(y, size, size).view(n, -1))
    return torch.cat(levels, 1)


@forward
def reshapes(self, x):
    y = self.relu(self.conv(x))
    b, c, h, w = y.shape
    y = y.reshape(b, 2, c // 2, h, w).permute(0, 2, 1, 3, 4).reshape(b, c, h, w)
    return self.pool(y)


@forward
def views(self, x):
    y = self.block(x)
    return y.view(y.size(0), -1), y.view(-1, *y.shape[2:]), y.view(y.shape)


@forward
def zeros_of_the_shape(self, x):
    y = self.relu(self.conv(x))
    return self.pool(y) + torch.zeros(self.pool(y).shape), torch.zeros(y.size()), y.new_zeros(y.shape[:2])


@forward
def ones_of_two_sizes(self, x):
    y = self.relu(self.conv(x))
    return self.pool(y) * torch.ones(y.size(0), 1, 1, 1), torch.full((y.shape[1], 2), 3.0)


@forward
def zeros_of_a_value(self, x):
    y = self.relu(self.conv(x))
    return self.pool(y), torch.zeros(int(y.abs().max()) + 1), torch.arange(int((y > 0).sum()) % 5)


@forward
def pads_by_size(self, x):
    h, w = x.shape[-2:]
    return self.pool(self.relu(self.conv(F.pad(x, (0, (4 - w % 4) % 4, 0, (5 - h % 5) % 5)))))


@forward
def interpolates_by_size(self, x):
    y = self.block(x)
    return F.interpolate(y, size=x.shape[2:], mode="bilinear"), F.interpolate(y, scale_factor=2)


@forward
def adaptive_pool_by_size(self, x):
    y = self.relu(self.conv(x))
    return F.adaptive_max_pool2d(y, (y.size(2) // 2, y.size(3) // 2)), F.adaptive_avg_pool2d(y, y.shape[2:])


@forward
def arranges_by_size(self, x):
    y = self.relu(self.conv(x))
    grid = torch.linspace(0, 1, y.shape[-1]) + torch.arange(y.shape[-2])[:, None]
    return self.pool(y * grid), y.shape[2] * y.stride(0), np.prod(y.shape)


@forward
def formats_the_shape(self, x):
    y = self.block(x)
    return y, f"{y.shape}", f"{y.shape[0]:d}", str(y.size(1)), repr(y.dtype), hash(y.shape)


@forward
def looks_up_by_size(self, x):
    y = self.relu(self.conv(x))
    return self.pool(y * {10: 2.0, 12: 3.0}[y.shape[-1]]), [1, 2, 3][y.shape[0]], "abc"[x.size(0)]


@forward
def uses_operator_index(self, x):
    y = self.relu(self.conv(x))
    return (
        self.pool(y),
        operator.index(y.shape[1]),
        np.zeros(y.shape[0]),
        range(y.shape[0]),
        bytes(y.shape[0]),
    )


@forward
def asserts(self, x):
    assert x.dim() == 4 and x.shape[1] == 3, f"got {x.shape}"
    torch._assert(x.ndim == 4, "four")
    y = self.block(x)
    assert y.shape[1] == 6
    return y


@forward
def to_a_dtype(self, x):
    return self.pool(self.relu(self.conv(x.double().float().to(self.conv.weight.dtype).to(x.device))))


@forward
def to_channels_last(self, x):
    return self.pool(self.relu(self.conv(x.contiguous(memory_format=torch.channels_last)).contiguous()))


@forward
def asks_layout(self, x):
    y = self.block(x)
    return y, y.is_contiguous(), y.dtype, y.device, y.stride(), y.requires_grad, y.is_leaf, y.ndim


@forward
def asks_for_a_graph(self, x):
    y = self.relu(self.conv(x))
    if y.grad_fn is not None and y.requires_grad:
        return self.pool(y) * 2
    return self.pool(y)


@forward
def detaches(self, x):
    y = self.relu(self.conv(x)).detach()
    return self.pool(self.relu(self.second(y)))


@forward
def detaches_a_part(self, x):
    y = self.relu(self.conv(x))
    return self.pool(y.detach()) + self.pool(y)


@forward
def hooks_a_tensor(self, x):
    y = self.relu(self.conv(x))
    if y.requires_grad:
        y.register_hook(lambda grad: grad * 2)
    return self.pool(y)


@forward
def retains_a_gradient(self, x):
    y = self.relu(self.conv(x))
    if y.requires_grad:
        y.retain_grad()
    self.last = y
    return self.pool(y)


@forward
def to_numpy(self, x):
    y = self.relu(self.conv(x))
    return self.pool(y), torch.from_numpy(y.detach().numpy().copy()).max()


@forward
def masks(self, x):
    y = self.relu(self.conv(x))
    return self.pool(torch.where(y > 0.3, y, torch.zeros_like(y))), y[y > 0.5].sum(), y.nonzero().shape[1]


@forward
def indexes(self, x):
    y = self.conv(x)
    return self.pool(F.relu(y[:, 1:5])), F.relu(y)[0], F.relu(y)[..., ::2, None]


@forward
def a_closure(self, x):
    shift = SCALE * 2

    def step(z):
        return self.pool(self.relu(self.conv(z))) * SCALE + shift

    return step(x)


@forward
def a_lambda(self, x):
    steps = [lambda z: self.conv(z), F.relu, lambda z: F.max_pool2d(z, 2), torch.tanh]
    return functools.reduce(lambda z, step: step(z), steps, x)


@forward
def chunks(self, x):
    a, b = self.conv(x).chunk(2, dim=1)
    return self.pool(self.relu(a)) * self.pool(self.relu(b))


@forward
def looks_by_name(self, x):
    for name in ("conv", "relu", "pool"):
        x = getattr(self, name)(x)
    return x


@forward
def looks_in_modules(self, x):
    for name, layer in self._modules.items():
        if name in ("conv", "relu", "pool"):
            x = layer(x)
    return x


@forward
def walks_children(self, x):
    for layer in list(self.children())[:3]:
        x = layer(x)
    return x, sum(p.numel() for p in self.parameters()), len(list(self.named_modules()))


@forward
def writes_a_parameter(self, x):
    with torch.no_grad():
        self.second.weight.mul_(0.9)
    return self.relu(self.second(self.relu(self.conv(x))))


@forward
def changes_a_layer(self, x):
    self.pool.kernel_size = 3 if self.pool.kernel_size == 2 else 2
    return self.pool(self.relu(self.conv(x)))


@forward
def replaces_a_layer(self, x):
    y = self.relu(self.conv(x))
    self.relu = nn.Tanh()
    return self.pool(y)


@forward
def changes_its_mode(self, x):
    was = self.training
    self.eval()
    y = self.block(x)
    self.train(was)
    return y


@forward
def warns(self, x):
    warnings.warn("a warning", UserWarning, stacklevel=1)
    return self.block(x)


@forward
def raises_by_value(self, x):
    y = self.block(x)
    if torch.isnan(y).any():
        raise ValueError("not a number")
    return y


@forward
def a_walrus(self, x):
    return self.pool(y) if (y := self.relu(self.conv(x))).shape[0] > 1 else y


@forward
def a_match(self, x):
    y = self.relu(self.conv(x))
    match y.shape:
        case (2, _, h, w) if h == w:
            return self.pool(y)
        case _:
            return y


@forward
def delegates(self, x):
    return Base.features(self, x) + type(self).block(self, x)


@forward
def calls_forward(self, x):
    return self.pool.forward(self.relu.forward(self.conv.forward(x)))


@forward
def calls_under(self, x):
    y = self.conv._conv_forward(x, self.conv.weight * 2, self.conv.bias)
    return self.pool(F.relu(y))


@forward
def weight_is_standardised(self, x):
    w = self.conv.weight
    w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.std((1, 2, 3), keepdim=True) + 1e-5)
    return self.pool(self.relu(F.conv2d(x, w, self.conv.bias)))


@forward
def deletes(self, x):
    y = self.conv(x)
    x = self.relu(y)
    del y
    return self.pool(x)


@forward
def nested_contexts(self, x):
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.enable_grad())
        y = self.relu(self.conv(x))
    with contextlib.suppress(RuntimeError), torch.random.fork_rng():
        torch.manual_seed(3)
        y = y + torch.rand(())
    return self.pool(y)


@forward
def profiles(self, x):
    with torch.profiler.record_function("block"):
        return self.block(x)


@forward
def threads_count(self, x):
    return self.block(x), torch.get_num_threads(), torch.get_default_dtype()


@forward
def compares_tensors(self, x):
    y = self.relu(self.conv(x))
    return self.pool(y), bool((y >= 0).all()), torch.equal(y, y.clone()), torch.allclose(y, y + 1)


@forward
def a_bool_of_a_tensor(self, x):
    y = self.relu(self.conv(x))
    return self.pool(y) if y.sum() > 0 else y


@forward
def a_number_of_a_tensor(self, x):
    y = self.relu(self.conv(x))
    return self.pool(y) / float(y.detach().abs().max()), y.mean().item(), y.tolist()[0][0][0][0]


@forward
def one_of_two_outputs_unused(self, x):
    y = self.relu(self.conv(x))
    self.relu(self.second(y))
    return self.pool(y)


@forward
def copies_itself(self, x):
    twin = copy.copy(self.pool)
    twin.kernel_size = 3
    return twin(self.relu(self.conv(x)))


@forward
def pools_with_indices(self, x):
    y, indices = F.max_pool2d(self.relu(self.conv(x)), 2, return_indices=True)
    return F.max_unpool2d(y, indices, 2)


@forward
def einsum(self, x):
    y = self.relu(self.conv(x))
    return self.pool(torch.einsum("nchw,cd->ndhw", y, torch.eye(y.shape[1]))), y @ y.mT


@forward
def sums_a_regularisation(self, x):
    return self.block(x), sum((p**2).sum() for p in self.parameters())


@forward
def adds_parameters_while_running(self, x):
    if not hasattr(self, "gain"):
        self.gain = nn.Parameter(torch.full((6, 1, 1), 0.5))
    return self.pool(self.relu(self.conv(x)) * self.gain)


@forward
def registers_a_buffer(self, x):
    y = self.block(x)
    self.register_buffer("latest", y.detach().mean())
    return y


@forward
def hooks_a_layer_while_running(self, x):
    handle = self.relu.register_forward_hook(lambda m, args, y: y * 2)
    y = self.block(x)
    handle.remove()
    return y


@forward
def keeps_what_hooks_see(self, x):
    seen = []
    handle = self.conv.register_forward_hook(lambda m, args, y: seen.append(y))
    y = self.block(x)
    handle.remove()
    return y, seen[0]


@forward
def unpacks_the_first(self, x):
    first, *rest = x
    return self.pool(self.relu(self.conv(torch.stack([first, *rest]))))


@forward
def enumerates_a_batch(self, x):
    y = self.relu(self.conv(x))
    return sum(i * image.mean() for i, image in enumerate(y)), [i for i, _ in zip(range(9), y, strict=False)]


@forward
def lists_a_batch(self, x):
    y = self.relu(self.conv(x))
    return torch.stack(list(y)), len(y), len(list(y)), torch.stack(y.unbind()), tuple(y)[1]


@forward
def ranges_over_a_batch(self, x):
    y = self.relu(self.conv(x))
    return [self.pool(y[i : i + 1]) for i in range(len(y))]


@forward
def asks_the_size_for_its_type(self, x):
    y = self.relu(self.conv(x))
    kinds = isinstance(y.shape, torch.Size), type(y.shape[0]) is int, isinstance(y.shape[0], int)
    return self.pool(y), kinds, isinstance(y.size(), tuple), isinstance(y.size(1), float)


@forward
def compares_shapes(self, x):
    y = self.relu(self.conv(x))
    if y.shape == (2, 6, 10, 10) and x.shape[2:] in {(12, 12), (9, 9)} and y.size() != x.size():
        return self.pool(y)
    return y


@forward
def takes_roots_of_sizes(self, x):
    y = self.relu(self.conv(x))
    return self.pool(y) * math.sqrt(y.shape[1]) / y.shape[0] ** 0.5 * np.sqrt(y.shape[2]), math.log2(
        y.size(0)
    )


@forward
def rounds_sizes(self, x):
    y = self.relu(self.conv(x))
    size = (
        round(y.shape[2] * 0.3),
        int(y.shape[3] // 4),
        divmod(y.shape[2], 3)[0],
        abs(-y.shape[2]),
        -y.shape[1],
    )
    return F.max_pool2d(y, size[0], size[1]), size, min(y.shape), sum(y.shape[2:]), sorted(y.shape)


@forward
def asks_the_device(self, x):
    if x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64) and not x.is_cuda:
        return self.block(x)
    return x


@forward
def compares_objects(self, x):
    y = self.relu(self.conv(x))
    z = y
    return self.pool(y), y is z, y is x, id(y) == id(z), x is None, y in [z] if y is z else False


@forward
def asks_for_attributes(self, x):
    y = self.relu(self.conv(x))
    kinds = hasattr(y, "shape"), hasattr(y, "node"), hasattr(y, "tracer"), callable(y), hasattr(x, "no_such")
    return self.pool(y), kinds, getattr(y, "no_such", 5), getattr(x, "node", None)


@forward
def keeps_tensors_in_dicts(self, x):
    table = {"a": self.relu(self.conv(x))}
    table |= {"b": self.pool(table["a"])}
    return {k: v for k, v in table.items() if v.shape[2] < 10}, "b" in table, dict(table).keys() == {"a", "b"}


@forward
def catches_a_pool_too_large(self, x):
    y = self.relu(self.conv(x))
    try:
        y = F.max_pool2d(y, 50)
    except RuntimeError:
        y = self.pool(y)
    return y


@forward
def catches_and_says(self, x):
    try:
        return self.relu(self.conv(x[:, :2]))
    except RuntimeError as error:
        return self.pool(self.relu(self.conv(x))), type(error).__name__


@forward
def catches_an_attribute(self, x):
    try:
        x = x.tensors
    except AttributeError:
        x = x * 2
    return self.block(x)


@forward
def catches_a_type(self, x):
    y = self.relu(self.conv(x))
    try:
        y = y + "1"
    except TypeError:
        y = self.pool(y)
    return y


@forward
def catches_an_index(self, x):
    y = self.relu(self.conv(x))
    try:
        y = y[7]
    except IndexError:
        y = self.pool(y)
    return y


@forward
def catches_a_key(self, x):
    try:
        factor = {1: 2.0}[x.shape[0]]
    except KeyError:
        factor = 3.0
    return self.block(x) * factor


@forward
def cleans_up(self, x):
    try:
        return self.block(x)
    finally:
        self.last = x.detach() * 2


@forward
def in_a_context_of_ones_own(self, x):
    with self.entered():
        y = self.block(x)
    return y * self.calls


@forward
def asks_anomaly_and_modes(self, x):
    y = self.block(x)
    modes = torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu"), torch.is_anomaly_enabled()
    return y, modes, torch.are_deterministic_algorithms_enabled(), torch.get_default_device()


@forward
def reads_numbers_of_parameters(self, x):
    y = self.relu(self.conv(x) * self.conv.weight.abs().max().item())
    return self.pool(y * float(self.bn.running_var[0])), self.conv.weight.sum().item()


@forward
def depends_on_a_parameter(self, x):
    y = self.relu(self.conv(x))
    return self.pool(y) if self.bn.weight[0] > 0 else y


@forward
def depends_on_a_counter(self, x):
    y = self.relu(self.bn(self.conv(x)))
    return self.pool(y) if self.bn.num_batches_tracked == 0 else y


@forward
def depends_on_training(self, x):
    y = self.relu(self.conv(x))
    return (self.pool(y), y.mean()) if self.training else y


@forward
def depends_on_a_childs_training(self, x):
    y = self.relu(self.conv(x))
    return self.pool(y) if self.drop.training else y * 2


@forward
def sorts(self, x):
    y = self.pool(self.relu(self.conv(x)))
    return y.sort(-1).values, y.topk(2).indices, y.max(1).values, y.max(), torch.max(y, dim=1)[1], y.argmax()


@forward
def draws_a_gumbel(self, x):
    return F.gumbel_softmax(self.block(x), dim=1), torch.randint(3, (2,)), torch.normal(0.0, 1.0, (2,))


@forward
def draws_in_a_list(self, x):
    shift = [random.random() for _ in range(2)] + [np.random.randint(3)]
    return self.block(x) + sum(shift)


@forward
def draws_a_gaussian(self, x):
    y = self.relu(self.conv(x))
    if self.training:
        y = y + torch.empty_like(y).normal_() * 0.1
    return self.pool(y)


@forward
def makes_a_mask_by_size(self, x):
    y = self.relu(self.conv(x))
    mask = torch.ones(y.shape[2:]).triu()
    mask[0, y.shape[3] // 2 :] = 0
    return (
        self.pool(y * mask),
        torch.eye(y.shape[2]),
        y.new_full((y.shape[0],), 2.0),
        torch.empty(y.shape).shape,
    )


@forward
def as_a_number_of_elements(self, x):
    y = self.relu(self.conv(x))
    return self.pool(y).sum() / y[0].numel(), y.nelement(), torch.numel(y), y.element_size(), y.nbytes


@forward
def assigns_by_setattr(self, x):
    setattr(self, "last", self.relu(self.conv(x)))  # noqa: B010
    return self.pool(self.last)


@forward
def writes_in_its_dict(self, x):
    y = self.relu(self.conv(x))
    self.__dict__["last"] = y
    vars(self)["calls"] = self.calls + 1
    return self.pool(y)


@forward
def appends_to_its_list(self, x):
    y = self.relu(self.conv(x))
    self.table.setdefault("seen", []).append(y.shape[0])
    return self.pool(y), len(self.table["seen"])


@forward
def counts_in_a_class(self, x):
    Counter.count += 1
    return self.block(x) * Counter.count


@forward
def counts_by_itertools(self, x):
    return self.block(x) * next(self.counter)


@forward
def memoised(self, x):
    return self.block(x) * factor_of(x.shape[0])


def made(forward):
    torch.manual_seed(0)
    net = type("Net", (Base,), {"forward": forward})()
    with torch.no_grad():
        net.bn.running_mean.normal_()
        net.bn.weight.normal_()
    return net


def results(net, calls=2, training=False, grad=True):
    """What calls give and leave: outputs, gradients, state, generators, globals and what was printed."""
    global STEPS
    STEPS = Counter.count = 0
    SEEN.clear()
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    net.train(training)
    found, printed = [], io.StringIO()
    with contextlib.redirect_stdout(printed), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(calls):
            x = IMAGES.clone().requires_grad_(grad)
            with contextlib.nullcontext() if grad else torch.no_grad():
                y = net(x)
            leaves = [t for t in pytree.tree_leaves([y, net.last]) if isinstance(t, torch.Tensor)]
            losses = [t.double().sin().sum() for t in leaves if t.requires_grad]
            if losses:
                sum(losses).backward()
            found.append([y, x.grad, None if net.last is None else net.last])
    state = dict(net.state_dict(), calls=net.calls, training=[m.training for m in net.modules()])
    state["grads"] = {name: p.grad for name, p in net.named_parameters()}
    generators = torch.get_rng_state(), np.random.get_state()[1:3], random.getstate()
    messages = sorted({str(w.message) for w in caught})
    return {"found": found, "state": state, "rng": generators, "steps": STEPS} | {
        "seen": list(SEEN),
        "printed": printed.getvalue(),
        "warned": messages,
        "last": net.table.get("last"),
        "grad": torch.is_grad_enabled(),
    }


def assert_alike(found, expected):
    found, kind = pytree.tree_flatten(found)
    expected, kind_expected = pytree.tree_flatten(expected)
    assert kind == kind_expected
    for a, b in zip(found, expected, strict=True):
        assert type(a) is type(b)
        if isinstance(a, torch.Tensor) and a.is_floating_point():
            assert a.requires_grad == b.requires_grad
            assert a.stride() == b.stride()
            tolerance = 2e-2 if a.dtype == torch.bfloat16 else 2e-4
            torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
        elif isinstance(a, torch.Tensor | float | np.ndarray):
            torch.testing.assert_close(a, b, rtol=2e-4, atol=2e-4)
        else:
            assert a == b


MODES = {
    "eval": dict(training=False, grad=True),
    "train": dict(training=True, grad=True),
    "no_grad": dict(training=False, grad=False),
    "folded": dict(training=False, grad=False),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", FORWARDS)
def test_forwards(name, mode):
    forward, fold = FORWARDS[name], mode == "folded"
    training, grad = MODES[mode].values()
    if name in {"in_autocast"} and training:
        pytest.skip("its statistics are rounded otherwise")
    try:
        expected = results(made(forward), training=training, grad=grad)
    except RuntimeError as error:
        with pytest.raises(type(error)):
            results(fastcnn.fuse(made(forward), fold_bn=fold), training=training, grad=grad)
        return
    assert_alike(results(fastcnn.fuse(made(forward), fold_bn=fold), training=training, grad=grad), expected)


@pytest.mark.parametrize("name", FORWARDS)
def test_other_sizes(name):
    """Nothing that was read from the first shape stays."""
    plain, net = made(FORWARDS[name]).eval(), fastcnn.fuse(made(FORWARDS[name]).eval())
    generator = torch.Generator().manual_seed(3)
    for shape in ((2, 3, 12, 12), (1, 3, 13, 12), (3, 3, 9, 16), (2, 3, 12, 12), (1, 3, 12, 12)):
        x = torch.randn(shape, generator=generator)
        outputs = []
        for m in (net, plain):
            global STEPS
            STEPS = Counter.count = 0
            torch.manual_seed(2)
            np.random.seed(2)
            random.seed(2)
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    outputs.append(m(x))
            except Exception as error:
                outputs.append(type(error))
        assert_alike(*outputs)


@pytest.mark.parametrize("name", FORWARDS)
def test_fuse_leaves_generators_globals_and_state(name, capsys):
    global STEPS
    STEPS = Counter.count = 0
    SEEN.clear()
    net = made(FORWARDS[name])
    before = copy.deepcopy(net.state_dict())
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    generators = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fastcnn.fuse(net)
    assert capsys.readouterr().out == ""
    fastcnn.explain(net)
    capsys.readouterr()
    assert torch.equal(generators[0], torch.get_rng_state())
    assert generators[1:] == (np.random.get_state()[1].tolist(), random.getstate())
    torch.testing.assert_close(net.state_dict(), before, rtol=0, atol=0)
    assert (net.calls, net.last, STEPS, SEEN) == (0, None, 0, [])
    assert not [w for w in caught if "fastcnn" in str(w.filename)]
    assert torch.is_grad_enabled()
    assert isinstance(net.relu, nn.ReLU)
    fastcnn.unfuse(net)
    assert "forward" not in vars(net)
