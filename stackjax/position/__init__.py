"""Positions: how attention, which does not know order, is told where a token stands.

An encoding is a frozen bundle of pure functions with do-nothing defaults, one for each place where a position can
act. It reads positions as data ({index: (..., T), path: (..., T, P)}), so caches, packing and left padding need no
other code.

Token t stands at the stream's x_t, a query at i, a key at j; K is the head width, D the model's. Learned: what is, in
each layer unless said. At 8 T: by how many nats the loss of a small decoder is higher at eight times the length that
it was trained on (`experiments/results/length_extrapolation`).

    encoding          equation                                       learned                       at 8 T
    -- on the stream --
    NoPosition        -                                              -                             0.13
    Scalar            x_t + t / period w                             w                             1.71
    Sinusoidal        x_t + p_t, sin and cos of t base^(-2k/D)       -                             0.40
    Learned           x_t + P[t]                                     P, a row an index             undefined
    TreePath          x_t + the path's steps, the latest first,      p, a few decays               needs paths
                      the q-th one-hot times p^q
    -- on queries and keys --
    Rotary            pair k turns by t base^(-2k/K)                 -                             0.76, YaRN 0.38
    TreeRotary        pairs turn by depth and by the path's steps    -                             needs paths
    -- on the logits, from content --
    Shaw              q_i . (k_j + a[c]), values + b[c],             a and b, a row a distance     0.10
                      c = clip(j - i)
    TransformerXL     q_i . k_j + (q_i + v) . W R(i - j) + u . k_j   W, u, v                       0.02
    -- on the logits --
    T5Bias            b[bucket(j - i)]                               b, one for the stack          0.82
    ALiBi             -m_h |i - j|, m_h = 2^(-8h/H)                  -                             0.01
    FIRE              f(psi(|i - j|) / psi(max(i, M)))               f, psi, M, one for the stack  0.19
    TreeBias          b[up, down, apart] over the lowest common      b, one for the stack          needs paths
                      ancestor

`Both` composes two. `rotary_scaling` stretches rotary frequencies: Linear, NTK, DynamicNTK, YaRN, Llama3, LongRoPE.
Sources stand with each class; `experiments/position_gallery.py` draws what each does.
"""

from stackjax.position import (
    alibi,
    base,
    fire,
    learned,
    relation,
    rotary,
    rotary_scaling,
    scalar,
    shaw,
    sinusoidal,
    t5,
    transformer_xl,
    tree,
    tree_bias,
    tree_path,
    tree_rotary,
)
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
    "alibi",
    "base",
    "fire",
    "learned",
    "relation",
    "rotary",
    "rotary_scaling",
    "scalar",
    "shaw",
    "sinusoidal",
    "t5",
    "transformer_xl",
    "tree",
    "tree_bias",
    "tree_path",
    "tree_rotary",
]
