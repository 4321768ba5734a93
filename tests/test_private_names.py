"""Without any one of torch's private names fastcnn gives the same results: only speed is lost."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.fx import proxy

import fastcnn
from fastcnn import _torch_private, cli
from fastcnn.fusion.fused import FusedModule

# What is not fast without a name; bypass: no call goes by PyTorch's dispatcher.
OFF = {
    **{name: set() for name in _torch_private.names},
    **{name: {"bypass", "block", "network", "fold"} for name in _torch_private.listeners},
    "torch.Tensor.__dlpack_c_exchange_api__": {"block", "network", "fold"},
    "torch.Tensor._version": {"fold"},
    "torch.Tensor._cdata": {"fold"},
    **{
        f"torch.nn.modules.module._global_{direction}_{kind}": {"network", "fuse", "fold"}
        for direction in ("forward", "backward")
        for kind in ("hooks", "pre_hooks")
    },
}


@pytest.fixture(scope="module")
def found():
    program = [sys.executable, Path(__file__).with_name("torch_without.py")]
    names = json.dumps(["", *_torch_private.names])
    env = os.environ | {"CUDA_VISIBLE_DEVICES": ""}  # autograd's threads for GPUs don't live through a fork
    result = subprocess.run(program, env=env, input=names, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-2000:]
    return json.loads(result.stdout)


@pytest.mark.parametrize("name", ["", *OFF])
def test_results_are_the_same_without(name, found):
    assert found[name]["error"] is None, found[name]["error"]
    assert set(found[name]["fast"]) == set(found[""]["fast"]) - OFF.get(name, set())


def test_this_torch_has_all_of_them():
    assert _torch_private.missing == []


def test_info_lists_the_missing(monkeypatch, capsys):
    monkeypatch.setattr(_torch_private, "missing", ["torch._a", "torch._b"])
    cli.main(["info"])
    assert "missing in torch: torch._a, torch._b: " in capsys.readouterr().out


PACKAGE = Path(fastcnn.__file__).parent
TREES = {path: ast.parse(path.read_text()) for path in PACKAGE.rglob("*.py")}
ALLOWED = {
    # The state of a Module: part of every pickled one, which torch has to load.
    *("_modules", "_parameters", "_buffers"),
    *("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"),
    "_conv_forward",  # only looked for among a module's own attributes, where somebody would have put it
    "_node",  # torch.fx's; fuse leaves models as written where it is another, see below
    "_should_skip_dynamo",  # a method that a mode of torch's has; another name would import the compiler
    *("_with_indices", "_orig_mod"),  # parts of names: of operations in receptive_field, in files of weights
    # Python's, and a named tuple's.
    *("_getframe", "_SubParsersAction", "_asdict", "_fields", "_make", "_replace"),
}


def is_private(name):
    return re.fullmatch(r"_[A-Za-z]\w*", name) is not None


def own_names():
    """Names that fastcnn defines."""
    for path, tree in TREES.items():
        yield from (path.stem, path.parent.name)
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                yield node.name
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                yield node.id
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                yield node.attr


def names_used(tree):
    """Attributes, imports and names in strings, each with its line; of one with dots each part."""
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    suffixes = {
        id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield node.attr, node.lineno
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield from ((part, node.lineno) for part in str(node.module).split("."))
            yield from ((name.name, node.lineno) for name in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            names = [] if id(node) in suffixes else [node.value]
            names += [part for name in re.findall(r"torch[.\w]+", node.value) for part in name.split(".")]
            yield from ((name, node.lineno) for name in names)


def test_private_names_are_in_one_module():
    known = {*own_names(), *ALLOWED}
    found = [
        f"{path.relative_to(PACKAGE)}:{line} {name}"
        for path, tree in TREES.items()
        for name, line in names_used(tree)
        if is_private(name) and name not in known and not name.startswith("_fastcnn")
        if path.name != "_torch_private.py"
    ]
    assert found == []


@pytest.mark.skipif(not (PACKAGE.parent / "csrc").exists(), reason="installed without sources")
def test_private_names_in_cpp_are_known():
    sources = "".join(p.read_text() for p in (PACKAGE.parent / "csrc").rglob("*.*"))
    asked = set(re.findall(r'(?:intern|attr)\("(\w+)"\)', sources))
    public = {"is_neg", "requires_grad", "data_ptr"}
    assert "raw_repr" in asked
    assert asked - public <= {name.rpartition(".")[2] for name in _torch_private.names}


def model():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2)).eval()


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)

    def forward(self, x):
        return self.conv(x).relu() + x.shape[0]


@pytest.mark.filterwarnings("ignore:Dynamo does not know")
def test_compilers_that_know_no_constants_give_the_same(monkeypatch):
    monkeypatch.delattr(FusedModule._fastcnn_usable, "_dynamo_marked_constant")
    fused, x = fastcnn.fuse(model()), torch.randn(2, 1, 8, 8)
    torch.testing.assert_close(torch.compile(fused, backend="eager")(x), fused(x))


def test_fuse_leaves_models_where_fx_has_other_attributes(monkeypatch):
    def init(self, root, attr):
        self.root, self.attr, self.tracer = root, attr, root.tracer

    monkeypatch.setattr(proxy.Attribute, "__init__", init)
    written = Own()
    fused, x = fastcnn.fuse(Own()), torch.randn(2, 1, 8, 8)
    fused.load_state_dict(written.state_dict())
    assert not isinstance(fused, FusedModule)
    assert torch.equal(fused(x), written(x))


def test_modules_may_have_no_other_method_around_their_forward():
    class Called:
        pass

    assert _torch_private.called(Called)[1] is None
    assert _torch_private.called(nn.Linear) == _torch_private.called(nn.Module)
    assert _torch_private.called(nn.Module)[1] is nn.Module._call_impl


def test_containers_are_looked_through_without_torch():
    tree = {"a": [1, (2, None)], "b": {"c": 3}}
    assert _torch_private._leaves(tree) == _torch_private.tree_leaves(tree)
    assert _torch_private._map(str, tree) == _torch_private.tree_map(str, tree)
