"""Lorentz layers: on the manifold for any curvature, right by autograd, finite whatever comes in."""

import geoopt
import pytest
import torch
from torch.nn import functional as F

from spectrain.errors import UsageError
from spectrain.hyperbolic import (
    DistanceDecoder,
    FermiDirac,
    Lorentz,
    LorentzAttention,
    LorentzClassifier,
    LorentzEmbedding,
    LorentzGraphConvolution,
    LorentzLinear,
    RiemannianAdam,
)
from spectrain.hyperbolic.heads import class_hinge, pair_cross_entropy, pair_hinge
from spectrain.hyperbolic.linear import on_hyperboloid
from spectrain.hyperbolic.lorentz import (
    TOLERANCE,
    centroid,
    distance,
    from_tangent,
    inner,
    lift,
    radius,
    squared_distance,
    to_poincare,
)

CURVATURES = [-1.0, -0.2, -5.0]
every_curvature = pytest.mark.parametrize("K", CURVATURES)


def points(n, d, K, dtype=torch.float64, size=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    u = size * torch.randn(n, d, generator=generator, dtype=torch.float64)
    return from_tangent(u.to(dtype), K)


def off(x, K):
    """How far points are off the manifold, relative to x₀²."""
    return ((inner(x, x) - 1 / K).abs() / x[..., 0].square()).max().item()


def weights(n, m, seed=1):
    w = torch.rand(n, m, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return w / w.sum(1, keepdim=True)


# --- the space ---------------------------------------------------------------------------------


@every_curvature
def test_maps_and_distances_are_geoopts(K):
    theirs = geoopt.Lorentz(k=torch.tensor(-1 / K, dtype=torch.float64))
    x, y = points(6, 4, K), points(6, 4, K, seed=1)
    u = torch.randn(6, 4, dtype=torch.float64)
    padded = torch.cat((torch.zeros(6, 1, dtype=torch.float64), u), 1)
    torch.testing.assert_close(from_tangent(u, K), theirs.expmap0(padded))
    torch.testing.assert_close(distance(x, y, K), theirs.dist(x, y))
    torch.testing.assert_close(inner(x, y), theirs.inner(x, x, v=y))
    R = radius(K)
    by_distance = 4 * R * R * torch.sinh(theirs.dist(x, y) / (2 * R)).square()
    torch.testing.assert_close(squared_distance(x, y, K), by_distance)


@every_curvature
def test_steps_and_transport_are_geoopts_where_that_is_exact(K):
    ours, theirs = Lorentz(K), geoopt.Lorentz(k=torch.tensor(-1 / K, dtype=torch.float64))
    x, y = points(6, 4, K, size=0.4), points(6, 4, K, size=0.4, seed=1)
    v = 0.3 * theirs.proju(x, torch.randn(6, 5, dtype=torch.float64))
    torch.testing.assert_close(ours.expmap(x, v), theirs.expmap(x, v))
    torch.testing.assert_close(ours.transp(x, y, v), theirs.transp(x, y, v))
    torch.testing.assert_close(ours.component_inner(x, v), theirs.component_inner(x, v))
    carried = ours.retr_transp(x, v, v)
    torch.testing.assert_close(carried[1], theirs.transp(x, carried[0], v))


def test_a_step_of_riemannian_adam_is_as_long_as_the_pace_says():
    for pace in (1.0, 8.0):
        table = LorentzEmbedding(5, 7, deviation=0.3, pace=pace).double()
        start = table.weight.detach().clone()
        optimizer = RiemannianAdam([table.weight], lr=1e-3)
        table.weight.grad = torch.randn(5, 7, dtype=torch.float64)
        optimizer.step()
        moved = distance(start, table.weight.detach())
        torch.testing.assert_close(moved, torch.full_like(moved, pace * 1e-3))


def test_what_geoopt_cannot_do_in_float32():
    """A step of length zero: its transport divides 0 by 0."""
    x = points(3, 4, -1.0, torch.float32)
    still, v = torch.zeros_like(x), geoopt.Lorentz().proju(x, torch.randn(3, 5))
    y, carried = Lorentz().retr_transp(x, still, v)
    torch.testing.assert_close(y, x)
    torch.testing.assert_close(carried, v, rtol=1e-5, atol=1e-5)


@every_curvature
def test_the_poincare_ball_keeps_distances(K):
    x, y = points(5, 3, K), points(5, 3, K, seed=1)
    a, b = to_poincare(x, K), to_poincare(y, K)
    assert (a.norm(dim=1) < 1).all()
    far = 1 + 2 * (a - b).square().sum(1) / ((1 - a.square().sum(1)) * (1 - b.square().sum(1)))
    torch.testing.assert_close(radius(K) * torch.acosh(far), distance(x, y, K))


@every_curvature
def test_the_centroid_has_the_least_squared_distance(K):
    x, w = points(7, 4, K), weights(3, 7)
    mean = centroid(w @ x, K)
    assert off(mean, K) < 1e-14

    def spread(at):
        return (w * squared_distance(at[:, None], x, K)).sum(1)

    for seed in range(5):
        noise = 1e-3 * torch.randn(3, 4, generator=torch.Generator().manual_seed(seed))
        assert (spread(lift(mean[:, 1:] + noise, K)) > spread(mean)).all()


def test_the_curvature_has_to_be_negative():
    for K in (0.0, 1.0, float("nan"), -float("inf")):
        with pytest.raises(UsageError, match="below 0"):
            LorentzLinear(3, 4, curvature=K)


# --- gradients ---------------------------------------------------------------------------------


def plain_hyperboloid(a, scale, R):
    """The published formula, left to autograd."""
    time = R * (torch.sigmoid(a[..., :1]) * scale.exp() + 1.1)
    s = a[..., 1:]
    space = s * ((time.square() - R * R) / s.square().sum(-1, keepdim=True).clamp(min=1e-8)).sqrt()
    return torch.cat((time, space), -1)


@every_curvature
def test_the_layer_is_the_published_formula(K):
    R = radius(K)
    a = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    scale = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(on_hyperboloid(a, scale, R), plain_hyperboloid(a, scale, R))
    # The time is computed from the space coordinates; on the manifold that is the same function of `a`.
    g = torch.randn(6, 5, dtype=torch.float64)
    ours = torch.autograd.grad((on_hyperboloid(a, scale, R) * g).sum(), (a, scale))
    theirs = torch.autograd.grad((plain_hyperboloid(a, scale, R) * g).sum(), (a, scale))
    torch.testing.assert_close(ours, theirs)


@every_curvature
def test_gradients_are_right_where_a_direction_is_short(K):
    a = torch.randn(5, 4, dtype=torch.float64)
    a[0] *= 1e-5  # its length is clamped
    a.requires_grad_()
    scale = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, c: on_hyperboloid(a, c, radius(K)), (a, scale))


@every_curvature
def test_the_centroids_gradient(K):
    u = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    w = weights(4, 6)
    assert torch.autograd.gradcheck(lambda u: centroid(w @ from_tangent(u, K), K), (u,))


# --- layers ------------------------------------------------------------------------------------


def test_a_new_layer_starts_as_published():
    layer = LorentzLinear(9, 16)
    assert layer.dense.weight.abs().max() <= 0.25
    assert (layer.dense.weight[:, 0] == 0).all()
    assert (layer.dense.bias == 0).all()
    assert layer.scale.exp().item() == pytest.approx(10.0)
    merging = LorentzLinear(12, 8, times=slice(None, None, 4))
    assert (merging.dense.weight[:, [0, 4, 8]] == 0).all()
    assert (merging.dense.weight[:, [1, 2, 3]] != 0).any()


def test_activation_dropout_and_residual_come_in_the_published_order():
    layer = LorentzLinear(5, 4, activation=torch.tanh, dropout=0.5)
    x, residual = points(8, 4, -1.0, torch.float32), torch.randn(8, 4)
    torch.manual_seed(3)
    found = layer(x, residual)
    torch.manual_seed(3)
    a = layer.dense(F.dropout(torch.tanh(x), 0.5)) + residual
    torch.testing.assert_close(found, on_hyperboloid(a, layer.scale, 1.0))
    layer.eval()
    torch.testing.assert_close(
        layer(x), on_hyperboloid(layer.dense(torch.tanh(x)), layer.scale, 1.0)
    )


@every_curvature
def test_heads_are_points_of_their_own(K):
    layer = LorentzLinear(5, 12, heads=3, curvature=K).double()
    found = layer(points(7, 4, K))
    assert found.shape == (7, 3, 4)
    assert off(found, K) < 1e-14


@every_curvature
def test_attention_is_the_published_formula(K):
    torch.manual_seed(0)
    layer = LorentzAttention(8, heads=2, curvature=K).double()
    x, y = points(5, 7, K).view(1, 5, 8), points(6, 7, K, seed=1).view(1, 6, 8)
    mask = torch.rand(5, 6) > 0.3
    mask[:, 0] = True
    q, k, v = layer.query(x)[0], layer.key(y)[0], layer.value(y)[0]
    rows = []
    for i in range(5):
        heads = []
        for h in range(2):
            scores = torch.stack([-squared_distance(q[i, h], k[j, h], K) for j in range(6)])
            scores = (scores / layer.scale).masked_fill(~mask[i], -torch.inf)
            z = scores.softmax(0) @ v[:, h]
            heads.append(radius(K) * z / inner(z, z).abs().sqrt())
        rows.append(torch.cat(heads))
    torch.testing.assert_close(layer(x, y, mask=mask), layer.output(torch.stack(rows))[None])
    assert off(layer(x, residual=torch.randn(1, 5, 8, dtype=torch.float64)), K) < 1e-14


def test_dropout_of_attention_leaves_means():
    layer = LorentzAttention(8, heads=2, dropout=0.9)
    x = points(6, 7, -1.0, torch.float32)
    found = layer(x)
    assert off(found, -1.0) < TOLERANCE
    assert not torch.equal(found, layer(x))
    assert torch.equal(layer.eval()(x), layer(x))


def test_dropout_of_attention_is_a_mean_over_what_it_leaves():
    """Whatever weights are left of equal points is that point; where none is left, the origin."""
    layer = LorentzAttention(8, heads=2, dropout=0.6)
    x, alike = points(6, 7, -1.0, torch.float32), points(1, 3, -1.0, torch.float32)
    keys, _ = layer.keys_values(x)
    seen = []
    layer.output.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    torch.manual_seed(0)
    for _ in range(20):
        layer.attend(x, keys, alike.expand(2, 6, 4))
    found = torch.stack(seen).unflatten(-1, (2, 4))
    origin = torch.eye(4)[0]
    is_alike = (found - alike[0]).abs().amax(-1) < 1e-4
    is_origin = (found - origin).abs().amax(-1) < 1e-4
    assert (is_alike | is_origin).all()
    assert is_alike.float().mean() > 0.8


def test_convolution_is_a_layer_and_a_mean():
    layer = LorentzGraphConvolution(5, 4, curvature=-0.5).double()
    x, w = points(6, 4, -0.5), weights(6, 6)
    torch.testing.assert_close(layer(x, lambda h: w @ h), centroid(w @ layer.linear(x), -0.5))


@every_curvature
def test_heads_score_by_distance(K):
    x, y = points(5, 3, K), points(5, 3, K, seed=1)
    torch.testing.assert_close(DistanceDecoder(curvature=K)(x, y), -squared_distance(x, y, K))
    p = torch.sigmoid(FermiDirac(r=2.0, t=0.5, curvature=K)(x, y))
    torch.testing.assert_close(p, 1 / (((squared_distance(x, y, K) - 2) / 0.5).exp() + 1))
    torch.manual_seed(0)
    classifier = LorentzClassifier(4, 3, curvature=K).double()
    with torch.no_grad():
        classifier.bias.normal_()
    expected = -squared_distance(x[:, None], classifier.points, K) + classifier.bias
    torch.testing.assert_close(classifier(x), expected)


def test_losses():
    logits = torch.tensor([[2.0, 0.5], [0.0, 3.0]])
    labels = torch.tensor([0, 0])
    assert class_hinge(logits, labels, 1.0).item() == pytest.approx((1 + 0 + 1 + 4) / 4)
    positive, negative = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 0.0])
    assert pair_hinge(positive, negative, 1.0).item() == pytest.approx((0.5 + 3) / 2)
    expected = F.binary_cross_entropy_with_logits(positive, torch.ones(2))
    expected += F.binary_cross_entropy_with_logits(negative, torch.zeros(2))
    torch.testing.assert_close(pair_cross_entropy(positive, negative), expected)


def test_impossible_sizes_are_refused():
    for make in (lambda: LorentzLinear(4, 9, heads=2), lambda: LorentzLinear(4, 4, heads=4)):
        with pytest.raises(UsageError, match="cannot be divided into"):
            make()
    with pytest.raises(UsageError, match="cannot be divided into"):
        LorentzAttention(8, heads=3)


# --- in float32, whatever comes in ------------------------------------------------------------


@every_curvature
@pytest.mark.parametrize("size", [0.0, 1e-38, 1e-20, 1e-6, 1.0, 1e6, 1e20, 1e36])
def test_no_input_is_too_small_or_too_large(K, size):
    torch.manual_seed(0)
    layer = LorentzLinear(6, 5, curvature=K)
    x = (size * torch.randn(8, 6)).requires_grad_()
    y = layer(x)
    y.square().sum().backward()
    assert off(y, K) <= TOLERANCE
    for found in (y, x.grad, *(p.grad for p in layer.parameters())):
        assert found.isfinite().all()


@pytest.mark.parametrize("size", [0.0, 1e-30, 1.0, 1e4, 1e30])
def test_no_tangent_vector_is_too_small_or_too_long(size):
    u = (size * torch.ones(3, 4)).requires_grad_()
    x = from_tangent(u)
    z = centroid(x.mean(0, keepdim=True))
    (to_poincare(x).sum() + distance(x, z.expand(3, 5)).sum()).backward()
    assert off(x, -1.0) <= TOLERANCE
    assert off(z, -1.0) <= TOLERANCE
    assert u.grad.isfinite().all()


def test_half_precision_ends_in_float32_on_the_manifold():
    layer = LorentzGraphConvolution(6, 5)
    x = points(8, 5, -1.0, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x, lambda h: h)
        y.sum().backward()
    assert y.dtype == torch.float32
    assert off(y, -1.0) <= TOLERANCE
    torch.testing.assert_close(y, layer(x, lambda h: h), rtol=0.05, atol=0.05)


@every_curvature
def test_points_stay_on_the_manifold_over_thousands_of_steps(K):
    """In float32, far out and at a high rate; no step is stabilised afterwards."""
    torch.manual_seed(0)
    table = LorentzEmbedding(12, 5, curvature=K, deviation=0.5)
    optimizer = RiemannianAdam(table.parameters(), lr=0.05)
    pairs = torch.randint(12, (3000, 4, 2))
    worst = 0.0
    for step in range(3000):
        x, y = table(pairs[step, :, 0]), table(pairs[step, :, 1])
        loss = distance(x, y, K).sum() - distance(x, table(pairs[step - 1, :, 1]), K).sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        worst = max(worst, off(table.weight.detach(), K))
    assert table.weight.isfinite().all()
    assert table.weight[:, 0].max() > 4 * radius(K)  # far out indeed
    assert worst <= TOLERANCE
