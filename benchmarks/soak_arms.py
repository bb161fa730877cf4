"""The runs of soak.py: every method, and the variants that keep other kinds of state."""

import random
from dataclasses import dataclass, field

STEPS = 96
# Saves and validations at steps that rarely coincide; an epoch is 24.6 steps.
COMMON = (
    *("--vocab-size", "300", "--model", "llama-9m", "--model-config", "num_hidden_layers=2"),
    *("--model-config", "hidden_size=64", "--model-config", "intermediate_size=96"),
    *("--model-config", "num_attention_heads=2", "--model-config", "num_key_value_heads=2"),
    *("--sequence-length", "32", "--batch-size", "4", "--accumulate", "2", "--lr", "4e-3"),
    *("--steps", str(STEPS), "--log-every", "1", "--checkpoint-every", "8", "--keep", "3"),
    *("--eval-every", "9", "--keep-best", "--eval-tokens", "256", "--final-tokens", "256"),
)
WORDS = ("the", "cat", "sat", "on", "mats", "while", "ships", "sailed", "past", "harbours")


@dataclass(frozen=True)
class Arm:
    """A method with its settings, and the periods of its events in steps."""

    method: str
    settings: dict[str, str] = field(default_factory=dict)
    periods: tuple[int, ...] = ()

    def options(self) -> list[str]:
        """As on the command line."""
        pairs = [(f"--method.{name}", value) for name, value in self.settings.items()]
        return ["--method", self.method, *(word for pair in pairs for word in pair if word)]


RANK = {"rank": "8"}
SST = RANK | {"resample-every": "5", "iterations-per-round": "3", "warmup": "2"}
RELORA = RANK | {"merge-every": "7", "rewarm": "2"}
GALORE = RANK | {"refresh-every": "6"}
PRUNED = {"warm-start": "20", "moments": "prune", "prune-ratio": "0.9", "reset-every": "14"}
ARMS = {
    "full": Arm("full"),
    "lora": Arm("lora", RANK),
    "lora-dropout": Arm("lora", RANK | {"dropout": "0.1"}),
    "relora": Arm("relora", RELORA, (7,)),
    "relora-pruned": Arm("relora", RELORA | PRUNED, (7, 20)),
    "sst": Arm("sst", SST, (5, 15)),
    "sst-residual": Arm("sst", SST | {"residual": "", "decomposition": "randomized"}, (5, 15)),
    "sst-sequential": Arm("sst", SST | {"sampling": "sequential"}, (5, 15)),
    "sst-stagger": Arm("sst", SST | {"stagger": ""}, (5,)),
    "galore": Arm("galore", GALORE, (6,)),
    "galore-published": Arm(
        "galore", GALORE | {"projector": "svd", "moments": "keep", "refresh": "same_step"}, (6,)
    ),
    "galore-stagger": Arm("galore", GALORE | {"stagger": ""}, (1,)),
}


def prose() -> str:
    """What all runs are trained on: a few words in random order."""
    draw = random.Random(0)
    return "".join(" ".join(draw.choices(WORDS, k=8)) + ".\n" for _ in range(700))
