"""Changes of a model, and of what hangs on a module, that a guard notices; with the extension and without."""

import enum
import runpy
import types

import pytest
from torch import nn

from fastcnn import _native
from fastcnn.fusion.guard import MISSING, Guard, customised, held, is_record


@pytest.fixture(params=["native", "python"], autouse=True)
def watch(request, monkeypatch):
    if request.param == "python":
        monkeypatch.setattr(_native, "missing_reason", lambda: "built without it")
        monkeypatch.delattr(_native, "load")


class Record:
    def __init__(self, **values):
        vars(self).update(values)


class Default(Record):
    value = 1


class Method(Record):
    def method(self):
        return 1


class Slots:
    __slots__ = ("value",)


class Kind(enum.Enum):
    ONE = 1


@pytest.mark.parametrize("value", [True, 1, 1.5, "text", (1, 2), None], ids=repr)
def test_records_hold_plain_values(value):
    assert is_record(Record(value=value)) and held(Record(value=value)) == {"value": value}
    assert is_record(Default(other=value)) and not is_record(Record(value=value, other=[]))


@pytest.mark.parametrize(
    "value",
    [Method(x=1), Slots(), Kind.ONE, 1, nn.ReLU(), types.SimpleNamespace(f=print), len, runpy.run_path],
)
def test_what_is_no_record(value):
    assert not is_record(value)


def net():
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU())
    net.list, net.dict, net.set, net.record = [], {"a": 1}, set(), Record(a=1)
    return net


class Shared:
    value = other = 1


class SharedToo:
    value = 1


FORWARDS = ("forward", "_conv_forward")
HOOKS = ("forward", "forward_pre", "full_backward", "full_backward_pre")


def note_conv(guard, model):
    guard.passes(model[0])


def own_forward(name):
    return lambda model: setattr(model[0], name, print)


def hook(name):
    return lambda model: getattr(model[0], f"register_{name}_hook")(print)


# What is noted, what changes it, and what the guard says then.
@pytest.mark.parametrize(("note", "change", "reason"), [
    (lambda g, m: g.value(m[0], "groups", 1), lambda m: setattr(m[0], "groups", 2), "groups has changed"),
    (lambda g, m: g.value(m[0], "groups", 1), lambda m: delattr(m[0], "groups"), "groups has changed"),
    (lambda g, m: g.entry(m, "", "new", MISSING), lambda m: setattr(m, "new", 1), "new has changed"),
    (lambda g, m: g.child(m, "1"), lambda m: setattr(m, "1", nn.ReLU()), "1 has changed"),
    (lambda g, m: g.value(m, "list", m.list), lambda m: m.list.append(1), "list has changed"),
    (lambda g, m: g.value(m, "dict", m.dict), lambda m: m.dict.update(a=2), "dict has changed"),
    (lambda g, m: g.value(m, "set", m.set), lambda m: m.set.add(1), "set has changed"),
    (lambda g, m: g.value(m, "record", m.record), lambda m: setattr(m.record, "a", 2), "record has changed"),
    (lambda g, m: g.size(m.list, 0, "it grew"), lambda m: m.list.append(1), "it grew"),
    (note_conv, lambda m: setattr(m[0], "__class__", nn.ReLU), "Conv2d is of another class"),
    (lambda g, m: g.passes(m[0], "groups"), lambda m: setattr(m[0], "groups", 2), "groups has changed"),
    *((note_conv, own_forward(name), "Conv2d has a forward of its own") for name in FORWARDS),
    *((note_conv, hook(name), "Conv2d has hooks") for name in HOOKS),
])  # fmt: skip
def test_what_is_noted_is_noticed(note, change, reason):
    guard, outer, late, model = Guard(), Guard(), Guard(), net()
    for g in (guard, outer):
        g.value(model, "record", model.record)
    note(guard, model)
    note(late, model)
    outer.update(guard)
    assert outer.plain == guard.plain
    assert [(g.changed(), g.holds()) for g in (guard, outer)] == [(None, True)] * 2
    change(model)
    assert [(g.changed(), g.holds()) for g in (guard, outer, late)] == [(reason, False)] * 3


def test_an_attribute_of_a_class(monkeypatch):
    guard = Guard()
    guard.shared(Shared, "value")
    guard.shared(Shared, "other")
    guard.shared(SharedToo, "value")
    assert guard.holds() and guard.changed() is None
    monkeypatch.setattr(Shared, "value", 2)
    assert not guard.holds() and guard.changed() == "Shared.value has changed"


def test_hooks_of_all_modules():
    guard = Guard()
    for n in HOOKS:
        handle = getattr(nn.modules.module, f"register_module_{n}_hook")(print)
        assert not guard.holds() and guard.changed() == "there are global hooks"
        handle.remove()
        assert guard.holds()


def test_what_torch_compile_can_watch():
    guard, model = Guard(), net()
    for name in ("groups", "stride", "weight", "padding_mode"):
        guard.value(model[0], name, getattr(model[0], name))
    guard.child(model, "1")
    assert [name for _, name, _ in guard.plain.values()] == ["groups", "stride", "padding_mode", "1"]
    assert guard.holds_compiled()
    model[0].stride = 3
    assert not guard.holds_compiled()


def test_what_is_hung_on_a_module():
    assert customised(net()[0]) is None
    lazy = nn.LazyConv2d(4, 3)
    assert customised(lazy) is None  # its own hook makes its weights
    lazy.load_state_dict(net()[0].state_dict())
    assert customised(lazy) == "has hooks"
    for n in HOOKS:
        layer, lazy = net()[0], nn.LazyConv2d(2, 3)
        for m in (layer, lazy):
            getattr(m, f"register_{n}_hook")(print)
            assert customised(m) == "has hooks"
    for name in FORWARDS:
        layer = net()[0]
        setattr(layer, name, print)
        assert customised(layer) == "has a forward of its own"
