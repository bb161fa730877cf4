"""Two adapters on one base model, as peft's files: switched, and removed without a trace.

Run it:

python examples/adapters.py
"""

import json
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from spectrain.integrations.peft import Adapters


def write_adapter(folder: Path, rank: int, seed: int) -> Path:
    """What peft's save_pretrained writes of LoRA on the first layer, here with random factors."""
    torch.manual_seed(seed)
    factors = {"lora_A": torch.randn(rank, 8), "lora_B": torch.randn(16, rank)}
    folder.mkdir()
    tensors = {f"base_model.model.0.{name}.weight": factor for name, factor in factors.items()}
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "target_modules": ["0"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def main() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    x = torch.randn(3, 8)
    alone = model(x)
    with tempfile.TemporaryDirectory() as folder:
        adapters = Adapters(model)
        for seed, name in enumerate(("sums", "tales"), start=1):
            adapters.load(name, write_adapter(Path(folder) / name, rank=2, seed=seed))
    for name in adapters.names:
        adapters.use(name)
        print(
            f"{name}: outputs differ from the base model's by {(model(x) - alone).abs().max():.2f}"
        )
    adapters.use(None)
    print(f"alone again, bit for bit: {torch.equal(model(x), alone)}")


if __name__ == "__main__":
    main()
