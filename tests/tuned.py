"""Fine-tuned runs of tiny models and what peft makes of them, for the tests of adapters."""

from __future__ import annotations

from pathlib import Path

import peft
import torch
from tiny_base import causal, options, run
from transformers import AutoModelForCausalLM

from spectrain.runs.changes import Truncation
from spectrain.runs.export import export
from spectrain.tasks.finetune.task import FineTuning

QUICK = {"steps": 4, "eval_every": 0, "checkpoint_every": 0, "lr": 0.02}
EVERY = Truncation(energy=1.0)


def tuned(folder: Path, method, kind: str = "llama", **settings) -> Path:
    task = FineTuning.load(options(model=causal(kind), generate=0, before=False, **settings))
    run(folder, method, task, **QUICK)
    return folder


def logits(model, ids):
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits


def by_peft(adapter: Path, kind: str = "llama"):
    """Base and adapter, loaded as anyone would."""
    return peft.PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(causal(kind)), adapter
    )


def merged(folder: Path, out: Path):
    export(folder, out)
    return AutoModelForCausalLM.from_pretrained(out)


IDS = torch.arange(24).view(2, 12) * 5 % 300
