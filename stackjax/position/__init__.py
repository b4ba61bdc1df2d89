"""Positions: how attention, which does not know order, is told where a token stands.

An encoding is a frozen bundle of pure functions with do-nothing defaults, one for each place where a position can
act. It reads positions as data ({index: (..., T), path: (..., T, P)}), so caches, packing and left padding need no
other code.

    on the stream       Scalar, Sinusoidal, Learned, TreePath
    queries and keys    Rotary (with rotary_scaling), TreeRotary
    logits              T5Bias, ALiBi, FIRE, TreeBias; from content too: Shaw, TransformerXL
"""

from stackjax.position import rotary, rotary_scaling, tree
from stackjax.position.alibi import ALiBi
from stackjax.position.base import Both, NoPosition, Position
from stackjax.position.fire import FIRE
from stackjax.position.learned import Learned
from stackjax.position.relation import LearnedBias
from stackjax.position.rotary import Rotary
from stackjax.position.scalar import Scalar
from stackjax.position.shaw import Shaw
from stackjax.position.sinusoidal import Sinusoidal
from stackjax.position.t5 import T5Bias
from stackjax.position.transformer_xl import TransformerXL
from stackjax.position.tree_bias import TreeBias
from stackjax.position.tree_path import TreePath
from stackjax.position.tree_rotary import TreeRotary

__all__ = [
    "FIRE",
    "ALiBi",
    "Both",
    "Learned",
    "LearnedBias",
    "NoPosition",
    "Position",
    "Rotary",
    "Scalar",
    "Shaw",
    "Sinusoidal",
    "T5Bias",
    "TransformerXL",
    "TreeBias",
    "TreePath",
    "TreeRotary",
    "rotary",
    "rotary_scaling",
    "tree",
]
