"""The base of every residual form, which lets a form be one line that reads like its formula.

    x            the stream, what all layers share
    f            the branch: a sublayer, called once
    c.alpha, c.beta     multiply the skip and the branch
    c.gamma      multiplies the input of the branch

A form of your own names its norms and writes `update`:

    @dataclass(frozen=True, kw_only=True)
    class Mine(Form):
        norm: Norm = LayerNorm()
        norms = ("norm",)

        def update(self, x, f, c, norm):
            return norm(add(c.alpha, x, c.beta, f(c.gamma * x)))

The base class runs the norms, collects their running statistics and passes on what the branch returned beside its
output. The stream may be any pytree of float arrays of fixed shape; what earlier layers made is kept in a `History`.
Residual sums are taken in float32; the stack casts the stream back to the dtype in which it entered.
"""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import jax

from stackjax.check import shown
from stackjax.description import Description
from stackjax.norm import Norm, upcast
from stackjax.sublayer import Aux, Params

Function = Callable[..., Any]
"""The branch or a norm as a formula sees it: array to array."""


class Branch:
    """The branch that a form is put around, the function f of its formula; keeps the `Aux` of the one call.

    Args:
        function: (x, hints=...) to (y, Aux). Around a sublayer, hints become `SideInputs.hints`; around a whole layer,
            they are added to the coefficients of its sublayers' forms.
        dtype: that of the stream, to which the input is cast.
        hints: what is passed beside x.
    """

    def __init__(self, function: Callable[..., tuple[Any, Aux]], dtype: Any, **hints: Any):
        self.function, self.dtype, self.hints = function, dtype, hints
        self.returned: list[Aux] = []

    def __call__(self, x: Any, **hints: Any) -> Any:
        x = jax.tree.map(lambda a: a.astype(self.dtype), x)
        y, aux = self.function(x, hints={**self.hints, **hints})
        self.returned.append(aux)
        return y

    def with_hints(self, **hints: Any) -> "Branch":
        """This branch with more beside x."""
        return Branch(self.function, self.dtype, **{**self.hints, **hints})


class FormCoefficients:
    """The numbers of one sublayer (or of one layer, for an outer form) in the recipe's coefficients.

    `c.alpha`, `c.beta`, `c.gamma`, and whatever the recipe adds by name; each () or broadcastable to the stream.

    Raises:
        ValueError: a name that the recipe does not give.
    """

    def __init__(self, values: Mapping[str, jax.Array]):
        self._values = dict(values)

    def __getattr__(self, name: str) -> jax.Array:
        if name.startswith("_"):
            raise AttributeError(name)
        if name not in self._values:
            raise ValueError(
                f"a form reads the coefficient {name!r}, and the recipe gives {sorted(self._values)}; add it in the "
                f"recipe's `coefficients`, as in with_coefficients(super().coefficients(geometry), {name}=...)"
            )
        return self._values[name]

    def replace(self, **values: Any) -> "FormCoefficients":
        """These numbers with some of them replaced or added."""
        return FormCoefficients({**self._values, **values})


@dataclass(frozen=True, kw_only=True)
class Form(Description):
    """Base of every residual form: no parameters, a stream that is x itself, and `update` left to write.

    Parameters reach `update`, `enter` and `leave` as keyword arguments by their names; norms among them as functions
    of an array. The description of a norm is the form's field of that name, or else its field `norm`.
    """

    norms: ClassVar[tuple[str, ...]] = ()
    """Names of the norms beside each sublayer."""

    def spec(self, d_model: int, depth: int) -> dict[str, Any]:
        """Parameters beside each sublayer, in a stack of `depth` layers."""
        return {name: self.norm_called(name).spec(d_model) for name in self.norms}

    @property
    def enter_norms(self) -> tuple[str, ...]:
        """Names of the norms where the stream is opened."""
        return ()

    @property
    def leave_norms(self) -> tuple[str, ...]:
        """Names of the norms where the stream is closed."""
        return ()

    def enter_spec(self, d_model: int, depth: int) -> dict[str, Any]:
        """Parameters of `enter`."""
        return {name: self.norm_called(name).spec(d_model) for name in self.enter_norms}

    def leave_spec(self, d_model: int, depth: int) -> dict[str, Any]:
        """Parameters of `leave`, the final norm included."""
        return {name: self.norm_called(name).spec(d_model) for name in self.leave_norms}

    @property
    def kind(self) -> Hashable:
        """The kind of stream; only forms of equal kind may meet in one stack."""
        return "one stream"

    def update(self, x: Any, f: Function, c: FormCoefficients, **parameters: Any) -> Any:
        """The stream behind one sublayer, from the stream before it.

        Args:
            x: the stream, as opened by `enter`.
            f: the branch, (..., T, D) to (..., T, D), to be called once; casts its input to the dtype of the stream.
            c: this sublayer's coefficients.
            **parameters: what `spec` declares, norms as functions.

        Returns:
            The stream, with the same shapes.
        """
        raise NotImplementedError(f"{type(self).__name__} must override update")

    def enter(self, x: jax.Array, **parameters: Any) -> Any:
        """The stream that x (..., T, D) opens."""
        return x

    def leave(self, stream: Any, **parameters: Any) -> jax.Array:
        """The (..., T, D) that a stream ends as."""
        return stream

    def view(self, stream: Any) -> jax.Array:
        """The (..., T, D) that an observer calls x_l."""
        return stream

    def truncated(self, entered: Any, reached: Any) -> Any:
        """The stream behind turns of a loop that have no gradient, asked of an outer form.

        Args:
            entered: the stream in front of them.
            reached: the stream behind them, without a gradient. What they left as it was may be taken from `entered`,
                where it has one.
        """
        return reached

    def check(self, layers: tuple[Any, ...], looped: bool) -> None:
        """Raise a ValueError if this form cannot live in such a stack.

        Args:
            layers: the stack's different layers, with the recipe's sublayers and forms.
            looped: whether they share one copy of the parameters.
        """

    def apply(
        self, params: Params, c: FormCoefficients, stream: Any, branch: Branch, key: jax.Array | None = None
    ) -> tuple[Any, Aux]:
        """`update`, with the branch's `Aux` and the norms' new statistics beside the stream.

        Args:
            params: as declared by `spec`.
            c: this sublayer's coefficients.
            stream: as opened by `enter`.
            branch: the sublayer.
            key: PRNG key, for forms that draw (stochastic depth); None means evaluation.

        Raises:
            ValueError: an `update` that does not call its branch once, or changes the stream's shape.
        """
        parameters, statistics = self.bind(params, self.norms)
        new = self.update(stream, branch, c, **parameters)
        name = type(self).__name__
        if len(branch.returned) != 1:
            n = len(branch.returned)
            raise ValueError(f"{name}.update must call its branch f once; it called it {n} times")
        got, expected = jax.tree.map(_shape, new), jax.tree.map(_shape, stream)
        if got != expected:
            raise ValueError(
                f"{name}.update must return the stream with the shapes it came with, {expected}; it returned {got}"
            )
        (aux,) = branch.returned
        if statistics:
            aux = replace(aux, state={**aux.state, "residual": {**aux.state.get("residual", {}), **statistics}})
        return new, aux

    def bind(self, params: Params, norms: tuple[str, ...]) -> tuple[dict[str, Any], Params]:
        """The parameters as `update`, `enter` or `leave` takes them, norms as functions.

        Returns:
            Keyword arguments; and a dict that holds, once the formula has run, the norms' new statistics.
        """
        statistics: Params = {}

        def bound(name: str) -> Function:
            norm = self.norm_called(name)

            def normalise(x: jax.Array) -> jax.Array:
                if new := norm.state(params[name], x):
                    statistics[name] = new
                y = norm.apply(params[name], x)
                if y.shape != x.shape:
                    raise ValueError(f"{type(norm).__name__} must keep the shape {x.shape}; it returned {y.shape}")
                return y

            return normalise

        return {name: bound(name) if name in norms else value for name, value in params.items()}, statistics

    def norm_called(self, name: str) -> Norm:
        """The description of the norm of this name."""
        norm = getattr(self, name, None) or getattr(self, "norm", None)
        if not isinstance(norm, Norm):
            raise ValueError(
                f"{type(self).__name__} names a norm {name!r}; give it a field of that name, or one called `norm`"
            )
        return norm


def _shape(leaf: Any) -> Any:
    """The shape of an array; of anything else, what it is."""
    return tuple(leaf.shape) if hasattr(leaf, "shape") else shown(leaf)


def add(alpha: Any, x: jax.Array, beta: Any, y: jax.Array) -> jax.Array:
    """alpha x + beta y, summed in float32, in the dtype of x."""
    return (alpha * upcast(x) + beta * upcast(y)).astype(x.dtype)
