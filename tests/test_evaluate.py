"""The loss is a mean over tokens, exactly, and measuring leaves no trace."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax

from spectrain.errors import UsageError
from spectrain.tasks.lm.evaluate import Evaluation, evaluate, token_loss
from spectrain.tasks.lm.models import build_model


class Bigram(nn.Module):
    """Logits of the next token from the last one alone: windows make no difference to it."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.table = nn.Parameter(logits)
        self.dropout = nn.Dropout(0.5)

    def forward(self, input_ids: Tensor, use_cache: bool) -> SimpleNamespace:
        assert not use_cache
        return SimpleNamespace(logits=self.dropout(self.table)[input_ids])


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(0, 50, (131,), generator=torch.Generator().manual_seed(0)).int()


def test_uniform_logits_cost_log_of_the_vocabulary(tokens: Tensor) -> None:
    found = evaluate(Bigram(torch.zeros(50, 50)), tokens, sequence_length=8, batch_size=4)
    assert found.tokens == 130
    assert found.loss == torch.tensor(50.0).log().item()  # to float32's last bit
    assert found.perplexity == pytest.approx(50, rel=1e-6)


@pytest.mark.parametrize(("sequence_length", "batch_size"), [(1, 7), (8, 4), (13, 3), (200, 2)])
def test_the_last_partial_window_counts(
    tokens: Tensor, sequence_length: int, batch_size: int
) -> None:
    table = torch.randn(50, 50, generator=torch.Generator().manual_seed(1))
    ids = tokens.long()
    exact = -log_softmax(table.double(), -1)[ids[:-1], ids[1:]].mean().item()
    found = evaluate(Bigram(table), tokens, sequence_length, batch_size)
    assert found.tokens == 130
    assert found.loss == pytest.approx(exact, abs=1e-6)


def test_equals_one_window_at_a_time(tokens: Tensor) -> None:
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    model = build_model("llama-9m", vocab_size=50, sequence_length=16, overrides=shape)
    total = 0.0
    for start in range(0, 130, 16):
        window = tokens[start : start + 17].long()
        logits = model(input_ids=window[None, :-1]).logits[0].double()
        total -= log_softmax(logits, -1)[torch.arange(len(window) - 1), window[1:]].sum().item()
    for batch_size in (1, 3, 100):
        found = evaluate(model, tokens, 16, batch_size)
        assert found.loss == pytest.approx(total / 130, abs=1e-6)


def test_max_tokens_takes_the_beginning(tokens: Tensor) -> None:
    model = Bigram(torch.randn(50, 50))
    assert evaluate(model, tokens, 8, 4, max_tokens=31) == evaluate(model, tokens[:31], 8, 4)
    with pytest.raises(UsageError, match="at least 2 tokens, not 1"):
        evaluate(model, tokens, 8, 4, max_tokens=1)


def test_training_flags_and_gradients_are_left_alone(tokens: Tensor) -> None:
    model = Bigram(torch.randn(50, 50))
    model.dropout.eval()
    evaluate(model, tokens, 8, 4)
    assert model.training
    assert not model.dropout.training
    assert model.table.grad is None
    with pytest.raises(IndexError):
        evaluate(model, tokens + 50, 8, 4)
    assert model.training


def test_mixed_precision_changes_the_loss_but_little(tokens: Tensor) -> None:
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    model = build_model("llama-9m", vocab_size=50, sequence_length=16, overrides=shape)
    plain = evaluate(model, tokens, 16, 4)
    mixed = evaluate(model, tokens, 16, 4, autocast=torch.bfloat16)
    assert mixed.loss != plain.loss
    assert mixed.loss == pytest.approx(plain.loss, rel=1e-2)


def test_token_loss_reductions(tokens: Tensor) -> None:
    model = Bigram(torch.randn(50, 50)).eval()
    ids = tokens[:120].long().reshape(4, 30)
    each = token_loss(model, ids, "none")
    assert each.shape == (4 * 29,)
    assert token_loss(model, ids).item() == pytest.approx(each.mean().item())
    assert token_loss(model, ids, "sum").item() == pytest.approx(each.sum().item())


def test_perplexity_has_no_overflow() -> None:
    assert Evaluation(loss=math.log(7), tokens=1).perplexity == pytest.approx(7)
    assert Evaluation(loss=1e4, tokens=1).perplexity == math.inf
    assert math.isnan(Evaluation(loss=math.nan, tokens=1).perplexity)
