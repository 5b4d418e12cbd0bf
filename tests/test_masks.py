"""Masks: their algebra, what they do to a model, and how they are stored."""

import copy
import math
import os

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from safetensors.torch import save_file
from torch import nn

from lit_prune import LitPruneError, Masks
from lit_prune.errors import MasksMismatch, UnreadableFile

SHAPES = st.lists(array_shapes(max_dims=3, max_side=4), min_size=1, max_size=4)


@st.composite
def masks_of_one_model(draw, many):
    shapes = draw(SHAPES)

    def masks():
        layers = [torch.from_numpy(draw(arrays(bool, shape))) for shape in shapes]
        return Masks({f"layer{i}.weight": layer for i, layer in enumerate(layers)})

    return [masks() for _ in range(many)]


def flat(masks):
    return np.concatenate([mask.numpy().ravel() for mask in masks.values()])


# --- counting


@given(masks_of_one_model(1))
def test_numbers_are_those_of_numpy(drawn):
    (masks,) = drawn
    keeps = flat(masks)
    assert (masks.kept, masks.total) == (int(keeps.sum()), keeps.size)
    assert masks.density == pytest.approx(keeps.mean(), abs=1e-12)
    assert masks.sparsity == pytest.approx((~keeps).mean(), abs=1e-12)
    expected = keeps.size / keeps.sum() if keeps.any() else math.inf
    assert masks.compression == pytest.approx(expected)


@given(masks_of_one_model(1))
def test_rows_of_a_table_are_the_layers_in_order(drawn):
    (masks,) = drawn
    rows = masks.layers()
    assert [row.name for row in rows] == list(masks)
    assert [row.shape for row in rows] == [tuple(mask.shape) for mask in masks.values()]
    assert [row.kept for row in rows] == [int(mask.sum()) for mask in masks.values()]
    assert sum(row.total for row in rows) == masks.total
    assert sum(row.kept for row in rows) == masks.kept
    for row, mask in zip(rows, masks.values(), strict=True):
        assert row.sparsity == pytest.approx(float((~mask).float().mean()))


def test_nothing_kept_is_an_infinite_compression():
    masks = Masks({"a": torch.zeros(3, 2, dtype=torch.bool)})
    assert (masks.kept, masks.density, masks.sparsity) == (0, 0.0, 1.0)
    assert masks.compression == math.inf


def test_a_layer_without_connections_counts_as_nothing():
    masks = Masks({"a": torch.ones(0, 3, dtype=torch.bool), "b": torch.ones(2, dtype=torch.bool)})
    assert (masks.kept, masks.total) == (2, 2)
    assert [row.kept for row in masks.layers()] == [0, 2]


def test_dense_masks_keep_every_prunable_connection():
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 5))
    masks = Masks.dense(model)
    assert {name: tuple(mask.shape) for name, mask in masks.items()} == {
        "0.weight": (3, 2, 3, 3),
        "3.weight": (5, 12),
    }
    assert masks.kept == masks.total == 54 + 60
    assert list(Masks.dense(model, exclude="0*")) == ["3.weight"]
    assert list(Masks.dense(model, include="0*")) == ["0.weight"]


# --- algebra


@given(masks_of_one_model(3))
def test_and_is_the_greatest_lower_bound(drawn):
    a, b, c = drawn
    assert (a & b) <= a
    assert (a & b) <= b
    assert (a & b & c) <= (a & b)
    assert (c <= a and c <= b) == (c <= (a & b))
    lower = a & b & c
    assert lower <= a
    assert lower <= b


@given(masks_of_one_model(3))
def test_and_is_idempotent_commutative_and_associative(drawn):
    a, b, c = drawn
    assert a & a == a
    assert a & b == b & a
    assert (a & b) & c == a & (b & c)
    assert np.array_equal(flat(a & b), flat(a) & flat(b))


@given(masks_of_one_model(2))
def test_below_is_the_order_of_inclusion(drawn):
    a, b = drawn
    assert (a <= b) == bool((flat(a) <= flat(b)).all())
    assert (a <= b) == (a & b == a) == (b >= a)
    assert (a <= b and b <= a) == (a == b)
    assert a <= a


def test_masks_cannot_be_written_to():
    masks = Masks({"a": torch.ones(2, dtype=torch.bool)})
    with pytest.raises(TypeError):
        masks["a"] = torch.zeros(2, dtype=torch.bool)
    with pytest.raises(TypeError):
        del masks["a"]


def test_masks_do_not_follow_the_mapping_that_they_were_made_of():
    given_mapping = {"a": torch.ones(2, dtype=torch.bool)}
    masks = Masks(given_mapping)
    given_mapping["b"] = torch.ones(2, dtype=torch.bool)
    assert list(masks) == ["a"]


@pytest.mark.parametrize("wrong", [torch.ones(2), np.ones(2, dtype=bool), [True, False], None])
def test_only_bool_tensors_are_masks(wrong):
    with pytest.raises(LitPruneError, match=r"bool tensor.*fc\.weight"):
        Masks({"fc.weight": wrong})


def test_masks_of_nothing_are_an_error():
    with pytest.raises(LitPruneError, match="nothing to prune"):
        Masks({})
    with pytest.raises(LitPruneError, match="nothing to prune"):
        Masks.dense(nn.ReLU())


def test_masks_of_different_models_do_not_mix():
    a = Masks({"a": torch.ones(2, dtype=torch.bool)})
    more = Masks({"a": torch.ones(2, dtype=torch.bool), "b": torch.ones(2, dtype=torch.bool)})
    longer = Masks({"a": torch.ones(3, dtype=torch.bool)})
    for one, other, difference in [(a, more, "b"), (more, a, "b"), (a, longer, r"\(2,\).*\(3,\)")]:
        with pytest.raises(MasksMismatch, match=difference):
            one & other
        with pytest.raises(MasksMismatch, match=difference):
            _ = one <= other
        assert one != other


def test_relative_to_strips_the_prefix_of_a_submodule():
    ones = torch.ones(1, dtype=torch.bool)
    masks = Masks({"net.body.weight": ones, "net2.weight": ~ones, "net.head.weight": ones})
    inner = masks.relative_to("net")
    assert list(inner) == ["body.weight", "head.weight"]
    assert inner == masks.relative_to("net.")
    assert inner["body.weight"] is masks["net.body.weight"]
    with pytest.raises(MasksMismatch, match=r"'nat'.*net\.body\.weight"):
        masks.relative_to("nat")


# --- applying


def some_masks(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    dense = Masks.dense(model)
    return Masks({n: torch.rand(m.shape, generator=generator) < 0.5 for n, m in dense.items()})


def bits_where(tensor, mask):
    return tensor.detach()[mask].view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_apply_fills_pruned_places_with_zero_and_leaves_the_others_to_the_bit(dtype):
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(12, 5)).to(dtype)
    odd = torch.tensor([math.nan, math.inf, -math.inf, -0.0, 1.5, -3.0], dtype=dtype)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(odd[torch.arange(weight.numel()) % odd.numel()].view(weight.shape))
    before, masks = copy.deepcopy(model), some_masks(model)
    masks.apply(model)
    for name, weight in model.named_parameters():
        mask = masks.get(name, torch.ones_like(weight, dtype=torch.bool))
        assert bits_where(weight, mask) == bits_where(before.get_parameter(name), mask)
        assert set(bits_where(weight, ~mask)) <= {0}
        assert weight.requires_grad
        assert weight.is_leaf


def channels_last():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3))
    return model.to(memory_format=torch.channels_last)


def with_transposed_weight():
    model = nn.Linear(3, 4)
    model.weight = nn.Parameter(torch.randn(3, 4).T)
    return model


@pytest.mark.parametrize("make", [channels_last, with_transposed_weight])
def test_apply_reaches_weights_of_any_memory_layout(make):
    model = make()
    masks = some_masks(model)
    masks.apply(model)
    for name, mask in masks.items():
        assert torch.equal(model.get_parameter(name) != 0, mask)


def test_apply_twice_is_apply_once():
    model = nn.Linear(4, 4)
    masks = some_masks(model)
    masks.apply(model)
    once = model.weight.detach().clone()
    masks.apply(model)
    assert torch.equal(model.weight, once)


def test_apply_reaches_tied_weights_and_compiled_modules():
    model = nn.Sequential(nn.Linear(3, 3), torch.compile(nn.Linear(3, 3)), nn.Linear(3, 3))
    model[2].weight = model[0].weight
    masks = some_masks(model)
    masks.apply(model)
    assert torch.equal(model[2].weight != 0, masks["0.weight"])
    assert torch.equal(model[1].weight != 0, masks["1.weight"])


class TiedToAParameter(nn.Module):
    """A weight that a module without layers of its own registers first."""

    def __init__(self):
        super().__init__()
        self.shared = nn.Parameter(torch.randn(3, 3))
        self.fc = nn.Linear(3, 3)
        self.fc.weight = self.shared


def test_apply_reaches_a_layer_tied_to_a_bare_parameter():
    model = TiedToAParameter()
    masks = some_masks(model)
    masks.apply(model)
    assert torch.equal(model.fc.weight != 0, masks["fc.weight"])


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        (nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 3)), r"1\.weight is \(2, 4\).*\(3, 4\)"),
        (nn.Sequential(nn.Linear(3, 4)), r"1\.weight"),
        (nn.Sequential(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))), r"it has 0\.0\.weight"),
        (nn.Linear(3, 4), r"relative_to\('0'\)"),
    ],
    ids=["shape", "missing", "prefixed", "shorter"],
)
def test_masks_of_another_model_are_an_error_and_change_nothing(other, difference, untouched):
    masks = some_masks(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)))
    with untouched(other), pytest.raises(MasksMismatch, match=difference) as raised:
        masks.apply(other)
    assert "\n" not in str(raised.value)


def test_masks_of_some_layers_leave_the_others_alone():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    before = model[1].weight.detach().clone()
    Masks({"0.weight": torch.zeros(3, 3, dtype=torch.bool)}).apply(model)
    assert not model[0].weight.any()
    assert torch.equal(model[1].weight, before)


# --- storing


@given(masks_of_one_model(1))
def test_load_reads_what_save_wrote(tmp_path_factory, drawn):
    (masks,) = drawn
    path = tmp_path_factory.mktemp("masks") / "masks.safetensors"
    masks.save(path)
    assert Masks.load(path) == masks


def test_load_keeps_the_order_of_layers(tmp_path):
    layers = [f"layer{i}.weight" for i in (10, 9, 2, 1)]  # tables and uniform+ go by order
    Masks({name: torch.ones(1, dtype=torch.bool) for name in layers}).save(tmp_path / "masks")
    assert list(Masks.load(tmp_path / "masks")) == layers


@pytest.mark.parametrize("make", [channels_last, with_transposed_weight])
def test_masks_of_any_memory_layout_are_saved(make, tmp_path):
    masks = Masks.dense(make())
    masks.save(tmp_path / "masks")
    assert Masks.load(tmp_path / "masks") == masks


def test_one_tensor_under_two_names_is_saved(tmp_path):
    mask = torch.tensor([True, False])
    Masks({"a": mask, "b": mask, "c": mask[:1]}).save(tmp_path / "masks")
    assert Masks.load(tmp_path / "masks") == Masks({"a": mask, "b": mask, "c": mask[:1]})


def test_the_file_appears_alone_and_is_readable_as_any_other(tmp_path):
    masks = some_masks(nn.Linear(3, 3))
    masks.save(tmp_path / "masks")
    masks.save(str(tmp_path / "masks"))
    assert [path.name for path in tmp_path.iterdir()] == ["masks"]
    (tmp_path / "other").touch()
    assert (tmp_path / "masks").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    old, new = some_masks(nn.Linear(3, 3), 0), some_masks(nn.Linear(3, 3), 1)
    old.save(tmp_path / "masks")

    def full_disk(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(OSError, match="no space left"):
        new.save(tmp_path / "masks")
    assert [path.name for path in tmp_path.iterdir()] == ["masks"]
    assert Masks.load(tmp_path / "masks") == old != new


@pytest.mark.parametrize("share", [0, 0.001, 0.05, 0.2, 0.5, 0.9, 0.999])
def test_a_cut_file_is_an_error_that_names_it(share, tmp_path):
    path = tmp_path / "masks.safetensors"
    some_masks(nn.Sequential(nn.Linear(30, 30), nn.Linear(30, 30))).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(UnreadableFile, match=r"masks\.safetensors is cut, damaged") as raised:
        Masks.load(path)
    assert "\n" not in str(raised.value)


def test_a_file_of_something_else_is_an_error(tmp_path):
    path = tmp_path / "file"
    save_file({"fc.weight": torch.ones(2)}, path)
    with pytest.raises(UnreadableFile, match=r"no masks: fc\.weight is torch\.float32"):
        Masks.load(path)
    save_file({}, path)
    with pytest.raises(UnreadableFile, match="no masks"):
        Masks.load(path)
    for content in (b"hello, these are no masks at all\n" * 9, b"\0" * 100, b"\xff" * 100):
        path.write_bytes(content)
        with pytest.raises(UnreadableFile, match="no safetensors"):
            Masks.load(path)
    torch.save({"fc.weight": torch.ones(2, dtype=torch.bool)}, path)
    with pytest.raises(UnreadableFile, match="no safetensors"):
        Masks.load(path)


def test_a_missing_file_is_an_error_that_names_it(tmp_path):
    for path in (tmp_path / "nowhere.safetensors", tmp_path):
        with pytest.raises(UnreadableFile, match=path.name):
            Masks.load(path)
