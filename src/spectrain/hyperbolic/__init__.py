"""Hyperbolic networks: Lorentz layers for any curvature K < 0, as ordinary modules on geoopt's manifolds.

The dense map in each is a plain nn.Linear, so `spectrain.apply` finds it and every method works there.
"""

from spectrain.hyperbolic.attention import LorentzAttention
from spectrain.hyperbolic.convolution import LorentzGraphConvolution
from spectrain.hyperbolic.embedding import LorentzEmbedding
from spectrain.hyperbolic.heads import DistanceDecoder, FermiDirac, LorentzClassifier
from spectrain.hyperbolic.linear import LorentzLinear
from spectrain.hyperbolic.lorentz import Lorentz
from spectrain.hyperbolic.optimizer import RiemannianAdam, divided

__all__ = [
    "DistanceDecoder",
    "FermiDirac",
    "Lorentz",
    "LorentzAttention",
    "LorentzClassifier",
    "LorentzEmbedding",
    "LorentzGraphConvolution",
    "LorentzLinear",
    "RiemannianAdam",
    "divided",
]
