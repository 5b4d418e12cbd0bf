"""What a run costs in FLOPs, counted from what was effective while it trained."""

from itertools import pairwise

from lit_prune.report.runs import Level, Run

__all__ = ["inference_flops", "training_flops", "training_flops_a_sample"]

# How many training samples the data sets of this package have.
_SAMPLES = {"MNIST": 60_000, "CIFAR10": 50_000, "CIFAR100": 50_000, "Digits": 1_437}
# A step back costs about two forward passes: one for the inputs, one for the weights.
_PASSES = 3


def inference_flops(run: Run) -> float | None:
    """Return the FLOPs of one sample forward through what is effective; None if not known."""
    return run.summary.get("effective_flops")


def training_flops_a_sample(run: Run) -> float | None:
    r"""Return the FLOPs that one training sample costs in all epochs; None if not known.

    :math:`3 \sum_l e_l F_l`, where level :math:`l` trains for :math:`e_l` epochs and a sample goes
    forward through what is effective of it by :math:`F_l` FLOPs: one pass forward, and two as dear
    back. Scoring and tests are left out. Of a level between dense and last, :math:`F_l` is known
    only where ``levels.csv`` has a column ``effective_flops``.
    """
    if not run.is_done or not run.levels:
        return None
    ends = [0, *(level.epoch for level in run.levels)]
    epochs = [end - start for start, end in pairwise(ends)]
    flops = [_of_level(run, level) for level in run.levels]
    known = [of for of in flops if of is not None]
    if len(known) < len(flops):
        return None
    return _PASSES * sum(number * of for number, of in zip(epochs, known, strict=True))


def training_flops(run: Run) -> float | None:
    """Return those of all training samples; None where it is not known how many there are.

    They are known of the data sets of this package that have a fixed number, less what is set aside
    for validation; and not where a trainer takes a part of them.
    """
    one, number = training_flops_a_sample(run), _samples(run)
    return None if one is None or number is None else one * number


def _of_level(run: Run, level: Level) -> float | None:
    if level.effective_flops is not None:
        return level.effective_flops
    if level is run.levels[-1]:
        return inference_flops(run)
    return run.summary.get("flops") if level.kept == run.total else None


def _samples(run: Run) -> int | None:
    settings = run.telling
    is_cut = any(
        settings.get(f"trainer.{key}") for key in ("limit_train_batches", "overfit_batches")
    )
    held_out = settings.get("data.init_args.val_fraction", 0)
    is_ours = str(settings.get("data.class_path")).startswith("lit_prune.data.")
    total = _SAMPLES.get(run.dataset) if is_ours else None
    if total is None or is_cut or not isinstance(held_out, int | float):
        return None
    return total - round(held_out * total)
