"""Linear paths: what a network does to its inputs, made linear in each path and never negative.

What synaptic flow runs through a network by; :class:`lit_prune.criteria.SynFlow` says why.
"""

import inspect
import operator
from collections.abc import Callable, Iterator, Sequence
from functools import partial, reduce
from itertools import product
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map_only, tree_unflatten

__all__ = ["LinearPaths"]

_Rule = Callable[..., Any]


class LinearPaths(TorchFunctionMode):
    """Makes what a network does to its inputs linear in each path, and never negative.

    What becomes of a function is said by its rule, a function below; those without one run as ever.
    Notes the largest output of every layer and product of matrices.
    """

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__()
        self.largest: list[Tensor] = []
        # Nodes of autograd's graph, and whether an input lies behind them.
        self._leads_back: dict[Any, bool] = {x.grad_fn: True for x in inputs}

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        rule = _RULES.get(function)
        if rule is None:
            return function(*args, **(kwargs or {}))
        return rule(self, function, *args, **(kwargs or {}))

    def carries(self, x: Any) -> bool:
        """Whether ``x`` carries flow: an input lies behind it, not weights and constants alone.

        Asked of autograd's graph, which sees views, writes in place and functions of others; each
        of its nodes is visited once.
        """
        if not isinstance(x, Tensor) or x.grad_fn is None:
            return False
        if x.grad_fn in self._leads_back:
            return self._leads_back[x.grad_fn]
        trail = [(x.grad_fn, iter(x.grad_fn.next_functions))]
        while trail:
            node, sources = trail[-1]
            open_ways = (s for s, _ in sources if s is not None and self._leads_back.get(s, True))
            source = next(open_ways, None)
            if source is None:
                self._leads_back[node] = False
                trail.pop()
            elif source in self._leads_back:
                self._leads_back.update((passed, True) for passed, _ in trail)
                return True
            else:
                trail.append((source, iter(source.next_functions)))
        return False

    def alive(self, *operands: Any) -> list[Tensor]:
        """Return the operands that carry flow; where none does, those computed from weights."""
        computed = [x for x in operands if _is_computed(x)]
        if len(computed) < 2:
            return computed
        return [x for x in computed if self.carries(x)] or computed

    def noted(self, output: Tensor) -> Tensor:
        """Return the output of a layer, and note its largest element."""
        if output.numel():
            self.largest.append(output.detach().amax())
        return output


def _is_computed(x: Any) -> bool:
    """Whether ``x`` depends on the input or on a weight; all else is a constant."""
    return isinstance(x, Tensor) and x.requires_grad


def _magnitude(x: Any) -> Any:
    """Return a constant without its sign; a flow has none."""
    is_unsigned = isinstance(x, Tensor) and (x.requires_grad or x.dtype == torch.bool)
    return x if is_unsigned else abs(x)


# --- rules: what becomes of a function. Of constants alone it stays what it is.


def _identity(
    paths: LinearPaths, function: Any, /, input: Tensor, *rest: Any, **options: Any
) -> Any:
    return _copied(input) if input.requires_grad else function(input, *rest, **options)


def _copied(flow: Tensor) -> Tensor:
    """Return a copy that costs nothing until the network writes to it, or to the original."""
    try:
        return flow._lazy_clone()
    except RuntimeError:  # not all memory can be copied lazily
        return flow.clone()


def _sum_of_flows(paths: LinearPaths, function: Any, /, *operands: Any, **options: Any) -> Any:
    """A path runs through any operand."""
    tensors = [x for x in (*operands, *options.values()) if isinstance(x, Tensor)]
    alive = paths.alive(*tensors)
    if not alive:
        return function(*operands, **options)
    total = reduce(torch.add, alive) if len(alive) > 1 else _copied(alive[0])
    if all(x.shape == total.shape for x in tensors):
        return total
    return total.expand(torch.broadcast_shapes(*(x.shape for x in tensors))).clone()


def _sum_of_two(
    paths: LinearPaths, function: Any, /, input: Any, other: Any, **options: Any
) -> Any:
    """As it is, if both operands carry flow."""
    alive = paths.alive(input, other)
    if alive and options:
        other = other * abs(options["alpha"])
    if len(alive) < 2:
        return _sum_of_flows(paths, partial(function, **options), input, other)
    return function(input, other)


def _difference(
    paths: LinearPaths, function: Any, /, input: Any, other: Any, **options: Any
) -> Any:
    """A sum."""
    is_alive = bool(paths.alive(input, other))
    return _sum_of_two(paths, torch.add if is_alive else function, input, other, **options)


def _product(paths: LinearPaths, function: Any, /, input: Any, other: Any, **options: Any) -> Any:
    """The sum of two flows; a constant is a factor without sign."""
    if not _is_computed(input) and not _is_computed(other):
        return function(input, other, **options)
    if paths.carries(input) and paths.carries(other):
        return input + other
    return function(_magnitude(input), _magnitude(other), **options)


def _quotient(paths: LinearPaths, function: Any, /, input: Any, other: Any, **options: Any) -> Any:
    """A product: the reciprocal of a flow is the flow."""
    if _is_computed(other):
        return _product(paths, operator.mul, input, other)
    if _is_computed(input):
        return _product(paths, operator.truediv, input, other)
    return function(input, other, **options)


def _reversed_quotient(paths: LinearPaths, function: Any, /, input: Tensor, other: Any) -> Any:
    return _quotient(paths, operator.truediv, other, input)


def _sum_of_products(paths: LinearPaths, function: Any, /, *args: Any, **options: Any) -> Any:
    """Of flows the mean of their sums, ``(f(a, 1) + f(1, b)) / f(1, 1)``.

    One flow times weights or constants is what it is, but for signs.
    """
    leaves, form = tree_flatten((args, options))

    def run(leaves: list[Any]) -> Any:
        args, options = tree_unflatten(leaves, form)
        return function(*args, **options)

    if not any(_is_computed(x) for x in leaves):
        return run(leaves)
    factors = [_magnitude(x) if isinstance(x, Tensor) else x for x in leaves]
    flows = [n for n, x in enumerate(factors) if paths.carries(x)]
    if len(flows) < 2:
        return paths.noted(run(factors))
    ones = [torch.ones_like(x) if isinstance(x, Tensor) else x for x in leaves]
    others = [ones[n] if n in flows else x for n, x in enumerate(factors)]
    sums = [run([factors[n] if n == flow else x for n, x in enumerate(others)]) for flow in flows]
    return paths.noted(reduce(torch.add, sums) / run(ones).clamp(min=1))


def _layer(
    paths: LinearPaths,
    function: Any,
    /,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *rest: Any,
    **options: Any,
) -> Any:
    """Without its bias, unless that is computed; so may be the weight."""
    bias = bias if paths.carries(bias) else None
    if isinstance(weight, nn.Parameter):
        return paths.noted(function(input, weight, bias, *rest, **options))
    flow = _sum_of_products(paths, function, input, weight, None, *rest, **options)
    return flow if bias is None else flow + bias.mean()


def _joined(
    paths: LinearPaths, function: Any, /, tensors: Sequence[Tensor], *rest: Any, **options: Any
) -> Any:
    """A constant beside a flow is no source."""
    carry = [paths.carries(x) for x in tensors]
    if any(carry) and not all(carry):
        pairs = zip(tensors, carry, strict=True)
        tensors = [x if carries else torch.zeros_like(x) for x, carries in pairs]
    return function(tensors, *rest, **options)


def _recurrent(paths: LinearPaths, function: Any, /, *operands: Any) -> Any:
    """The mean of its input, everywhere; its weights are not prunable."""
    results = function(*operands)
    flows = [x.mean() for x in tree_leaves(operands) if paths.carries(x)]
    if not flows:
        return results
    return tree_map_only(Tensor, lambda r: reduce(torch.add, flows, torch.zeros_like(r)), results)


def _graph_is_kept(paths: LinearPaths, function: Any, /, mode: bool) -> None:
    """The flow goes through ``no_grad``."""


def _cast(paths: LinearPaths, function: Any, /, input: Tensor, *rest: Any, **options: Any) -> Any:
    """A flow keeps its type of number, which was chosen for its range."""
    result = function(input, *rest, **options)
    is_other = _is_computed(result) and result.dtype != input.dtype and not result.is_complex()
    return _copied(input) if is_other else result


def _data(paths: LinearPaths, function: Any, /, input: Tensor) -> Tensor:
    """A flow's own; a weight's data may be written to."""
    return function(input) if input.is_leaf else input


def _in_place(
    rule: _Rule, paths: LinearPaths, function: Any, /, input: Tensor, *rest: Any, **options: Any
) -> Tensor:
    result = rule(paths, function, input, *rest, **options)
    return input if result is input else input.copy_(result)


def _written_out(
    operations: _Rule, paths: LinearPaths, function: Any, /, *args: Any, **options: Any
) -> Any:
    """What other operations make of it, by their rules."""
    if not any(_is_computed(x) for x in tree_leaves((args, options))):
        return function(*args, **options)
    with paths:
        return operations(*args, **options)


# --- functions written out in others


def _gated(input: Tensor, dim: int = -1) -> Tensor:
    content, gate = input.chunk(2, dim)
    return content * gate


def _bilinear(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.einsum("...i,...j,kij->...k", x, y, weight)


def _plus_product(start: Tensor, x: Tensor, y: Tensor, *, value: float = 1) -> Tensor:
    return start + value * x * y


def _plus_quotient(start: Tensor, x: Tensor, y: Tensor, *, value: float = 1) -> Tensor:
    return start + value * x / y


def _plus_matrix_product(
    start: Tensor, x: Tensor, y: Tensor, *, beta: float = 1, alpha: float = 1
) -> Tensor:
    return beta * start + alpha * (x @ y)


def _spread(
    input: Tensor, dim: Any = None, unbiased: bool = True, keepdim: bool = False, **_: Any
) -> Tensor:
    """Of a variance or deviation: the mean, as every element counts."""
    return input.mean(None if isinstance(dim, bool) else dim, keepdim=keepdim)


def _spread_and_mean(input: Tensor, *rest: Any, **options: Any) -> tuple[Tensor, Tensor]:
    mean = _spread(input, *rest, **options)
    return mean, mean


def _attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Any = None, *rest: Any, **options: Any
) -> Tensor:
    mask = options.get("attn_mask", mask)
    if options.get("enable_gqa"):
        heads = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(heads, -3), value.repeat_interleave(heads, -3)
    seen = query @ key.mT
    return (seen if mask is None else seen + mask) @ value


def _multi_head_attention(*args: Any, **options: Any) -> tuple[Tensor, Tensor | None]:
    """Without biases and masks; ``query`` and the others are (places, batch, features)."""
    call = inspect.signature(F.multi_head_attention_forward).bind(*args, **options)
    call.apply_defaults()
    given = SimpleNamespace(**call.arguments)
    weights = (given.q_proj_weight, given.k_proj_weight, given.v_proj_weight)
    if not given.use_separate_proj_weight:
        weights = given.in_proj_weight.chunk(3)
    query, key, value = (
        F.linear(x, weight).unflatten(-1, (given.num_heads, -1)).movedim(0, -2)
        for x, weight in zip((given.query, given.key, given.value), weights, strict=True)
    )
    seen = query @ key.mT
    output = F.linear((seen @ value).movedim(-2, 0).flatten(-2), given.out_proj_weight)
    if not given.need_weights:
        return output, None
    return output, seen.mean(-3) if given.average_attn_weights else seen


def _extreme(
    paths: LinearPaths, function: Any, /, input: Tensor, *rest: Any, **options: Any
) -> Any:
    """Of two tensors their sum; along a dimension what it is, as in a pool."""
    if any(isinstance(x, Tensor) for x in (*rest, *options.values())):
        return _sum_of_flows(paths, function, input, *rest, **options)
    return function(input, *rest, **options)


def _functions(names: str, *forms: str) -> Iterator[Any]:
    for home, name, form in product((F, torch, Tensor), names.split(), forms):
        if hasattr(home, form.format(name)):
            yield getattr(home, form.format(name))


_BY_NAME: dict[str, _Rule] = {
    # norms
    "batch_norm layer_norm group_norm instance_norm rms_norm local_response_norm "
    "normalize": _identity,
    # activations
    "celu elu gelu hardsigmoid hardswish hardtanh leaky_relu logsigmoid mish prelu "
    "relu relu6 rrelu selu sigmoid silu softplus softsign tanh tanhshrink softshrink hardshrink "
    "threshold softmax log_softmax softmin gumbel_softmax": _identity,
    # functions of one number
    "abs absolute neg negative positive exp exp2 expm1 log log2 log10 log1p sqrt rsqrt square "
    "reciprocal sin cos tan asin acos atan sinh cosh asinh acosh atanh sinc erf erfc erfinv lgamma "
    "digamma logit sign sgn floor ceil round trunc frac nan_to_num clamp clip clamp_min clamp_max "
    "masked_fill": _identity,
    # what would keep flow away
    "detach dropout dropout1d dropout2d dropout3d alpha_dropout feature_dropout "
    "feature_alpha_dropout": _identity,
    "to type_as float half bfloat16 double": _cast,
    # functions of several numbers
    "pow float_power maximum minimum fmax fmin atan2 arctan2 hypot logaddexp logaddexp2 where "
    "remainder fmod floor_divide lerp copysign xlogy heaviside ldexp": _sum_of_flows,
    "max min": _extreme,
    "add": _sum_of_two,
    "sub subtract rsub": _difference,
    "mul multiply": _product,
    "div divide true_divide": _quotient,
    "addcmul": partial(_written_out, _plus_product),
    "addcdiv": partial(_written_out, _plus_quotient),
    # layers and products of matrices
    "linear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d": _layer,
    "matmul mm bmm mv dot vdot inner outer ger tensordot einsum kron": _sum_of_products,
    "bilinear": partial(_written_out, _bilinear),
    "addmm baddbmm addmv": partial(_written_out, _plus_matrix_product),
    "scaled_dot_product_attention": partial(_written_out, _attention),
    "multi_head_attention_forward": partial(_written_out, _multi_head_attention),
    "lstm gru rnn_tanh rnn_relu lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell": _recurrent,
    # collections
    "cat concat concatenate stack hstack vstack dstack column_stack row_stack": _joined,
    "glu": partial(_written_out, _gated),
    "prod": partial(_written_out, torch.sum),
    "cumprod": partial(_written_out, torch.cumsum),
    "var std": partial(_written_out, _spread),
    "var_mean std_mean": partial(_written_out, _spread_and_mean),
}
_RULES: dict[Any, _Rule] = {
    **{
        f: rule
        for names, rule in _BY_NAME.items()
        for f in _functions(names, "{}", "__{}__", "__r{}__")
    },
    **{
        f: partial(_in_place, rule)
        for names, rule in _BY_NAME.items()
        for f in _functions(names, "{}_", "__i{}__")
    },
    Tensor.__rdiv__: _reversed_quotient,
    Tensor.data.__get__: _data,  # type: ignore[attr-defined]
    torch._C._set_grad_enabled: _graph_is_kept,
}
