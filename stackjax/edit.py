"""Writing into a stack, the counterpart of measures: values are replaced inside the layers while they are computed.

    model.apply(params, tokens, edit={"attention/heads": function})

An edit names sites, and has for each a pure function (layer, value) that returns what takes the value's place, in the
same shape and dtype. The site is fixed when the program is made; everything else is data: `layer` () is the index of
the layer, traced inside the scan, so a condition on it may be traced and mapped over as well.

Every sublayer has the sites `name/stream`, `name/input` and `name/output`; `Stack.sites` lists all of a stack.

    stream     the stream before the sublayer, (..., T, D); or the pytree that the recipe's form makes of it, None in
               place of a `History`
    input      what the sublayer reads, behind any norm, (..., T, D)
    weights    of attention: the softmax's weights (B, H, T, S), with all leading axes as one B
    heads      of attention: what each head hands to the output matrix, (..., T, H, K)
    hidden     of a feed-forward network: its activations, before any norm of them, (..., T, F)
    output     what the sublayer returns, before it joins the stream, (..., T, D)

A measure reads the same values under the same names, after the edit: `probe.values("attention/heads")` returns them
whole. Each head of each layer left out, and replaced by what it was for another input, is one program each:

    >>> import jax, jax.numpy as jnp, stackjax as sj
    >>> model = sj.decoder(vocab=16, d_model=16, depth=3, n_heads=2)
    >>> params, tokens = jax.jit(model.init)(jax.random.key(0)), jnp.arange(8)[None]
    >>> others = model.apply(params, tokens[:, ::-1], measure=sj.probe.values("attention/heads"))[1].measure
    >>> def score(l, h, new):
    ...     here = lambda layer: (layer == l) & (jnp.arange(2) == h)[:, None]
    ...     edit = {"attention/heads": lambda layer, heads: jnp.where(here(layer), new[layer], heads)}
    ...     return sj.loss.next_token(model.apply(params, tokens, edit=edit)[0], tokens)
    >>> everywhere = jax.jit(jax.vmap(jax.vmap(score, (None, 0, None)), (0, None, None)))
    >>> ablated = everywhere(jnp.arange(3), jnp.arange(2), jnp.zeros(3))
    >>> patched = everywhere(jnp.arange(3), jnp.arange(2), others["attention/heads"])
    >>> ablated.shape, patched.shape
    ((3, 2), (3, 2))

A direction added to the stream in front of one layer steers what is generated:

    >>> steer = {"attention/stream": lambda layer, x: x + jnp.where(layer == 1, jnp.ones(16), 0)}
    >>> sj.decode.generate(model, params, tokens, n_tokens=4, edit=steer).tokens.shape
    (1, 4)

Source: Vig et al. 2020, arXiv:2004.12265 (heads replaced by those of another input); Meng et al. 2022, section 2.1,
arXiv:2202.05262 (causal tracing).
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from stackjax.check import shown

Edit = Mapping[str, Callable[[Any, Any], Any]]
"""Functions (layer, value) to the value that takes its place, by the names of their sites."""


class Edits:
    """The edits inside one sublayer of one layer.

    Args:
        functions: value to value, by the names of the sites within the sublayer.
        place: what messages call the sublayer.
    """

    def __init__(self, functions: Mapping[str, Callable[[Any], Any]], place: str):
        self.functions, self.place = dict(functions), place

    def __contains__(self, site: str) -> bool:
        return site in self.functions

    def within(self, name: str) -> "Edits":
        """The edits of a sublayer inside this one."""
        return Edits(_below(self.functions, name), f"{self.place}/{name}")

    def apply(self, site: str, value: Any) -> Any:
        """The value at a site, edited if it is to be.

        Raises:
            ValueError: the edit returned another structure, shape or dtype.
        """
        if site not in self.functions:
            return value
        new = self.functions[site](value)
        if _kind(new) != _kind(value):
            raise ValueError(
                f"an edit must keep structure, shape and dtype; at {self.place}/{site} the value is "
                f"{_described(value)}, and the edit returned {_described(new)}"
            )
        return jax.tree.map(jnp.asarray, new)


def edits_of(edit: Edit | None, name: str, layer: Any) -> Edits | None:
    """The edits inside one sublayer; None if there are none.

    Args:
        edit: of the stack.
        name: of the sublayer.
        layer: its layer's index ().
    """
    functions = _below(edit or {}, name)

    def bound(function: Callable[[Any, Any], Any]) -> Callable[[Any], Any]:
        return lambda value: function(layer, value)

    return Edits({site: bound(function) for site, function in functions.items()}, name) if functions else None


def check(edit: Edit | None, sites: tuple[str, ...]) -> None:
    """Refuse an edit that is none, or whose sites are not all among these.

    Raises:
        ValueError: something else than a dict of functions; a site that is not there.
    """
    if edit is None:
        return
    if not isinstance(edit, Mapping) or not all(callable(function) for function in edit.values()):
        raise ValueError(f"edit must be a dict of functions, {{site: (layer, value) -> value}}; got {shown(edit)}")
    if unknown := sorted(map(str, edit.keys() - set(sites))):
        raise ValueError(f"an edit names sites out of {', '.join(sites)}; got {', '.join(unknown)}")


def _below(functions: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {site[len(name) + 1 :]: function for site, function in functions.items() if site.startswith(f"{name}/")}


def _kind(value: Any) -> Any:
    leaves, tree = jax.tree.flatten(value)
    return tree, [(jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves]


def _described(value: Any) -> str:
    if not hasattr(value, "shape"):
        return str(jax.tree.map(_described, value)) if isinstance(value, (dict, tuple, list)) else shown(value)
    return f"{value.dtype}{list(value.shape)}"
