"""HyenaDNA: its convolution, its filter, and its operator against the definition."""

import math

import pytest
import torch

from seq2exp.baselines import HyenaDNA, HyenaDNAConfig
from seq2exp.baselines.hyenadna import HyenaFilter, HyenaOperator, long_convolution

SMALL = HyenaDNAConfig(length=37, center=5, gene_features=2, d_model=6, layers=2, d_inner=8, filter_width=7)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def convolved(x: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
    """The definition, base by base."""
    y = torch.zeros_like(x)
    for l in range(x.shape[-1]):
        for j in range(l + 1):
            y[..., l] += kernel[:, j] * x[..., l - j]
    return y


@pytest.mark.parametrize("length", [1, 2, 37])
def test_long_convolution_is_the_causal_sum(length):
    x, kernel = torch.randn(2, 3, length, dtype=torch.float64), torch.randn(3, length, dtype=torch.float64)
    torch.testing.assert_close(long_convolution(x, kernel), convolved(x, kernel))


def test_filter_decays_and_is_the_network_of_its_position():
    length, d = 50, 4
    made = HyenaFilter(d, length, 5, 7, 10.0).double()
    made.position, made.decay = made.position.double(), made.decay.double()
    got = made()
    for l in (0, 7, 49):
        w = 2 * math.pi * l / length
        h = torch.tensor(
            [l / (length - 1), math.cos(1e-4 * w), math.cos(w), -math.sin(1e-4 * w), -math.sin(w)]
        ).double()
        for layer in made.hidden:
            h = torch.sin(10 * layer(h))
        rates = torch.linspace(-math.log(0.01) / 1.5, -math.log(0.01) / 0.3, d).double()
        torch.testing.assert_close(got[:, l], made.out(h) * torch.exp(-rates * l / (length - 1)), atol=1e-5, rtol=1e-5)
    assert got.shape == (d, length)


def test_operator_is_its_definition():
    operator, h = HyenaOperator(SMALL).double(), torch.randn(2, 37, 6, dtype=torch.float64)
    operator.filter.position, operator.filter.decay = (x.double() for x in operator.filter.buffers())
    u = operator.in_proj(h)  # (batch, L, 3 d)
    weight, bias = operator.short.weight[:, 0], operator.short.bias
    short = torch.zeros_like(u)
    for l in range(37):
        for k in range(3):
            if l - k >= 0:
                short[:, l] += weight[:, 2 - k] * u[:, l - k]
    x0, x1, v = (short + bias).split(6, -1)
    v = (x1 * v).transpose(1, 2)
    v = convolved(v, operator.filter()) + operator.skip[:, None] * v
    torch.testing.assert_close(operator(h), operator.out_proj(x0 * v.transpose(1, 2)))


def test_predicts_from_the_sequence_up_to_the_centre():
    model = HyenaDNA(SMALL).eval()
    sequence = torch.randint(0, 5, (3, 37), dtype=torch.uint8)
    features = torch.randn(3, 2)
    out = model(sequence, torch.rand(3, 37, 3), features, exclude=torch.zeros(3, 37, dtype=torch.bool))
    assert out.expression.shape == (3,) and out.mask is None and out.kl is None
    after, before = sequence.clone(), sequence.clone()
    after[:, 21:] = 0  # behind the centre, 16..20
    before[:, 0] = (before[:, 0] + 1) % 4
    torch.testing.assert_close(model(after, None, features).expression, out.expression)
    assert (model(before, None, features).expression != out.expression).all()


def test_recomputing_changes_no_gradient():
    sequence, gradients = torch.randint(0, 5, (2, 37), dtype=torch.uint8), []
    for recompute in ("none", "layer"):
        torch.manual_seed(3)
        model = HyenaDNA(SMALL.replace(recompute=recompute, gene_features=0))
        torch.manual_seed(4)
        model(sequence).expression.sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(g is not None and g.isfinite().all() for g in gradients[0])
    torch.testing.assert_close(*gradients)


def test_defaults_are_the_sizes_of_the_paper():
    config = HyenaDNAConfig()
    assert (config.layers, config.d_model, config.d_inner, config.filter_width) == (4, 128, 512, 64)


def test_bfloat16_autocast():
    model = HyenaDNA(SMALL).eval()
    sequence, features = torch.randint(0, 5, (2, 37), dtype=torch.uint8), torch.randn(2, 2)
    with torch.autocast("cpu", torch.bfloat16):
        low = model(sequence, None, features).expression
    torch.testing.assert_close(low.float(), model(sequence, None, features).expression, atol=0.02, rtol=0.05)
