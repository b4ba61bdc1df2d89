"""What tests of converted weights share."""

from typing import Any

from flax.traverse_util import flatten_dict, unflatten_dict


def filled(params: Any, weights: dict[str, Any]) -> Any:
    """Parameters with a weight for every leaf, by its path `a/b/c`; groups that hold no parameter stay as declared."""
    flat = flatten_dict(params, sep="/", keep_empty_nodes=True)
    shapes = {path: leaf.shape for path, leaf in flat.items() if hasattr(leaf, "shape")}
    assert shapes == {path: weight.shape for path, weight in weights.items()}
    return unflatten_dict({**flat, **weights}, sep="/")
