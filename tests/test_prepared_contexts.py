"""Calls modules as before, within modes, hooks, transforms and exports."""

import contextlib

import pytest
import torch
from prepared import NETS, alike, cases, conv, outcome, pair, recorded, reset, same
from torch import nn
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import fastcnn

pytestmark = pytest.mark.usefixtures("one_thread")


class FunctionMode(TorchFunctionMode):
    """Triples what a dense layer gives."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        return result * 3 if function is nn.functional.linear else result


class DispatchMode(TorchDispatchMode):
    """Triples what a dense layer gives."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        return result * 3 if function is torch.ops.aten.addmm.default else result


class Watching(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += 1
        return function(*args, **(kwargs or {}))


@contextlib.contextmanager
def patched(cls):
    own = cls.forward
    cls.forward = lambda self, *args: own(self, *args) * 2
    try:
        yield
    finally:
        cls.forward = own


# Contexts: entered after calls, left again.

CONTEXTS = {
    "no_grad": torch.no_grad,
    "enable_grad": torch.enable_grad,
    "set_grad_enabled": lambda: torch.set_grad_enabled(True),
    "inference_mode": torch.inference_mode,
    "inference_mode off": lambda: torch.inference_mode(False),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "autocast to half": lambda: torch.autocast("cpu", torch.float16),
    "autocast off": lambda: torch.autocast("cpu", enabled=False),
    "autocast of another device": lambda: torch.autocast("cuda", enabled=False),
    "function mode": FunctionMode,
    "dispatch mode": DispatchMode,
    "dual level": forward_ad.dual_level,
    "anomaly": lambda: torch.autograd.detect_anomaly(check_nan=False),
    "saved tensors": lambda: torch.autograd.graph.save_on_cpu(),
    "default dtype": lambda: reset(torch.get_default_dtype, torch.set_default_dtype, torch.float64),
    "default device": lambda: torch.device("meta"),
    "deterministic": lambda: reset(
        torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms, True
    ),
    "threads": lambda: reset(torch.get_num_threads, torch.set_num_threads, 3 - torch.get_num_threads() // 2),
    "no oneDNN": lambda: torch.backends.mkldnn.flags(enabled=False),
    "Linear.forward": lambda: patched(nn.Linear),
    "ReLU.forward": lambda: patched(nn.ReLU),
    "Conv2d.forward": lambda: patched(nn.Conv2d),
    "MaxPool2d.forward": lambda: patched(nn.MaxPool2d),
    "plain": lambda: fastcnn.use_backend("plain"),
    "reference": lambda: fastcnn.use_backend("reference"),
    "swap": lambda: reset(
        torch.__future__.get_overwrite_module_params_on_conversion,
        torch.__future__.set_overwrite_module_params_on_conversion,
        True,
    ),
}  # fmt: skip


# A block of ours has no layers to call in it.
OF_LAYERS = ("ReLU.forward", "Conv2d.forward", "MaxPool2d.forward")


IN_CONTEXTS = [
    *cases(["relu", "adaptive", "block", "pool", "lrn"], [c for c in CONTEXTS if c not in OF_LAYERS], {}),
    *cases(
        ["fuse"], CONTEXTS, {("fuse", c): "fuse doesn't look at the classes of layers" for c in OF_LAYERS}
    ),
]


@pytest.mark.filterwarnings("ignore:.*[aA]nomaly")
@pytest.mark.parametrize(("name", "context"), IN_CONTEXTS)
def test_contexts(name, context):
    ours, plain, x = pair(name)
    for outer in (torch.no_grad, torch.enable_grad):
        with outer(), CONTEXTS[context]():
            for _ in range(2):
                alike(outcome(lambda: ours(x)), outcome(lambda: plain(x)))
        with torch.no_grad():
            alike(ours(x), plain(x))
    if context not in ("no_grad", "inference_mode"):
        with CONTEXTS[context]():
            factor = 20_000 if context.startswith("autocast") else 10
            alike(outcome(lambda: recorded(ours, x)), outcome(lambda: recorded(plain, x)), factor)
    same(ours, plain, x)


@pytest.mark.parametrize("name", NETS)
def test_what_listens_is_told(name):
    ours, _, x = pair(name)
    for mode in (torch.no_grad, torch.enable_grad):
        with mode():
            counts = []
            for _ in range(2):
                with Watching() as watching:
                    ours(x)
                counts.append(watching.count)
                with torch.profiler.profile() as profile:
                    ours(x)
                names = " ".join(event.key for event in profile.key_averages())
                assert "conv" in names
                assert "addmm" in names or "linear" in names
            assert counts[0] == counts[1] > 4


def test_an_unknown_backend_setting_counts_after_calls():
    ours, _, x = pair("block")
    with torch.no_grad(), fastcnn.use_backend("cuda"), pytest.raises(RuntimeError):
        ours(x)


# Transforms and exports.


def doubled(m):
    return {name: p.detach() * 2 for name, p in m.named_parameters()}


def of_one(m, x):
    name, p = next(m.named_parameters())
    return torch.func.functional_call(m, {name: p.detach() * 2}, (x,))


def over_weights(m, x):
    stacked = {name: torch.stack([p.detach(), -p.detach()]) for name, p in m.named_parameters()}
    return torch.func.vmap(lambda p: torch.func.functional_call(m, p, (x,)))(stacked)


def dual(m, x):
    with forward_ad.dual_level():
        return tuple(forward_ad.unpack_dual(m(forward_ad.make_dual(x, torch.ones_like(x)))))


def dual_weight(m, x):
    with forward_ad.dual_level():
        name, p = next(m.named_parameters())
        weight = {name: forward_ad.make_dual(p.detach(), torch.ones_like(p))}
        return tuple(forward_ad.unpack_dual(torch.func.functional_call(m, weight, (x,))))


def second_order(m, x):
    leaf = x.clone().requires_grad_()
    (first,) = torch.autograd.grad(m(leaf).square().sum(), leaf, create_graph=True)
    return torch.autograd.grad(first.square().sum(), leaf)


def by_make_fx(m, x):
    from torch.fx.experimental.proxy_tensor import make_fx

    return make_fx(m)(x)(x + 1)


def by_script(m, x):
    return torch.jit.trace(m, x, check_trace=False)(x + 1)


TRANSFORMS = {
    "vmap": lambda m, x: torch.func.vmap(m)(torch.stack([x, x + 1])),
    "vmap of images": lambda m, x: torch.func.vmap(m)(x),
    "vmap over weights": over_weights,
    "jvp": lambda m, x: torch.func.jvp(m, (x,), (torch.ones_like(x),)),
    "vjp": lambda m, x: torch.func.vjp(m, x)[1](torch.ones_like(m(x))),
    "grad": lambda m, x: torch.func.grad(lambda x: m(x).sum())(x),
    "grad over vmap": lambda m, x: torch.func.vmap(torch.func.grad(lambda x: m(x).sum()))(x),
    "jacrev": lambda m, x: torch.func.jacrev(lambda x: m(x).sum((0, -1)))(x[:1]),
    "functional_call": lambda m, x: torch.func.functional_call(m, doubled(m), (x,)),
    "functional_call of one": of_one,
    "grad of weights": lambda m, x: torch.func.grad(
        lambda p: torch.func.functional_call(m, p, (x,)).sum()
    )(doubled(m)),
    "functionalize": lambda m, x: torch.func.functionalize(m)(x),
    "forward mode": dual,
    "forward mode of a weight": dual_weight,
    "second order": second_order,
    "checkpoint": lambda m, x: torch.utils.checkpoint.checkpoint(m, x, use_reentrant=False),
    "make_fx": by_make_fx,
    "jit.trace": by_script,
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("name", ["relu", "fuse", "block"])
def test_transforms(name, transform):
    ours, plain, x = pair(name)
    refused = name == "fuse" and transform in ("vmap of images", "grad over vmap")  # by Flatten
    for recording in (False, True, False):
        with torch.set_grad_enabled(recording):
            expected = outcome(lambda: TRANSFORMS[transform](plain, x))
            assert isinstance(expected, type) == (refused or (transform == "second order" and not recording))
            alike(outcome(lambda: TRANSFORMS[transform](ours, x)), expected, 100)
    same(ours, plain, x)


def by_compile(m, x):
    torch._dynamo.reset()
    compiled = torch.compile(m, backend="eager", fullgraph=True)
    results = compiled(x), compiled(x + 1)
    conv(m).weight.data.mul_(2)
    return (*results, compiled(x))


def by_onnx(m, x):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    program = torch.onnx.export(m, (x,), dynamo=True, verbose=False)
    session = runtime.InferenceSession(program.model_proto.SerializeToString())
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])


EXPORTS = {
    "compile": by_compile,
    "export": lambda m, x: torch.export.export(m, (x,)).module()(x + 1),
    "onnx": by_onnx,
}


@pytest.mark.parametrize("how", EXPORTS)
@pytest.mark.parametrize("name", ["relu", "fuse"])
def test_exports(name, how):
    ours, plain, x = pair(name)
    with torch.no_grad():
        alike(EXPORTS[how](ours, x), EXPORTS[how](plain, x))
    same(ours, plain, x)
