"""Triton's interpreter where there is no GPU, which must know before its import; fixtures for many tests."""

import dataclasses
import functools
import gc
import os
import sys

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture
def kernels_of_ours(monkeypatch):
    """Lets the CPU's kernels run, however few values there are."""
    monkeypatch.setattr("fastcnn.backends.cpu.slower_reason", lambda *_: None)
    monkeypatch.setattr("fastcnn.backends.cpu.SMALL", 0)


@pytest.fixture
def one_thread():
    """Keeps small convolutions from waiting for threads of a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def few_objects():
    """Has garbage collections pass over what earlier tests made, which takes them long."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def mnist(tmp_path):
    """Three classes of digits in files as MNIST's."""
    from trainings import write_mnist

    return write_mnist(tmp_path / "data")


@pytest.fixture
def directly(monkeypatch):
    """Makes the direct convolution take all that its kernels can do, however fast."""
    from fastcnn.backends import _direct

    def geometry(x, weight, conv, stages, *_, **__):
        fits = not stages.lrn and x.dtype == weight.dtype in (torch.float32, torch.bfloat16, torch.float16)
        fits = fits and _direct._fits(x.shape, weight.shape, conv)
        return _direct.Geometry(x.shape, weight.shape, conv) if fits else None

    monkeypatch.setattr(_direct, "geometry", geometry)


def pytest_runtest_setup(item):
    torch.default_generator.manual_seed(0)  # a test draws the same, whatever ran before it
    interpreter = sys.modules.get("triton.runtime.interpreter")
    if hasattr(interpreter, "GridExecutor") and hasattr(interpreter, "_patch_lang"):
        spare_the_interpreter(interpreter)


@functools.cache
def spare_the_interpreter(interpreter):
    """Spares Triton's interpreter most of its time.

    It patches triton.language at each call of a device function, though what the first call from a module
    has patched stays so until the launch ends. It computes of each sum of integers whether it overflows, and
    drops the result unless it debugs.
    """
    launch, patch, patched = interpreter.GridExecutor.__call__, interpreter._patch_lang, set()

    def launch_anew(*args, **kwargs):
        patched.clear()
        return launch(*args, **kwargs)

    def patch_a_module(fn):
        module = id(fn.__globals__)
        if module not in patched:
            patched.add(module)
            return patch(fn)
        return None

    interpreter.GridExecutor.__call__, interpreter._patch_lang = launch_anew, patch_a_module
    builder = interpreter.interpreter_builder
    builder.options = dataclasses.replace(builder.options, sanitize_overflow=builder.options.debug)
