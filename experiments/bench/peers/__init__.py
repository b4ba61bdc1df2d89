"""Peers: one model and optimiser in each library, written the way its own documentation writes it."""

import importlib
import importlib.util
from typing import Any

PEERS = {
    "stackjax": ("stackjax", "in_stackjax", "Stackjax"),
    "unrolled": ("stackjax", "in_stackjax", "Unrolled"),
    "linen": ("flax", "in_linen", "Linen"),
    "nnx": ("flax", "in_nnx", "NNX"),
    "equinox": ("equinox", "in_equinox", "Equinox"),
    "haiku": ("haiku", "in_haiku", "Haiku"),
    "torch": ("torch", "in_torch", "Torch"),
    "torch_compile": ("torch", "in_torch", "TorchCompiled"),
}
"""{peer: (package it needs, module here, class)}."""


def installed(name: str) -> bool:
    """True if the package that a peer needs can be imported."""
    return importlib.util.find_spec(PEERS[name][0]) is not None


def load(name: str) -> Any:
    """The class of a peer."""
    _, module, kind = PEERS[name]
    return getattr(importlib.import_module(f"{__name__}.{module}"), kind)
