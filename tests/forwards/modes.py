"""Gradients, autocast, checkpoints, hooks, contexts, and questions about them."""

import contextlib

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from .base import forward


class Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, grad):
        return grad * 3


@forward
def without_gradients(self, x):
    with torch.no_grad():
        y = self.block(x)
    return self.second(y)


@forward
def in_inference_mode(self, x):
    with torch.inference_mode():
        y = self.pool(self.relu(self.conv(x)))
    return y.clone() + 1


@forward
def gradients_off_and_on(self, x):
    previous = torch.is_grad_enabled()
    torch.set_grad_enabled(False)
    y = self.relu(self.conv(x))
    torch.set_grad_enabled(previous)
    return self.pool(self.relu(self.second(y)))


@forward
def in_autocast(self, x):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = self.pool(self.relu(self.conv(x)))
    return y.float()


@forward
def a_function_of_ones_own(self, x):
    return self.pool(self.relu(Double.apply(self.relu(self.conv(x)))))


@forward
def checkpoints(self, x):
    return checkpoint(self.block, x, use_reentrant=False)


@forward
def checkpoints_a_layer(self, x):
    return self.pool(checkpoint(nn.Sequential(self.conv, self.relu), x, use_reentrant=False))


@forward
def checkpoints_a_sequence(self, x):
    body = nn.Sequential(self.conv, self.relu, self.pool, self.second, self.relu)
    return checkpoint_sequential(body, 2, x, use_reentrant=False)


@forward
def asks_scripting(self, x):
    if torch.jit.is_scripting() or torch.jit.is_tracing():
        return x
    return self.block(x)


@forward
def asks_compiling(self, x):
    if torch.compiler.is_compiling() or torch.compiler.is_exporting():
        return x
    return self.block(x)


@forward
def asks_for_fx(self, x):
    y = self.block(x)
    return y if not isinstance(y, torch.fx.Proxy) else y + 1


@forward
def asks_for_a_graph(self, x):
    y = self.relu(self.conv(x))
    if y.grad_fn is not None and y.requires_grad:
        return self.pool(y) * 2
    return self.pool(y)


@forward
def detaches(self, x):
    y = self.relu(self.conv(x)).detach()
    return self.pool(self.relu(self.second(y)))


@forward
def detaches_a_part(self, x):
    y = self.relu(self.conv(x))
    return self.pool(y.detach()) + self.pool(y)


@forward
def hooks_a_tensor(self, x):
    y = self.relu(self.conv(x))
    if y.requires_grad:
        y.register_hook(lambda grad: grad * 2)
    return self.pool(y)


@forward
def retains_a_gradient(self, x):
    y = self.relu(self.conv(x))
    if y.requires_grad:
        y.retain_grad()
    self.last = y
    return self.pool(y)


@forward
def nested_contexts(self, x):
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.enable_grad())
        y = self.relu(self.conv(x))
    with contextlib.suppress(RuntimeError), torch.random.fork_rng():
        torch.manual_seed(3)
        y = y + torch.rand(())
    return self.pool(y)


@forward
def profiles(self, x):
    with torch.profiler.record_function("block"):
        return self.block(x)


@forward
def threads_count(self, x):
    return self.block(x), torch.get_num_threads(), torch.get_default_dtype()


@forward
def in_a_context_of_ones_own(self, x):
    with self.entered():
        y = self.block(x)
    return y * self.calls


@forward
def asks_anomaly_and_modes(self, x):
    y = self.block(x)
    modes = torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu"), torch.is_anomaly_enabled()
    return y, modes, torch.are_deterministic_algorithms_enabled(), torch.get_default_device()
