"""SLTrain: a product and single entries, beside the explicit matrix."""

from __future__ import annotations

import pytest
import torch
from toys import batch, make_net, one_layer

import spectrain
from spectrain import SLTrain
from spectrain.linalg import svd


def sparse_part(layer):
    """W without its product."""
    return layer.dense().detach() - layer.scale * (layer.B @ layer.A).detach()


def test_the_sparse_part_is_zero_elsewhere():
    layer, _ = one_layer(SLTrain(4, density=0.1), (30, 20), dtype=torch.float64)
    with torch.no_grad():
        layer.B.normal_()
    assert len(layer.places) == 60 == len(layer.places.unique())
    assert layer.places.dtype == torch.int32
    assert torch.equal(layer.places.sort().values, layer.places)
    found = sparse_part(layer).flatten()
    torch.testing.assert_close(found[layer.places.long()], layer.values.detach())
    found[layer.places.long()] = 0
    assert float(found.abs().max()) < 1e-15


def test_the_published_start():
    layer, _ = one_layer(SLTrain(8, density=0.5), (400, 100), dtype=torch.float64)
    assert not layer.B.any()
    for drawn in (layer.A, layer.values):
        assert float(drawn.abs().max()) <= 0.1
        assert float(drawn.std()) == pytest.approx(0.1 / 3**0.5, rel=0.05)
    columns = torch.bincount(layer.places.long() % 100, minlength=100)
    assert columns.float().mean() == 200
    assert columns.min() > 150  # all over W


def test_places_follow_from_the_seed():
    first, second, other = (
        spectrain.apply(make_net(seed=seed), SLTrain(2, density=0.3), report=None).square.places
        for seed in (3, 3, 4)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("shape", [(12, 20), (20, 12)])
def test_the_start_by_svd_takes_the_largest_of_what_is_left(shape):
    layer, plain = one_layer(
        SLTrain(4, density=0.25, alpha=2.0, init="svd"), shape, dtype=torch.float64
    )
    W = plain.weight.detach()
    U, s, V = svd(W)
    left = W - (U[:4].mT * s[:4]) @ V[:4]
    torch.testing.assert_close(layer.scale * (layer.B @ layer.A).detach(), W - left)
    threshold = left.abs().flatten().sort(descending=True).values[59]
    expected = left.where(left.abs() >= threshold, 0.0)
    torch.testing.assert_close(sparse_part(layer), expected)


def test_few_entries_make_the_rank_full():
    layer, _ = one_layer(SLTrain(2, density=0.3), (40, 40), dtype=torch.float64)
    with torch.no_grad():
        layer.B.normal_()
    assert int(torch.linalg.matrix_rank(layer.dense())) == 40


def test_only_x_and_the_parts_are_kept_for_the_backward_pass():
    layer, _ = one_layer(SLTrain(2), (64, 32), dtype=torch.float32)
    kept = []
    x = torch.randn(10, 32)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        layer(x)
    assert max(t.numel() for t in kept) == x.numel()


def test_entries_train_where_they_are_and_the_optimizer_has_them():
    model = spectrain.apply(make_net(), SLTrain(2, density=0.2), report=None)
    layer = model.square
    places, values = layer.places.clone(), layer.values.detach().clone()
    optimizer = torch.optim.Adam(spectrain.param_groups(model, 1e-2))
    for i in range(3):
        model(batch(i)[0]).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert torch.equal(layer.places, places)
    assert ((layer.values - values).abs() > 1e-3).all()
