"""Side by side with `transformers`: the same random checkpoint, run through both, compared number by number.

Needs the extra `oracle` (torch and transformers).
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import jax
import jax.numpy as jnp
import numpy as np
import torch  # pyright: ignore[reportMissingImports]
import transformers  # pyright: ignore[reportMissingImports]

from stackjax import loss
from stackjax.interop import hf
from stackjax.layer import Trace
from stackjax.sublayer import Given, Params

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

Random = np.random.Generator
VOCAB, BATCH, TOKENS = 37, 3, 9


@dataclass(frozen=True, kw_only=True)
class Case:
    """One architecture to compare.

    Args:
        title: as a table names it.
        config: `transformers` class of the configuration.
        model: `transformers` class of the model.
        layers: where its layers are, from the input to the output.
        options: a random small configuration.
        indexed: whether it is told the tokens' indices; otherwise it counts from the first slot, padded or not.
        gradients: whether to compare gradients by parameter.
    """

    title: str
    config: str
    model: str
    layers: tuple[str, ...]
    options: Callable[[Random], dict[str, Any]]
    indexed: bool = True
    gradients: bool = False


def _sizes(random: Random) -> dict[str, Any]:
    """Sizes that most configurations name alike."""
    heads = int(random.choice([2, 4]))
    return {
        "vocab_size": VOCAB,
        "hidden_size": 8 * heads,
        "intermediate_size": int(random.choice([24, 40])),
        "num_hidden_layers": int(random.integers(2, 5)),
        "num_attention_heads": heads,
        "max_position_embeddings": 64,
    }


def _grouped(random: Random) -> dict[str, Any]:
    """The same, with grouped heads of a width of their own."""
    sizes = _sizes(random)
    groups = int(random.choice([g for g in (1, 2, 4) if g <= sizes["num_attention_heads"]]))
    return {**sizes, "num_key_value_heads": groups, "head_dim": int(random.choice([4, 8, 12]))}


def _gpt2(random: Random) -> dict[str, Any]:
    sizes = _sizes(random)
    return {
        "vocab_size": VOCAB,
        "n_positions": 64,
        "n_embd": sizes["hidden_size"],
        "n_inner": [None, 40][random.integers(2)],
        "n_layer": sizes["num_hidden_layers"],
        "n_head": sizes["num_attention_heads"],
        "activation_function": str(random.choice(["gelu_new", "relu"])),
    }


def _llama(random: Random) -> dict[str, Any]:
    more = {"attention_bias": bool(random.integers(2)), "mlp_bias": bool(random.integers(2))}
    return {**_grouped(random), **more, "tie_word_embeddings": bool(random.integers(2))}


def _qwen3(random: Random) -> dict[str, Any]:
    sizes = _grouped(random)
    sliding = {"use_sliding_window": bool(random.integers(2)), "sliding_window": 3, "max_window_layers": 1}
    return {**sizes, **sliding}


def _gemma(random: Random) -> dict[str, Any]:
    sizes = {**_grouped(random), "num_hidden_layers": 7, "sliding_window": int(random.choice([2, 4]))}
    return {**sizes, "query_pre_attn_scalar": int(random.choice([8, 16]))}


CASES = {
    "gpt2": Case(
        title="GPT-2",
        config="GPT2Config",
        model="GPT2LMHeadModel",
        layers=("transformer.h",),
        options=_gpt2,
        gradients=True,
    ),
    "bert": Case(
        title="BERT",
        config="BertConfig",
        model="BertForMaskedLM",
        layers=("bert.encoder.layer",),
        options=_sizes,
        gradients=True,
    ),
    "llama": Case(
        title="Llama 3",
        config="LlamaConfig",
        model="LlamaForCausalLM",
        layers=("model.layers",),
        options=_llama,
        gradients=True,
    ),
    "qwen3": Case(
        title="Qwen 3", config="Qwen3Config", model="Qwen3ForCausalLM", layers=("model.layers",), options=_qwen3
    ),
    "gemma2": Case(
        title="Gemma 2", config="Gemma2Config", model="Gemma2ForCausalLM", layers=("model.layers",), options=_gemma
    ),
    "gemma3": Case(
        title="Gemma 3", config="Gemma3TextConfig", model="Gemma3ForCausalLM", layers=("model.layers",), options=_gemma
    ),
}


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Ragged sequences.

    Args:
        tokens: (B, T); 0 where there is none.
        real: (B, T) booleans.
        targets: (B, T) what a loss asks for; -1 where there is no token.
    """

    tokens: np.ndarray
    real: np.ndarray
    targets: np.ndarray

    @property
    def index(self) -> np.ndarray:
        """(B, T) each token's place in its sequence; -1 where there is none."""
        return np.where(self.real, np.cumsum(self.real, -1) - 1, -1).astype(np.int32)


def batch(random: Random, *, left: bool) -> Batch:
    """Sequences of different lengths, padded on one side."""
    lengths = np.array([TOKENS, *random.integers(2, TOKENS, BATCH - 1)])
    real = np.arange(TOKENS) < lengths[:, None]
    real = real[:, ::-1] if left else real
    tokens, targets = (random.integers(1, VOCAB, (BATCH, TOKENS)) for _ in range(2))
    return Batch(tokens=np.where(real, tokens, 0), real=real, targets=np.where(real, targets, -1))


def random_model(case: Case, random: Random) -> Any:
    """A `transformers` model with its parameters moved far from their init, so that nothing is near zero or flat."""
    torch.manual_seed(int(random.integers(2**31)))
    config = getattr(transformers, case.config)(**case.options(random), attn_implementation="eager")
    model = getattr(transformers, case.model)(config).eval()
    with torch.no_grad():
        values = {
            value.data_ptr(): value for name, value in model.state_dict().items() if "embed_positions" not in name
        }
        for value in values.values():
            value.add_(0.25 * torch.randn_like(value))
    return model


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a model made of a batch.

    Args:
        logits: (B, T, V)
        hidden: after every layer, (L, B, T, D).
        gradients: of the mean cross-entropy, by the checkpoint's names.
    """

    logits: np.ndarray
    hidden: np.ndarray
    gradients: dict[str, np.ndarray] = field(default_factory=dict)


def theirs(case: Case, model: Any, given: Batch) -> Run:
    """Run the `transformers` model."""
    seen: list[torch.Tensor] = []
    layers = [layer for path in case.layers for layer in model.get_submodule(path)]
    hooks = [layer.register_forward_hook(lambda _, __, out: seen.append(_first(out))) for layer in layers]
    where = {"position_ids": torch.tensor(np.maximum(given.index, 0), dtype=torch.long)} if case.indexed else {}
    model.zero_grad()
    logits = model(torch.tensor(given.tokens), attention_mask=torch.tensor(given.real.astype(int)), **where).logits
    for hook in hooks:
        hook.remove()
    if case.gradients:
        targets = torch.tensor(given.targets)
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1).backward()
    found = {name: value.grad.numpy().copy() for name, value in model.named_parameters() if value.grad is not None}
    return Run(logits=logits.detach().numpy(), hidden=torch.stack(seen).detach().numpy(), gradients=found)


def _first(out: Any) -> torch.Tensor:
    return out[0] if isinstance(out, tuple) else out


def _after(trace: Trace) -> dict[str, jax.Array]:
    return {"after": trace.after}


def ours(case: Case, checkpoint: hf.Checkpoint, given: Batch) -> Run:
    """Run stackjax on the same batch."""
    position = Given(position={"index": jnp.asarray(given.index)})

    def run(params: Params) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        logits, result = checkpoint.model.apply(params, jnp.asarray(given.tokens), position, measure=_after)
        return loss.cross_entropy(logits, jnp.asarray(given.targets)), (logits, result.measure["after"])

    gradients: dict[str, np.ndarray] = {}
    if case.gradients:
        (_, (logits, hidden)), by_leaf = jax.jit(jax.value_and_grad(run, has_aux=True))(checkpoint.params)
        gradients = {name: view.read() for name, view in hf.to_tensors(by_leaf, checkpoint.config).items()}
    else:
        _, (logits, hidden) = jax.jit(run)(checkpoint.params)
    return Run(logits=np.asarray(logits), hidden=np.asarray(hidden), gradients=gradients)


def errors(mine: Run, reference: Run, given: Batch) -> dict[str, float]:
    """The largest errors at real tokens.

    logits: over the largest logit. hidden: of any layer, over the layer's largest entry. gradients: of any parameter,
    over 1e-4 of its largest entry plus 1e-6 of the largest of all, so 1 is the bar; NaN where there are none.
    """
    found = {"logits": _relative(mine.logits[given.real], reference.logits[given.real])}
    pairs = zip(mine.hidden, reference.hidden, strict=True)
    found["hidden"] = max(_relative(a[given.real], b[given.real]) for a, b in pairs)
    found["gradients"] = float("nan")
    if reference.gradients:
        if mine.gradients.keys() != reference.gradients.keys():
            raise AssertionError(
                f"gradients of different parameters: {mine.gradients.keys() ^ reference.gradients.keys()}"
            )
        largest = max(float(np.abs(b).max()) for b in reference.gradients.values())
        found["gradients"] = max(
            float(np.abs(mine.gradients[name] - b).max()) / (1e-4 * float(np.abs(b).max()) + 1e-6 * largest)
            for name, b in reference.gradients.items()
        )
    return found


def _relative(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max() / np.abs(b).max())


def compare(name: str, seed: int, folder: Path) -> dict[str, float]:
    """A random checkpoint of an architecture through both, on a ragged batch.

    Args:
        name: of the case.
        seed: of the configuration, the parameters and the batch.
        folder: an empty one, where checkpoints are written.

    Returns:
        `errors`, and round_trip: whether stackjax -> folder -> transformers -> folder -> stackjax is exact.
    """
    case, random = CASES[name], np.random.default_rng(seed)
    reference = random_model(case, random)
    reference.save_pretrained(folder / "theirs")
    checkpoint = hf.load(folder / "theirs")
    given = batch(random, left=case.indexed and bool(seed % 2))
    found = errors(ours(case, checkpoint, given), theirs(case, reference, given), given)
    return {**found, "round_trip": round_trip(case, checkpoint, folder)}


def round_trip(case: Case, checkpoint: hf.Checkpoint, folder: Path) -> bool:
    """Whether parameters come back to the bit from stackjax -> folder -> transformers -> folder -> stackjax."""
    hf.save(folder / "ours", checkpoint.params, checkpoint.config, shard_bytes=10_000)
    model, report = getattr(transformers, case.model).from_pretrained(folder / "ours", output_loading_info=True)
    if any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")):
        raise AssertionError(f"transformers did not take the folder as it is: {report}")
    model.save_pretrained(folder / "back")
    back = hf.load(folder / "back")
    same = jax.tree.map(lambda a, b: bool((a == b).all()), checkpoint.params, back.params)
    return back.model == checkpoint.model and all(jax.tree.leaves(same))
