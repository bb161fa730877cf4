"""What is trained on what: the settings of the graph task."""

from __future__ import annotations

from dataclasses import dataclass

from spectrain.errors import UsageError
from spectrain.settings import check, option


@dataclass(frozen=True)
class GraphOptions:
    """What is trained on what."""

    data: str | None = option(
        None,
        help="an .npz file (edges; features, labels), a folder with edges.csv and nodes.csv, or an edge "
        "list as .csv or .tsv; default: a tree along which a disease spreads, made on the spot",
    )
    predict: str = option(
        "nodes", help="classes of nodes, or which pairs are linked", choices=("nodes", "links")
    )
    model: str = option(
        "hybonet",
        help="HyboNet (hyperbolic), a Euclidean GCN, or an MLP that sees no edges",
        choices=("hybonet", "gcn", "mlp"),
    )
    dim: int = option(16, help="numbers in a node's representation, time included", minimum=2)
    layers: int = option(2, help="graph convolutions, one after the other", minimum=1)
    activation: str = option(
        "none", help="on the input of each further layer", choices=("none", "relu", "tanh")
    )
    bias: bool = option(True, help="give the linear maps a bias")
    curvature: float = option(-1.0, help="of HyboNet's space", symbol="K", below=0.0)
    dropout: float = option(0.0, help="on the input of each layer", minimum=0.0, below=1.0)
    margin: float = option(2.0, help="of HyboNet's hinge losses", above=0.0)
    normalise: bool = option(True, help="divide each node's features by their sum")
    degree_features: bool = option(
        False,
        help="add each node's degree (0 to 5 and more, one-hot) and a constant to its features",
    )
    split: str = option(
        "public",
        help="of nodes: public (the graph's own; balanced where it has none), balanced (equally many of "
        "class 0 and of the others in validation and test), random",
        choices=("public", "balanced", "random"),
    )
    validation: float = option(0.05, help="share for validation", above=0.0, below=1.0)
    test: float = option(0.10, help="share for test", above=0.0, below=1.0)
    split_seed: int = option(1234, help="seed of the split, the same for all --seed", minimum=0)

    def __post_init__(self) -> None:
        check(self, "train graph")
        if self.validation + self.test >= 1:
            raise UsageError(
                f"train graph: with validation {self.validation} and test {self.test} nothing is left to "
                "train on; together they must be below 1"
            )
