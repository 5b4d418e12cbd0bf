"""Random small networks: what :mod:`oracle` reads, the same as a module, and masks and scores."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count

import numpy as np
import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from oracle import (
    AdaptivePool,
    Attend,
    Concat,
    Convolution,
    Elementwise,
    Flatten,
    FromTokens,
    Index,
    Linear,
    Merge,
    Net,
    Overwrite,
    Pad,
    Pick,
    Pool,
    Reduce,
    Shuffle,
    Softmax,
    Step,
    ToTokens,
    Unflatten,
    Upsample,
    Value,
)
from torch import Tensor, nn

__all__ = ["EVERY_STEP", "Network", "draw_masks", "draw_scores", "nets"]


# --- a description as a module


class Network(nn.Module):
    """The module that does what a :class:`oracle.Net` says."""

    def __init__(self, net: Net) -> None:
        super().__init__()
        self.net = net
        values = net.values()
        for step in net.steps:
            given = [values[source] for source in step.sources]
            layer = getattr(step, "layer", "")
            if layer and not hasattr(self, layer):
                self.add_module(layer, _layer(step, *given))
                owner = _owner(step)
                if owner != layer:
                    self.get_submodule(layer).weight = self.get_submodule(owner).weight

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        values = list(inputs)
        for step in self.net.steps:
            values.append(self._run(step, *(values[source] for source in step.sources)))
        outputs = tuple(values[at] for at in self.net.outputs)
        return outputs if len(outputs) > 1 else outputs[0]

    def _run(self, step: Step, x: Tensor, *others: Tensor) -> Tensor:
        layer = getattr(step, "layer", "")
        if isinstance(step, Attend):
            wanted = step.kind == "need_weights"
            return self.get_submodule(layer)(x, x, x, need_weights=wanted)[0]
        if layer:
            return self.get_submodule(layer)(x)
        return _WAYS[type(step)](step, x, *others)


def _owner(step: Step) -> str:
    if isinstance(step, Linear):
        return step.name.removesuffix(".weight")
    return getattr(step, "owner", step.layer)


def _layer(step: Step, given: Value, *_: Value) -> nn.Module:
    dims = len(given.positions)
    match step:
        case Convolution():
            settings = {
                "kernel_size": step.kernel,
                "stride": step.stride,
                "padding": step.padding,
                "dilation": step.dilation,
                "groups": step.groups,
                "padding_mode": step.mode,
            }
            if step.transposed:
                kind = (nn.ConvTranspose1d, nn.ConvTranspose2d)[dims - 1]
                settings["output_padding"] = step.extra
            else:
                kind = (nn.Conv1d, nn.Conv2d)[dims - 1]
            return kind(given.channels, step.channels, **settings)
        case Linear():
            return nn.Linear(given.shape[-1], step.features)
        case Attend():
            return nn.MultiheadAttention(given.shape[-1], step.heads, batch_first=True)
        case Elementwise(kind="batch_norm"):
            return (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d)[dims](given.channels)
        case Elementwise(kind="layer_norm"):
            return nn.LayerNorm(given.shape)
        case Elementwise(kind="group_norm"):
            return nn.GroupNorm(1, given.channels)
        case Elementwise(kind="dropout"):
            return nn.Dropout(0.5)
        case Elementwise(kind="prelu"):
            return nn.PReLU(given.channels)
    raise NotImplementedError(step)


_ELEMENTWISE: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "relu_": torch.relu_,
    "hard_swish_": lambda x: F.hardswish(x, inplace=True),
    "leaky_relu_": lambda x: F.leaky_relu(x, inplace=True),
    "mul_": lambda x: x.mul_(0.5),
    "sigmoid": torch.sigmoid,
    "gelu": F.gelu,
    "negate": lambda x: 1 - x,
    "square": lambda x: x**2,
    "clamp": lambda x: x.clamp(min=0),
    "zero": lambda x: x * 0,
    "clone": torch.clone,
    "contiguous": lambda x: x.contiguous(),
    "double": lambda x: x.double().to(x.dtype),
}
_POOLS = {
    ("avg", 1): F.avg_pool1d,
    ("avg", 2): F.avg_pool2d,
    ("max", 1): F.max_pool1d,
    ("max", 2): F.max_pool2d,
}
_ADAPTIVE_POOLS = {
    ("avg", 1): F.adaptive_avg_pool1d,
    ("avg", 2): F.adaptive_avg_pool2d,
    ("max", 1): F.adaptive_max_pool1d,
    ("max", 2): F.adaptive_max_pool2d,
}


def _merge(step: Merge, x: Tensor, *others: Tensor) -> Tensor:
    if step.kind == "stack":
        return torch.stack(torch.broadcast_tensors(x, *others)).sum(0)
    for y in others:
        match step.kind:
            case "add":
                x = x + y
            case "add_":
                x += y
            case "alpha":
                x = torch.add(x, y, alpha=0.5)
            case "subtract":
                x = x - y
            case "multiply":
                x = x * y
            case "maximum":
                x = torch.maximum(x, y)
            case "addcmul":
                x = torch.addcmul(x, y, torch.ones(()))
            case _:
                raise NotImplementedError(step)
    return x


def _pool(step: Pool, x: Tensor) -> Tensor:
    function = _POOLS[step.kind, len(step.kernel)]
    settings = {"stride": step.stride, "padding": step.padding, "ceil_mode": step.ceil}
    if step.kind == "max":
        settings["dilation"] = step.dilation
    return function(x, step.kernel, **settings)


def _reduce(step: Reduce, x: Tensor) -> Tensor:
    axes = tuple(range(2, x.dim()))
    function = {"mean": torch.mean, "sum": torch.sum, "max": torch.amax}[step.kind]
    return function(x, axes, keepdim=step.keep)


def _pick(step: Pick, x: Tensor) -> Tensor:
    axis, picked = step.axis + 1, list(step.picked)
    match step.kind:
        case "slice":
            by = picked[1] - picked[0] if len(picked) > 1 else 1
            return x[(slice(None),) * axis + (slice(picked[0], picked[-1] + 1, by),)]
        case "narrow":
            return x.narrow(axis, picked[0], len(picked))
        case "chunk":
            many = x.shape[axis] // len(picked)
            return x.chunk(many, axis)[picked[0] // len(picked)]
        case "split":
            return x.split(len(picked), axis)[picked[0] // len(picked)]
        case "list":
            return x[(slice(None),) * axis + (picked,)]
        case "index_select":
            return x.index_select(axis, torch.tensor(picked))
        case "flip":
            return x.flip(axis)
    raise NotImplementedError(step)


def _overwrite(step: Overwrite, x: Tensor, y: Tensor) -> Tensor:
    end = step.start + y.shape[1]
    if step.kind == "copy":
        x[:, step.start : end] = y
    elif step.kind == "add":
        x[:, step.start : end] += y
    else:
        x.narrow(1, step.start, y.shape[1]).add_(y)
    return x


def _shuffle(step: Shuffle, x: Tensor) -> Tensor:
    return x.unflatten(1, (step.groups, -1)).transpose(1, 2).flatten(1, 2)


def _flatten(step: Flatten, x: Tensor) -> Tensor:
    return {
        "flatten": lambda: x.flatten(1),
        "reshape": lambda: x.reshape(x.shape[0], -1),
        "view": lambda: x.contiguous().view(x.size(0), -1),
    }[step.kind]()


_WAYS: dict[type[Step], Callable[..., Tensor]] = {
    Linear: lambda step, x: x,  # the attention that it is a part of does it
    Elementwise: lambda step, x: _ELEMENTWISE[step.kind](x),
    Softmax: lambda step, x: x.softmax(1),
    Merge: _merge,
    Concat: lambda step, *xs: torch.cat(xs, 1),
    Pool: _pool,
    AdaptivePool: lambda step, x: _ADAPTIVE_POOLS[step.kind, len(step.size)](x, step.size),
    Reduce: _reduce,
    Upsample: lambda step, x: F.interpolate(x, scale_factor=step.scale),
    Pad: lambda step, x: F.pad(x, (step.before, step.after)),
    Pick: _pick,
    Overwrite: _overwrite,
    Shuffle: _shuffle,
    Flatten: _flatten,
    Unflatten: lambda step, x: x.view(x.shape[0], *step.shape),
    ToTokens: lambda step, x: x.flatten(2).transpose(1, 2),
    FromTokens: lambda step, x: x.transpose(1, 2).reshape(x.shape[0], -1, *step.positions),
}


# --- drawing descriptions


@dataclass
class Draft:
    """A network that is being written: what is drawn is appended."""

    draw: Callable
    inputs: list[Value]
    steps: list[Step]
    numbers: count

    def put(self, step: Step) -> int:
        self.steps.append(step)
        return len(self.inputs) + len(self.steps) - 1

    def value(self, at: int) -> Value:
        return Net(tuple(v.shape for v in self.inputs), tuple(self.steps)).values()[at]

    def one(self, *choices):
        return self.draw(st.sampled_from(choices))

    def some(self, least: int, most: int) -> int:
        """A number within the bounds, all of them alike."""
        return self.one(*range(least, most + 1))

    def name(self, kind: str) -> str:
        return f"{kind}{next(self.numbers)}"

    # layers

    def conv(self, x, channels=None, same=False, groups=1, kernel=None):
        """A random convolution that fits: ``same`` keeps the size."""
        given = self.value(x)
        layer = self.name("conv")
        name = same and self.one(True, False)  # "same" splits what is odd, numbers cannot
        kernels, strides, paddings, dilations = [], [], [], []
        for size in given.positions:
            k = kernel or (self.one(1, 2, 3) if not same or name else self.one(1, 3))
            d = self.some(1, 2)
            if same:
                s, p = 1, d * (k - 1) // 2
            else:
                s, p = self.some(1, 3), self.one(0, 0, 1, 2, 3)
                if size + 2 * p < d * (k - 1) + 1:
                    k, d = min(k, size + 2 * p), 1
            kernels.append(k), strides.append(s), paddings.append(p), dilations.append(d)
        padding = "same" if name else tuple(paddings)
        shape = zip(dilations, kernels, paddings, strict=True)
        most = max(d * (k - 1) if name else p for d, k, p in shape)
        modes = ["zeros", "zeros", "zeros", "replicate"]
        if most <= min(given.positions):
            modes.append("circular")
        if most < min(given.positions):
            modes.append("reflect")
        channels = channels or self.some(1, 4 if groups == 1 else 2) * groups
        step = Convolution(
            (x,),
            layer,
            layer,
            channels,
            tuple(kernels),
            tuple(strides),
            padding,
            tuple(dilations),
            groups,
            self.one(*modes) if most else "zeros",
        )
        return self.put(step)

    def transposed(self, x, groups=1):
        given, layer = self.value(x), self.name("up")
        kernels, strides, paddings, dilations, extras = [], [], [], [], []
        for size in given.positions:
            k, s, d = self.some(1, 3), self.some(1, 2), self.some(1, 2)
            extra = self.some(0, max(s, d) - 1)
            p = self.some(0, 2)
            while (size - 1) * s - 2 * p + d * (k - 1) + extra + 1 < 1:
                p -= 1
            kernels.append(k), strides.append(s), dilations.append(d)
            paddings.append(p), extras.append(extra)
        shape = tuple(kernels), tuple(strides), tuple(paddings), tuple(dilations)
        channels = self.some(1, 2) * groups
        return self.put(
            Convolution(
                (x,), layer, layer, channels, *shape, groups, transposed=True, extra=tuple(extras)
            )
        )

    def linear(self, x, features=None):
        layer = self.name("linear")
        features = features or self.some(1, 6)
        return self.put(Linear((x,), layer, f"{layer}.weight", features))

    def again(self, step_at, x):
        """The layer of an earlier step once more; or another one that has the same weight."""
        step = self.steps[step_at - len(self.inputs)]
        if self.one(True, False):
            return self.put(_changed(step, sources=(x,)))
        return self.put(_changed(step, sources=(x,), layer=self.name("tied")))

    def elementwise(self, x, kind):
        needs_layer = {"batch_norm", "layer_norm", "group_norm", "dropout", "prelu"}
        return self.put(Elementwise((x,), kind, self.name(kind) if kind in needs_layer else ""))

    def activation(self, x, fresh=False):
        """Perhaps an activation or a norm; in place only on what is ``fresh`` and linear."""
        kinds = ["relu", "sigmoid", "gelu", "layer_norm", "dropout", "negate", "clamp"]
        kinds += ["softmax", "clone", "contiguous", "double", "square", "zero"]
        given = self.value(x)
        if given.axis == 0:
            kinds += ["batch_norm", "batch_norm", "prelu"]
        if given.axis == 0 and math.prod(given.shape) > 1:
            kinds.append("group_norm")
        if fresh:
            kinds += ["relu_", "hard_swish_", "leaky_relu_", "mul_"] * 2
        kind = self.one("nothing", *kinds)
        if kind == "softmax":
            return self.put(Softmax((x,)))
        return x if kind == "nothing" else self.elementwise(x, kind)

    def layer(self, x, **settings):
        """A convolution or linear layer of the same size, as the value asks for."""
        given = self.value(x)
        if len(given.shape) == 1:
            return self.linear(x, settings.get("channels"))
        return self.conv(x, same=True, **settings)

    def copy(self, x):
        """A tensor of its own with the same elements, which may be written to."""
        return self.put(Elementwise((x,), "clone"))


def _changed(step: Step, **changes) -> Step:
    return type(step)(**(step.__dict__ | changes))


# --- the kinds of steps: each takes a draft and a value, and returns a new value


def conv(d: Draft, x: int) -> int:
    return d.activation(d.conv(x), fresh=True)


def conv_same(d: Draft, x: int) -> int:
    return d.activation(d.conv(x, same=True), fresh=True)


def grouped(d: Draft, x: int) -> int:
    channels = d.value(x).channels
    groups = d.one(*(g for g in range(1, channels + 1) if channels % g == 0))
    return d.activation(d.conv(x, groups=groups), fresh=True)


def depthwise(d: Draft, x: int) -> int:
    channels = d.value(x).channels
    wide = d.conv(x, channels * d.some(1, 2), same=d.one(True, False), groups=channels)
    return d.conv(wide, same=True, kernel=1)


def transposed(d: Draft, x: int) -> int:
    channels = d.value(x).channels
    groups = d.one(*(g for g in range(1, channels + 1) if channels % g == 0))
    return d.activation(d.transposed(x, groups), fresh=True)


def residual(d: Draft, x: int) -> int:
    channels = d.value(x).channels
    if d.one(True, False):
        channels = d.some(1, 4)
    shortcut = x if channels == d.value(x).channels else d.layer(x, channels=channels)
    inner = d.activation(d.layer(x, channels=d.some(1, 3)), fresh=True) if d.one(True, False) else x
    y = d.layer(inner, channels=channels)
    y = d.activation(y)
    kind = d.one("add", "alpha", "subtract", "stack", "maximum", "addcmul")
    if d.one(True, False):
        y, kind = d.copy(y), "add_"
    return d.put(Merge((y, shortcut), kind))


def doubled(d: Draft, x: int) -> int:
    """The same tensor twice: two edges from every element."""
    return d.put(Merge((x, x), d.one("add", "multiply")))


def concat(d: Draft, x: int) -> int:
    y = d.activation(d.layer(x, channels=d.some(1, 2)))
    parts = d.one((x, y), (y, x), (y, y), (y, x, y))
    return d.put(Concat(parts))


def pool(d: Draft, x: int) -> int:
    kind = d.one("avg", "max")
    kernels, strides, paddings, dilations = [], [], [], []
    for size in d.value(x).positions:
        k = d.some(1, 3)
        p = d.some(0, k // 2)
        k = min(k, size + 2 * p)
        p = min(p, k // 2)
        gap = 2 if kind == "max" and k == 2 and size >= 3 and d.one(True, False) else 1
        kernels.append(k), strides.append(d.some(1, 3)), dilations.append(gap)
        paddings.append(0 if gap > 1 else p)
    return d.put(
        Pool(
            (x,),
            kind,
            tuple(kernels),
            tuple(strides),
            tuple(paddings),
            tuple(dilations),
            d.one(True, False),
        )
    )


def adaptive_pool(d: Draft, x: int) -> int:
    size = tuple(d.some(1, n + 1) for n in d.value(x).positions)
    return d.put(AdaptivePool((x,), d.one("avg", "max"), size))


def upsample(d: Draft, x: int) -> int:
    small = d.put(AdaptivePool((x,), "avg", tuple(d.some(1, 2) for _ in d.value(x).positions)))
    return d.conv(d.put(Upsample((small,), d.some(2, 3))))


def pad(d: Draft, x: int) -> int:
    last = d.value(x).shape[-1]
    before = d.some(-1 if last > 2 else 0, 1)
    return d.conv(d.put(Pad((x,), before, d.some(-1 if last > 2 else 0, 1))))


def gate(d: Draft, x: int) -> int:
    """x * sigmoid(branch), where the branch has all elements, one a channel or one a place."""
    channels, positions = d.value(x).channels, d.value(x).positions
    if not positions:
        branch = d.linear(x, channels)
    elif d.one(True, False):
        branch = d.conv(x, d.one(1, channels), same=True)
    else:
        pooled = d.put(Reduce((x,), d.one("mean", "sum", "max"), True))
        branch = d.conv(pooled, channels, same=True, kernel=1)
    if d.one(True, False):
        branch = d.elementwise(branch, "sigmoid")
    return d.put(Merge(d.one((x, branch), (branch, x)), "multiply"))


def squeeze_excite(d: Draft, x: int) -> int:
    given = d.value(x)
    squeezed = d.put(Reduce((x,), "mean", False))
    inner = d.elementwise(d.linear(squeezed, d.some(1, 2)), d.one("relu", "relu_"))
    excited = d.elementwise(d.linear(inner, given.channels), "sigmoid")
    wide = d.put(Unflatten((excited,), (given.channels, *(1 for _ in given.positions))))
    return d.put(Merge((x, wide), "multiply"))


def tied_in_a_row(d: Draft, x: int) -> int:
    first = d.layer(x, channels=d.value(x).channels)
    return d.again(first, d.activation(first))


def tied_branches(d: Draft, x: int) -> int:
    """The same layer on two tensors: on halves of one, or on a tensor and on what became of it."""
    channels = d.value(x).channels
    if channels % 2 == 0 and d.one(True, False):
        half = channels // 2
        parts = [d.put(Pick((x,), 0, tuple(range(a, a + half)), "chunk")) for a in (0, half)]
    else:
        parts = [x, d.layer(x, channels=channels)]
    first = d.layer(parts[0], channels=d.some(1, 3))
    second = d.again(first, parts[1])
    if d.one(True, False):
        return d.put(Merge((first, second), "add"))
    return d.put(Concat((first, second)))


def shuffle(d: Draft, x: int) -> int:
    groups = d.one(2, 3)
    wide = d.layer(x, channels=groups * d.some(1, 2))
    mixed = d.put(Shuffle((wide,), groups))
    if not d.value(x).positions:
        return mixed
    return d.conv(mixed, groups=groups)


def chunks(d: Draft, x: int) -> int:
    """One part goes through a layer, and all parts are put together again."""
    half = d.some(1, 2)
    wide = d.layer(x, channels=2 * half)
    way = d.one("chunk", "split", "narrow", "slice")
    first, second = (d.put(Pick((wide,), 0, tuple(range(a, a + half)), way)) for a in (0, half))
    first = d.activation(d.layer(first, channels=d.one(half, half, 1)))
    return d.put(Concat(d.one((first, second), (second, first), (first,))))


def pick(d: Draft, x: int) -> int:
    """Some channels or some places, by a slice, in any order or in reverse."""
    shape = d.value(x).shape
    axis = d.some(0, len(shape) - 1)
    size = shape[axis]
    way = d.one("slice", "list", "index_select", "flip")
    if way == "slice":
        start = d.some(0, size - 1)
        picked = tuple(range(start, d.some(start + 1, size), d.some(1, 2)))
    elif way == "flip":
        picked = tuple(reversed(range(size)))
    else:
        picked = tuple(d.some(0, size - 1) for _ in range(d.some(1, 3)))
    y = d.put(Pick((x,), axis, picked, way))
    return d.layer(y)


def overwrite(d: Draft, x: int) -> int:
    channels = d.some(2, 4)
    target = d.layer(x, channels=channels)
    many = d.some(1, channels)
    y = d.layer(x, channels=many)
    return d.put(Overwrite((target, y), d.some(0, channels - many), d.one("copy", "add", "narrow")))


def tokens(d: Draft, x: int) -> int:
    """A linear layer over the channels of tokens, and back to a map or on to their mean."""
    positions = d.value(x).positions
    there = d.put(ToTokens((x,)))
    inner = d.activation(d.linear(there, d.some(1, 4)), fresh=True)
    if d.one(True, False):
        inner = d.linear(inner, d.some(1, 3))
    return d.put(FromTokens((inner,), positions))


def mixer(d: Draft, x: int) -> int:
    """A linear layer over the last axis of positions."""
    return d.linear(x, d.some(1, 3))


def attention(d: Draft, x: int) -> int:
    positions = d.value(x).positions
    heads = d.some(1, 2)
    width = heads * d.some(1, 2)
    there = d.put(ToTokens((d.layer(x, channels=width),)))
    layer = d.name("attention")
    parts = [
        d.put(Linear((there,), "", f"{layer}.in_proj_weight", width, row * width, 3 * width))
        for row in range(3)
    ]
    mixed = d.put(Attend(tuple(parts), layer, heads, d.one("need_weights", "fused")))
    y = d.put(Linear((mixed,), "", f"{layer}.out_proj.weight", width))
    return d.put(FromTokens((y,), positions))


def flat_and_back(d: Draft, x: int) -> int:
    flat = d.put(Flatten((x,), d.one("flatten", "reshape", "view")))
    shape = (d.some(1, 2), *(d.some(1, 2) for _ in d.value(x).positions))
    return d.conv(d.put(Unflatten((d.linear(flat, math.prod(shape)),), shape)))


def unused(d: Draft, x: int) -> int:
    """A layer whose output nobody takes."""
    d.layer(x)
    return x


def linear(d: Draft, x: int) -> int:
    return d.activation(d.linear(x), fresh=True)


FLAT_STEPS = [linear, residual, doubled, concat, gate, tied_in_a_row, tied_branches, shuffle]
FLAT_STEPS += [chunks, pick, overwrite, unused]
MAP_STEPS = [conv, conv_same, grouped, depthwise, transposed, residual, doubled, concat, pool]
MAP_STEPS += [adaptive_pool, upsample, pad, gate, squeeze_excite, tied_in_a_row, tied_branches]
MAP_STEPS += [shuffle, chunks, pick, overwrite, tokens, flat_and_back, unused]
EVERY_STEP = [("flat", step) for step in FLAT_STEPS] + [("map", step) for step in MAP_STEPS]


@st.composite
def nets(draw, step=None, form=None, others=None):
    """A network of up to four random steps and a head; one of them is ``step`` if it is given."""
    form = form or draw(st.sampled_from(["flat", "map", "map", "map"]))
    kinds = FLAT_STEPS if form == "flat" else MAP_STEPS
    chosen = draw(st.lists(st.sampled_from(others or kinds), max_size=2 if step else 3))
    chosen.insert(draw(st.integers(0, len(chosen))), step or draw(st.sampled_from(kinds)))
    sizes = {"flat": st.just([6]), "map": st.sampled_from([[3, 5], [3, 4, 4]])}[form]
    shape = tuple(draw(st.sampled_from(range(1, most + 1))) for most in draw(sizes))
    shapes = (shape,) * draw(st.sampled_from([1, 1, 1, 2]))
    d = Draft(draw, [Value(shape) for shape in shapes], [], count())
    x = 0
    if len(shapes) > 1:
        first, second = d.layer(0, channels=2), d.layer(1, channels=d.some(1, 2))
        x = d.put(Concat((first, second)))
    for kind in chosen:
        x = _small(d, kind(d, x))
    if d.value(x).positions:
        match d.one("flatten", "mean", "conv"):
            case "flatten":
                x = d.linear(d.put(Flatten((x,), "flatten")), d.some(1, 3))
            case "mean":
                pooled = d.put(Reduce((x,), d.one("mean", "sum", "max"), False))
                x = d.linear(pooled, d.some(1, 3))
            case "conv":
                x = d.conv(x)
    else:
        x = d.linear(x, d.some(1, 3))
    return Net(shapes, tuple(d.steps))


def _small(d: Draft, x: int) -> int:
    """Keep values small, so that brute force stays quick."""
    given = d.value(x)
    if any(size > 5 for size in given.positions):
        x = d.put(AdaptivePool((x,), "max", tuple(min(size, 3) for size in given.positions)))
    if given.channels > 6:
        x = d.put(Pick((x,), 0, tuple(range(6)), "slice"))
    return x


# --- masks and scores


SEEDS = st.integers(0, 2**32 - 1)


@st.composite
def draw_masks(draw, shapes: dict[str, Index]):
    generator = np.random.default_rng(draw(SEEDS))
    density = draw(st.sampled_from([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]))
    return {name: generator.random(shape) < density for name, shape in shapes.items()}


@st.composite
def draw_scores(draw, shapes: dict[str, Index]):
    """Scores of few distinct values, so that there are ties, some of them below zero."""
    generator = np.random.default_rng(draw(SEEDS))
    least, most = draw(st.integers(-5, 0)), draw(st.integers(1, 5))
    scale = draw(st.sampled_from([1.0, 0.1, 1e-30, 1e30]))
    return {
        name: (generator.integers(least, most, shape, endpoint=True) * scale).astype(np.float32)
        for name, shape in shapes.items()
    }
