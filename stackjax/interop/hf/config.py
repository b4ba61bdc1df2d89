"""config.json, read strictly: an option that nobody reads is refused, so that none is silently left out."""

import re
from typing import Any

from stackjax import feed_forward
from stackjax.feed_forward import Activation

ACTIVATIONS: dict[str, Activation] = {
    "relu": feed_forward.relu,
    "gelu": feed_forward.gelu,
    "gelu_new": feed_forward.gelu_tanh,
    "gelu_pytorch_tanh": feed_forward.gelu_tanh,
    "silu": feed_forward.silu,
    "swish": feed_forward.silu,
}

BESIDES = re.compile(
    # what and whence it is
    r"_name_or_path|architectures|auto_map|dtype|torch_dtype|model_type|transformers_version|_.*|"
    # training
    r".*dropout.*|.*_pdrop|.*layerdrop|init_std|initializer_.*|gradient_checkpointing|label2id|id2label|num_labels|"
    r"problem_type|router_aux_loss_coef|router_jitter_noise|seq_aux|aux_loss_alpha|"
    # generation, and what the Python object returns
    r".*_token_id|use_cache|max_length|min_length|do_sample|early_stopping|num_beams|num_beam_groups|temperature|top_[kp]|"
    r"typical_p|repetition_penalty|length_penalty|no_repeat_ngram_size|encoder_no_repeat_ngram_size|bad_words_ids|"
    r"num_return_sequences|diversity_penalty|prefix|task_specific_params|summary_.*|output_.*|return_.*|"
    r"is_encoder_decoder|finetuning_task|tokenizer_class|remove_invalid_values|exponential_decay_length_penalty|"
    r"suppress_tokens|begin_suppress_tokens|sep_token|pretraining_tp|chunk_size_feed_forward|cache_implementation"
)
"""Options that do not change what a forward pass computes."""


class Config:
    """The options of a config.json, and which of them were read.

    Args:
        fields: of config.json.
    """

    def __init__(self, fields: dict[str, Any]):
        self.fields = dict(fields)
        self.read: dict[str, Any] = {}

    def take(self, name: str, default: Any = ...) -> Any:
        """Read an option.

        Args:
            name: of the option.
            default: what the format means when the option is not there; without one, the option is required.
        """
        if name not in self.fields and default is ...:
            raise ValueError(f"config.json lacks the option {name}")
        self.read[name] = self.fields.get(name, default)
        return self.read[name]

    def only(self, **expected: Any) -> None:
        """Refuse any other value of these options (a tuple lists several); one that is not there is taken as met."""
        for name, wanted in expected.items():
            choices = wanted if isinstance(wanted, tuple) else (wanted,)
            value = self.take(name, choices[0])
            if value not in choices:
                supported = " or ".join(map(repr, choices))
                raise ValueError(f"config.json has {name}={value!r}, which is not supported; only {supported} is")

    def activation(self, name: str, default: Any = ...) -> Activation:
        """Read an option that names an activation."""
        value = self.take(name, default)
        if value not in ACTIVATIONS:
            raise ValueError(f"config.json has {name}={value!r}; supported are {', '.join(ACTIVATIONS)}")
        return ACTIVATIONS[value]

    def finish(self) -> None:
        """Refuse options that were not read and that might change the computation."""
        left = sorted(name for name in self.fields.keys() - self.read.keys() if not BESIDES.fullmatch(name))
        if left:
            named = ", ".join(f"{name}={self.fields[name]!r}" for name in left)
            raise ValueError(f"config.json has options that this architecture's description does not know: {named}")
