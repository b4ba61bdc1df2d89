"""ResiDual: a post-norm stream that the branches read, and a plain sum of their outputs that they do not."""

from collections.abc import Hashable
from dataclasses import dataclass

from stackjax.norm import LayerNorm, Norm
from stackjax.recipe.base import Recipe
from stackjax.recipe.residual import Form, add, times, with_state


@dataclass(frozen=True, kw_only=True)
class TwoStreams(Form):
    """a' = norm(alpha a + beta f(gamma a)) and b' = b + beta f(gamma a); a + norm(b) at the end.

    Args:
        norm: all of them.

    Source: Xie et al. 2023, section 2, arXiv:2304.14802.
    """

    norm: Norm = LayerNorm()

    @property
    def kind(self) -> Hashable:
        return "a post-norm stream and a sum"

    def spec(self, d_model, depth):
        return {"norm": self.norm.spec(d_model)}

    def ends(self, d_model, depth):
        return {"enter": {}, "leave": {"norm": self.norm.spec(d_model)}}

    def enter(self, params, x):
        return {"post": x, "sum": x}

    def leave(self, params, stream):
        return stream["post"] + self.norm.apply(params["norm"], stream["sum"])

    def statistics(self, side, params, x):
        state = self.norm.state(params["norm"], x["sum"]) if side == "leave" else {}
        return {"norm": state} if state else {}

    def view(self, stream):
        return stream["post"]

    def apply(self, params, scale, stream, branch, key=None):
        y, out = branch(times(scale["gamma"], stream["post"]))
        total = add(scale["alpha"], stream["post"], scale["beta"], y)
        out = with_state(out, "norm", self.norm.state(params["norm"], total))
        return {"post": self.norm.apply(params["norm"], total), "sum": add(1.0, stream["sum"], scale["beta"], y)}, out


@dataclass(frozen=True, kw_only=True)
class ResiDual(Recipe):
    """norm(a + f(a)) carried beside the sum of all f(a), joined at the end as a + norm(sum).

    Post-norm's different layers without its vanishing gradient, which flows through the sum.

    Source: Xie et al. 2023, section 2, arXiv:2304.14802.
    """

    residual: Form = TwoStreams()
