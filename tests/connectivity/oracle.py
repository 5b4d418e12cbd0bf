"""Small networks as plain values, and their connectivity by brute force: no torch in here.

A network is a program of frozen steps; every step knows its output's shape and its edges from the
definition of its operation. The graph is a plain list of edges in topological order, so that
reachability is one pass forwards and one pass backwards, and paths are counted in Python integers.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

Index = tuple[int, ...]
Label = tuple[str, Index]  # one connection: the parameter's name and the index of the weight
Edge = tuple[int, Index, Index, Label | None]  # operand, its element, the output's element, label


@dataclass(frozen=True)
class Value:
    """What flows: a shape without its batch, and which of its axes are the channels."""

    shape: Index
    axis: int = 0

    @property
    def channels(self) -> int:
        return self.shape[self.axis]

    @property
    def positions(self) -> Index:
        return self.shape[1:] if self.axis == 0 else self.shape[:-1]

    def elements(self) -> Iterator[Index]:
        return np.ndindex(*self.shape)

    def channel(self, element: Index) -> Index:
        return (element[self.axis],)


def places(value: Value) -> Iterator[Index]:
    return np.ndindex(*value.positions)


def rank_of(place: Index, positions: Index) -> int:
    """The number of a place when all are laid out in a row."""
    number = 0
    for at, size in zip(place, positions, strict=True):
        number = number * size + at
    return number


# --- the steps: `sources` are numbers of earlier values, the inputs of the network come first


@dataclass(frozen=True)
class Step:
    """One operation; most have no weights and say their edges between elements only."""

    sources: tuple[int, ...]

    def value(self, *inputs: Value) -> Value:
        return inputs[0]

    def weights(self, *inputs: Value) -> dict[str, Index]:
        return {}

    def edges(self, *inputs: Value) -> Iterator[Edge]:
        raise NotImplementedError

    def channel_edges(self, *inputs: Value) -> Iterator[Edge]:
        """The same edges between channels, each of them once."""
        output = self.value(*inputs)
        yield from dict.fromkeys(
            (operand, inputs[operand].channel(tail), output.channel(head), label)
            for operand, tail, head, label in self.edges(*inputs)
        )


@dataclass(frozen=True)
class Convolution(Step):
    """A convolution in any number of dimensions, or its transpose.

    ``owner`` is the layer whose weight is used: ``layer`` itself unless the two are tied.
    """

    layer: str
    owner: str
    channels: int
    kernel: Index
    stride: Index
    padding: Index | str
    dilation: Index
    groups: int = 1
    mode: str = "zeros"
    transposed: bool = False
    extra: Index = ()  # output_padding

    def sides(self) -> list[tuple[int, int]]:
        if self.padding == "same":
            reach = [d * (k - 1) for d, k in zip(self.dilation, self.kernel, strict=True)]
            return [(r // 2, r - r // 2) for r in reach]
        return [(p, p) for p in self.padding]

    def value(self, *inputs: Value) -> Value:
        sizes = []
        for axis, size in enumerate(inputs[0].positions):
            (left, right), s = self.sides()[axis], self.stride[axis]
            reach = self.dilation[axis] * (self.kernel[axis] - 1)
            if self.transposed:
                sizes.append((size - 1) * s - left - right + reach + self.extra[axis] + 1)
            else:
                sizes.append((size + left + right - reach - 1) // s + 1)
        return Value((self.channels, *sizes))

    def weights(self, *inputs: Value) -> dict[str, Index]:
        ends = self.channels, inputs[0].channels
        first, second = reversed(ends) if self.transposed else ends
        return {f"{self.owner}.weight": (first, second // self.groups, *self.kernel)}

    def pairs(self, inputs: int) -> Iterator[tuple[int, int, Index]]:
        """Channel in, channel out, and the start of their weights' index."""
        wide, narrow = inputs // self.groups, self.channels // self.groups
        for group, i, o in product(range(self.groups), range(wide), range(narrow)):
            tail, head = group * wide + i, group * narrow + o
            yield tail, head, (tail, o) if self.transposed else (head, i)

    def reaches(self, axis: int, size: int, out: int) -> list[tuple[int, int, int]]:
        """All (tap, place in, place out) that touch one another along one axis."""
        left, step, gap = self.sides()[axis][0], self.stride[axis], self.dilation[axis]
        found, starts = [], range(size if self.transposed else out)
        for tap, place in product(range(self.kernel[axis]), starts):
            if self.transposed:
                tail, head = place, place * step - left + tap * gap
                if not 0 <= head < out:
                    continue
            else:
                tail, head = padded(place * step - left + tap * gap, size, self.mode), place
                if tail is None:
                    continue
            found.append((tap, tail, head))
        return found

    def edges(self, *inputs: Value) -> Iterator[Edge]:
        sizes = zip(inputs[0].positions, self.value(*inputs).positions, strict=True)
        along = [self.reaches(axis, *both) for axis, both in enumerate(sizes)]
        touching = [tuple(zip(*one, strict=True)) for one in product(*along)]
        for tail, head, start in self.pairs(inputs[0].channels):
            for taps, places_in, places_out in touching:
                label = f"{self.owner}.weight", (*start, *taps)
                yield 0, (tail, *places_in), (head, *places_out), label

    def channel_edges(self, *inputs: Value) -> Iterator[Edge]:
        for tail, head, start in self.pairs(inputs[0].channels):
            for taps in np.ndindex(*self.kernel):
                yield 0, (tail,), (head,), (f"{self.owner}.weight", (*start, *taps))


def padded(place: int, size: int, mode: str) -> int | None:
    """Where a padded row takes what it shows at ``place``; None is a zero."""
    if 0 <= place < size:
        return place
    if mode == "circular":
        return place % size
    if mode == "replicate":
        return min(max(place, 0), size - 1)
    if mode == "reflect":
        return -place if place < 0 else 2 * (size - 1) - place
    return None


@dataclass(frozen=True)
class Linear(Step):
    """A linear layer over the last axis, with the rows of ``name`` from ``first`` on as its weight.

    Without a ``layer`` it is a part of an :class:`Attend`, which does its work.
    """

    layer: str
    name: str
    features: int
    first: int = 0
    rows: int = 0

    def value(self, *inputs: Value) -> Value:
        return Value((*inputs[0].shape[:-1], self.features), inputs[0].axis)

    def weights(self, *inputs: Value) -> dict[str, Index]:
        return {self.name: (self.rows or self.features, inputs[0].shape[-1])}

    def edges(self, *inputs: Value) -> Iterator[Edge]:
        before, width = np.ndindex(*inputs[0].shape[:-1]), inputs[0].shape[-1]
        for start, o, i in product(list(before), range(self.features), range(width)):
            yield 0, (*start, i), (*start, o), (self.name, (self.first + o, i))


@dataclass(frozen=True)
class Attend(Step):
    """Softmax attention of (query, key, value) tokens: a path runs through any of the three."""

    layer: str
    heads: int
    kind: str

    def edges(self, *inputs: Value) -> Iterator[Edge]:
        length, width = inputs[0].shape
        size = width // self.heads
        for here, unit in product(range(length), range(width)):
            start = unit - unit % size
            for other in range(start, start + size):
                yield 0, (here, other), (here, unit), None
            for there in range(length):
                yield 2, (there, unit), (here, unit), None
                for other in range(start, start + size):
                    yield 1, (there, other), (here, unit), None


@dataclass(frozen=True)
class Elementwise(Step):
    """An activation, a norm or the like: every element for itself."""

    kind: str
    layer: str = ""

    def edges(self, *inputs: Value) -> Iterator[Edge]:
        for element in inputs[0].elements():
            yield 0, element, element, None


@dataclass(frozen=True)
class Softmax(Step):
    """Along the first axis: every element depends on all of its row."""

    def edges(self, *inputs: Value) -> Iterator[Edge]:
        for first, *rest in inputs[0].elements():
            for other in range(inputs[0].shape[0]):
                yield 0, (other, *rest), (first, *rest), None


@dataclass(frozen=True)
class Merge(Step):
    """A sum, a product or the like of operands that are broadcast against one another."""

    kind: str

    def value(self, *inputs: Value) -> Value:
        return Value(tuple(max(sizes) for sizes in zip(*(v.shape for v in inputs), strict=True)))

    def edges(self, *inputs: Value) -> Iterator[Edge]:
        for operand, given in enumerate(inputs):
            for head in self.value(*inputs).elements():
                tail = (0 if size == 1 else at for at, size in zip(head, given.shape, strict=True))
                yield operand, tuple(tail), head, None


@dataclass(frozen=True)
class Concat(Step):
    """Operands side by side, along the channels."""

    def value(self, *inputs: Value) -> Value:
        return Value((sum(v.channels for v in inputs), *inputs[0].positions))

    def edges(self, *inputs: Value) -> Iterator[Edge]:
        start = 0
        for operand, given in enumerate(inputs):
            for channel, *place in given.elements():
                yield operand, (channel, *place), (start + channel, *place), None
            start += given.channels


@dataclass(frozen=True)
class Pool(Step):
    """The mean or the maximum of windows."""

    kind: str
    kernel: Index
    stride: Index
    padding: Index
    dilation: Index
    ceil: bool

    def value(self, *inputs: Value) -> Value:
        sizes = []
        for size, k, s, p, d in zip(
            inputs[0].positions, self.kernel, self.stride, self.padding, self.dilation, strict=True
        ):
            room = size + 2 * p - d * (k - 1) - 1
            many = (-(-room // s) if self.ceil else room // s) + 1
            sizes.append(many - (self.ceil and (many - 1) * s >= size + p))
        return Value((inputs[0].channels, *sizes))

    def edges(self, *inputs: Value) -> Iterator[Edge]:
        output = self.value(*inputs)
        for channel, *place in output.elements():
            taps = np.ndindex(*self.kernel)
            for tap in taps:
                tail = [
                    at * s - p + t * d
                    for at, s, p, t, d in zip(
                        place, self.stride, self.padding, tap, self.dilation, strict=True
                    )
                ]
                if all(0 <= at < n for at, n in zip(tail, inputs[0].positions, strict=True)):
                    yield 0, (channel, *tail), (channel, *place), None


@dataclass(frozen=True)
class AdaptivePool(Step):
    """The mean or the maximum of as many windows as are wanted."""

    kind: str
    size: Index

    def value(self, *inputs: Value) -> Value:
        return Value((inputs[0].channels, *self.size))

    def edges(self, *inputs: Value) -> Iterator[Edge]:
        sizes = inputs[0].positions
        for channel, *place in self.value(*inputs).elements():
            windows = [
                range(math.floor(at * n / many), math.ceil((at + 1) * n / many))
                for at, n, many in zip(place, sizes, self.size, strict=True)
            ]
            for tail in product(*windows):
                yield 0, (channel, *tail), (channel, *place), None


@dataclass(frozen=True)
class Reduce(Step):
    """The mean, sum or maximum of all positions; ``keep`` leaves them as axes of size one."""

    kind: str
    keep: bool

    def value(self, *inputs: Value) -> Value:
        return Value((inputs[0].channels, *([1] * len(inputs[0].positions) * self.keep)))

    def edges(self, *inputs: Value) -> Iterator[Edge]:
        rest = self.value(*inputs).positions
        for element in inputs[0].elements():
            yield 0, element, (*inputs[0].channel(element), *(0 for _ in rest)), None


@dataclass(frozen=True)
class Upsample(Step):
    """Every place repeated, by the nearest neighbour."""

    scale: int

    def value(self, *inputs: Value) -> Value:
        return Value((inputs[0].channels, *(n * self.scale for n in inputs[0].positions)))

    def edges(self, *inputs: Value) -> Iterator[Edge]:
        for channel, *place in self.value(*inputs).elements():
            yield 0, (channel, *(at // self.scale for at in place)), (channel, *place), None


@dataclass(frozen=True)
class Pad(Step):
    """Zeros around the last axis, or less of it where ``before`` and ``after`` are negative."""

    before: int
    after: int

    def value(self, *inputs: Value) -> Value:
        *rest, last = inputs[0].shape
        return Value((*rest, self.before + last + self.after))

    def edges(self, *inputs: Value) -> Iterator[Edge]:
        wide = self.value(*inputs).shape[-1]
        for *rest, last in inputs[0].elements():
            if 0 <= last + self.before < wide:
                yield 0, (*rest, last), (*rest, last + self.before), None


@dataclass(frozen=True)
class Pick(Step):
    """Some indices of one axis: a slice, a chunk, a list."""

    axis: int
    picked: Index
    kind: str

    def value(self, *inputs: Value) -> Value:
        shape = list(inputs[0].shape)
        shape[self.axis] = len(self.picked)
        return Value(tuple(shape))

    def edges(self, *inputs: Value) -> Iterator[Edge]:
        for head in self.value(*inputs).elements():
            tail = list(head)
            tail[self.axis] = self.picked[head[self.axis]]
            yield 0, tuple(tail), head, None


@dataclass(frozen=True)
class Overwrite(Step):
    """The first operand with the second written over (or added to) its channels from ``start``."""

    start: int
    kind: str

    def edges(self, *inputs: Value) -> Iterator[Edge]:
        written = range(self.start, self.start + inputs[1].channels)
        for element in inputs[0].elements():
            if element[0] not in written or self.kind != "copy":
                yield 0, element, element, None
        for channel, *place in inputs[1].elements():
            yield 1, (channel, *place), (self.start + channel, *place), None


@dataclass(frozen=True)
class Shuffle(Step):
    """The channels of ShuffleNet: groups x width is read as width x groups."""

    groups: int

    def edges(self, *inputs: Value) -> Iterator[Edge]:
        width = inputs[0].channels // self.groups
        for channel, *place in inputs[0].elements():
            group, unit = divmod(channel, width)
            yield 0, (channel, *place), (unit * self.groups + group, *place), None


@dataclass(frozen=True)
class Flatten(Step):
    """(channels, positions) in a row: every element is a channel of its own now."""

    kind: str

    def value(self, *inputs: Value) -> Value:
        return Value((math.prod(inputs[0].shape),))

    def edges(self, *inputs: Value) -> Iterator[Edge]:
        for element in inputs[0].elements():
            yield 0, element, (rank_of(element, inputs[0].shape),), None


@dataclass(frozen=True)
class Unflatten(Step):
    """A row as (channels, positions)."""

    shape: Index

    def value(self, *inputs: Value) -> Value:
        return Value(self.shape)

    def edges(self, *inputs: Value) -> Iterator[Edge]:
        for element in np.ndindex(*self.shape):
            yield 0, (rank_of(element, self.shape),), element, None


@dataclass(frozen=True)
class ToTokens(Step):
    """(channels, positions) as (length, channels)."""

    def value(self, *inputs: Value) -> Value:
        return Value((math.prod(inputs[0].positions), inputs[0].channels), -1)

    def edges(self, *inputs: Value) -> Iterator[Edge]:
        for channel, *place in inputs[0].elements():
            length = rank_of(tuple(place), inputs[0].positions)
            yield 0, (channel, *place), (length, channel), None


@dataclass(frozen=True)
class FromTokens(Step):
    """(length, channels) as (channels, positions)."""

    positions: Index

    def value(self, *inputs: Value) -> Value:
        return Value((inputs[0].channels, *self.positions))

    def edges(self, *inputs: Value) -> Iterator[Edge]:
        for place in np.ndindex(*self.positions):
            for channel in range(inputs[0].channels):
                yield 0, (rank_of(place, self.positions), channel), (channel, *place), None


# --- the network, its graph and what follows


@dataclass(frozen=True)
class Net:
    """A program: the shapes of its inputs, its steps, and the numbers of the values it returns."""

    inputs: tuple[Index, ...]
    steps: tuple[Step, ...]
    outputs: tuple[int, ...] = (-1,)

    def values(self) -> list[Value]:
        values = [Value(shape) for shape in self.inputs]
        for step in self.steps:
            values.append(step.value(*(values[source] for source in step.sources)))
        return values

    def weights(self) -> dict[str, Index]:
        values, shapes = self.values(), {}
        for step in self.steps:
            shapes.update(step.weights(*(values[source] for source in step.sources)))
        return shapes


Arrays = Mapping[str, np.ndarray]


class Graph:
    """The network as a list of edges (tail, head, connection or None) in topological order."""

    def __init__(self, net: Net, resolution: str) -> None:
        values = net.values()
        self.shapes = net.weights()
        self.number: dict[tuple[int, Index], int] = {}
        self.channel: dict[int, tuple[int, Index]] = {}
        self.edges: list[tuple[int, int, Label | None]] = []
        for at, value in enumerate(values):
            for element in value.elements():
                unit = element if resolution == "element" else value.channel(element)
                number = self.number.setdefault((at, unit), len(self.number))
                self.channel[number] = at, value.channel(element)
        for at, step in enumerate(net.steps, len(net.inputs)):
            given = [values[source] for source in step.sources]
            found = step.edges(*given) if resolution == "element" else step.channel_edges(*given)
            for operand, tail, head, label in found:
                ends = self.number[step.sources[operand], tail], self.number[at, head]
                self.edges.append((*ends, label))
        self.outputs = self._units(at % len(values) for at in net.outputs)
        self.inputs = self._units(range(len(net.inputs)))

    def _units(self, values: Sequence[int] | Iterator[int]) -> set[int]:
        chosen = set(values)
        return {number for (at, _), number in self.number.items() if at in chosen}

    def kept(self, masks: Arrays) -> list[tuple[int, int, Label | None]]:
        """The edges that the masks leave; what has no mask is there always."""
        there = {
            (name, tuple(index)) for name, m in masks.items() for index in np.argwhere(m).tolist()
        }
        return [e for e in self.edges if e[2] is None or e[2] in there or e[2][0] not in masks]

    def alive(self, masks: Arrays) -> tuple[list[tuple[int, int, Label | None]], set[int]]:
        """The edges and the nodes on at least one path from an input to an output."""
        edges = self.kept(masks)
        reached, needed = set(self.inputs), set(self.outputs)
        for tail, head, _ in edges:
            if tail in reached:
                reached.add(head)
        for tail, head, _ in reversed(edges):
            if head in needed:
                needed.add(tail)
        return [e for e in edges if e[0] in reached and e[1] in needed], reached & needed

    def effective(self, masks: Arrays) -> dict[str, np.ndarray]:
        found = {name: np.zeros(mask.shape, bool) for name, mask in masks.items()}
        for _, _, label in self.alive(masks)[0]:
            if label is not None and label[0] in found:
                found[label[0]][label[1]] = True
        return found

    def thresholds(self, scores: Arrays) -> dict[str, np.ndarray]:
        """The highest threshold at which a connection is effective, by trying every one."""
        found = {n: np.full(s.shape, -np.inf, s.dtype) for n, s in scores.items()}
        for level in sorted({x for s in scores.values() for x in s.ravel().tolist()}):
            for name, there in self.effective({n: s >= level for n, s in scores.items()}).items():
                found[name][there] = level
        return found

    def paths(self, masks: Arrays) -> int:
        ways = [0] * len(self.number)
        for unit in self.inputs:
            ways[unit] = 1
        for tail, head, _ in self.kept(masks):
            ways[head] += ways[tail]
        return sum(ways[unit] for unit in self.outputs)

    def nodes(self, masks: Arrays) -> dict[str, int]:
        """How many channels are on a path and enter each layer, and how many are at the ends."""
        edges, units = self.alive(masks)
        into: dict[str, set[int]] = {name: set() for name in self.shapes}
        for tail, _, label in edges:
            if label is not None:
                into[label[0]].add(tail)
        every = into | {"input": units & self.inputs, "output": units & self.outputs}
        return {name: len({self.channel[u] for u in some}) for name, some in every.items()}


def log10(paths: int) -> float:
    return math.log10(paths) if paths else -math.inf
