"""Every criterion prunes every backbone to 10x, and connectivity follows the result."""

from dataclasses import MISSING, fields

import pytest
import torch
from torch import nn

from lit_prune import Connectivity, Masks, backbones, criteria, prune
from lit_prune.criteria import SNIP, Criterion
from lit_prune.shelf import members

BACKBONES = members(backbones.__name__, backbones.__path__, nn.Module)
CRITERIA = members(criteria.__name__, criteria.__path__, Criterion)
SHAPES = {"LeNet300100": (1, 28, 28), "LeNet5": (1, 28, 28), "FastGRNN": (128, 9)}
QUICK = {"LeNet300100", "LeNet5", "FastGRNN"}


def made(kind):
    """A criterion with what it must be given: controls wrap another."""
    needed = [f for f in fields(kind) if f.default is f.default_factory is MISSING]
    return kind(**{field.name: SNIP() for field in needed})


def pairs():
    for backbone in BACKBONES:
        marks = [] if backbone in QUICK else [pytest.mark.slow]
        for criterion in CRITERIA:
            yield pytest.param(backbone, criterion, id=f"{backbone}-{criterion}", marks=marks)


@pytest.mark.parametrize(("backbone", "criterion"), list(pairs()))
def test_a_criterion_prunes_a_backbone(backbone, criterion):
    torch.manual_seed(0)
    model, scoring = BACKBONES[backbone](), made(CRITERIA[criterion])
    shape = SHAPES.get(backbone, (3, 32, 32))
    batch = (torch.randn(4, *shape), torch.arange(4))
    total = Masks.dense(model).total
    masks = prune(model, scoring, "10x", rounds=2, batches=[batch], example=(1, *shape))
    wanted = -(-total // 10)
    if scoring.whole_filters:
        assert wanted <= masks.kept <= wanted + max(m[0].numel() for m in masks.values())
    else:
        assert masks.kept in (wanted, wanted - 1)
    # Two rounds may leave no path; it is followed all the same.
    assert Connectivity(model, (1, *shape)).effective(masks) <= masks
