"""The translating networks against slow references: attention, caches, padding, beam search."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from cases import every_matrix
from torch.nn import functional as F

import spectrain
from spectrain.errors import UsageError
from spectrain.hyperbolic import RiemannianAdam
from spectrain.hyperbolic.lorentz import TOLERANCE, distance, inner
from spectrain.surgery import parametrized
from spectrain.tasks.translate import euclidean
from spectrain.tasks.translate.decoding import search, translate
from spectrain.tasks.translate.evaluate import mean_loss, token_loss
from spectrain.tasks.translate.models import build, describe
from spectrain.tasks.translate.options import TranslateOptions
from spectrain.tasks.translate.transformer import probe_of
from spectrain.tasks.translate.vocabulary import END, PAD, START

KINDS = {
    "post": {"geometry": "euclidean", "norm": "post"},
    "pre": {"geometry": "euclidean", "norm": "pre"},
    "hyperbolic": {"geometry": "hyperbolic", "curvature": -0.7},
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def network(kind, words=20, **options):
    torch.manual_seed(0)
    values = {"dim": 12, "heads": 3, "layers": 2, "dropout": 0.0, "attention_dropout": 0.0}
    values |= KINDS[kind] | {"max_length": 16} | options
    return build(describe(TranslateOptions(**values), (words, words))).double()


def pairs(words=20, count=5, seed=0):
    """Source (count, 8) and target (count, 7), each row of a length of its own."""
    generator = torch.Generator().manual_seed(seed)
    source = torch.randint(3, words, (count, 8), generator=generator)
    target = torch.randint(3, words, (count, 7), generator=generator)
    target[:, 0] = START
    for i in range(count):
        source[i, 3 + i :] = PAD
        target[i, 2 + i :] = PAD
    return source, target


# --- attention and networks --------------------------------------------------------------------


def test_attention_is_the_published_formula():
    torch.manual_seed(0)
    layer = euclidean.Attention(6, 2, 0.0).double()
    x, y = torch.randn(2, 4, 6).double(), torch.randn(2, 5, 6).double()
    mask = torch.rand(2, 1, 1, 5) > 0.3
    mask[..., 0] = True
    q, k, v = (
        f(z).view(2, -1, 2, 3) for f, z in ((layer.query, x), (layer.key, y), (layer.value, y))
    )
    rows = torch.zeros(2, 4, 2, 3).double()
    for b, t, h in itertools.product(range(2), range(4), range(2)):
        seen = [s for s in range(5) if mask[b, 0, 0, s]]
        weights = torch.stack([q[b, t, h] @ k[b, s, h] / math.sqrt(3) for s in seen]).softmax(0)
        rows[b, t, h] = sum(w * v[b, s, h] for w, s in zip(weights, seen, strict=True))
    found = layer.attend(x, *layer.keys_values(y), mask=mask)
    torch.testing.assert_close(found, layer.output(rows.flatten(2)))


@every_kind
def test_step_by_step_is_all_at_once(kind):
    model = network(kind)
    source, target = pairs()
    whole = model(source, target)
    state = model.begin(source)
    steps = [model.step(target[:, t : t + 1], state) for t in range(target.shape[1])]
    found = torch.cat(steps, 1)
    real = target != PAD
    torch.testing.assert_close(found[real], whole[real])


@every_kind
def test_beams_go_on_side_by_side(kind):
    model = network(kind)
    source, _ = pairs()
    beams = torch.randint(3, 20, (5, 3, 4))
    beams[..., 0] = START
    state = model.begin(source)
    model.step(beams[..., 0], state)
    found = model.step(beams[..., 1], state)
    # Texts 1 and 3 go on, with their beams in another order.
    order = torch.tensor([[5, 3, 4], [9, 9, 11]])
    state.select(torch.tensor([1, 3]), order.flatten())
    later = beams[..., 2].flatten()[order]
    after = model.step(later, state)
    for row, text in enumerate((1, 3)):
        for k in range(3):
            past = beams[text, order[row, k] % 3, :2].tolist()
            alone = model(source[text : text + 1], torch.tensor([[*past, int(later[row, k])]]))
            torch.testing.assert_close(after[row, k], alone[0, -1])
    torch.testing.assert_close(found[2, 1], model(source[2:3], beams[2, 1:2, :2])[0, -1])


@every_kind
def test_padding_changes_nothing(kind):
    model = network(kind)
    source, target = pairs()
    whole = model(source, target)
    for i in range(len(source)):
        s, t = source[i : i + 1, : 3 + i], target[i : i + 1, : 2 + i]
        torch.testing.assert_close(model(s, t)[0], whole[i, : 2 + i])
    wider = F.pad(source, (0, 4)), F.pad(target, (0, 2))
    real = target != PAD
    torch.testing.assert_close(model(*wider)[:, :-2][real], whole[real])


@every_kind
def test_nothing_looks_ahead(kind):
    model = network(kind)
    source, target = pairs()
    target[target == PAD] = 4
    changed = target.clone()
    changed[:, 4:] = 7
    before, after = model(source, target), model(source, changed)
    torch.testing.assert_close(before[:, :4], after[:, :4])
    assert not torch.allclose(before[:, 4:], after[:, 4:])


def test_hyperbolic_states_stay_on_the_manifold():
    model = network("hyperbolic").float()
    source, _ = pairs()
    x = model.source(source, 0)
    for block in model.encoder:
        x = block(x, (source != PAD)[:, None, None])
        assert ((inner(x, x) + 1 / 0.7).abs() / x[..., 0].square()).max() < TOLERANCE


def test_hyperbolic_networks_begin_undecided_and_their_points_move_as_vectors_do():
    model = network("hyperbolic", words=500, dim=64, heads=4)
    source, target = pairs(words=500)
    assert token_loss(model, source, target).item() == pytest.approx(math.log(500), abs=0.3)
    points = model.head.points
    assert points is model.source.table.weight
    start = points.detach().clone()
    optimizer = RiemannianAdam([points], lr=1e-3)
    token_loss(model, source, target).backward()
    optimizer.step()
    moved = distance(start, points.detach(), -0.7)
    # Each of an ordinary table's numbers moves by the rate in Adam's first step.
    torch.testing.assert_close(moved, torch.full_like(moved, 8e-3), rtol=1e-3, atol=0.0)


@every_kind
def test_gradients_are_those_of_differences(kind):
    model = network(kind, words=8, dim=8, heads=2, layers=1)
    source, target = pairs(words=8)

    def loss():  # `token_loss` ends in float32
        logits = model(source, target[:, :-1]).flatten(0, 1)
        return F.cross_entropy(logits, target[:, 1:].flatten(), ignore_index=PAD)

    loss().backward()
    generator = torch.Generator().manual_seed(3)
    for name, p in model.named_parameters():
        u = torch.randn(p.shape, generator=generator, dtype=p.dtype)
        with torch.no_grad():
            sides = []
            for step in (1e-6, -2e-6):
                p += step * u
                sides.append(loss())
            p += 1e-6 * u
            found = (sides[0] - sides[1]) / 2e-6
            torch.testing.assert_close((p.grad * u).sum(), found, atol=1e-5, rtol=1e-4, msg=name)


@every_kind
def test_every_parameter_learns(kind):
    model = network(kind)
    source, target = pairs()
    token_loss(model, source, target, smoothing=0.1).backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None]
    still = [name for name, p in model.named_parameters() if not p.grad.any()]
    # A bias of keys moves all scores of a softmax alike.
    assert not [name for name in still if not name.endswith("key.bias")]


@every_kind
@every_matrix
def test_every_method_finds_its_layers(kind, method):
    model = network(kind, dim=24, heads=3, layers=1).float()
    names = {n for n, _ in model.named_parameters()}
    source, target = pairs()
    with torch.no_grad():
        before = model.eval()(source, target)
        spectrain.apply(model, method, exclude=("head",), report=None)
        count = (
            4 + 8 + 4 + (2 if kind == "hyperbolic" else 0)
        )  # HyboNet has a map where tokens enter
        assert len(list(parametrized(model))) == count
        rough = 0.3 if getattr(method, "frozen_dtype", None) == "bfloat16" else 1e-4
        if method.keeps_function:
            torch.testing.assert_close(model(source, target), before, atol=rough, rtol=rough)
        before = model(source, target)
        spectrain.merge(model)
        torch.testing.assert_close(model(source, target), before, atol=rough, rtol=rough)
    assert {n for n, _ in model.named_parameters()} == names


def test_embeddings_are_shared_as_asked():
    shared, apart = network("post"), network("post", vocabulary="separate")
    assert shared.source.table is shared.target.table is shared.head.table
    assert apart.source.table is not apart.target.table
    assert apart.head.table is apart.target.table
    hyperbolic = network("hyperbolic", vocabulary="separate")
    assert hyperbolic.head.points is hyperbolic.target.table.weight
    assert hyperbolic.source.table is not hyperbolic.target.table


@pytest.mark.parametrize(
    "description", [{}, {"geometry": "spherical"}, {"geometry": "euclidean", "dim": "a"}]
)
def test_a_description_of_no_network_is_refused(description):
    with pytest.raises(UsageError, match="description of a network is damaged"):
        build(description)


# --- losses ------------------------------------------------------------------------------------


def test_the_smoothed_loss_is_the_published_formula():
    model = network("post")
    source, target = pairs()
    logits = model(source, target[:, :-1]).log_softmax(-1)
    total, count = 0.0, 0
    for b, t in itertools.product(range(5), range(6)):
        if target[b, t + 1] != PAD:
            smooth = torch.full((20,), 0.1 / 20).double()
            smooth[target[b, t + 1]] += 0.9
            total, count = total - smooth @ logits[b, t], count + 1
    found = token_loss(model, source, target, smoothing=0.1)
    torch.testing.assert_close(found.double(), total / count)


def test_the_mean_loss_is_over_tokens_however_they_are_batched():
    model = network("post").float()
    source, target = pairs()
    texts = [row[row != PAD] for row in source], [row[row != PAD] for row in target]
    expected = token_loss(model.eval(), source, target).item()
    for tokens in (1, 12, 100):
        found = mean_loss(model, *texts, tokens=tokens, dtype=torch.float32)
        assert found == pytest.approx(expected, rel=1e-5)


# --- search ------------------------------------------------------------------------------------


def scored(model, source, tokens, penalty):
    """log p of the tokens and the end, over the norm of their number."""
    target = torch.tensor([[START, *tokens]])
    logits = model(source, target)[0].clone()
    logits[:, [PAD, START]] = -torch.inf
    log_p = logits.log_softmax(-1)
    places = [*tokens, END]
    total = sum(log_p[i, token].item() for i, token in enumerate(places))
    return total / ((5 + len(places)) / 6) ** penalty


@every_kind
@pytest.mark.parametrize("penalty", [0.0, 0.6, 2.0])
def test_a_wide_beam_finds_what_an_exhaustive_search_finds(kind, penalty):
    model = network(kind, words=6)
    source = pairs(words=6, count=3)[0]
    most = 4  # tokens, the end among them
    for row in source:
        row = row[None][:, : int((row != PAD).sum())]
        texts = [
            list(tokens) for n in range(most) for tokens in itertools.product(range(3, 6), repeat=n)
        ]
        best = max(texts, key=lambda tokens: scored(model, row, tokens, penalty))
        assert search(model, row, beam=27, penalty=penalty, most=most) == [best]


@every_kind
def test_one_beam_is_greedy_but_for_where_it_ends(kind):
    """With no penalty on length the best end along the greedy path is kept."""
    model = network(kind)
    source, _ = pairs()
    found = search(model, source, beam=1, penalty=0.0, most=9)
    for row, tokens in zip(source, found, strict=True):
        row = row[None][:, : int((row != PAD).sum())]
        path, ends = [], []
        for _ in range(9):
            ends.append(scored(model, row, path, 0.0))
            logits = model(row, torch.tensor([[START, *path]]))[0, -1].clone()
            logits[[PAD, START, END]] = -torch.inf
            path.append(int(logits.argmax()))
        best = max(range(9), key=ends.__getitem__)
        assert tokens == path[:best]


@every_kind
@pytest.mark.parametrize("beam", [1, 3])
def test_texts_are_translated_alike_alone_and_together(kind, beam):
    model = network(kind)
    source, _ = pairs()
    texts = [row[row != PAD] for row in source]
    heard = []
    how = {"beam": beam, "penalty": 0.6, "most": 40}  # more than twice the shortest and 8
    together = translate(model, texts, **how, progress=heard.append)
    assert heard == [5]
    assert together == [translate(model, [text], **how)[0] for text in texts]


def test_a_wider_beam_never_scores_less_on_average():
    model = network("post")
    source, _ = pairs()
    means = []
    for beam in (1, 4, 17):
        found = search(model, source, beam=beam, penalty=0.6, most=6)
        rows = [row[None][:, : int((row != PAD).sum())] for row in source]
        means.append(sum(scored(model, r, t, 0.6) for r, t in zip(rows, found, strict=True)))
    assert means == sorted(means)


def test_a_probe_has_tokens_that_every_vocabulary_has():
    source = torch.tensor([[5, 4000, 300, 7, END]])
    assert probe_of(source).tolist() == [[START, 5, 258, 258, 7]]
