"""A hyperbolic graph network: SST for its linear maps, Riemannian Adam for its points. A few seconds:

python examples/hyperbolic_graph.py
"""

import torch

import spectrain
from spectrain.hyperbolic import (
    LorentzClassifier,
    LorentzGraphConvolution,
    RiemannianAdam,
    divided,
)
from spectrain.hyperbolic.heads import class_hinge
from spectrain.hyperbolic.lorentz import from_tangent, inner

torch.manual_seed(0)
NODES, CLASSES = 255, 4

# A binary tree; a node's class is the subtree it hangs in, and a third of the nodes is known. All that is
# known of a node is noise, but for the roots of the subtrees.
edges = torch.tensor([[(i - 1) // 2, i] for i in range(1, NODES)])
labels = torch.zeros(NODES, dtype=torch.int64)
for i in range(3, NODES):
    labels[i] = i - 3 if i < 7 else labels[(i - 1) // 2]
features = 0.1 * torch.randn(NODES, 8)
features[torch.arange(3, 7), torch.arange(4)] = 1.0
known = torch.rand(NODES) < 1 / 3

neighbours = torch.eye(NODES)
neighbours[edges[:, 0], edges[:, 1]] = neighbours[edges[:, 1], edges[:, 0]] = 1.0
neighbours /= neighbours.sum(1, keepdim=True)


class Network(torch.nn.Module):
    """Three Lorentz convolutions of 9 → 16 → 16 → 16 coordinates, time included, and a point a class."""

    def __init__(self):
        super().__init__()
        sizes = (9, 16), (16, 16), (16, 16)
        self.layers = torch.nn.ModuleList(LorentzGraphConvolution(*size) for size in sizes)
        self.head = LorentzClassifier(16, CLASSES)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x, lambda h: neighbours @ h)
        return self.head(x)


model = Network()
spectrain.apply(model, spectrain.SST(rank=2, resample_every=50, warmup=10))
points, others = divided(spectrain.param_groups(model, lr=0.01))
optimizers = [torch.optim.Adam(others), RiemannianAdam(points)]
spectrain.attach(model, optimizers)

x = from_tangent(features)
for epoch in range(1, 401):
    loss = class_hinge(model(x)[known], labels[known], margin=2.0)
    loss.backward()
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
    if epoch % 100 == 0 or epoch == 1:
        right = (model(x).argmax(1) == labels)[~known].float().mean()
        print(f"epoch {epoch:3d}: loss {loss.item():.3f}, {right:.0%} of the unknown nodes right")

off = (inner(model.head.points, model.head.points) + 1).abs().max()
print(f"the classes' points are on the hyperboloid to {off:.0e}")
spectrain.merge(model)
