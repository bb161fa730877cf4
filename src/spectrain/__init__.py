"""spectrain: train neural networks in low-rank and spectral form."""

__version__ = "0.1.0"

from spectrain import methods as _methods  # noqa: F401  (registers the methods)
from spectrain.attachment import attach, detach
from spectrain.errors import RunError, SpectrainError, UsageError
from spectrain.groups import param_groups
from spectrain.layerwise import LayerWise
from spectrain.memory.plan import plan
from spectrain.method import methods
from spectrain.methods.apollo import APOLLO, APOLLOMini
from spectrain.methods.dct import DCT
from spectrain.methods.fira import Fira
from spectrain.methods.full import FullRank
from spectrain.methods.galore import GaLore
from spectrain.methods.lora import LoRA
from spectrain.methods.lost import LOST
from spectrain.methods.lowrank import LowRank
from spectrain.methods.pela import PELA
from spectrain.methods.relora import ReLoRA
from spectrain.methods.sltrain import SLTrain
from spectrain.methods.sst import SST
from spectrain.methods.switchlora import SwitchLoRA
from spectrain.methods.trp import TRP
from spectrain.surgery import apply, merge

__all__ = [
    "APOLLO",
    "DCT",
    "LOST",
    "PELA",
    "SST",
    "TRP",
    "APOLLOMini",
    "Fira",
    "FullRank",
    "GaLore",
    "LayerWise",
    "LoRA",
    "LowRank",
    "ReLoRA",
    "RunError",
    "SLTrain",
    "SpectrainError",
    "SwitchLoRA",
    "UsageError",
    "apply",
    "attach",
    "detach",
    "merge",
    "methods",
    "param_groups",
    "plan",
]
