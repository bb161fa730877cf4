"""What a weight matrix looks like from its spectrum, and what training did to it.

Functions on tensors and models that need nothing but PyTorch; definitions and sources stand in
docs/diagnostics.md. A matrix W is (m, n), of any floating dtype; all is computed in float64.
"""

from spectrain.diagnostics.matrices import as_matrix, matrices
from spectrain.diagnostics.measures import (
    Difference,
    Measures,
    compare,
    measure,
    measure_model,
)
from spectrain.diagnostics.ranks import (
    effective_rank,
    participation_ratio,
    rank_at_energy,
    stable_rank,
)
from spectrain.diagnostics.spectrum import Eigen, singular_values
from spectrain.diagnostics.subspaces import intruder_dimensions, principal_angles
from spectrain.diagnostics.tail import Tail, power_law_tail

__all__ = [
    "Difference",
    "Eigen",
    "Measures",
    "Tail",
    "as_matrix",
    "compare",
    "effective_rank",
    "intruder_dimensions",
    "matrices",
    "measure",
    "measure_model",
    "participation_ratio",
    "power_law_tail",
    "principal_angles",
    "rank_at_energy",
    "singular_values",
    "stable_rank",
]
