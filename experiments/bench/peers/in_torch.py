"""The model in PyTorch, eager and compiled."""

from typing import Any, ClassVar

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from torch import nn  # pyright: ignore[reportMissingImports]
from torch.nn import functional  # pyright: ignore[reportMissingImports]
from torch.utils.checkpoint import checkpoint  # pyright: ignore[reportMissingImports]

from .base import ADAM, EPS, STD, Size, Weights


class Block(nn.Module):
    """One layer."""

    def __init__(self, size: Size):
        super().__init__()
        self.size = size
        self.attention_norm = nn.LayerNorm(size.d_model, eps=EPS)
        self.query_key_value = nn.Linear(size.d_model, 3 * size.d_model, bias=False)
        self.out = nn.Linear(size.d_model, size.d_model, bias=False)
        self.feed_forward_norm = nn.LayerNorm(size.d_model, eps=EPS)
        self.up = nn.Linear(size.d_model, size.d_hidden, bias=False)
        self.down = nn.Linear(size.d_hidden, size.d_model, bias=False)

    def forward(self, x):
        batch, tokens, width = x.shape
        joint = self.query_key_value(self.attention_norm(x)).split(width, dim=2)
        query, key, value = (h.view(batch, tokens, self.size.n_heads, -1).transpose(1, 2) for h in joint)
        h = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(h.transpose(1, 2).reshape(batch, tokens, width))
        return x + self.down(functional.gelu(self.up(self.feed_forward_norm(x)), approximate="tanh"))


class Decoder(nn.Module):
    """The model."""

    def __init__(self, size: Size, remat: str):
        super().__init__()
        self.remat = remat
        self.token = nn.Embedding(size.vocab, size.d_model)
        self.position = nn.Parameter(STD * torch.randn(size.context, size.d_model))
        self.layers = nn.ModuleList([Block(size) for _ in range(size.depth)])
        self.final_norm = nn.LayerNorm(size.d_model, eps=EPS)
        self.unembed = nn.Linear(size.d_model, size.vocab, bias=False)
        nn.init.normal_(self.token.weight, std=STD)

    def forward(self, tokens):
        x = self.token(tokens) + self.position
        for block in self.layers:
            x = checkpoint(block, x, use_reentrant=False) if self.remat == "layer" else block(x)
        logits = self.unembed(self.final_norm(x))[:, :-1].float()
        return functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


class Torch:
    """PyTorch, eager: `scaled_dot_product_attention` and fused AdamW, under autocast when the dtype is 16 bits.

    Args:
        size: of the model.
        remat: one of `remats`.
    """

    remats: ClassVar[tuple[str, ...]] = ("none", "layer")
    compiled: ClassVar[bool] = False

    def __init__(self, size: Size, remat: str = "none"):
        if remat not in self.remats:
            raise ValueError(f"{type(self).__name__} has {', '.join(self.remats)}; got remat={remat!r}")
        self.size = size
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        torch.manual_seed(0)
        self.model = Decoder(size, remat).to(self.device)
        self.start()
        if self.compiled:
            self.model.compile()

    def start(self) -> None:
        """A fresh optimiser."""
        named = list(self.model.named_parameters())
        undecayed = [weight for name, weight in named if "norm" in name or "position" in name]
        decayed = [weight for name, weight in named if not ("norm" in name or "position" in name)]
        decay = ADAM["weight_decay"]
        self.optimiser = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": decay}, {"params": undecayed, "weight_decay": 0.0}],
            lr=ADAM["learning_rate"],
            betas=(ADAM["b1"], ADAM["b2"]),
            eps=ADAM["eps"],
            fused=True,
        )

    def tokens(self, tokens: np.ndarray) -> Any:
        """A batch as the model wants it."""
        return torch.as_tensor(tokens, dtype=torch.long, device=self.device)

    def loss(self, tokens: Any) -> Any:
        """Mean cross-entropy of tokens (B, T)."""
        dtype = getattr(torch, self.size.dtype)
        with torch.autocast(self.device, dtype, enabled=dtype != torch.float32):
            return self.model(tokens)

    def step(self, tokens: Any) -> float:
        """One training step; the loss before it."""
        self.optimiser.zero_grad(set_to_none=True)
        loss = self.loss(tokens)
        loss.backward()
        self.optimiser.step()
        return loss.item()

    def load(self, weights: Weights) -> None:
        """Take given weights."""
        layers: dict[str, Any] = {"out": weights["out"], "up": weights["up"], "down": weights["down"]}
        layers["query_key_value"] = np.concatenate([weights[name] for name in ("query", "key", "value")], -1)
        state = {f"{name}.weight": stacked.swapaxes(-1, -2) for name, stacked in layers.items()}
        for name in ("attention_norm", "feed_forward_norm"):
            state |= {f"{name}.weight": weights[f"{name}_scale"], f"{name}.bias": weights[f"{name}_bias"]}
        state = {f"layers.{i}.{name}": stacked[i] for name, stacked in state.items() for i in range(self.size.depth)}
        state |= {"token.weight": weights["token"], "position": weights["position"]}
        state |= {"final_norm.weight": weights["final_norm_scale"], "final_norm.bias": weights["final_norm_bias"]}
        state["unembed.weight"] = weights["unembed"].T
        self.model.load_state_dict({name: torch.tensor(np.asarray(x)) for name, x in state.items()})


class TorchCompiled(Torch):
    """PyTorch with `torch.compile` on the whole model."""

    compiled = True
