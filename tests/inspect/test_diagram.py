"""The findings and the picture against brute force, for chains, convolutions and residual nets."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.colors import to_hex
from torch import nn

from lit_prune import Masks
from lit_prune.inspect import diagram as diagrams
from lit_prune.inspect.diagram import Diagram, TooLarge, diagram_of, heights
from lit_prune.inspect.findings import Findings, findings_of
from lit_prune.inspect.layer_table import counted
from lit_prune.inspect.picture import DEAD, LIVE, as_bytes, drawn
from lit_prune.inspect.subject import Subject


def mlp(*sizes: int) -> nn.Sequential:
    return nn.Sequential(
        *(part for pair in pairwise(sizes) for part in (nn.Linear(*pair), nn.ReLU()))
    )


def random_masks(model: nn.Module, density: float, seed: int = 0) -> Masks:
    generator = torch.Generator().manual_seed(seed)
    return Masks(
        {
            n: torch.rand(m.shape, generator=generator) < density
            for n, m in Masks.dense(model).items()
        }
    )


def found(model: nn.Module, masks: Masks, *shape: int) -> tuple[Findings, Diagram]:
    subject = Subject(masks, model, (torch.ones(1, *shape),), ())
    findings = findings_of(subject)
    assert findings.traced is not None
    return findings, diagram_of(model, masks, findings.traced.effective, subject.inputs)


def brute_force(masks: Masks) -> tuple[list[np.ndarray], int]:
    """The effective masks and the number of paths of a chain of linear layers."""
    matrices = [mask.numpy().astype(object) * 1 for mask in masks.values()]
    ahead = [np.ones(matrices[0].shape[1], dtype=object)]
    for matrix in matrices:
        ahead.append(matrix @ ahead[-1])
    behind = [np.ones(matrices[-1].shape[0], dtype=object)]
    for matrix in reversed(matrices):
        behind.insert(0, matrix.T @ behind[0])
    effective = [
        (matrix * np.outer(behind[i + 1], ahead[i])) > 0 for i, matrix in enumerate(matrices)
    ]
    return effective, int(sum(ahead[-1]))


@settings(max_examples=20)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=2, max_size=5),
    density=st.floats(0, 1),
    seed=st.integers(0, 1000),
)
def test_a_chain_is_found_as_by_brute_force(sizes, density, seed):
    model = mlp(*sizes)
    masks = random_masks(model, density, seed)
    findings, diagram = found(model, masks, sizes[0])
    effective, paths = brute_force(masks)
    assert counted(findings.traced.log_paths) == f"{paths:,}"
    for row, mask in zip(findings.measurement.layers, effective, strict=True):
        assert row.effective == mask.sum()
        assert (row.dead_in, row.dead_out) == (
            (~mask.any(0)).sum(),
            (~mask.any(1)).sum(),
        )
    entering = {name: int(m.any(0).sum()) for name, m in zip(masks, effective, strict=True)}
    assert findings.traced.nodes == {**entering, "output": int(effective[-1].any(1).sum())}
    assert sum(findings.traced.all_nodes.values()) == sum(sizes)
    assert findings.measurement.collapsed() == [
        n for n, m in zip(masks, effective, strict=True) if not m.any()
    ]
    assert diagram.gaps == []
    assert [column.size for column in diagram.columns] == sizes
    lines = [ends_of(diagram, number) for number in range(len(effective))]
    for (pairs, live), kept, alive in zip(lines, masks.values(), effective, strict=True):
        assert pairs == {(i, o) for o, i in zip(*kept.numpy().nonzero(), strict=True)}
        assert live == {(i, o) for o, i in zip(*alive.nonzero(), strict=True)}


def ends_of(diagram: Diagram, number: int) -> tuple[set, set]:
    """The lines of a layer, and the live ones, as pairs of the numbers of units."""
    wires = diagram.wires[number]
    left, right = diagram.columns[wires.source], diagram.columns[wires.source + 1]
    pairs = [(left.units[i], right.units[o]) for i, o in wires.ends]
    assert len(set(pairs)) == len(pairs)
    return set(pairs), {pair for pair, live in zip(pairs, wires.live, strict=True) if live}


def test_paths_of_a_wide_network_are_counted_exactly_up_to_a_billion():
    model = mlp(100, 100, 100, 10)
    masks = random_masks(model, 0.9)
    _, paths = brute_force(masks)
    findings, _ = found(model, masks, 100)
    assert 10**6 < paths < 10**9
    assert counted(findings.traced.log_paths) == f"{paths:,}"
    assert counted(math.log10(9.9999e12)) == "1.000e+13"


class LikeLeNet5(nn.Module):
    """Channels become several features each."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 3, 3)
        self.second = nn.Conv2d(3, 4, 3, stride=2)
        self.fc = nn.Linear(4 * 9, 5)

    def forward(self, x):
        return self.fc(self.second(self.first(x).relu()).relu().flatten(1))


def test_a_line_of_a_convolution_is_a_kernel_and_features_hang_on_their_channel():
    model = LikeLeNet5()
    masks = random_masks(model, 0.15)
    masks["second.weight"][2] = False
    findings, diagram = found(model, masks, 2, 9, 9)
    effective = findings.traced.effective
    assert diagram.gaps == []
    assert [column.size for column in diagram.columns] == [2, 3, 4, 5]
    for number, name in enumerate(["first.weight", "second.weight"]):
        pairs, live = ends_of(diagram, number)
        assert pairs == {(int(k[1]), int(k[0])) for k in masks[name].nonzero()}
        assert live == {(int(k[1]), int(k[0])) for k in effective[name].nonzero()}
    pairs, live = ends_of(diagram, 2)
    assert pairs == {(int(i) // 9, int(o)) for o, i in masks["fc.weight"].nonzero()}
    assert live == {(int(i) // 9, int(o)) for o, i in effective["fc.weight"].nonzero()}
    assert pairs > live


@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
@pytest.mark.parametrize("groups", [1, 2, 6])
def test_the_units_of_a_group_are_joined_with_those_of_the_same_group(kind, groups):
    model = nn.Sequential(kind(6, 12, 1, groups=groups, bias=False))
    masks = random_masks(model, 0.4)
    _, diagram = found(model, masks, 6, 2, 2)
    weight = masks["0.weight"].float()
    with torch.no_grad():
        model[0].weight.copy_(weight)
        one_at_a_time = model(torch.eye(6)[:, :, None, None])[:, :, 0, 0]
    expected = {(int(i), int(o)) for i, o in one_at_a_time.nonzero()}
    assert ends_of(diagram, 0) == (expected, expected)
    assert [column.size for column in diagram.columns] == [6, 12]


class Shuffled(nn.Module):
    """The outputs of the first layer enter the second in another order."""

    order = (2, 0, 3, 1)

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.second(self.first(x)[:, list(self.order)])


def test_units_are_followed_where_they_change_places():
    model = Shuffled()
    masks = random_masks(model, 0.6)
    _, diagram = found(model, masks, 3)
    pairs, _ = ends_of(diagram, 1)
    kept = masks["second.weight"].nonzero()
    assert pairs == {(Shuffled.order[int(i)], int(o)) for o, i in kept}


class Residual(nn.Module):
    """a, then b beside a way around, then c; b follows a alone, c does not follow b alone."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 5), nn.Linear(5, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.c(x + self.b(self.a(x).relu()))


def test_where_signals_are_added_there_is_a_gap():
    model = Residual()
    masks = Masks.dense(model)
    masks = Masks({**masks, "b.weight": torch.zeros(4, 5, dtype=torch.bool)})
    findings, diagram = found(model, masks, 4)
    assert diagram.gaps == [2]
    assert [column.size for column in diagram.columns] == [4, 5, 4, 4, 3]
    assert [wires.live.all() for wires in diagram.wires if len(wires.live)] == [False, True]
    figure = drawn(diagram, findings.measurement, "a title")
    assert any("signals are added" in text.get_text() for text in figure.texts)


def lines_of(figure) -> dict[str, list]:
    """All collections of lines by what they are called."""
    return {
        collection.get_gid(): collection
        for axes in figure.axes
        for collection in axes.collections
        if collection.get_gid().split()[1] != "units"
    }


@pytest.mark.parametrize("sizes", [(20, 12, 8, 4), (6,) * 12])
def test_the_figure_has_a_line_in_the_right_colour_for_every_connection(sizes):
    model = mlp(*sizes)
    masks = random_masks(model, 0.3)
    findings, diagram = found(model, masks, sizes[0])
    figure = drawn(diagram, findings.measurement, "a title")
    lines = lines_of(figure)
    assert len(figure.axes) == (1 if len(sizes) <= 8 else 2)
    numbers = []
    for row in findings.measurement.layers:
        live, dead = lines[f"live {row.name}"], lines[f"dead {row.name}"]
        assert len(live.get_segments()) == row.effective
        assert len(dead.get_segments()) == row.kept - row.effective
        numbers += [len(dead.get_segments()), len(live.get_segments())]
        for drawn_lines, colour in ((live, LIVE), (dead, DEAD)):
            if drawn_lines.get_segments():
                assert {to_hex(c).upper() for c in drawn_lines.get_color()} == {colour}
    assert sum(numbers[::2]) > 0
    assert sum(numbers[1::2]) > 0
    written = " ".join(text.get_text() for axes in figure.axes for text in axes.texts)
    for number, row in enumerate(findings.measurement.layers):
        assert f"{row.kept:,} of {row.total:,} kept\n{row.effective:,} effective" in written
        assert f"{diagram.columns[number].size:,} " in written
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == [
        "live connection: on a path",
        "live unit",
        "dead connection: kept, but on no path",
        "dead unit",
    ]


def test_live_units_stand_above_all_others_and_apart():
    model = mlp(30, 20, 10)
    _, diagram = found(model, random_masks(model, 0.05), 30)
    places = heights(diagram)
    live = np.concatenate([p[c.live] for p, c in zip(places, diagram.columns, strict=True)])
    dead = np.concatenate([p[~c.live] for p, c in zip(places, diagram.columns, strict=True)])
    assert live.size
    assert dead.size
    assert live.min() > dead.max()
    for place in places:
        assert len(np.unique(place)) == len(place)
        assert ((place > 0) & (place < 1)).all()


def crossings(diagram: Diagram, places) -> int:
    total = 0
    for wires in diagram.wires:
        starts, ends = wires.ends.T
        left, right = places[wires.source][starts], places[wires.source + 1][ends]
        total += int(
            (np.subtract.outer(left, left) * np.subtract.outer(right, right) < 0).sum() // 2
        )
    return total


def test_sorted_units_tangle_less():
    model = mlp(40, 30, 10)
    _, diagram = found(model, random_masks(model, 0.05), 40)
    by_number = [-np.arange(len(column.units)) for column in diagram.columns]
    assert crossings(diagram, heights(diagram)) < 0.8 * crossings(diagram, by_number)


def test_what_is_too_large_is_not_drawn(monkeypatch):
    model = mlp(5, 4, 3)
    masks = Masks.dense(model)
    monkeypatch.setattr(diagrams, "LARGEST", 32)
    assert len(found(model, masks, 5)[1].wires) == 2
    monkeypatch.setattr(diagrams, "LARGEST", 31)
    with pytest.raises(TooLarge, match="32 lines"):
        found(model, masks, 5)
    monkeypatch.setattr(diagrams, "LARGEST", 32)
    monkeypatch.setattr(diagrams, "MOST_LAYERS", 1)
    with pytest.raises(TooLarge, match="2 layers"):
        found(model, masks, 5)


@pytest.mark.parametrize(
    ("form", "start"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")]
)
def test_equal_pictures_are_equal_files_and_name_their_command(form, start):
    model = mlp(5, 4, 3)
    findings, diagram = found(model, random_masks(model, 0.5), 5)
    first, second = (
        as_bytes(drawn(diagram, findings.measurement, "x"), form, "the command") for _ in range(2)
    )
    assert first == second
    assert first.startswith(start)
    assert b"the command" in first
