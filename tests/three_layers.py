"""A network of three layers and its data, small enough to prune a thousand times."""

import torch
from torch import Tensor, nn

TOTAL = 48 + 40 + 15


def of_layers(between: type[nn.Module], seed: int = 0) -> nn.Sequential:
    """Behind ``nn.ReLU`` some scores may all be zero, and tie; behind ``nn.Tanh`` they differ."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), between(), nn.Linear(8, 5), between(), nn.Linear(5, 3))


def of_round(turn: int) -> list[tuple[Tensor, Tensor]]:
    """Return the batches of a round: others in every one."""
    draw = torch.Generator().manual_seed(turn)
    return [(torch.randn(n, 6, generator=draw), torch.arange(n) % 3) for n in (9, 6)]


def asked(seed: int = 1, **more) -> dict:
    """Return what ``prune`` is given besides a network, a criterion and a target."""
    draw = torch.Generator().manual_seed(seed)
    return {"batches": of_round, "example": (1, 6), "generator": draw} | more
