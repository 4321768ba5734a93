"""Folded batch norms under modes and transforms, exported, compiled, copied and shared."""

import contextlib
import copy
import importlib.util
import io
import pickle

import counting
import pytest
import torch
from normed_nets import IMAGES, NETS, NORMED, chains, compare, conv, filled, fused, other_state
from torch import nn
from torch.func import functional_call

import fastcnn

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("name", ["relu", "relu and pool", "no relu", "timm's", "groups", "not affine"])
@pytest.mark.parametrize("grad", ["no_grad", "frozen"])
def test_no_weight_is_multiplied_at_the_second_call(name, grad):
    net = fused(NETS[name]().requires_grad_(grad != "frozen"))
    with contextlib.nullcontext() if grad == "frozen" else torch.no_grad():
        net(IMAGES)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            net(IMAGES)
    names = {event.name for event in profile.events()}
    assert not names & {
        "aten::mul",
        "aten::rsqrt",
        "aten::batch_norm",
        "aten::native_batch_norm",
        "aten::sqrt",
    }


def test_calls_under_a_mode_give_the_same():
    plain = NETS["relu and pool"]().requires_grad_(False)
    net = fused(copy.deepcopy(plain))
    with counting.Count():
        found = net(IMAGES)
    torch.testing.assert_close(found, plain(IMAGES), rtol=1e-4, atol=1e-4)
    for m in (net, plain):
        m[1].running_mean.add_(1)
    compare(net, plain)


def test_data_written_is_seen_when_fused_again():
    plain = NETS["relu"]().requires_grad_(False)
    net = fused(copy.deepcopy(plain))
    compare(net, plain)
    for m in (net, plain):
        m[0].weight.data.mul_(2)
        m[1].running_var.data.mul_(2)
    compare(fused(net), plain)


@pytest.mark.parametrize("made", [torch.inference_mode, torch.no_grad], ids=["inference_mode", "no_grad"])
@pytest.mark.parametrize("name", ["relu", "timm's", "lrn"])
def test_parameters_made_in_a_mode(made, name):
    with made():
        plain = NETS[name]()
        net = copy.deepcopy(plain)
    net = fused(net)
    for mode in (torch.no_grad, torch.inference_mode, made):
        with mode():
            compare(net, plain)
    with made():
        for m in (net, plain):
            m[1].running_mean.add_(1)
            m[0].weight.mul_(2)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            compare(net, plain)


def test_folded_in_inference_mode_is_good_for_gradients():
    plain = NETS["relu"]().requires_grad_(False)
    net = fused(copy.deepcopy(plain))
    with torch.inference_mode():
        compare(net, plain)
    grads = []
    for m in (net, plain):
        x = IMAGES.clone().requires_grad_()
        m(x).sin().sum().backward()
        grads.append(x.grad)
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-4)


def test_statistics_written_in_inference_mode():
    plain = NETS["relu"]()
    net = fused(copy.deepcopy(plain))
    with torch.no_grad():
        compare(net, plain)
    for m in (net, plain):
        with torch.inference_mode():
            m.train()(IMAGES)
            m.eval()
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            compare(net, plain)


def test_functional_call():
    plain = NETS["relu and pool"]()
    net = fused(copy.deepcopy(plain))
    with torch.no_grad():
        compare(net, plain)
        state = filled(copy.deepcopy(plain), seed=1).state_dict()
        expected = functional_call(plain, state, (IMAGES,))
        torch.testing.assert_close(functional_call(net, state, (IMAGES,)), expected, rtol=1e-4, atol=1e-4)
        part = {"1.running_mean": state["1.running_mean"]}
        expected = functional_call(plain, part, (IMAGES,))
        torch.testing.assert_close(functional_call(net, part, (IMAGES,)), expected, rtol=1e-4, atol=1e-4)
        compare(net, plain)


def apply(transform):
    def run(net):
        parameters = {k: v.detach().clone() for k, v in net.named_parameters()}
        return transform(net, parameters)

    return run


TRANSFORMS = {
    "grad": apply(
        lambda net, p: torch.func.grad(lambda p: functional_call(net, p, (IMAGES,)).sin().sum())(p)
    ),
    "grad at the input": apply(lambda net, p: torch.func.grad(lambda x: net(x).sin().sum())(IMAGES)),
    "vmap": apply(lambda net, p: torch.func.vmap(net)(IMAGES[:, None])),
    "vmap of parameters": apply(
        lambda net, p: torch.func.vmap(lambda p: functional_call(net, p, (IMAGES,)))(
            {k: torch.stack([v, v * 2]) for k, v in p.items()}
        )
    ),
    "jacrev": apply(lambda net, p: torch.func.jacrev(lambda x: net(x).sum((0, 2, 3)))(IMAGES[:1, :, :6, :6])),
    "jacrev of parameters": apply(
        lambda net, p: torch.func.jacrev(lambda p: functional_call(net, p, (IMAGES,)).sum((0, 2, 3)))(p)
    ),
    "jvp": apply(lambda net, p: torch.func.jvp(net, (IMAGES,), (IMAGES.cos(),))),
    "per-sample gradients": apply(
        lambda net, p: torch.func.vmap(
            torch.func.grad(lambda p, x: functional_call(net, p, (x[None],)).sin().sum()),
            (None, 0),
        )(p, IMAGES)
    ),
}


@pytest.mark.parametrize("frozen", [False, True], ids=["", "frozen"])
@pytest.mark.parametrize("called", [False, True], ids=["first", "later"])
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_transforms(transform, called, frozen):
    plain = NETS["relu"]().requires_grad_(not frozen)
    net = fused(copy.deepcopy(plain))
    if called:
        with torch.no_grad():
            net(IMAGES)
    run = TRANSFORMS[transform]
    torch.testing.assert_close(run(net), run(plain), rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        compare(net, plain)


@pytest.mark.parametrize("called", [False, True], ids=["first", "later"])
@pytest.mark.parametrize("name", ["relu", "no relu", "timm's", "lrn"])
def test_export(name, called):
    plain = NETS[name]()
    net = fused(copy.deepcopy(plain))
    with torch.no_grad():
        if called:
            net(IMAGES)
        program = torch.export.export(net, (IMAGES,))
        torch.testing.assert_close(program.module()(IMAGES), plain(IMAGES), rtol=1e-4, atol=1e-4)
        compare(net, plain)


@pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("onnx", "onnxscript", "onnxruntime"))), reason="needs onnxruntime"
)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["relu and pool", "timm's"])
def test_onnx(name):
    onnxruntime = importlib.import_module("onnxruntime")
    plain = NETS[name]()
    net = fused(copy.deepcopy(plain))
    with torch.no_grad():
        net(IMAGES)
        program = torch.onnx.export(net, (IMAGES,), dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    (found,) = session.run(None, {session.get_inputs()[0].name: IMAGES.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), plain(IMAGES).detach(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("called", [False, True], ids=["first", "later"])
@pytest.mark.parametrize("name", ["relu and pool", "no relu", "timm's"])
def test_compile(name, called):
    torch._dynamo.reset()
    plain = NETS[name]()
    net = fused(copy.deepcopy(plain))
    if called:
        with torch.no_grad():
            net(IMAGES)
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    for grad in (torch.no_grad, torch.enable_grad):
        with grad():
            compare(compiled, plain)
            for m in (net, plain):
                with torch.no_grad():
                    m[0].weight.mul_(1.5)
                    m[1].running_mean.add_(0.5)
            compare(compiled, plain)
            compare(net, plain)
    for m in (net, plain):
        m.load_state_dict(other_state(m), assign=True)
    with torch.no_grad():
        compare(compiled, plain)
        compare(net, plain)


def saved(net):
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda net: pickle.loads(pickle.dumps(net)),
    "torch.save": saved,
}


@pytest.mark.parametrize("called", [False, True], ids=["first", "later"])
@pytest.mark.parametrize("name", NORMED)
@pytest.mark.parametrize("copied", COPIES)
def test_copies(copied, name, called):
    plain = NETS[name]().requires_grad_(False)
    net = fused(copy.deepcopy(plain))
    if called:
        net(IMAGES)
    other, other_plain = COPIES[copied](net), copy.deepcopy(plain)
    compare(other, plain)
    with torch.no_grad():
        other[0].weight.mul_(2)
        other_plain[0].weight.mul_(2)
    compare(other, other_plain)
    compare(net, plain)
    with torch.no_grad():
        net[0].weight.mul_(3)
        plain[0].weight.mul_(3)
    compare(net, plain)
    compare(other, other_plain)


def test_a_shallow_copy():
    plain = NETS["relu"]().requires_grad_(False)
    net = fused(copy.deepcopy(plain))
    compare(net, plain)
    other = copy.copy(net)
    compare(other, plain)
    for m in (net, plain):
        m[1].running_mean.add_(1)
    compare(other, plain)
    compare(net, plain)


def test_state_parameters_and_buffers_stay():
    plain = NETS["relu"]()
    net = copy.deepcopy(plain)
    tensors = [*net.parameters(), *net.buffers()]
    with torch.no_grad():
        fused(net)(IMAGES)
    assert [id(t) for t in (*net.parameters(), *net.buffers())] == [id(t) for t in tensors]
    torch.testing.assert_close(net.state_dict(), plain.state_dict(), rtol=0, atol=0)
    assert len(pickle.dumps(net)) < len(pickle.dumps(plain)) * 2


def test_fold_asked_for_and_taken_back():
    plain = NETS["relu"]().requires_grad_(False)
    net = copy.deepcopy(plain)
    for fold in (True, False, True, True, False):
        fastcnn.fuse(net, fold_bn=fold)
        assert any("bn" in kinds for kinds in chains(net)) == fold
        compare(net, plain)
        for m in (net, plain):
            m[1].running_mean.add_(0.3)
        compare(net, plain)
    fastcnn.unfuse(net)
    assert torch.equal(net(IMAGES), plain(IMAGES))


def test_two_models_with_one_convolution():
    shared = conv()
    plains = [filled(nn.Sequential(shared, nn.BatchNorm2d(8), nn.ReLU()), seed).eval() for seed in (0, 1)]
    nets = [fused(nn.Sequential(*plain)).eval() for plain in plains]
    with torch.no_grad():
        for _ in range(2):
            for net, plain in zip(nets, plains, strict=True):
                compare(net, plain)
            shared.weight.mul_(1.5)
