"""``scored_weights`` of MaskManager: other weights are scored, and one's own are trained."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_reinitialise import AtStart, fit, own

from lit_prune import LitPruneError, MaskManager, prune
from lit_prune.criteria import LAMP, SNIP, Magnitude
from lit_prune.quotas import ERK
from lit_prune.schedules import Gradual

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore::lit_prune.errors.TargetMissed"),
]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """The weights of another network of the same form."""
    path = tmp_path_factory.mktemp("scored") / "weights.pt"
    torch.save(own(7).state_dict(), path)
    return str(path)


@settings(max_examples=12, deadline=None)
@given(
    method=st.sampled_from([(Magnitude(), None), (Magnitude(), ERK()), (LAMP(), None)]),
    target=st.sampled_from(["2x", "70%", "3x effective"]),
)
def test_the_masks_are_those_of_the_other_network(file, method, target):
    criterion, quota = method
    manager = MaskManager(criterion, target, quota, scored_weights=file)
    fit(own(0), manager)
    assert manager.masks == prune(own(7), criterion, target, quota, example=(1, 6))
    assert manager.masks != prune(own(0), criterion, target, quota, example=(1, 6))


def test_training_begins_from_the_networks_own_weights(file):
    start, module = AtStart(), own(0)
    manager = MaskManager(Magnitude(), "4x", scored_weights=file)
    fit(module, manager, start)
    expected = own(0)
    manager.masks.apply(expected)
    for name, tensor in expected.state_dict().items():
        assert torch.equal(start.weights[0][name], tensor), name


def test_the_batches_of_training_and_its_random_numbers_are_as_without(file):
    with_it, without = own(0), own(0)
    fit(with_it, MaskManager(SNIP(), "4x", scored_weights=file))
    fit(without, MaskManager(SNIP(), "4x"))
    assert with_it.seen == without.seen
    assert with_it.numbers == without.numbers


def test_weights_of_another_model_are_refused_by_name(tmp_path):
    torch.save({"net.0.weight": torch.ones(3, 3)}, tmp_path / "other.pt")
    manager = MaskManager(Magnitude(), "4x", scored_weights=str(tmp_path / "other.pt"))
    with pytest.raises(LitPruneError, match=r"other\.pt does not fit Own"):
        fit(own(0), manager)


def test_weights_that_are_not_there_are_named():
    with pytest.raises(LitPruneError, match=r"no weights at nowhere\.pt"):
        fit(own(0), MaskManager(Magnitude(), "4x", scored_weights="nowhere.pt"))


def test_a_schedule_that_prunes_again_is_refused(file):
    schedule = Gradual(begin="0ep", end="2ep", every="1ep")
    manager = MaskManager(Magnitude(), "4x", schedule=schedule, scored_weights=file)
    with pytest.raises(LitPruneError, match=r"scored_weights=.*prunes once; Gradual prunes"):
        fit(own(0), manager, epochs=3)


def test_stored_masks_score_nothing(file):
    with pytest.raises(LitPruneError, match=r"masks=m\.safetensors scores nothing"):
        MaskManager(masks="m.safetensors", scored_weights=file)
