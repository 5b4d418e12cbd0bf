"""Operations on each element by itself, and norms, which count as such."""

from typing import Any

from lit_prune.connectivity.rule import Wire, rule

__all__: list[str] = []


@rule(
    # activations
    *("relu", "relu6", "leaky_relu", "prelu", "rrelu", "elu", "selu", "celu", "gelu", "silu"),
    *("mish", "hardswish", "hardsigmoid", "hardtanh", "hardshrink", "softshrink", "softplus"),
    *("sigmoid", "log_sigmoid", "log_sigmoid_forward", "tanh", "threshold", "softsign"),
    # functions of one number
    *(
        "abs",
        "absolute",
        "neg",
        "negative",
        "exp",
        "exp2",
        "expm1",
        "log",
        "log2",
        "log10",
        "log1p",
    ),
    *("sqrt", "rsqrt", "square", "reciprocal", "sin", "cos", "tan", "asin", "acos", "atan", "sinh"),
    *("cosh", "erf", "erfc", "erfinv", "sign", "sgn", "floor", "ceil", "round", "trunc", "frac"),
    *(
        "clamp",
        "clamp_min",
        "clamp_max",
        "clip",
        "nan_to_num",
        "logit",
        "isnan",
        "isinf",
        "isfinite",
    ),
    *("logical_not", "bitwise_not", "positive", "fix", "sinc", "lgamma", "digamma"),
    # what does nothing in eval mode, or nothing to the numbers
    *("dropout", "alpha_dropout", "feature_dropout", "feature_alpha_dropout", "native_dropout"),
    *("alias", "detach", "clone", "contiguous", "to", "_to_copy", "type_as", "lift_fresh"),
    *("float", "half", "double", "bfloat16", "conj", "real", "resolve_conj", "resolve_neg"),
    *("requires_grad", "rename", "pin_memory", "cpu", "cuda", "_conj", "positive"),
    # norms: by convention every channel is its own, as in the paper
    *("batch_norm", "native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm", "layer_norm"),
    *("native_layer_norm", "group_norm", "native_group_norm", "instance_norm", "rms_norm"),
    *("local_response_norm", "_native_batch_norm_legit_no_training", "_fused_rms_norm"),
)
def same(wire: Wire, x: Any, *rest: Any, **options: Any) -> Any:
    """Nothing but ``x``; what else is given only shapes it."""
    return wire.merge(x)


@rule(
    *("add", "sub", "rsub", "subtract", "mul", "multiply", "div", "divide", "true_divide", "pow"),
    *("maximum", "minimum", "fmax", "fmin", "atan2", "remainder", "fmod", "floor_divide", "hypot"),
    *(
        "float_power",
        "logaddexp",
        "logaddexp2",
        "xlogy",
        "heaviside",
        "copysign",
        "lerp",
        "addcmul",
    ),
    *("addcdiv", "where", "masked_fill", "eq", "ne", "lt", "le", "gt", "ge", "not_equal", "less"),
    *("greater", "greater_equal", "less_equal", "logical_and", "logical_or", "logical_xor"),
    *("bitwise_and", "bitwise_or", "bitwise_xor", "__and__", "__or__", "__xor__", "polar"),
    *("complex", "mul_", "squared_difference"),
)
def merge(wire: Wire, *operands: Any, **options: Any) -> Any:
    """Gates too: a path runs through any operand. A constant operand makes no path."""
    return wire.merge(*operands, *options.values())


@rule("copy", "copy_")
def copy(wire: Wire, target: Any, source: Any, *rest: Any) -> Any:
    """What stood in ``target`` is gone."""
    return wire.merge(source)


@rule("fill", "zero", "fill_", "zero_", "bernoulli", "uniform", "normal", "random")
def constant(wire: Wire, *rest: Any, **options: Any) -> None:
    """Whatever stood there is on no path any more."""


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
