"""Which code ``purity.check`` refuses, and what it says: one instruction or name at a time."""

import functools

import pytest
import torch
from torch import nn

from fastcnn.fusion import purity
from fastcnn.fusion.values import Untraceable

DRAWS, ASKS, SAYS = "draws random numbers", "asks for the type or identity of something", "says something"
AUTOCAST, CONTEXT = "switches or asks for autocast", "handles exceptions or enters a context"
REFUSED = {
    **{f"numpy.{name}(x)": f"{DRAWS} ({name})" for name in ("random", "randint", "uniform", "choice")},
    **{f"numpy.{name}(x)": f"{DRAWS} ({name})" for name in ("shuffle", "Random")},
    **{f"{name}(x)": f"{ASKS} ({name})" for name in ("type", "id", "Proxy")},
    "torch.compiler.is_compiling()": "asks who runs it (is_compiling)",
    "torch.compiler.is_exporting()": "asks who runs it (is_exporting)",
    "torch.is_grad_enabled()": "asks for gradients (is_grad_enabled)",
    "torch.is_inference_mode_enabled()": "asks for gradients (is_inference_mode_enabled)",
    **{f"torch.{name}('cpu')": f"{AUTOCAST} ({name})" for name in ("autocast", "is_autocast_enabled")},
    "torch.get_autocast_dtype('cpu')": f"{AUTOCAST} (get_autocast_dtype)",
    "warnings.warn(x)": f"{SAYS} (warn)",
    "print(x)": f"{SAYS} (print)",
    "Function.apply(x)": "calls an autograd.Function (apply)",
    "x.name = 1": "changes name",
    "del x.name": "changes name",
    "global y; y = x": "changes a global",
    "global y; del y": "changes a global",
    "with x: pass": CONTEXT,
    "\n    try: x()\n    except ValueError: pass": CONTEXT,
    "(lambda: print(x))": f"{SAYS} (print)",
    "def inner():\n        nonlocal x\n        x = 1": "changes a variable of another function",
}  # fmt: skip
ALLOWED = [
    "x + 1",
    "y = x; y = [y, y]",
    "x.relu()",
    "(lambda: x)",
    "x.index",
    "print_it = x",
    "type = x",
    "y = 'print'",
]


def forward(line):
    names = {}
    exec(f"def forward(x):\n    {line}\n    return x", names)
    return names["forward"]


@pytest.mark.parametrize("line", REFUSED)
def test_what_a_graph_can_not_say(line):
    with pytest.raises(Untraceable) as error:
        purity.check(forward(line))
    assert str(error.value) == f"forward {REFUSED[line]}"


@pytest.mark.parametrize("line", ALLOWED)
def test_what_a_graph_says(line):
    purity.check(forward(line))


def test_a_variable_that_an_inner_function_reads_may_change():
    def changes_its_own(x):
        x = x + 1
        return (lambda: x)()

    purity.check(changes_its_own)


SPEAKS = forward("print(x)")


def by_name(x):
    return SPEAKS(x)


def enclosing(*values):
    return lambda x: values[0] if not values[1:] else x


def closing(value):
    return lambda x: value


def with_default(value):
    return lambda x, y=value: x


class Speaker:
    def __call__(self, x):
        print(x)


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x


@pytest.mark.parametrize(("function", "reason"), [
    (by_name, "says something (print)"),
    (closing(SPEAKS), "says something (print)"),
    (Speaker(), "says something (print)"),
    (functools.partial(SPEAKS), "says something (print)"),
    (functools.partial(forward("x"), SPEAKS), "says something (print)"),
    (functools.partial(forward("x"), x=SPEAKS), "says something (print)"),
    (Doubled.apply, "calls an autograd.Function"),
    (closing(Doubled.apply), "calls an autograd.Function"),
    (closing(nn.ReLU()), "calls a function that encloses a module"),
    *((with_default(value), "has a default that it may change") for value in ([], {}, set())),
    (lambda x, y=1, z=[]: x, "has a default that it may change"),
])  # fmt: skip
def test_what_a_function_reaches(function, reason):
    with pytest.raises(Untraceable) as error:
        purity.check(function)
    assert str(error.value) == f"forward {reason}"


@pytest.mark.parametrize("function", [
    torch.nn.functional.dropout,  # torch's own is known
    closing(torch.nn.functional.batch_norm), closing(int.from_bytes), closing((1, 2)),
    with_default((1, 2)), functools.partial(forward("x")), None, 3,
])  # fmt: skip
def test_what_a_function_may_reach(function):
    purity.check(function)


def test_a_function_that_calls_itself():
    def again(x):
        return again(x)

    purity.check(again)


class Base:
    speaks = SPEAKS
    spoken = property(SPEAKS)
    by_class = classmethod(SPEAKS)


class Derived(Base):
    speaks = spoken = by_class = silent = lambda self: self


@pytest.mark.parametrize("name", ["speaks", "spoken", "by_class"])
def test_what_a_base_class_defines_may_be_called_too(name):
    with pytest.raises(Untraceable, match="says something"):
        purity.check_definitions(Derived, name)
    purity.check_definitions(Derived, "silent")
