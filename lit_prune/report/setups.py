"""Comparison setups: under which terms two pruned networks may be compared.

Source: Wang et al. 2023, "Why is the state of neural network pruning so confusing?", arXiv
2301.05219, table 2. Each setup is a set of facts that both have in common::

    S1    data set, network, pruning rate
    S2    S1   + base model
    S3.1  S2   + epochs of fine-tuning
    S3.2  S3.1 + learning-rate schedule of fine-tuning
    S4.1  S3.2 + epochs of pruning
    S4.2  S3.2 + learning-rate schedule of pruning
    SX-A  S1   + epochs of pretraining, pruning and fine-tuning together
    SX-B  S1   + FLOPs of all training together, to within 5 %

The paper recommends at least S3.2.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from lit_prune.errors import LitPruneError, did_you_mean
from lit_prune.report.phases import Phases, phases
from lit_prune.report.rates import rate_of
from lit_prune.report.runs import Run
from lit_prune.report.settings import below

__all__ = ["SETUPS", "Facts", "difference", "facts_of", "satisfied", "setup_named", "strictest"]

# A part of a run's settings, in an order of their keys.
Fact = tuple[tuple[str, Any], ...]

_FLOPS_WITHIN = 0.05


@dataclass(frozen=True)
class Facts:
    """What a comparison hangs on; a fact is the settings that make it.

    Attributes:
        dataset: the data, how they are split, augmented and cut short; not the size of a batch.
        network: the backbone, and which of its parameters may be pruned.
        rate: how much is pruned, and whether direct or effective connections are counted.
        base_model: what is pruned: files of weights, and how long and by which recipe it has been
            trained in the same run. A network at initialization is one base model for all seeds.
        finetune_epochs: epochs after the last prune.
        finetune_rates: their learning rates, with optimizer, batch size and all else of the recipe.
        pruning_epochs: epochs from the first prune to the last.
        pruning_rates: the learning rates and the recipe of these; nothing where there are none.
        total_epochs: epochs of the whole run, and files of weights that others have trained.
        training_flops: FLOPs of training, for one sample an epoch; None where they are not known.
    """

    dataset: Fact
    network: Fact
    rate: Fact
    base_model: Fact
    finetune_epochs: Fact
    finetune_rates: Fact
    pruning_epochs: Fact
    pruning_rates: Fact
    total_epochs: Fact
    training_flops: float | None = None


_S1 = ("dataset", "network", "rate")
_S2 = (*_S1, "base_model")
_S31 = (*_S2, "finetune_epochs")
_S32 = (*_S31, "finetune_rates")

SETUPS: Mapping[str, tuple[str, ...]] = {
    "S1": _S1,
    "S2": _S2,
    "S3.1": _S31,
    "S3.2": _S32,
    "S4.1": (*_S32, "pruning_epochs"),
    "S4.2": (*_S32, "pruning_rates"),
    "SX-A": (*_S1, "total_epochs"),
    "SX-B": (*_S1, "training_flops"),
}


def setup_named(name: str) -> str:
    """Return ``name``, having checked that it is a setup's.

    Raises:
        LitPruneError: it is not.
    """
    if name not in SETUPS:
        near = did_you_mean(name, SETUPS)
        raise LitPruneError(f"unknown setup {name!r}{near}; known: {', '.join(SETUPS)}")
    return name


def satisfied(one: Facts, other: Facts) -> frozenset[str]:
    """Return the names of all setups that two have in common."""
    same = {field.name for field in fields(Facts) if _is_same(field.name, one, other)}
    return frozenset(name for name, needed in SETUPS.items() if same.issuperset(needed))


def strictest(names: Iterable[str]) -> list[str]:
    """Return those setups that no other of ``names`` includes, in the order of the paper.

    Examples:
        >>> strictest({"S1", "S2", "S3.1", "SX-A"})
        ['S3.1', 'SX-A']
    """
    known = [name for name in SETUPS if name in set(names)]
    return [name for name in known if not any(_is_weaker(name, other) for other in known)]


def _is_weaker(name: str, other: str) -> bool:
    return set(SETUPS[name]) < set(SETUPS[other])


def difference(one: Facts, other: Facts, setup: str) -> tuple[str, Any, Any] | None:
    """Return the first setting that keeps two from ``setup``, and both values; None if none."""
    for name in SETUPS[setup]:
        if _is_same(name, one, other):
            continue
        here, there = getattr(one, name), getattr(other, name)
        if not isinstance(here, tuple):
            return f"{name} a sample", here, there
        mine, others = dict(here), dict(there)
        key = next(key for key in [*mine, *others] if mine.get(key) != others.get(key))
        return key, mine.get(key), others.get(key)
    return None


def _is_same(name: str, one: Facts, other: Facts) -> bool:
    here, there = getattr(one, name), getattr(other, name)
    if name != "training_flops":
        return here == there
    if here is None or there is None:
        return False
    return abs(here - there) <= _FLOPS_WITHIN * max(here, there)


# The facts of a run.

_SUBSETS = ("limit_train_batches", "limit_test_batches", "overfit_batches")
_FILES = ("model.weights", "pruning.scored_weights")
# Settings of the trainer that say how long it trains, which the phases know, or what it sees.
_NO_RECIPE = {f"trainer.{name}" for name in (*_SUBSETS, "max_epochs")}


def facts_of(run: Run) -> Facts:
    """Return what a comparison with this run hangs on; its FLOPs are left to who takes means."""
    settings, found = run.telling, _as_trained(phases(run.config), run.summary.get("epochs"))
    files = below(settings, *_FILES)
    return Facts(
        dataset=_fact(_dataset(settings)),
        network=_fact(below(settings, "model.backbone", "pruning.include", "pruning.exclude")),
        rate=_fact({"pruning.target": str(rate_of(run))}),
        base_model=_fact(files | _pretraining(settings, found)),
        finetune_epochs=_fact({"epochs of fine-tuning": found.finetuning}),
        finetune_rates=_fact(_finetuning(settings, found)),
        pruning_epochs=_fact({"epochs of pruning": found.pruning}),
        pruning_rates=_fact(_pruning(settings, found)),
        total_epochs=_fact(files | {"epochs in all": found.total}),
    )


def _as_trained(found: Phases, epochs: int | None) -> Phases:
    """Return the phases of a run that was ended before, or after, the epochs of its config."""
    if epochs is None or not isinstance(found.total, int) or found.total == epochs:
        return found
    left = found.finetuning
    if isinstance(left, int):
        left = max(0, left + epochs - found.total)
    return replace(found, total=epochs, finetuning=left)


def _fact(settings: Mapping[str, Any]) -> Fact:
    # Our own words first, since they say more than the settings that follow from them.
    return tuple(sorted(settings.items(), key=lambda item: (" " not in item[0], item[0])))


def _dataset(settings: Mapping[str, Any]) -> dict[str, Any]:
    data = below(settings, "data")
    data.pop("data.init_args.batch_size", None)
    return data | below(settings, *(f"trainer.{name}" for name in _SUBSETS))


def _recipe(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return all settings of training itself but its length."""
    batch = below(settings, "data.init_args.batch_size", "model", "trainer")
    no = below(settings, "model.backbone", "model.weights", *_NO_RECIPE)
    return {key: value for key, value in batch.items() if key not in no}


def _pretraining(settings: Mapping[str, Any], found: Phases) -> dict[str, Any]:
    length = {"epochs of pretraining": found.pretraining}
    return length | _recipe(settings) if found.pretraining else length


def _finetuning(settings: Mapping[str, Any], found: Phases) -> dict[str, Any]:
    recipe = dict(_without_unused(settings, found))
    return recipe | {"learning rates of fine-tuning": found.finetuning_rates}


def _without_unused(settings: Mapping[str, Any], found: Phases) -> Iterator[tuple[str, Any]]:
    for key, value in _recipe(settings).items():
        is_rate = key.startswith("model.scheduler") or key == "model.optimizer.init_args.lr"
        if not (found.holds_rates and is_rate):
            yield key, value


def _pruning(settings: Mapping[str, Any], found: Phases) -> dict[str, Any]:
    if not found.pruning:
        return {}
    return _recipe(settings) | {"learning rates of pruning": found.pruning_rates}
