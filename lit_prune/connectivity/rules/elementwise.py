"""Operations on each element by itself, and norms, which count as such.

Other names of the same (``relu6``, ``true_divide``, ``contiguous``) need no rule: PyTorch takes
them apart.
"""

from typing import Any

from torch import Size

from lit_prune.connectivity.rule import Wire, rule

__all__: list[str] = []

_SCALAR = Size([])


@rule(
    # activations
    *("relu", "leaky_relu", "_prelu_kernel", "rrelu", "elu", "celu", "gelu", "silu", "mish"),
    *("hardswish", "hardsigmoid", "hardtanh", "hardshrink", "softshrink", "softplus", "sigmoid"),
    *("log_sigmoid_forward", "tanh", "threshold"),
    # functions of one number
    *("abs", "neg", "exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "sqrt", "rsqrt"),
    *("reciprocal", "sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "asinh", "acosh"),
    *("atanh", "sinc", "erf", "erfc", "erfinv", "lgamma", "digamma", "logit", "angle"),
    *("sign", "sgn", "signbit", "floor", "ceil", "round", "trunc", "frac", "nan_to_num", "isnan"),
    *("isinf", "logical_not", "bitwise_not", "bernoulli"),
    # functions of several
    *("add", "sub", "rsub", "mul", "div", "pow", "maximum", "minimum", "fmax", "fmin", "atan2"),
    *("remainder", "fmod", "floor_divide", "hypot", "logaddexp", "logaddexp2", "xlogy"),
    *("heaviside", "copysign", "lerp", "addcmul", "addcdiv", "masked_fill"),
    *("clamp", "clamp_min", "clamp_max", "eq", "ne", "lt", "le", "gt", "ge", "logical_and"),
    *("logical_or", "logical_xor", "bitwise_and", "bitwise_or", "bitwise_xor", "polar", "complex"),
    *("bitwise_left_shift", "bitwise_right_shift"),
)
def elementwise(wire: Wire, *operands: Any, **options: Any) -> Any:
    """A path runs through any operand, of gates too.

    A constant makes no path, nor does it cut one: masks are not looked at (sound, not tight).
    """
    found = wire.merge(*operands, *options.values())
    # The second result of `log_sigmoid_forward` is empty on some devices.
    return [found, None] if isinstance(wire.result, tuple | list) else found


@rule("where")
def chosen_from(wire: Wire, condition: Any, *choices: Any) -> Any:
    """As above; without choices it looks for places."""
    return elementwise(wire, condition, *choices) if choices else NotImplemented


@rule(
    *("alias", "alias_copy", "detach", "detach_copy", "clone", "_to_copy", "native_dropout"),
    *("_conj", "_conj_physical", "_neg_view"),
)
def same(wire: Wire, x: Any, *rest: Any, **options: Any) -> Any:
    """Nothing but ``x``; what else is given says how."""
    return wire.merge(x)


@rule(
    *("batch_norm", "native_batch_norm", "_native_batch_norm_legit_no_training", "layer_norm"),
    *("native_layer_norm", "group_norm", "native_group_norm", "instance_norm", "rms_norm"),
)
def normed(wire: Wire, x: Any, *rest: Any, **options: Any) -> Any:
    """By convention every element is its own, as in the paper, though it shares its statistics.

    So it is for a weight that is normed (weight standardisation): its connections stay themselves.
    Statistics and factors that are computed from the input count for all elements (sound, not
    tight), and so do those that are returned.
    """
    factors = [wire.over(r, None) for r in rest if wire.marks(r)]
    found = wire.merge(x, *factors)
    if not isinstance(wire.result, tuple | list):
        return found
    every = wire.merge(wire.over(x, None), *factors, shape=_SCALAR)
    return [found, *(wire.merge(every, shape=r.shape) for r in wire.result[1:])]


@rule("copy")
def copy(wire: Wire, target: Any, source: Any, *rest: Any) -> Any:
    """What stood in ``target`` is gone."""
    return wire.merge(source)


@rule("fill", "zero", "uniform", "normal", "random", "exponential")
def overwritten(wire: Wire, target: Any, *rest: Any, **options: Any) -> Any:
    """What stood there is on no path any more."""
    return wire.merge(*rest, *options.values())


@rule(
    *("zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like"),
    *("new_zeros", "new_ones", "new_full", "new_empty", "new_empty_strided", "randint_like"),
)
def only_the_shape(wire: Wire, *rest: Any, **options: Any) -> None:
    """A constant in the shape of a signal."""


@rule("glu")
def gated(wire: Wire, x: Any, dim: int = -1) -> Any:
    """One half of the channels gates the other."""
    half = wire.shape[dim]
    return wire.merge(*wire.cut(x, dim, [(0, half, 1), (half, half, 1)]))
