"""Local response normalisation as most public code has it, and a register of other forms."""

from torch import nn


class Module(nn.Module):
    """The form most public code has, module and attributes as there."""

    def __init__(self, size=5, alpha=0.5, beta=0.75, k=1.0, **options):
        super().__init__()
        padding = options.pop("padding", ((size - 1) // 2, 0, 0))
        kernel = options.pop("kernel_size", (size, 1, 1))
        self.average = nn.AvgPool3d(kernel_size=kernel, stride=1, padding=padding, **options)
        self.alpha, self.beta, self.k, self.size = alpha, beta, k, size

    def forward(self, x):
        div = x.pow(2).unsqueeze(1)
        div = self.average(div).squeeze(1)
        div = div.mul(self.alpha).add(self.k).pow(self.beta)
        return x.div(div)


def spelled(forward):
    """A form of its own forward."""
    return type(forward.__name__, (Module,), {"forward": forward})


FORMS = {"module": Module}


def form(forward):
    FORMS[forward.__name__] = spelled(forward)
    return forward
