"""Fine-tuning on two processes."""

from __future__ import annotations

import pytest
from test_run_processes import close, joined
from tiny_base import causal, encoder, options, run

from spectrain import SST
from spectrain.tasks.classify.task import TextClassification
from spectrain.tasks.finetune.task import FineTuning

METHOD = SST(rank=4, resample_every=3, warmup=2, iterations_per_round=2)
KINDS = {
    "responses": {"accumulate": 2},
    "packed": {"packing": True, "max_length": 250},
    "labels": {"classify": True, "max_length": 32, "batch_size": 8},
}


def tuned(directory, values):
    kind = TextClassification if values.get("classify") else FineTuning
    return run(directory, METHOD, kind.load(options(**values)), steps=5, eval_every=2)


def tuned_in_pair(directory, values):
    return joined(tuned, directory, values)


@pytest.mark.slow
@pytest.mark.parametrize("values", KINDS.values(), ids=KINDS.keys())
def test_two_processes_tune_as_one(pair, tmp_path, values):
    model = encoder(dropout=0.0) if values.get("classify") else causal()
    values = {"model": model, **values}
    one = tuned(tmp_path / "one", values)
    results = pair.call(tuned_in_pair, tmp_path / "two", values)
    assert results[0] == results[1]
    close(tmp_path / "one", tmp_path / "two")
    measured = [key for key in one if key.startswith("test_")]
    assert {key: results[0][key] for key in measured} == pytest.approx(
        {key: one[key] for key in measured}, rel=1e-4
    )
