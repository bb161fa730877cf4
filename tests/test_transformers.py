"""Tiny transformers models, tied and untied: apply, train, merge, save, load."""

from __future__ import annotations

import pytest
import torch
from cases import every_default_matrix
from tiny import causal_model
from toys import same
from transformers import AutoModelForCausalLM

import spectrain


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("kind", ["llama", "opt"])
@every_default_matrix
def test_embeddings_survive_apply_training_merge_and_files(method, kind, tied, tmp_path):
    model = causal_model(kind, tied)
    keys = [(n, v.shape, v.dtype) for n, v in model.state_dict().items()]
    tokens = torch.randint(32, (2, 9))

    def is_tied(m):
        return m.get_output_embeddings().weight is m.get_input_embeddings().weight

    assert is_tied(model) is tied
    spectrain.apply(model, method, report=None)
    assert is_tied(model) is tied
    optimizer = torch.optim.AdamW(spectrain.param_groups(model, 0.01))
    spectrain.attach(model, optimizer)
    for _ in range(4):
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    other = spectrain.apply(causal_model(kind, tied), method, report=None)
    other.load_state_dict(model.state_dict(), strict=True)
    assert is_tied(other) is tied
    before = model.eval()(input_ids=tokens).logits
    assert torch.equal(other.eval()(input_ids=tokens).logits, before)
    merged = spectrain.merge(model)
    assert is_tied(merged) is tied
    assert [(n, v.shape, v.dtype) for n, v in merged.state_dict().items()] == keys
    logits = merged(input_ids=tokens).logits
    torch.testing.assert_close(logits, before, rtol=1e-4, atol=1e-5)
    merged.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert is_tied(loaded) is tied
    assert same(loaded.state_dict(), merged.state_dict())
    assert torch.equal(loaded.eval()(input_ids=tokens).logits, logits)
