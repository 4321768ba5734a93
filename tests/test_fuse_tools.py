"""Tools of PyTorch on fused models: fx, jit, distributed, transforms, hooks, averages and conversions."""

import copy
import io

import pytest
import torch
import torch.distributed as dist
from forwards import IMAGES
from module_classes import Inner, build
from small_nets import NETS, normed, sequence
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import fastcnn
from fastcnn.fusion.fused import Fused, fusion_of

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("fold", [False, True], ids=["", "fold"])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name", NETS)
def test_fx(name, training, fold):
    plain, net = NETS[name]().train(training), fastcnn.fuse(NETS[name]().train(training), fold_bn=fold)
    graph, traced = torch.fx.symbolic_trace(net), torch.fx.symbolic_trace(plain)
    torch.testing.assert_close(graph(IMAGES), traced(IMAGES))
    assert [n.op for n in graph.graph.nodes] == [n.op for n in traced.graph.nodes]
    torch.testing.assert_close(net(IMAGES), plain(IMAGES))
    torch.testing.assert_close(graph.state_dict(), traced.state_dict())
    fused = fastcnn.fuse(graph.eval(), fold_bn=fold)
    torch.testing.assert_close(fused(IMAGES), plain.eval()(IMAGES))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("called", [False, True], ids=["first", "later"])
@pytest.mark.parametrize("fold", [False, True], ids=["", "fold"])
@pytest.mark.parametrize("name", NETS)
def test_jit_trace(name, fold, called):
    plain, net = NETS[name]().eval(), fastcnn.fuse(NETS[name]().eval(), fold_bn=fold)
    if called:
        net(IMAGES)
    for grad in (torch.no_grad, torch.enable_grad):
        with grad():
            traced = torch.jit.trace(net, IMAGES)
        torch.testing.assert_close(traced(IMAGES * 2), plain(IMAGES * 2), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(net(IMAGES), plain(IMAGES), rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("fold", [False, True], ids=["", "fold"])
@pytest.mark.parametrize("name", ["sequence", "normed"])
def test_jit_script(name, fold):
    """Scripts as the plain model does, or says that fastcnn cannot be scripted."""
    plain, net = NETS[name]().eval(), fastcnn.fuse(NETS[name]().eval(), fold_bn=fold)
    try:
        scripted = torch.jit.script(net)
    except Exception as error:
        assert "fastcnn" in str(error)
        assert "script" in str(error).lower()
    else:
        torch.testing.assert_close(scripted(IMAGES), plain(IMAGES))
    torch.testing.assert_close(net(IMAGES), plain(IMAGES))
    unfused = fastcnn.unfuse(copy.deepcopy(net))
    torch.testing.assert_close(torch.jit.script(unfused)(IMAGES), plain(IMAGES))


@pytest.mark.parametrize("grad", [False, True], ids=["no_grad", "grad"])
@pytest.mark.parametrize("name", NETS)
def test_flops(name, grad):
    counts = []
    for net in (NETS[name](), fastcnn.fuse(NETS[name](), fold_bn=True)):
        with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(grad):
            y = net.eval()(IMAGES)
            if grad:
                y.sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("before", [False, True], ids=["fused later", "fused before"])
@pytest.mark.parametrize("name", ["sequence", "normed"])
def test_dtensor(name, before):
    if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 13):
        pytest.skip("torch's own convolutions and poolings take no DTensor before 2.13")
    distributed = pytest.importorskip("torch.distributed.tensor")
    if not dist.is_available() or dist.is_initialized():
        pytest.skip("needs a process group of its own")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
        x = distributed.distribute_tensor(IMAGES, mesh, [distributed.Replicate()])
        plain = NETS[name]().eval()
        expected = plain(IMAGES)
        net = fastcnn.fuse(NETS[name]().eval()) if before else NETS[name]().eval()
        distributed.distribute_module(net, mesh)
        try:
            net(x)
        except Exception as error:
            if before:
                raise
            pytest.skip(f"plain torch cannot: {error}")
        net = fastcnn.fuse(net)
        torch.testing.assert_close(net(x).full_tensor(), expected)
    finally:
        dist.destroy_process_group()


def chains(net):
    forwards = [fusion_of(m).forwards.get(False) for m in net.modules() if fusion_of(m) is not None]
    return sorted(" ".join(kinds) for f in forwards if isinstance(f, Fused) for kinds, _ in f.chains)


def test_fused_twice_and_in_parts():
    plain = nn.Sequential(
        normed(), nn.Conv2d(6, 6, 1), nn.ReLU(), build(Inner).child if False else nn.Tanh()
    ).eval()
    net = copy.deepcopy(plain)
    fastcnn.fuse(net[0])
    torch.testing.assert_close(net(IMAGES), plain(IMAGES))
    fastcnn.fuse(net)
    torch.testing.assert_close(net(IMAGES), plain(IMAGES))
    once = chains(net)
    fastcnn.fuse(net)
    assert chains(net) == once
    fastcnn.unfuse(net[0])
    torch.testing.assert_close(net(IMAGES), plain(IMAGES))
    fastcnn.fuse(net[0], fold_bn=True)
    torch.testing.assert_close(net(IMAGES), plain(IMAGES), rtol=1e-4, atol=1e-4)
    fastcnn.unfuse(net)
    assert torch.equal(net(IMAGES), plain(IMAGES))
    assert [type(m) for m in net.modules()] == [type(m) for m in plain.modules()]
    fastcnn.unfuse(net)
    assert torch.equal(net(IMAGES), plain(IMAGES))


def test_a_fused_part_in_another_model():
    plain = sequence().eval()
    part = fastcnn.fuse(copy.deepcopy(plain))
    torch.default_generator.manual_seed(3)
    outer = nn.Sequential(part, nn.Conv2d(6, 6, 1), nn.ReLU())
    expected = outer[2](outer[1](plain(IMAGES)))
    torch.testing.assert_close(outer(IMAGES), expected)
    torch.testing.assert_close(fastcnn.fuse(outer)(IMAGES), expected)
    twin = copy.deepcopy(outer)
    torch.testing.assert_close(twin(IMAGES), expected)
    twin[0][0].weight.data.zero_()
    torch.testing.assert_close(outer(IMAGES), expected)


@pytest.mark.parametrize("name", NETS)
def test_state_dicts(name):
    plain, net = NETS[name](), fastcnn.fuse(NETS[name]())
    assert list(net.state_dict()) == list(plain.state_dict())
    assert [n for n, _ in net.named_modules()] == [n for n, _ in plain.named_modules()]
    assert [n for n, _ in net.named_parameters()] == [n for n, _ in plain.named_parameters()]
    assert repr(net) == repr(plain)
    torch.default_generator.manual_seed(5)
    state = {k: torch.rand_like(v) if v.is_floating_point() else v for k, v in plain.state_dict().items()}
    for m in (net, plain):
        m.eval().load_state_dict(state)
    torch.testing.assert_close(net(IMAGES), plain(IMAGES), rtol=1e-4, atol=1e-4)
    with pytest.raises(RuntimeError, match="Missing key"):
        net.load_state_dict({})
    buffer = io.BytesIO()
    torch.save(net.state_dict(), buffer)
    buffer.seek(0)
    plain.load_state_dict(torch.load(buffer))


@pytest.mark.parametrize("name", NETS)
def test_function_transforms(name):
    plain, net = NETS[name]().eval(), fastcnn.fuse(NETS[name]().eval())
    found = []
    for m in (net, plain):
        parameters = {k: v.detach() for k, v in m.named_parameters()}

        def loss(p, x, m=m):
            return torch.func.functional_call(m, p, (x,)).sin().sum()

        per_sample = torch.func.vmap(torch.func.grad(lambda p, x, loss=loss: loss(p, x[None])), (None, 0))
        found.append(
            [
                torch.func.grad(loss)(parameters, IMAGES),
                per_sample(parameters, IMAGES),
                torch.func.vmap(m)(IMAGES[:, None]),
                torch.func.jacrev(lambda x, m=m: m(x).sum((2, 3)))(IMAGES[:1]),
                torch.func.jvp(m, (IMAGES,), (IMAGES.cos(),)),
                torch.func.hessian(lambda x, m=m: m(x).sin().sum())(IMAGES[:1, :, :8, :8]),
            ]
        )
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", NETS)
def test_double_backward_and_accumulation(name):
    found = []
    for m in (NETS[name]().eval(), fastcnn.fuse(NETS[name]().eval())):
        x = IMAGES.clone().requires_grad_()
        (grad,) = torch.autograd.grad(m(x).sin().sum(), x, create_graph=True)
        grad.pow(2).sum().backward()
        first = m(x)
        (first.sum() + m(x * 2).sum()).backward(retain_graph=True)
        first.cos().sum().backward()
        found.append([x.grad, *(p.grad for p in m.parameters())])
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["sequence", "normed"])
def test_hooks_of_all_kinds(name):
    found = []
    for m in (NETS[name](), fastcnn.fuse(NETS[name](), fold_bn=True)):
        seen = []
        m.register_forward_pre_hook(lambda m, args, seen=seen: seen.append(torch.zeros(())))
        m.register_full_backward_hook(lambda m, i, o, seen=seen: seen.append(o[0]))
        m.register_forward_hook(
            lambda m, args, kwargs, y, seen=seen: seen.append(y.detach()), with_kwargs=True
        )
        m[0].register_full_backward_hook(lambda m, i, o, seen=seen: seen.append(o[0]))
        m[1].register_forward_hook(lambda m, args, y, seen=seen: seen.append(args[0].detach()))
        m[2].register_full_backward_pre_hook(lambda m, o, seen=seen: seen.append(o[0]))
        m[0].weight.register_hook(lambda grad: grad * 2)
        m[0].weight.register_post_accumulate_grad_hook(lambda p, seen=seen: seen.append(p.grad.clone()))
        for training in (True, False):
            m.train(training)(IMAGES).sin().sum().backward()
        found.append([seen, [p.grad for p in m.parameters()]])
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-3)


def test_saved_tensors_hooks():
    found = []
    for m in (sequence(), fastcnn.fuse(sequence())):
        with torch.autograd.graph.save_on_cpu():
            y = m(IMAGES)
        y.sin().sum().backward()
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t.numpy(force=True), torch.from_numpy):
            y = m(IMAGES)
        y.sin().sum().backward()
        found.append([p.grad for p in m.parameters()])
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["sequence", "normed"])
def test_meta_and_empty(name):
    with torch.device("meta"):
        net = NETS[name]()
    fastcnn.fuse(net)
    assert net(IMAGES.to("meta")).device.type == "meta"
    net.to_empty(device="cpu")
    plain = NETS[name]()
    net.load_state_dict(plain.state_dict())
    torch.testing.assert_close(net.eval()(IMAGES), plain.eval()(IMAGES), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NETS)
def test_averaged_models(name):
    found = []
    for m in (NETS[name](), fastcnn.fuse(NETS[name](), fold_bn=True)):
        average = torch.optim.swa_utils.AveragedModel(m)
        optimizer = torch.optim.SGD(m.parameters(), 0.1)
        for _ in range(2):
            optimizer.zero_grad()
            m.train()(IMAGES).sin().mean().backward()
            optimizer.step()
            average.update_parameters(m)
            with torch.no_grad():
                average.eval()(IMAGES)
        torch.optim.swa_utils.update_bn([IMAGES, IMAGES * 2], average)
        with torch.no_grad():
            found.append([average.eval()(IMAGES), m.eval()(IMAGES)])
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-3)


def test_data_parallel():
    plain, net = sequence().eval(), fastcnn.fuse(sequence().eval())
    torch.testing.assert_close(nn.DataParallel(net)(IMAGES), plain(IMAGES))


def test_apply_and_conversions():
    for convert in (nn.Module.double, nn.Module.float, nn.Module.bfloat16, nn.Module.share_memory):
        plain, net = convert(sequence().eval()), convert(fastcnn.fuse(sequence().eval()))
        x = IMAGES.to(plain[0].weight.dtype)
        try:
            expected = plain(x)
        except NotImplementedError:
            continue
        tolerance = 2e-2 if x.dtype == torch.bfloat16 else 1e-4
        torch.testing.assert_close(net(x), expected, rtol=tolerance, atol=tolerance)
    net = fastcnn.fuse(sequence())
    net.apply(lambda m: nn.init.ones_(m.weight) if isinstance(m, nn.Conv2d) else None)
    plain = sequence()
    plain.load_state_dict(net.state_dict())
    torch.testing.assert_close(net(IMAGES), plain(IMAGES))


def test_sync_batch_norm_conversion():
    net = fastcnn.fuse(normed().eval(), fold_bn=True)
    expected = net(IMAGES)
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(net)
    torch.testing.assert_close(converted(IMAGES), expected)


@pytest.mark.parametrize("name", NETS)
def test_isinstance_and_named_types(name):
    plain, net = NETS[name](), fastcnn.fuse(NETS[name]())
    for a, b in zip(net.modules(), plain.modules(), strict=True):
        assert isinstance(a, type(b))
        assert type(a).__name__ == type(b).__name__
        assert type(a).__module__ == type(b).__module__
        assert type(a).__doc__ == type(b).__doc__
        assert set(dir(b)) - set(dir(a)) == set()


class ChildrenOfOneClass(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = Inner(), Inner()
        self.b.conv = nn.Conv2d(6, 6, 3)

    def forward(self, x):
        y = self.a(x)
        assert type(self.a) is type(self.b)
        return self.b(y)


def test_type_of_children_stays_equal():
    plain, net = build(ChildrenOfOneClass), fastcnn.fuse(build(ChildrenOfOneClass))
    torch.testing.assert_close(net(IMAGES), plain(IMAGES))
