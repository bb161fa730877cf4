"""A small LLaMA with transformers' Trainer: train, resume from its checkpoint, load the merged model.

Takes about ten seconds on one core; needs `pip install 'spectrain[train]' accelerate`:

python examples/transformers_trainer.py
"""

import argparse
import inspect
import tempfile

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Trainer, TrainingArguments
from transformers.utils import logging

import spectrain
from spectrain.integrations.transformers import SpectrainCallback

logging.disable_progress_bar()
text = torch.tensor(list(inspect.getsource(argparse).encode()))
rows = [{"input_ids": row, "labels": row} for row in text[: len(text) // 64 * 64].view(-1, 64)]


def make_trainer(folder: str, seed: int) -> Trainer:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
    )
    model = AutoModelForCausalLM.from_config(config)
    spectrain.apply(model, spectrain.SST(rank=16, resample_every=10, warmup=2), report=None)
    optimizer = torch.optim.AdamW(spectrain.param_groups(model, lr=1e-2))
    arguments = TrainingArguments(
        folder,
        max_steps=60,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=2,
        save_steps=30,
        logging_steps=15,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
    )
    return Trainer(
        model,
        arguments,
        train_dataset=rows,
        optimizers=(optimizer, None),
        callbacks=[SpectrainCallback()],
    )


with tempfile.TemporaryDirectory() as folder:
    unbroken = make_trainer(folder, seed=0)
    unbroken.train()
    resumed = make_trainer(folder, seed=1)  # another start: all that counts is in the checkpoint
    resumed.train(resume_from_checkpoint=f"{folder}/checkpoint-30")
    pairs = zip(unbroken.model.parameters(), resumed.model.parameters(), strict=True)
    same = all(torch.equal(a, b) for a, b in pairs)
    print("resumed run: identical, bit for bit" if same else "resumed run: the weights differ")

    try:
        AutoModelForCausalLM.from_pretrained(f"{folder}/checkpoint-60")
    except ValueError as error:
        print(f"checkpoint-60 is refused: {error}")
    model = AutoModelForCausalLM.from_pretrained(f"{folder}/checkpoint-60/merged")
    inputs = rows[0]["input_ids"][None]
    difference = model(inputs).logits - resumed.model.eval()(inputs).logits
    print(f"checkpoint-60/merged loads; largest difference of logits: {difference.abs().max():.1e}")
raise SystemExit(0 if same else 1)
