"""Calls modules in other ways than before: other inputs, modes, transforms, exports."""

import contextlib

import pytest
import torch
from prepared import CONVS, NETS, SUBJECTS, alike, conv, outcome, pair, recorded, reset, same, shifted
from torch import nn
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import fastcnn


class Subclass(torch.Tensor):
    pass


class Tripling(torch.Tensor):
    """Triples what a dense layer gives."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        result = super().__torch_function__(function, types, args, kwargs)
        return result * 3 if function is nn.functional.linear else result


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


# Inputs. By name; "!" and "?" at the end as in prepared.same.


def strided(x):
    return torch.stack([x, -x], -1)[..., 0]


def sliced(x):
    return torch.cat([x, x], -1)[..., : x.shape[-1]]


def spoiled(x, value):
    y = x.clone()
    y[0, 0, 3:5, 4] = value
    return y


def in_inference(x):
    with torch.inference_mode():
        return x * 2


INPUTS = {
    "as before": lambda x: x,
    "a copy": torch.clone,
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "channels_last of one image": lambda x: x[:1].contiguous(memory_format=torch.channels_last),
    "channels_last unaligned": lambda x: shifted(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2),
    "batch inside": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "strided": strided,
    "sliced": sliced,
    "flipped": lambda x: x.flip(-1),
    "unaligned": shifted,
    "offset": lambda x: shifted(x, 16),
    "one image expanded": lambda x: x[:1].expand(x.shape),
    "channels expanded": lambda x: x[:, :1].expand(x.shape),
    "one value expanded": lambda x: x[:1, :1, :1, :1].expand(x.shape),
    "odd strides of one image": lambda x: x[:1].as_strided(x[:1].shape, (7, *x.stride()[1:])),
    "every other image": lambda x: torch.cat([x, x])[::2],
    "one image": lambda x: x[:1],
    "seven images": lambda x: torch.cat([x, x, x])[:7],
    "no batch?": lambda x: x[1],
    "no batch, channels_last?": lambda x: x.contiguous(memory_format=torch.channels_last)[1],
    "empty": lambda x: x[:0],
    "requires grad": lambda x: x.clone().requires_grad_(),
    "with a history": lambda x: x.clone().requires_grad_() * 1,
    "a view with a history": lambda x: torch.stack([x, x]).requires_grad_()[0],
    "a parameter": lambda x: nn.Parameter(x),
    "of inference mode?": in_inference,
    "negative view": lambda x: torch._neg_view(x),
    "imaginary part": lambda x: torch.complex(x, x).conj().imag,
    "a subclass": lambda x: x.as_subclass(Subclass),
    "a subclass that acts": lambda x: x.as_subclass(Tripling),
    "shared memory": lambda x: x.clone().share_memory_(),
    "of numpy": lambda x: torch.from_numpy(x.numpy().copy()),
    "larger": lambda x: x * 1e4,
    "NaN": lambda x: spoiled(x, torch.nan),
    "inf": lambda x: spoiled(x, torch.inf),
    "-inf": lambda x: spoiled(x, -torch.inf),
    "zeros": torch.zeros_like,
    "negative zeros": lambda x: torch.full_like(x, -0.0),
    "subnormal": lambda x: x * 1e-39,
    "wider?": lambda x: nn.functional.pad(x, (0, 3)),
    "32 x 32?": lambda x: torch.ones(2, x.shape[1], 32, 32),
    "double?": torch.Tensor.double,
    "half?": torch.Tensor.half,
    "bfloat16?": torch.Tensor.bfloat16,
    "int?": torch.Tensor.int,
    "uint8?": torch.Tensor.byte,
    "bool?": torch.Tensor.bool,
    "complex?": lambda x: x + 0j,
    "meta?": lambda x: x.to("meta"),
    "sparse?": torch.Tensor.to_sparse,
    "more channels?": lambda x: torch.cat([x, x], 1),
    "no channels?": lambda x: x[:, :0],
    "too small?": lambda x: x[..., :1, :1],
    "no columns?": lambda x: x[..., :0],
    "two axes?": lambda x: x[0, 0],
    "five axes?": lambda x: x[None],
    "a scalar?": lambda x: x.sum(),
    "a list?": lambda x: x.tolist(),
    "numpy?": lambda x: x.numpy(),
    "None?": lambda x: None,
}
REFUSED_BY_CONVOLUTIONS = (
    "double?", "half?", "bfloat16?", "int?", "uint8?", "bool?", "complex?", "more channels?", "no channels?",
    "no columns?", "two axes?", "five axes?", "a scalar?", "a list?", "numpy?", "None?",
)  # fmt: skip
# Ours has another layout than torch's layer, or takes what that refuses, or names another error.
UNLIKE_TORCH = {
    ("relu", "sparse?"),
    ("pool", "no batch, channels_last?"),
    *(("lrn", kind) for kind in ("batch inside", "transposed", "no batch, channels_last?", "empty")),
    *(("lrn", kind) for kind in ("half?", "bfloat16?", "sparse?", "no channels?", "no columns?")),
}
FAILING = {
    ("relu", "of inference mode?"): (
        "with gradients recorded a margin is added by the op, which saves the input"
    ),
}


def cases(names, table, failing):
    """Returns all pairs as parameters; those that fail today are expected to, with the reason."""
    for name in names:
        for key in table:
            reason = failing.get((name, key))
            marks = pytest.mark.xfail(reason=reason, strict=False) if reason else ()
            yield pytest.param(name, key, id=f"{name}-{key}", marks=marks)


@pytest.mark.parametrize(
    ("name", "kind"), cases([name for name in SUBJECTS if name != "caffe"], INPUTS, FAILING)
)
def test_inputs(name, kind):
    ours, plain, x = pair(name)
    given = INPUTS[kind](x)
    for mode in (torch.no_grad, torch.no_grad, torch.enable_grad, torch.inference_mode):
        with mode():
            found, expected = outcome(lambda: ours(given)), outcome(lambda: plain(given))
            assert kind.endswith("?") or not isinstance(expected, type), expected
            if name in CONVS and kind in REFUSED_BY_CONVOLUTIONS:
                assert isinstance(expected, type)
            if (name, kind) not in UNLIKE_TORCH:
                alike(found, expected)
    fresh = SUBJECTS[name].build(True).eval()
    fresh.load_state_dict(ours.state_dict())
    with torch.inference_mode():
        alike(found, outcome(lambda: fresh(given)))
    same(ours, plain, x)


@pytest.mark.parametrize("call", [
    lambda m, x: m(input=x),
    lambda m, x: m.forward(x),
    lambda m, x: m.forward(input=x),
    lambda m, x: nn.Module.__call__(m, x),
    lambda m, x: m(x, x, x),
    lambda m, x: m(),
    lambda m, x: m(x, other=x),
    lambda m, x: m(x=x),
    lambda m, x: nn.Sequential(m, nn.Identity())(x),
    lambda m, x: list(map(m, x)),
    lambda m, x: [m(x), m(x[:1]), m(x), m(x[:2])],
    lambda m, x: m(x.clone().add_(1)) + m(x),
], ids=range(12))  # fmt: skip
@pytest.mark.parametrize("name", ["relu", "fuse", "block", "lrn"])
def test_ways_to_call(name, call):
    ours, plain, x = pair(name)
    with torch.no_grad():
        alike(outcome(lambda: call(ours, x)), outcome(lambda: call(plain, x)))
    same(ours, plain, x)


@pytest.mark.parametrize("name", SUBJECTS)
def test_an_input_that_changes_under_the_same_address(name):
    ours, plain, x = pair(name)
    with torch.no_grad():
        for change in (lambda: x.mul_(2), lambda: x.data.add_(1), lambda: x.numpy().fill(0.5)):
            change()
            alike(ours(x), plain(x))
        x.transpose_(2, 3)
        if name != "lrn":  # whose layout is another than torch's
            alike(outcome(lambda: ours(x)), outcome(lambda: plain(x)))
        x.transpose_(2, 3)
        x.resize_(1, *x.shape[1:])
        alike(ours(x), plain(x))
        x.set_(torch.ones(2, *x.shape[1:]))
        alike(ours(x), plain(x))
        x.data = torch.ones(1, *x.shape[1:]).double()
        alike(outcome(lambda: ours(x)), outcome(lambda: plain(x)))


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
