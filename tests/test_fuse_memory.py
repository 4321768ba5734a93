"""The memory of a fused model is freed with it, and does not grow."""

import collections
import copy
import functools
import gc
import pickle
import types
import weakref

import pytest
import torch
from forwards import IMAGES
from module_classes import COPIED, Arguments, Containers, Inner, Super, build
from small_nets import NETS

import fastcnn

pytestmark = pytest.mark.usefixtures("one_thread", "few_objects")


@pytest.mark.parametrize("kind", [Inner, Super, Arguments, *COPIED[:4], Containers], ids=lambda k: k.__name__)
def test_a_fused_model_is_freed(kind):
    net = fastcnn.fuse(build(kind), IMAGES, fold_bn=True)
    with torch.no_grad():
        net.eval()(IMAGES)
    net.train()(IMAGES)
    found = [weakref.ref(net), weakref.ref(next(net.children())), *map(weakref.ref, net.parameters())]
    del net
    gc.collect()
    assert [ref() for ref in found] == [None] * len(found)


@pytest.mark.parametrize("name", NETS)
def test_an_unfused_model_is_freed(name):
    net = fastcnn.unfuse(fastcnn.fuse(NETS[name](), fold_bn=True))
    found = [weakref.ref(net), *map(weakref.ref, net.modules())]
    del net
    gc.collect()
    assert [ref() for ref in found] == [None] * len(found)


@pytest.mark.parametrize("name", NETS)
def test_what_a_fused_model_gave_is_freed(name):
    net = fastcnn.fuse(NETS[name](), fold_bn=True)
    for training in (True, False):
        net.train(training)
        x = IMAGES.clone()
        y = net(x)
        found = [weakref.ref(x), weakref.ref(y)]
        del x, y
        gc.collect()
        assert [ref() for ref in found] == [None, None]


def objects():
    """The number of objects of each type; torch.fx itself leaves some of three types behind each trace."""
    gc.collect()
    kinds = collections.Counter(map(type, gc.get_objects()))
    return sum(n for kind, n in kinds.items() if kind not in {tuple, functools.partial, types.MethodType})


GROWTH = {
    "one": lambda net: net,
    "copies": copy.deepcopy,
    "pickled": lambda net: pickle.loads(pickle.dumps(net)),
}


@pytest.mark.parametrize("model", GROWTH)
@pytest.mark.parametrize("name", ["sequence", "super"])
def test_no_growth(name, model):
    net = NETS[name]().eval()

    def rounds(count):
        for _ in range(count):
            m = GROWTH[model](net)
            fastcnn.fuse(m, fold_bn=True)
            with torch.no_grad():
                m(IMAGES)
            if model != "one":
                GROWTH[model](m)(IMAGES)
            fastcnn.unfuse(m)
        return objects()

    rounds(10)
    before = rounds(10)
    assert rounds(200 if model == "one" else 30) <= before + 40
