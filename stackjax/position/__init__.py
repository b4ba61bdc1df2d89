"""Positions: how attention, which does not know order, is told where a token stands.

An encoding is a frozen bundle of pure functions with do-nothing defaults, one for each place where a position can
act. It reads positions as data ({index: (..., T), path: (..., T, P)}), so caches, packing and left padding need no
other code.
"""

from stackjax.position.base import Both, NoPosition, Position
from stackjax.position.learned import Learned
from stackjax.position.rotary import Rotary
from stackjax.position.scalar import Scalar
from stackjax.position.sinusoidal import Sinusoidal

__all__ = ["Both", "Learned", "NoPosition", "Position", "Rotary", "Scalar", "Sinusoidal"]
