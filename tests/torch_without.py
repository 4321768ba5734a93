"""Uses fastcnn with a torch that lacks a name, for test_private_names.py, which runs this file.

It reads names from stdin, as JSON, and prints for each what is fast without it, and an error if there was.
A process is forked for each, in which torch is already imported and fastcnn is not.
"""

import copy
import json
import os
import pkgutil
import sys
import tempfile
import traceback
import warnings

import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

# Torch itself fails without these: it keeps them, and fastcnn does not find them.
NEEDED_BY_TORCH = {
    "torch._C.DispatchKeySet",
    "torch._C._are_functorch_transforms_active",
    "torch._C._is_tracing",
    "torch._assert",
    "torch._subclasses.fake_tensor.FakeTensor",
    *(
        f"torch.nn.modules.module._global_{way}_{kind}"
        for way in ("forward", "backward")
        for kind in ("hooks", "pre_hooks")
    ),
    "torch.Tensor.__dlpack_c_exchange_api__",
    "torch.Tensor._cdata",
    "torch.Tensor._is_view",
    "torch.Tensor._version",
}


def take_away(name):
    owner, _, attribute = name.rpartition(".")
    if name not in NEEDED_BY_TORCH:
        return delattr(pkgutil.resolve_name(owner), attribute)
    real = pkgutil.resolve_name

    def resolve(asked):
        if asked == name:
            raise AttributeError(name)
        return real(asked)

    pkgutil.resolve_name = resolve


def plain_block(x, weight, bias, lrn):
    x = F.relu(F.conv2d(x, weight, bias))
    return F.max_pool2d(F.local_response_norm(x, 5) if lrn else x, 2)


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def check_block(fastcnn, lrn):
    block = fastcnn.nn.ConvBlock2d(3, 8, 3, lrn=fastcnn.LRN() if lrn else None, pool=fastcnn.MaxPool(2))
    tensors = torch.randn(2, 3, 12, 12, requires_grad=True), block.weight, block.bias
    y, want = block(tensors[0]), plain_block(*tensors, lrn)
    close(y, want)
    close(*(torch.autograd.grad(out.square().sum(), tensors) for out in (y, want)))
    with torch.no_grad():
        for _ in range(3):
            close(block(tensors[0]), want)
        mode = Listener()
        with mode:
            close(block(tensors[0]), want)
    assert mode.seen
    return "_fastcnn_calls" in vars(block) and any(
        type(c) is not int for c in block._fastcnn_calls.prepared.values()
    )


class Listener(TorchFunctionMode):
    seen = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.seen += 1
        return function(*args, **(kwargs or {}))


def check_transforms(fastcnn):
    x, weight, bias = torch.randn(4, 2, 3, 9, 9), torch.randn(8, 3, 3, 3), torch.randn(8)

    def ours(x):
        return fastcnn.functional.conv2d_block(x, weight, bias, lrn=fastcnn.LRN(), pool=fastcnn.MaxPool(2))

    def plain(x):
        return plain_block(x, weight, bias, True)

    close(torch.func.vmap(ours)(x), torch.func.vmap(plain)(x))
    close(*(torch.func.grad(lambda x, f=f: f(x).square().sum())(x[0]) for f in (ours, plain)))
    with torch.autocast("cpu"):
        assert ours(x[0]).dtype == torch.bfloat16
    if hasattr(torch.autograd.forward_ad, "_current_level"):
        close(*(torch.func.jvp(f, (x[0],), (torch.ones_like(x[0]),)) for f in (ours, plain)))
    with torch.inference_mode():
        close(ours(x[0]), plain(x[0]))


def check_flops(fastcnn):
    block, x, counts = fastcnn.nn.ConvBlock2d(3, 8, 3, lrn=fastcnn.LRN()), torch.randn(1, 3, 9, 9), []
    for call in (block, lambda x: plain_block(x, block.weight, block.bias, True)):
        with FlopCounterMode(display=False) as counter:
            call(x).sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


def check_fuse(fastcnn):
    written = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), Own())
    written[1].running_mean.normal_()
    model, x = copy.deepcopy(written), torch.randn(2, 3, 14, 14)
    fastcnn.fuse(model, x, fold_bn=True)
    with torch.no_grad():
        for m in (model.eval(), written.eval()):
            m(x)
        close(model(x), written(x))
        close(torch.jit.trace(model, x)(x), written(x))
    folded = any(
        getattr(call, "folded", None)
        for f in fastcnn.fusion.fused.fusions(model)
        for call in f.forwards[False].calls
    )
    for m in (model.train(), written.train()):
        m(x).square().sum().backward()
    close([p.grad for p in model.parameters()], [p.grad for p in written.parameters()])
    return isinstance(model, fastcnn.fusion.fused.FusedModule), folded


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3)

    def forward(self, x):
        torch._assert(x.dim() == 4, "images")
        return F.max_pool2d(F.relu(self.conv(x)), 2) + 1


def check_network(fastcnn):
    ours, plain = (fastcnn.models.lenet5(fused=fused).eval() for fused in (True, False))
    plain.load_state_dict(ours.state_dict())
    x = torch.randn(1, 1, 28, 28)
    with torch.no_grad():
        for _ in range(3):
            close(ours(x), plain(x))
    return any(type(c) is not int for c in ours._fastcnn_calls.prepared.values())


def check_momentum():
    from fastcnn.training.momentum import Momentum

    w = nn.Parameter(torch.randn(3))
    before, w.grad = w.detach().clone(), torch.ones(3)
    Momentum([w], 0.1, 0.9, 0.01).step()
    close(w.detach(), before - 0.1 * (0.01 * before + 1))


def check_receptive_field(fastcnn, name):
    try:
        assert fastcnn.receptive_field(fastcnn.models.lenet5(), 28)[0].size == (5, 5)
    except RuntimeError as error:
        assert name in str(error), error


def check_import_again(fastcnn, name):
    for module in [m for m in sys.modules if m.partition(".")[0] == "fastcnn"]:
        del sys.modules[module]
    try:
        import fastcnn.nn as again

        close(again.MaxPool2d(2)(torch.ones(1, 1, 4, 4)), torch.ones(1, 1, 2, 2))
    except RuntimeError as error:
        assert name in str(error), error


def use(name):
    """Returns what is fast without a name."""
    if name:
        take_away(name)
    import fastcnn
    from fastcnn import _dispatch, _torch_private

    assert not name or name in _torch_private.missing
    torch.manual_seed(0)
    prepared = [check_block(fastcnn, lrn) for lrn in (False, True)]
    check_transforms(fastcnn)
    check_flops(fastcnn)
    fused, folded = check_fuse(fastcnn)
    found = {
        "bypass": _dispatch.can_bypass(torch.ones(1)),
        "block": any(prepared),
        "network": check_network(fastcnn),
        "fuse": fused,
        "fold": folded,
    }
    check_momentum()
    check_receptive_field(fastcnn, name)
    check_import_again(fastcnn, name)
    return [what for what, fast in found.items() if fast]


def apart(name):
    """Returns what is fast without a name, or why that can't be told, by a process of its own."""
    with tempfile.TemporaryFile("w+") as file:
        child = os.fork()
        if not child:
            try:
                result = {"fast": use(name), "error": None}
            except BaseException:
                result = {"fast": [], "error": traceback.format_exc()}
            json.dump(result, file)
            file.flush()
            os._exit(0)
        _, status = os.waitpid(child, 0)
        file.seek(0)
        return json.load(file) if status == 0 else {"fast": [], "error": f"status {status}"}


def warm_up():
    """Has torch import what its functions import when first called: seconds, but once for all processes."""
    x = torch.ones(1, 1, 4, 4)
    with Listener():
        close(torch.func.vmap(torch.func.grad(torch.sum))(x), x)
        torch.func.jvp(F.relu, (x,), (x,))
        torch.jit.trace(nn.ReLU(), x)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    warm_up()
    print(json.dumps({name: apart(name) for name in json.load(sys.stdin)}))
