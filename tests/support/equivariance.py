"""What reverse-complement equivariance means for a tensor, and how it is checked."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

Mirror = Callable[[Tensor], Tensor]


def exchanged(strands: Tensor) -> Tensor:
    """Both strands (2, batch, L, ...) as seen from the other one: exchanged, and reversed along L."""
    return strands.flip(0, 2)


def reversed_along(x: Tensor) -> Tensor:
    """What belongs to no strand, (batch, L, ...)."""
    return x.flip(1)


def check_equivariance(
    f: Callable[..., Tensor], parameters: Iterable[Tensor], inputs: dict[str, tuple[Tensor, Mirror]], of_output: Mirror,
    tolerance: float = 1e-11,
) -> None:  # fmt: skip
    """f of the mirrored inputs is the mirrored f, and so are its gradients: those of parameters are the same, those of
    inputs mirrored. Errors are relative to the largest value."""
    parameters = list(parameters)
    here = {name: _leaf(x) for name, (x, _) in inputs.items()}
    there = {name: _leaf(mirror(x)) for name, (x, mirror) in inputs.items()}
    out, other = f(**here), f(**there)
    assert_near(other, of_output(out), tolerance, "output")
    distance = (out - of_output(out)).abs().max() if out.shape[-2] > 1 else torch.inf
    assert distance > 1e-3, "the output is its own mirror image: the test shows nothing"

    g = torch.randn(out.shape, dtype=out.dtype, generator=torch.Generator().manual_seed(7))
    leaves = [name for name, x in here.items() if x.requires_grad]
    grads = torch.autograd.grad(out, [*parameters, *(here[name] for name in leaves)], g)
    others = torch.autograd.grad(other, [*parameters, *(there[name] for name in leaves)], of_output(g))
    mirrors = [lambda x: x] * len(parameters) + [inputs[name][1] for name in leaves]
    for i, (a, b, mirror) in enumerate(zip(grads, others, mirrors, strict=True)):
        assert_near(b, mirror(a), tolerance, f"gradient {i}")


def assert_near(ours: Tensor, expected: Tensor, tolerance: float, what: Any = "") -> None:
    """The largest difference, relative to the largest expected value."""
    assert ours.shape == expected.shape, what
    error = (ours.detach() - expected.detach()).abs().max() / expected.detach().abs().max().clamp_min(1e-30)
    assert error <= tolerance, f"{what}: {error.item():.3g}"


def _leaf(x: Tensor) -> Tensor:
    return x.detach().clone().requires_grad_(x.is_floating_point())
