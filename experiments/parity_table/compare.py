"""One random checkpoint through both, and the largest errors."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Every program here is compiled for one call.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

import jax
import jax.numpy as jnp
import numpy as np
import torch  # pyright: ignore[reportMissingImports]
import transformers  # pyright: ignore[reportMissingImports]
from transformers.core_model_loading import revert_weight_conversion  # pyright: ignore[reportMissingImports]

from stackjax import decode, loss
from stackjax.interop import hf
from stackjax.layer import Trace
from stackjax.sublayer import Params, SideInputs

from .cases import VOCAB, Case, Random

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

Architectures = Mapping[str, hf.Architecture]
BATCH, TOKENS, NEW_TOKENS = 3, 9, 64
ROUNDING = 1e-6
"""Share of the largest gradient below which gradients that are zero on paper are noise."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Ragged sequences.

    Args:
        tokens: (B, T); 0 where there is none.
        real: (B, T) booleans.
        targets: (B, T) what a loss asks for; -1 where there is no token.
        images: (B, C, height, width), of which the tokens are the patches; None where tokens are read.
    """

    tokens: np.ndarray
    real: np.ndarray
    targets: np.ndarray
    images: np.ndarray | None = None

    @property
    def index(self) -> np.ndarray:
        """(B, T) each token's place in its sequence; -1 where there is none."""
        return np.where(self.real, np.cumsum(self.real, -1) - 1, -1).astype(np.int32)

    @property
    def position(self) -> dict[str, jax.Array]:
        """Positions of the tokens, for stackjax."""
        return {"index": jnp.asarray(self.index)}

    @property
    def mask(self) -> Any:
        """Mask of the real tokens, for transformers."""
        return torch.tensor(self.real.astype(int))


def draw_batch(random: Random, *, left: bool) -> Batch:
    """Sequences of different lengths, padded on one side."""
    lengths = np.array([TOKENS, *random.integers(2, TOKENS, BATCH - 1)])
    real = np.arange(TOKENS) < lengths[:, None]
    real = real[:, ::-1] if left else real
    tokens, targets = (random.integers(1, VOCAB, (BATCH, TOKENS)) for _ in range(2))
    return Batch(tokens=np.where(real, tokens, 0), real=real, targets=np.where(real, targets, -1))


def draw_images(random: Random, config: Any) -> Batch:
    """Images in place of sequences."""
    images = random.normal(size=(BATCH, config.num_channels, config.image_size, config.image_size)).astype(np.float32)
    tokens = np.asarray(hf.patches(jnp.asarray(images), config.patch_size))
    targets = random.integers(0, config.num_labels, tokens.shape[:2])
    return Batch(tokens=tokens, real=np.ones(tokens.shape[:2], bool), targets=targets, images=images)


def draw_config(case: Case, seed: int = 0) -> dict[str, Any]:
    """A small random configuration, as config.json holds it."""
    return getattr(transformers, case.config)(**case.options(np.random.default_rng(seed))).to_dict()


def draw_model(case: Case, random: Random) -> Any:
    """A `transformers` model with its parameters moved far from their init, so that nothing is near zero or flat."""
    torch.manual_seed(int(random.integers(2**31)))
    config = getattr(transformers, case.config)(**case.options(random), attn_implementation="eager")
    model = getattr(transformers, case.model)(config).eval()
    if case.untied:
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    fixed = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    fixed |= {name for name, _ in model.named_buffers() if "embed_positions" in name}
    values = {value.data_ptr(): value for name, value in model.state_dict().items() if name not in fixed}
    with torch.no_grad():
        for value in values.values():
            value.add_(case.spread * torch.randn_like(value))
    return model


@dataclass(frozen=True, kw_only=True)
class Run:
    """A model's outputs for a batch.

    Args:
        logits: of the real tokens, (N, V).
        hidden: the real tokens' after every layer, L arrays (N, D).
        gradients: of the mean cross-entropy, by the checkpoint's names.
    """

    logits: np.ndarray
    hidden: list[np.ndarray]
    gradients: dict[str, np.ndarray] = field(default_factory=dict)


def theirs(case: Case, model: Any, batches: list[Batch], renames: tuple[tuple[str, str], ...] = ()) -> Run:
    """Run the `transformers` model on a batch, or on a source and a target; `renames` are the architecture's."""
    paths = case.layers or _layers(model)
    seen: list[list[Any]] = [[] for _ in paths]
    hooks = [
        layer.register_forward_hook(
            lambda _, __, out, layer=captured: layer.append(out[0] if isinstance(out, tuple) else out)
        )
        for path, captured in zip(paths, seen, strict=True)
        for layer in model.get_submodule(path)
    ]
    images = batches[0].images
    inputs = {"input_ids": torch.tensor(batches[0].tokens), "attention_mask": batches[0].mask}
    inputs = inputs if images is None else {"pixel_values": torch.tensor(images)}
    if case.two_sided:
        inputs["decoder_input_ids"] = torch.tensor(batches[1].tokens)
        inputs["decoder_attention_mask"] = batches[1].mask
    if case.indexed:
        inputs["position_ids"] = torch.tensor(np.maximum(batches[0].index, 0), dtype=torch.long)
    if case.one_by_one:
        rows = [model(**{name: value[row : row + 1] for name, value in inputs.items()}).logits for row in range(BATCH)]
        logits = torch.cat(rows)
        seen = [
            [
                torch.cat(captured[i :: len(captured) // BATCH], int(case.time_first))
                for i in range(len(captured) // BATCH)
            ]
            for captured in seen
        ]
    elif case.head:
        last, output = map(model.get_submodule, case.head)
        normed: list[torch.Tensor] = []
        hooks.append(last.register_forward_hook(lambda _, __, out: normed.append(out)))
        model(**inputs)
        logits = output(normed[0])
    else:
        logits = model(**inputs).logits
    for hook in hooks:
        hook.remove()
    slopes: dict[str, np.ndarray] = {}
    if case.gradients:
        targets = torch.tensor(batches[-1].targets)
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1).backward()
        by_module = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        by_file = revert_weight_conversion(model, by_module)
        slopes = {_renamed(name, renames): slope.numpy() for name, slope in by_file.items()}
    arrays = [[x.detach().numpy() for x in captured] for captured in seen]
    arrays = [[np.swapaxes(x, 0, 1) for x in captured] if case.time_first else captured for captured in arrays]
    return Run(
        logits=logits.detach().numpy()[batches[-1].real],
        hidden=[x[batch.real] for captured, batch in zip(arrays, batches, strict=True) for x in captured],
        gradients=slopes,
    )


def _layers(model: Any) -> tuple[str, ...]:
    """Path of the first list of modules that is as long as the model is deep."""
    depth = model.config.num_hidden_layers
    lists = (path for path, part in model.named_modules() if isinstance(part, torch.nn.ModuleList))
    return tuple(path for path in lists if len(model.get_submodule(path)) == depth)[:1]


def _renamed(name: str, renames: tuple[tuple[str, str], ...]) -> str:
    """The present name of a tensor."""
    for pattern, present in renames:
        name = re.sub(pattern, present, name)
    return name


def _after(trace: Trace) -> dict[str, jax.Array]:
    return {"after": trace.after}


def ours(
    case: Case, checkpoint: hf.Checkpoint, batches: list[Batch], architectures: Architectures = hf.ARCHITECTURES
) -> Run:
    """Run stackjax on the same."""
    model, tokens = checkpoint.model, [jnp.asarray(batch.tokens) for batch in batches]

    def run(params: Params) -> tuple[jax.Array, tuple[jax.Array, list[jax.Array]]]:
        if case.two_sided:
            where = SideInputs(memory_position=batches[0].position, position=batches[1].position)
            logits, result = model.apply(params, *tokens, where, measure=_after)
            hidden = [result.measure[side]["after"] for side in ("encoder", "decoder")]
        else:
            logits, result = model.apply(params, *tokens, SideInputs(position=batches[0].position), measure=_after)
            hidden = [result.measure["after"]]
        return loss.cross_entropy(logits, jnp.asarray(batches[-1].targets)), (logits, hidden)

    gradients: dict[str, np.ndarray] = {}
    if case.gradients:
        (_, (logits, hidden)), by_leaf = jax.jit(jax.value_and_grad(run, has_aux=True))(checkpoint.params)
        views = hf.to_tensors(by_leaf, checkpoint.config, architectures=architectures)
        gradients = {name: view.read() for name, view in views.items()}
    else:
        _, (logits, hidden) = jax.jit(run)(checkpoint.params)
    return Run(
        logits=np.asarray(logits)[batches[-1].real],
        hidden=[x[batch.real] for layers, batch in zip(hidden, batches, strict=True) for x in np.asarray(layers)],
        gradients=gradients,
    )


def errors(ours: Run, reference: Run, aliases: Mapping[str, str] | None = None) -> dict[str, float]:
    """The largest errors.

    Args:
        ours: what stackjax made of the batch.
        reference: what `transformers` made of it.
        aliases: our name of a tensor, by another that it has where it is tied.

    Returns:
        logits: over the largest logit. hidden: of any layer, over the layer's largest entry. gradients: of any
        parameter, the norm of the difference over the norm; NaN where there are none.
    """
    errors_by_part = {"logits": _relative(ours.logits, reference.logits)}
    errors_by_part["hidden"] = max(_relative(a, b) for a, b in zip(ours.hidden, reference.hidden, strict=True))
    errors_by_part["gradients"] = float("nan")
    if reference.gradients:
        largest = max(float(np.abs(b).max()) for b in reference.gradients.values())
        our_name = {name: name if name in ours.gradients else (aliases or {})[name] for name in reference.gradients}
        pairs = [(ours.gradients[our_name[name]] / largest, b / largest) for name, b in reference.gradients.items()]
        errors_by_part["gradients"] = max(_off(a, b) for a, b in pairs)
    return errors_by_part


def _off(a: np.ndarray, b: np.ndarray) -> float:
    """|a - b| / |b|; 0 where both are rounding, as gradients of the biases of keys are, which no softmax sees."""
    if max(np.abs(a).max(), np.abs(b).max()) < ROUNDING:
        return 0.0
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def _relative(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max() / np.abs(b).max())


def same_tokens(case: Case, model: Any, checkpoint: hf.Checkpoint, batch: Batch) -> bool:
    """True if greedy decoding gives the same 64 tokens."""
    limits = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "do_sample": False, "pad_token_id": 0}
    model.generation_config.eos_token_id = model.generation_config.forced_eos_token_id = None
    reference = model.generate(torch.tensor(batch.tokens), attention_mask=batch.mask, **limits).numpy()[:, -NEW_TOKENS:]
    our_model, params, tokens = checkpoint.model, checkpoint.params, jnp.asarray(batch.tokens)
    if case.two_sided:
        memory, _ = our_model.encode(params, tokens, SideInputs(position=batch.position))
        begin = jnp.zeros((BATCH, 1), jnp.int32)
        source = SideInputs(memory=memory, memory_position=batch.position)
        generated = decode.generate(our_model.decoder, params["decoder"], begin, source, n_tokens=NEW_TOKENS)
    else:
        generated = decode.generate(our_model, params, tokens, SideInputs(position=batch.position), n_tokens=NEW_TOKENS)
    return bool((np.asarray(generated.tokens) == reference).all())


def round_trip(case: Case, checkpoint: hf.Checkpoint, folder: Path, architectures: Architectures) -> bool:
    """True if parameters come back to the bit from stackjax -> folder -> transformers -> folder -> stackjax."""
    params, config = checkpoint.params, checkpoint.config
    hf.save(folder / "ours", params, config, shard_bytes=10_000, architectures=architectures)
    model, report = getattr(transformers, case.model).from_pretrained(folder / "ours", output_loading_info=True)
    missing = [name for name in report["missing_keys"] if not re.fullmatch(case.left_out, name)]
    if missing or report["unexpected_keys"] or report["mismatched_keys"]:
        raise AssertionError(f"transformers did not take the folder as it is: {report}")
    model.save_pretrained(folder / "back")
    back = hf.load(folder / "back", architectures=architectures)
    same = jax.tree.map(lambda a, b: bool((a == b).all()), checkpoint.params, back.params)
    return back.model == checkpoint.model and all(jax.tree.leaves(same))


def compare(case: Case, seed: int, folder: Path, architectures: Architectures = hf.ARCHITECTURES) -> dict[str, float]:
    """A random checkpoint of an architecture through both, on a ragged batch.

    Args:
        case: the architecture.
        seed: of the configuration, the parameters and the batch.
        folder: an empty one, where checkpoints are written.
        architectures: the descriptions, by model_type.

    Returns:
        `errors`; decoding: whether greedy tokens are the same (NaN where there is no decoding); round_trip.
    """
    random = np.random.default_rng(seed)
    model = draw_model(case, random)
    model.save_pretrained(folder / "theirs")
    checkpoint = hf.load(folder / "theirs", architectures=architectures)
    architecture = architectures[checkpoint.config["model_type"]]
    batches = [draw_batch(random, left=case.left and bool(seed % 2)) for _ in range(1 + case.two_sided)]
    if case.images:
        batches = [draw_images(random, model.config)]
    computed, reference = (
        ours(case, checkpoint, batches, architectures),
        theirs(case, model, batches, architecture.renames),
    )
    row = errors(computed, reference, dict(architecture.aliases))
    prompt = draw_batch(random, left=case.left)
    row["decoding"] = float(same_tokens(case, model, checkpoint, prompt)) if case.decodes else float("nan")
    row["round_trip"] = float(round_trip(case, checkpoint, folder, architectures))
    return row
