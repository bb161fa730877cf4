"""Learning on one graph: classes of its nodes, or which of its pairs are linked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from spectrain.distributed import Processes
from spectrain.errors import UsageError
from spectrain.tasks.graph.graphs import Graph
from spectrain.tasks.graph.inputs import NodeInputs
from spectrain.tasks.graph.models import GraphNetwork, build
from spectrain.tasks.graph.neighbours import adjacency, aggregate, augmented, row_normalised
from spectrain.tasks.graph.options import GraphOptions
from spectrain.tasks.graph.scores import link_scores, node_scores
from spectrain.tasks.graph.splits import LinkSplit, Negatives, link_split, node_split
from spectrain.tasks.score import Score

PROBE = 64  # nodes
MOST_IDENTITIES = 20_000  # nodes with a column each: 1.5 GiB

NODE_SCORES = (
    Score("f1", "F1", "points", True, 100.0, 1),
    Score("accuracy", "accuracy", "points", True, 100.0, 1),
)
LINK_SCORES = (
    Score("roc_auc", "ROC-AUC", "points", True, 100.0, 1),
    Score("average_precision", "average precision", "points", True, 100.0, 1),
)


class _Whole(NamedTuple):
    """The graph on a device: what each step takes all of."""

    inputs: NodeInputs
    mean: Callable[[Tensor], Tensor]  # over neighbours, by the edges in training
    edges: Tensor  # (E, 2) those in training


@dataclass
class GraphLearning:
    """The task `graph`: every step sees the whole graph, so a step is an epoch."""

    options: GraphOptions
    graph: Graph
    name: str = "graph"
    unit: str = "epochs"
    units_per_step: int = 1

    @classmethod
    def on(cls, graph: Graph, options: GraphOptions) -> GraphLearning:
        """Learn on `graph`, divided as `options` say. Raises UsageError where that cannot be."""
        task = cls(options, graph)
        if options.predict == "nodes" and graph.labels is None:
            raise UsageError(
                f"{graph.name} has no labels, so there are no classes to predict; give --predict links, or "
                "data with labels"
            )
        _ = task.links if task.predicts_links else task.nodes  # refuse now what cannot be divided
        return task

    @property
    def predicts_links(self) -> bool:
        return self.options.predict == "links"

    @property
    def scores(self) -> tuple[Score, ...]:
        return LINK_SCORES if self.predicts_links else NODE_SCORES

    # --- data ----------------------------------------------------------------------------------

    @property
    def _labels(self) -> Tensor:
        assert self.graph.labels is not None
        return self.graph.labels

    @cached_property
    def nodes(self) -> dict[str, Tensor]:
        """Indices of the nodes to train on, of "validation" and of "test"."""
        o = self.options
        return node_split(self.graph, o.split, o.validation, o.test, o.split_seed)

    @cached_property
    def links(self) -> LinkSplit:
        o = self.options
        return link_split(self.graph, o.validation, o.test, o.split_seed)

    @cached_property
    def _negatives(self) -> Negatives:
        return Negatives(self.graph)

    @cached_property
    def features(self) -> Tensor:
        """(N, F) what is known of each node; of the edges, those in training alone."""
        o, graph = self.options, self.graph
        parts = [] if graph.features is None else [graph.features]
        if graph.target is not None and self.predicts_links:
            parts.append(graph.target[:, None])  # what labels were made of; they are not asked for
        if not parts and o.degree_features:
            return augmented(torch.zeros(graph.nodes, 0), self._edges, graph.nodes)
        if not parts:
            return _identity(graph)
        features = torch.cat(parts, 1)
        if o.normalise:
            features = row_normalised(features)
        return augmented(features, self._edges, graph.nodes) if o.degree_features else features

    @property
    def _edges(self) -> Tensor:
        return self.links.train if self.predicts_links else self.graph.edges

    @cached_property
    def _at(self) -> dict[torch.device, _Whole]:
        return {}

    def _whole(self, model: GraphNetwork) -> _Whole:
        """What every step needs of the graph, on the model's device; made once."""
        device = next(model.parameters()).device
        if device not in self._at:
            means = adjacency(self._edges, self.graph.nodes).to(device)
            inputs = NodeInputs(model.prepare(self.features.to(device)))
            self._at[device] = _Whole(inputs, partial(aggregate, means), self._edges.to(device))
        return self._at[device]

    @cached_property
    def _known(self) -> Tensor:
        """(n, 2) the nodes to train on, and their classes."""
        return torch.stack((self.nodes["train"], self._labels[self.nodes["train"]]), 1)

    # --- training ------------------------------------------------------------------------------

    @property
    def batch_shape(self) -> tuple[int, int, int]:
        if self.predicts_links:
            return 1, len(self.links.train), 1
        return 1, len(self.nodes["train"]), 1

    @property
    def is_divisible(self) -> bool:
        return False

    def build_model(self) -> GraphNetwork:
        model = build(self._description())
        self._whole(model)  # now: a plan's rehearsal knows no numbers to make them of
        return model

    def _description(self) -> dict[str, Any]:
        """The network in JSON: what `models.build` makes it of."""
        o = self.options
        description = {
            "architecture": o.model,
            "features": self.features.shape[1],
            "sizes": [o.dim] * o.layers,
            "classes": None if self.predicts_links else self.graph.classes,
            "dropout": o.dropout,
            "bias": o.bias,
            "activation": o.activation,
        }
        if o.model == "hybonet":
            description |= {"curvature": o.curvature, "margin": o.margin}
        return description

    def skeleton(self) -> GraphNetwork:
        with torch.random.fork_rng(devices=[]):  # points on a manifold cannot do without numbers
            return self.build_model()

    def micro_batches(self, step: int, seed: int) -> list[Tensor]:
        """Nodes to train on with their classes, (n, 2), or pairs (P, 2) without a link, drawn anew."""
        if self.predicts_links:
            return [self._negatives.draw(len(self.links.train), seed, step)]
        return [self._known]

    def blank(self) -> Tensor:
        return torch.zeros(self.batch_shape[1], 2, dtype=torch.int64)

    def loss(self, model: nn.Module, batch: Tensor) -> Tensor:
        assert isinstance(model, GraphNetwork)
        whole = self._whole(model)
        h = model.encode(whole.inputs, whole.mean)
        if self.predicts_links:
            positive = model.scores(h, whole.edges)
            return model.link_loss(positive, model.scores(h, batch))
        rows, labels = batch.unbind(1)
        return model.node_loss(model.logits(h[rows]), labels)

    # --- measuring -----------------------------------------------------------------------------

    @torch.no_grad()
    def represent(self, model: GraphNetwork) -> Tensor:
        """(N, dim) all nodes' representations, without dropout."""
        training = model.training
        whole = self._whole(model)
        h = model.eval().encode(whole.inputs, whole.mean)
        model.train(training)
        return h

    @torch.no_grad()
    def evaluate(
        self,
        model: nn.Module,
        split: str,
        *,
        thorough: bool,
        dtype: torch.dtype,
        processes: Processes | None = None,
    ) -> dict[str, float]:
        assert isinstance(model, GraphNetwork)
        h = self.represent(model)
        if self.predicts_links:
            positive, negative = (pairs.to(h.device) for pairs in self.links.held_out(split))
            return link_scores(model.scores(h, positive), model.scores(h, negative))
        rows = self.nodes[split]
        return node_scores(model.logits(h[rows.to(h.device)]), self._labels[rows].to(h.device))

    @torch.no_grad()
    def probe(self, model: nn.Module) -> tuple[Tensor, Tensor]:
        assert isinstance(model, GraphNetwork)
        training = model.training
        x = self._whole(model).inputs.x[:PROBE]
        found = model.eval().alone(x).float().cpu()
        model.train(training)
        return x.cpu().clone(), found

    # --- what is written -----------------------------------------------------------------------

    def save_assets(self, model: nn.Module, directory: Path) -> None:
        folder = directory / "model"
        folder.mkdir(exist_ok=True)
        text = json.dumps(self._description(), indent=2) + "\n"
        (folder / "config.json").write_text(text, encoding="utf-8")

    def exhibits(self, model: nn.Module) -> dict[str, bytes]:
        from spectrain.tasks.graph.picture import embedding

        assert isinstance(model, GraphNetwork)
        return {"embedding.png": embedding(model, self.represent(model), self.graph)}

    def settings(self) -> dict[str, Any]:
        return asdict(self.options)

    def describe(self) -> str:
        """The graph and its division in a sentence."""
        graph = self.graph
        what = f"{graph.nodes:,} nodes, {len(graph.edges):,} edges, {self.features.shape[1]:,} features"
        if self.predicts_links:
            parts = {"train": self.links.train}
            parts |= {split: self.links.held_out(split)[0] for split in ("validation", "test")}
        else:
            parts, what = self.nodes, f"{what}, {graph.classes} classes"
        division = ", ".join(f"{name} {len(part):,}" for name, part in parts.items())
        return f"{graph.name}: {what}; {self.options.predict}: {division}"

    def summary(self) -> dict[str, Any]:
        o = self.options
        division = [o.predict, o.split, o.validation, o.test, o.split_seed, self.graph.fingerprint]
        return {
            **self.graph.summary(),
            "fingerprint": hashlib.sha256(json.dumps(division).encode()).hexdigest(),
        }


def _identity(graph: Graph) -> Tensor:
    """A column for each node. Raises UsageError where that table would fill the memory."""
    if graph.nodes > MOST_IDENTITIES:
        raise UsageError(
            f"{graph.name} has no features, and a column for each of its {graph.nodes:,} nodes would take "
            f"{4 * graph.nodes**2 / 2**30:.0f} GiB; give --degree-features, or data with features"
        )
    return torch.eye(graph.nodes)
