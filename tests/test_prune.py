"""The spine: exact counts, rounds, data, randomness, and what is an error."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lit_prune import Connectivity, LitPruneError, Masks, Probe, Target, prune
from lit_prune.connectivity import UnsupportedOp
from lit_prune.criteria import (
    NPB,
    SNIP,
    Criterion,
    GraSP,
    Magnitude,
    Random,
    SameQuotaRandom,
    Shuffled,
    SynFlow,
    Taylor,
)
from lit_prune.errors import MasksMismatch, NonFiniteScores, QuotaOutOfRange
from lit_prune.prune import prune_by_rounds
from lit_prune.quotas import ERK, IGQ, FromCriterion, Uniform, UniformPlus
from lit_prune.spine import budgets

pytestmark = pytest.mark.filterwarnings("ignore::lit_prune.errors.TargetMissed")


def lenet():
    torch.manual_seed(0)
    layers = (nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10))
    return nn.Sequential(nn.Flatten(), *layers)


def small(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 3))


TOTAL = 48 + 40 + 15  # of `small`


def batches(many=3):
    draw = torch.Generator().manual_seed(5)
    return [(torch.randn(4, 6, generator=draw), torch.arange(4) % 3) for _ in range(many)]


def by_size(probe):
    """A plain function as a criterion."""
    return {n: w.detach().abs() for n, w in probe.masks.parameters(probe.model).items()}


class Recorder:
    """Ranks by size and notes what it is shown."""

    def __init__(self):
        self.probes = []

    def __call__(self, probe):
        self.probes.append(probe)
        return by_size(probe)


def failing(probe):
    raise AssertionError("nothing should be scored")


# --- counts


@pytest.mark.parametrize(
    ("criterion", "rounds"), [(Random(), 1), (Magnitude(), 1), (SynFlow(), 1), (SynFlow(), None)]
)
@pytest.mark.parametrize("target", ["99%", "100x", 2662, {"density": 0.01}, Target(keep=2662)])
def test_ninety_nine_percent_of_lenet_are_all_but_2662(criterion, rounds, target):
    model = lenet()
    masks = prune(model, criterion, target, rounds=rounds, example=(1, 1, 28, 28))
    assert (masks.kept, masks.total) == (2662, 266_200)
    assert masks.layers()[0].name == "1.weight"
    masks.apply(model)
    assert sum(int((p != 0).sum()) for p in model.parameters() if p.dim() > 1) == 2662


@given(st.integers(0, TOTAL), st.integers(1, 5), st.integers(0, 3))
def test_as_many_are_kept_as_asked_for(keep, rounds, which):
    criterion = [Random(), Magnitude(), SNIP(), SynFlow()][which]
    masks = prune(small(), criterion, keep, rounds=rounds, batches=batches())
    assert masks.kept == keep
    assert list(masks) == ["0.weight", "2.weight", "4.weight"]


@given(st.integers(0, TOTAL), st.integers(1, 4), st.sampled_from([Uniform(), ERK(), IGQ()]))
def test_a_quota_fixes_the_count_of_every_layer(keep, rounds, quota):
    model = small()
    masks = prune(model, Random(), keep, quota=quota, rounds=rounds)
    shapes = {name: mask.shape for name, mask in masks.items()}
    assert {row.name: row.kept for row in masks.layers()} == quota(shapes, keep)


def test_the_criterion_ranks_inside_the_layers_of_a_quota():
    model = small()
    masks = prune(model, Magnitude(), "75%", quota=Uniform())
    for name, mask in masks.items():
        weight = model.get_parameter(name).detach().abs()
        assert weight[mask].min() > weight[~mask].max()


def test_without_a_quota_all_connections_are_ranked_together():
    model = small()
    masks = prune(model, by_size, "75%")
    weights = torch.cat(
        [w.detach().abs().flatten() for w in Masks.dense(model).parameters(model).values()]
    )
    kept = torch.cat([mask.flatten() for mask in masks.values()])
    assert weights[kept].min() > weights[~kept].max()


def test_the_highest_scores_are_kept_and_not_the_lowest():
    model = nn.Linear(2, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.1, -4.0], [2.0, -0.3]]))
    assert prune(model, Magnitude(), 2)["weight"].tolist() == [[False, True], [True, False]]


@pytest.mark.parametrize("keep", [1, 2, 3])
@pytest.mark.parametrize("seed", range(3))
def test_a_large_network_is_pruned_down_to_almost_nothing(keep, seed):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(784, 300), nn.Linear(300, 10))
    assert prune(model, SynFlow(), keep, rounds=30, example=(1, 784)).kept == keep


def test_include_and_exclude_choose_what_is_pruned():
    masks = prune(small(), Magnitude(), "50%", exclude="4.weight")
    assert list(masks) == ["0.weight", "2.weight"]
    assert masks.kept == 44
    assert list(prune(small(), Magnitude(), "50%", include=["4*", "2*"])) == [
        "2.weight",
        "4.weight",
    ]
    with pytest.raises(LitPruneError, match=r"include pattern '5\.weight'"):
        prune(small(), Magnitude(), "50%", include="5.weight")


# --- effective targets; the search itself has tests of its own

SEARCHES = ["curve", "reprune"]


@torch.library.custom_op("lit_prune_tests::odd", mutates_args=())
def odd(x: torch.Tensor) -> torch.Tensor:
    return -x


class Odd(nn.Module):
    """A layer behind an operation that connectivity has no rule for."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(6, 3)

    def forward(self, x):
        return odd(self.fc(x))


def effective(masks, example=(1, 6)):
    return Connectivity(small(), example, include=list(masks)).effective(masks)


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("rounds", [1, 3])
@pytest.mark.parametrize("criterion", [Random(), Magnitude(), SNIP(), SynFlow()])
def test_the_model_comes_back_from_an_effective_target(criterion, rounds, search, untouched):
    model = small()
    with untouched(model):
        masks = prune(
            model, criterion, "4x effective", rounds=rounds, batches=batches(), search=search
        )
    assert effective(masks).kept >= Target(compression=4).count(TOTAL)


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("rounds", [1, 3])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float16, torch.float64])
def test_scores_of_any_type_serve_an_effective_target(dtype, rounds, search):
    def written(dtype):
        def criterion(probe):
            sizes = by_size(probe)
            return {n: (200 * w / w.max()).round().to(dtype) for n, w in sizes.items()}

        return criterion

    def pruned(criterion):
        target = "4x effective"
        return prune(small(), criterion, target, rounds=rounds, example=(1, 6), search=search)

    assert pruned(written(dtype)) == pruned(written(torch.float32))


@pytest.mark.parametrize("search", SEARCHES)
def test_a_target_of_all_effective_connections_scores_nothing(search):
    masks = prune(small(), failing, "1x effective", search=search)
    assert masks.kept == TOTAL
    assert prune(Odd(), failing, "0% effective", search=search).kept == 18


def test_an_operation_without_a_rule_matters_only_where_paths_do():
    assert prune(Odd(), Magnitude(), "2x").kept == 9
    for asked in ({"target": "2x effective"}, {"target": "2x", "prune_ineffective": True}):
        with pytest.raises(UnsupportedOp, match="lit_prune_tests::odd"):
            prune(Odd(), Magnitude(), example=(1, 6), **asked)


@pytest.mark.parametrize("target", ["6x", "6x effective"])
@pytest.mark.parametrize("rounds", [1, 4])
def test_what_is_ineffective_goes_in_a_step_of_its_own(target, rounds):
    def steps(**options):
        draw = torch.Generator().manual_seed(2)
        dense = Masks.dense(small())
        asked = {"rounds": rounds, "example": (1, 6), "generator": draw, **options}
        return list(prune_by_rounds(small(), dense, Random(), target, **asked))

    plain, bare = steps(), steps(prune_ineffective=True)
    assert bare[:-1] == plain
    assert bare[-1] == effective(plain[-1])
    assert bare[-1].kept < plain[-1].kept


def test_a_direct_target_may_leave_nothing_effective():
    masks = prune(small(), Magnitude(), 2)
    assert masks.kept == 2
    assert effective(masks).kept == 0
    bare = prune(small(), Magnitude(), 2, example=(1, 6), prune_ineffective=True)
    assert bare.kept == 0


def test_effective_targets_that_cannot_be_met_are_errors():
    with pytest.raises(LitPruneError, match=f"cannot keep 104 of {TOTAL}"):
        prune(small(), failing, "104 effective", example=(1, 6))
    with pytest.raises(LitPruneError, match=r"unknown search 'fast'; known: curve, reprune"):
        prune(small(), failing, "50%", search="fast")
    with pytest.raises(LitPruneError, match="pass example= or batches="):
        prune(small(), failing, "50%", prune_ineffective=True)


# --- a dense target


@pytest.mark.parametrize("target", ["1x", "0%", TOTAL, {"density": 1}, {"sparsity": 0.001}])
@pytest.mark.parametrize("quota", [None, UniformPlus()])
def test_a_dense_target_scores_nothing(target, quota):
    masks = prune(small(), failing, target, quota, rounds=5)
    assert masks.kept == masks.total == TOTAL


def test_nothing_kept_is_a_target_too():
    masks = prune(small(), SynFlow(), "100%", example=(1, 6))
    assert masks.kept == 0
    assert masks.compression == math.inf


# --- rounds


@given(st.integers(1, 10**7), st.floats(0, 1), st.integers(1, 120))
def test_budgets_follow_a_geometric_path_and_end_on_the_target(total, share, rounds):
    keep = int(total * share)
    path = list(budgets(total, keep, rounds))
    if keep == total:
        assert path == []
        return
    assert len(path) == rounds
    assert path[-1] == keep
    assert all(more >= fewer for more, fewer in pairwise([total, *path]))
    for i, budget in enumerate(path, 1):
        assert budget == pytest.approx(total * (keep / total) ** (i / rounds), abs=0.5 + 1e-6)


def test_every_round_sees_the_masks_of_the_round_before():
    recorder = Recorder()
    masks = prune(small(), recorder, 10, rounds=4)
    budgets_shown = [probe.keep for probe in recorder.probes]
    assert budgets_shown == list(budgets(TOTAL, 10, 4)) == [57, 32, 18, 10]
    assert [probe.masks.kept for probe in recorder.probes] == [TOTAL, 57, 32, 18]
    seen = [*(probe.masks for probe in recorder.probes), masks]
    assert all(later <= earlier for earlier, later in pairwise(seen))


@pytest.mark.parametrize("quota", [None, ERK(), Uniform()])
def test_rounds_are_nested_whatever_the_scores(quota):
    def fickle(probe):
        draw = torch.Generator().manual_seed(probe.keep)
        return {n: torch.rand(mask.shape, generator=draw) for n, mask in probe.masks.items()}

    dense = Masks.dense(small())
    steps = list(prune_by_rounds(small(), dense, fickle, 5, quota, rounds=6))
    assert [masks.kept for masks in steps] == list(budgets(TOTAL, 5, 6))
    assert all(later <= earlier for earlier, later in pairwise([dense, *steps]))


def test_between_two_rounds_the_model_is_as_it_came(untouched):
    model = small()
    steps = prune_by_rounds(model, Masks.dense(model), SNIP(), 5, rounds=3, batches=batches())
    with untouched(model):
        for _ in steps:
            before = [p.detach().clone() for p in model.parameters()]
            assert all(torch.equal(a, b) for a, b in zip(before, small().parameters(), strict=True))


def test_rounds_score_the_network_as_pruned_so_far():
    one = prune(small(), SNIP(), 10, rounds=1, batches=batches())
    many = prune(small(), SNIP(), 10, rounds=10, batches=batches())
    assert one != many
    steps = prune_by_rounds(small(), Masks.dense(small()), SNIP(), 10, rounds=2, batches=batches())
    first, second = steps
    scores = SNIP()(Probe(small(), first, batches()))
    kept = torch.cat([scores[n][m] for n, m in second.items()])
    gone = torch.cat([scores[n][first[n] & ~m] for n, m in second.items()])
    assert kept.min() >= gone.max()


def test_a_criterion_brings_its_own_number_of_rounds():
    class Patient(Criterion):
        rounds = 7

        def __call__(self, probe):
            seen.append(probe.keep)
            return by_size(probe)

    seen = []
    prune(small(), Patient(), 10)
    assert len(seen) == 7
    seen.clear()
    prune(small(), Patient(), 10, rounds=2)
    assert len(seen) == 2
    recorder = Recorder()
    prune(small(), recorder, 10)
    assert len(recorder.probes) == 1


@pytest.mark.parametrize("rounds", [0, -1, 1.5, math.nan, "3"])
def test_rounds_are_a_whole_number_from_one_up(rounds):
    with pytest.raises(LitPruneError, match="rounds"):
        prune(small(), Magnitude(), "50%", rounds=rounds)


# --- data


def test_batches_that_can_be_read_once_serve_every_round():
    counts = []

    def counting(probe):
        counts.append(len(list(probe.batches)))
        return by_size(probe)

    prune(small(), counting, 10, rounds=3, batches=iter(batches(3)))
    prune(small(), counting, 10, rounds=3, batches=(batch for batch in batches(3)))
    assert counts == [3] * 6
    once = prune(small(), SNIP(), 10, rounds=3, batches=iter(batches()))
    assert once == prune(small(), SNIP(), 10, rounds=3, batches=batches())


class Stream(IterableDataset):
    """A data set without a length."""

    def __iter__(self):
        for x, y in batches():
            yield from zip(x, y, strict=True)


def test_loaders_serve_as_batches():
    expected = prune(small(), SNIP(), 10, batches=batches())
    inputs, labels = (torch.cat(part) for part in zip(*batches(), strict=True))
    whole = DataLoader(TensorDataset(inputs, labels), batch_size=4)
    assert prune(small(), SNIP(), 10, batches=whole) == expected
    stream = DataLoader(Stream(), batch_size=4)
    assert prune(small(), SNIP(), 10, batches=stream) == expected


def test_a_loss_is_handed_on():
    def to_the_first(model, batch):
        return model(batch[0])[:, 0].sum()

    masks = prune(small(), SNIP(), 10, batches=batches(), loss=to_the_first)
    assert not masks["4.weight"][1:].any()


def test_an_example_is_handed_on():
    recorder = Recorder()
    prune(small(), recorder, 10, example=(1, 6))
    (probe,) = recorder.probes
    assert [x.shape for x in probe.inputs()] == [(1, 6)]


# --- randomness


def test_the_same_generator_gives_the_same_masks():
    def seeded(seed):
        return prune(small(), Random(), "50%", generator=torch.Generator().manual_seed(seed))

    assert seeded(1) == seeded(1) != seeded(2)


def test_a_generator_that_goes_on_gives_other_masks():
    generator = torch.Generator().manual_seed(1)
    first = prune(small(), Random(), "50%", generator=generator)
    assert prune(small(), Random(), "50%", generator=generator) != first


def test_without_a_generator_the_seed_of_torch_decides():
    def seeded(seed):
        model = small()
        torch.manual_seed(seed)
        return prune(model, Random(), "50%")

    assert seeded(1) == seeded(1) != seeded(2)
    torch.manual_seed(1)
    torch.rand(9)
    assert prune(small(), Random(), "50%") == seeded(0)  # `small` sets the seed 0


def test_dropout_in_rounds_follows_the_generator():
    model = nn.Sequential(nn.Linear(6, 20), nn.Dropout(0.5), nn.Linear(20, 3))

    def seeded(seed):
        draw = torch.Generator().manual_seed(seed)
        return prune(model, SNIP(), 20, rounds=2, batches=batches(), generator=draw)

    assert seeded(1) == seeded(1) != seeded(2)


def test_the_global_generators_stay(untouched):
    model = small()
    with untouched(model):
        for criterion in (Random(), SNIP()):
            prune(model, criterion, "50%", rounds=2, batches=batches())


# --- plain functions


def test_a_plain_function_is_a_criterion():
    assert prune(small(), by_size, "50%") == prune(small(), Magnitude(), "50%")


def test_scores_that_are_parts_of_the_lent_model_are_ranked_as_they_were():
    def in_place(probe):
        weights = probe.masks.parameters(probe.model)
        for weight in weights.values():
            weight.data.abs_()
        return weights

    assert prune(small(), in_place, "50%") == prune(small(), Magnitude(), "50%")


def test_scores_may_come_in_any_order_and_type():
    def backwards(probe):
        return {n: s.double().requires_grad_() for n, s in reversed(by_size(probe).items())}

    masks = prune(small(), backwards, "50%", quota=Uniform())
    assert masks == prune(small(), Magnitude(), "50%", quota=Uniform())
    assert list(masks) == list(Masks.dense(small()))


def test_scoring_a_compiled_model_compiles_nothing():
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    wrapped = torch.compile(small(), backend=count)
    inside = small()
    inside[2] = torch.compile(inside[2], backend=count)
    in_place = small()
    in_place.compile(backend=count)
    expected = prune(small(), SNIP(), "50%", batches=batches())
    for model in (wrapped, inside, in_place):
        assert prune(model, SNIP(), "50%", batches=batches()) == expected
    assert graphs == []


# --- errors


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("share", [0.1, 1.0])
def test_a_score_that_is_not_finite_is_an_error_that_names_the_layer(bad, share, untouched):
    def unlucky(probe):
        scores = {n: s.clone() for n, s in by_size(probe).items()}
        scores["2.weight"].view(-1)[: int(share * 40)] = bad
        return scores

    model = small()
    with untouched(model), pytest.raises(NonFiniteScores, match=r"2\.weight") as raised:
        prune(model, unlucky, "50%")
    assert "0.weight" not in str(raised.value)


def test_a_weight_that_is_not_finite_is_an_error_that_names_the_layer():
    model = small()
    with torch.no_grad():
        model[4].weight[1, 1] = math.nan
    with pytest.raises(NonFiniteScores, match=r"4\.weight"):
        prune(model, Magnitude(), "50%")


def test_scores_whose_sum_overflows_are_finite():
    def huge(probe):
        return {n: torch.full(mask.shape, 3e38) for n, mask in probe.masks.items()}

    assert prune(small(), huge, 10).kept == 10


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda s: s.pop("2.weight"), r"2\.weight"),
        (lambda s: s.update({"9.weight": torch.ones(2)}), r"9\.weight"),
        (lambda s: s.update({"2.weight": torch.ones(8, 5)}), r"2\.weight.*\(8, 5\).*\(5, 8\)"),
        (lambda s: s.update({"2.weight": torch.ones(40)}), r"2\.weight.*\(40,\).*\(5, 8\)"),
    ],
    ids=["missing", "unknown", "transposed", "flat"],
)
def test_scores_of_other_layers_or_shapes_are_an_error(change, line):
    def odd(probe):
        scores = by_size(probe)
        change(scores)
        return scores

    with pytest.raises(MasksMismatch, match=line):
        prune(small(), odd, "50%")


def test_targets_and_quotas_that_cannot_be_met_are_errors():
    with pytest.raises(LitPruneError, match=f"cannot keep 104 of {TOTAL}"):
        prune(small(), failing, 104)
    with pytest.raises(LitPruneError, match="ambiguous"):
        prune(small(), failing, 0.5)
    with pytest.raises(QuotaOutOfRange, match="UniformPlus keeps between 3 and 103"):
        prune(small(), Magnitude(), 2, quota=UniformPlus())


def test_a_quota_that_takes_back_is_an_error():
    def fickle(shapes, keep):
        """All in the first layer while there are many, all in the second when there are few."""
        counts = dict.fromkeys(shapes, 0)
        counts["0.weight" if keep > 15 else "2.weight"] = keep
        return counts

    with pytest.raises(LitPruneError, match=r"2\.weight"):
        prune(small(), Magnitude(), 5, quota=fickle, rounds=2)


@pytest.mark.parametrize("batch", [torch.randn(2, 6), {"x": 1}, (1, 2, 3)], ids=["x", "dict", "3"])
def test_batches_of_another_form_need_a_loss(batch):
    with pytest.raises(LitPruneError, match="pass loss="):
        prune(small(), SNIP(), "50%", batches=[batch])


def test_a_model_without_anything_to_prune_is_an_error():
    with pytest.raises(LitPruneError, match="nothing to prune"):
        prune(nn.Sequential(nn.ReLU(), nn.BatchNorm1d(3)), Magnitude(), "50%")


# --- what a probe lends


def test_a_probe_lends_the_model_as_pruned_so_far(untouched):
    model = small()
    masks = prune(model, Magnitude(), "50%")
    probe = Probe(model, masks, generator=torch.Generator().manual_seed(1))
    with untouched(model):
        with probe.masked() as lent:
            assert lent is model
            for name, mask in masks.items():
                assert torch.equal(lent.get_parameter(name) != 0, mask)
            lent(torch.randn(2, 6)).sum().backward()
        assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("example", "shapes"),
    [
        (torch.zeros(4, 6), [(1, 6)]),
        ((4, 6), [(1, 6)]),
        ([4, 6], [(1, 6)]),
        (torch.Size((4, 6)), [(1, 6)]),
        ((torch.zeros(4, 6), torch.zeros(4, 2)), [(1, 6), (1, 2)]),
        (None, [(1, 6)]),
    ],
    ids=str,
)
def test_a_probe_finds_one_input(example, shapes):
    probe = Probe(small(), Masks.dense(small()), batches(), example=example)
    assert [tuple(x.shape) for x in probe.inputs()] == shapes


def test_an_example_by_its_shape_is_in_the_type_of_the_model():
    model = nn.Linear(3, 2).double()
    (found,) = Probe(model, Masks.dense(model), example=(1, 3)).inputs()
    assert found.dtype == torch.float64


def test_a_probe_without_example_and_batches_says_what_to_pass():
    with pytest.raises(LitPruneError, match="pass example= or batches="):
        Probe(small(), Masks.dense(small())).inputs()


@pytest.mark.parametrize(
    ("criterion", "quota", "role"),
    [(Magnitude, None, "criterion"), ("magnitude", None, "criterion"), (Magnitude(), ERK, "quota")],
)
def test_a_class_or_a_name_in_place_of_an_object_is_one_clear_error(criterion, quota, role):
    with pytest.raises(LitPruneError, match=f"{role}=.*pass an object"):
        prune(nn.Linear(4, 4), criterion, "2x", quota=quota)


@pytest.mark.parametrize("target", ["10x", "10x effective"])
def test_a_loader_that_shuffles_leaves_the_global_generator_alone(target):
    loader = DataLoader(TensorDataset(torch.randn(16, 6), torch.arange(16) % 3), 4, shuffle=True)
    model = nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 3))
    before = torch.get_rng_state()
    prune(model, SNIP(), target, batches=loader)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Shuffled(SNIP), "Shuffled: criterion=SNIP is no function"),
        (lambda: FromCriterion(3), "FromCriterion: criterion=3 is no function"),
        (lambda: SameQuotaRandom(None), "SameQuotaRandom: criterion=None is no function"),
        (lambda: NPB(quota=ERK), "NPB: quota=ERK is no function"),
        (lambda: NPB(alpha="x"), "NPB: alpha='x' is no number"),
        (lambda: GraSP("a"), "GraSP: temperature='a' is out of range"),
        (lambda: GraSP(float("inf")), "GraSP: temperature=inf is out of range"),
        (lambda: prune(small(), Magnitude(), "2x", batches=3), "batches=3 is neither"),
        (lambda: prune(small(), Magnitude(), "2x", generator=3), "generator=3 is no torch"),
    ],
)
def test_a_mistaken_argument_is_one_clear_error(make, message):
    with pytest.raises(LitPruneError, match=message):
        make()


def test_half_precision_keeps_small_gradients_of_taylor():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 300), nn.ReLU(), nn.Linear(300, 10))
    batch = (torch.randn(64, 64), torch.arange(64) % 10)
    halved = (batch[0].half(), batch[1])
    scores = Taylor()(Probe(model.half(), Masks.dense(model), [halved]))
    assert all(float((score == 0).float().mean()) < 0.2 for score in scores.values())
