"""Options and tensors of published checkpoints that no forward pass reads, in one table.

An option that is neither read by a description nor in this table is refused, unless its value is itself nothing (null,
false, or empty). A tensor that has no place in a description and is not in this table is refused too.
"""

import re
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Inert:
    """Names without effect, of one architecture.

    Args:
        options: patterns of options of config.json.
        tensors: patterns of tensors; `{depth}` stands for num_hidden_layers, the first layer that the stack has not.
    """

    options: tuple[str, ...] = ()
    tensors: tuple[str, ...] = ()

    def has_option(self, name: str) -> bool:
        """True if the option is one of these, or one of those without effect everywhere."""
        return any(re.fullmatch(pattern, name) for pattern in (*self.options, *EVERYWHERE.options))

    def has_tensor(self, name: str, config: dict[str, Any]) -> bool:
        """True if the tensor is one of these, or one of those without effect everywhere."""
        depth = str(config.get("num_hidden_layers"))
        patterns = (*self.tensors, *EVERYWHERE.tensors)
        return any(re.fullmatch(pattern.replace("{depth}", depth), name) for pattern in patterns)


WHAT_IT_IS = (
    r"_name_or_path|architectures|auto_map|dtype|torch_dtype|model_type|transformers_version|_commit_hash|"
    r"_attn_implementation.*|attn_implementation|_experts_implementation.*|_flash_attn_2_enabled|_num_labels|"
    r"custom_pipelines|unsloth_.*|model_name|language|finetuning_task|tokenizer_class|gguf_file"
)
TRAINING = (
    r".*dropout.*|.*_pdrop|.*layerdrop|init_std|init_method|init_device|initializer_.*|_?gradient_checkpointing|"
    r"label2id|id2label|num_labels|problem_type|router_aux_loss_coef|router_jitter_noise|output_router_logits|"
    r"seq_aux|aux_loss_alpha|classifier_.*|label_smoothing"
)
GENERATION = (
    r".*_token_id|use_cache|max_length|min_length|do_sample|early_stopping|num_beams|num_beam_groups|temperature|"
    r"top_[kp]|typical_p|repetition_penalty|length_penalty|.*no_repeat_ngram_size|bad_words_ids|num_return_sequences|"
    r"diversity_penalty|prefix|task_specific_params|remove_invalid_values|exponential_decay_length_penalty|"
    r"suppress_tokens|begin_suppress_tokens|cache_implementation"
)
WHAT_IS_RETURNED = (
    r"summary_.*|output_past|output_attentions|output_hidden_states|output_scores|return_.*|is_encoder_decoder|"
    r"chunk_size_feed_forward|pretraining_tp|torchscript|use_bfloat16"
)
EVERYWHERE = Inert(options=(WHAT_IT_IS, TRAINING, GENERATION, WHAT_IS_RETURNED), tensors=(r".*\.rotary_emb\.inv_freq",))
"""Options and tensors without effect in all architectures."""

BERT = Inert(
    # The pooler's sizes and the direction stand in Google's multilingual and Chinese checkpoints.
    options=(r"directionality|pooler_(fc_size|num_attention_heads|num_fc_layers|size_per_head|type)",),
    tensors=(r"bert\.pooler\..*", r"cls\.seq_relationship\..*", r"bert\.embeddings\.position_ids"),
)
BART = Inert(options=(r"force_bos_token_to_be_generated",))
BLOOM = Inert(
    # How the trainer computed it.
    options=(
        r"attention_softmax_in_fp32|bias_dropout_fusion|masked_softmax_fusion|offset_alibi|skip_bias_add|"
        r"skip_bias_add_qkv|n_inner|seq_length",
    ),
)
CLIP_TEXT = Inert(tensors=(r"text_model\.embeddings\.position_ids",))
COHERE = Inert(options=(r"model_max_length",))
COHERE2 = Inert(
    # The trainer's own names for what every model of the family does.
    options=(r"position_embedding_type|use_(embedding_sharing|gated_activation|parallel_block|parallel_embedding)",),
)
DEEPSEEK_V3 = Inert(
    # One layer that predicts a further token stands behind the others.
    options=(r"num_nextn_predict_layers|num_mtp_layers",),
    tensors=(r"model\.layers\.{depth}\..*",),
)
GEMMA2 = Inert(options=(r"sliding_window_size",))
# DistilBERT's positions are stored, whatever they began as.
DISTILBERT = Inert(options=(r"sinusoidal_pos_embds|tie_weights_",), tensors=(r"distilbert\.embeddings\.position_ids",))
ELECTRA = Inert(
    options=(r"generator_size",), tensors=(r"electra\.embeddings\.position_ids", r"discriminator_predictions\..*")
)
EXAONE4 = Inert(options=(r"reorder_qk_norm|max_window_layers",))
FALCON = Inert(options=(r"apply_residual_connection_post_layernorm",))
GPT_BIGCODE = Inert(
    # How another program ran it.
    options=(
        r"inference_runner|max_batch_size|max_sequence_length|pad_key_length|pre_allocate_kv_cache|"
        r"validate_runner_input|attention_softmax_in_fp32|scale_attention_softmax_in_fp32",
    ),
    tensors=(r"(transformer\.)?bias", r".*\.attn\.(masked_)?bias"),
)
GPT_NEO = Inert(tensors=(r".*\.attn\.attention\.(masked_)?bias",))
GPTJ = Inert(options=(r"rotary",), tensors=(r".*\.attn\.(masked_)?bias", r".*\.embed_positions"))
GPT_NEOX = Inert(tensors=(r".*\.attention\.(masked_)?bias",))
GPT2 = Inert(
    options=(r"n_ctx|n_special|predict_special_tokens",),
    tensors=(r".*\.attn\.(masked_)?bias",),
)
GPT_OSS = Inert(options=(r"initial_context_length",))
LLAMA = Inert(options=(r"is_llama_config|max_sequence_length",))
MARIAN = Inert(
    options=(r"max_position_embeddings",),
    tensors=(r"model\.(en|de)coder\.embed_positions\.weight",),
)
MPT = Inert(
    # ALiBi takes the place of learned positions, and every norm is computed in float32.
    options=(r"learned_pos_emb|max_seq_len|norm_type|init_config|tokenizer_name|verbose|attn_impl",),
)
PEGASUS = Inert(
    options=(r"max_position_embeddings|extra_pos_embeddings",),
    tensors=(r"model\.(en|de)coder\.embed_positions\.weight",),
)
PHI3 = Inert(options=(r"full_attn_mod|interpolate_factor",))
QWEN2 = Inert(options=(r"use_mrope",))
# Layers that predict further tokens stand behind the others.
QWEN3_NEXT = Inert(tensors=(r"mtp\..*",))
QWEN3_MOE = Inert(options=(r"max_window_layers",))
SMOLLM3 = Inert(options=(r"max_window_layers",))
STARCODER2 = Inert(
    # The trainer's own names for what hidden_act, norm_epsilon and the rest say.
    options=(
        r"activation_function|layer_norm_epsilon|mlp_type|norm_type|attention_softmax_in_fp32|"
        r"scale_attention_softmax_in_fp32|scale_attn_weights",
    ),
)
ROBERTA = Inert(tensors=(r"roberta\.pooler\..*", r"roberta\.embeddings\.position_ids"))
T5 = Inert(
    options=(r"n_positions|scalable_attention",),
    tensors=(r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",),
)
VIT = Inert(
    options=(r"encoder_stride|pooler_output_size|pooler_act|image_processor_type",), tensors=(r"vit\.pooler\..*",)
)
XLNET = Inert(
    # The memory, which is not used, and other heads.
    options=(r"mem_len|reuse_len|use_mems_eval|use_mems_train|start_n_top|end_n_top",),
    tensors=(r"transformer\.mask_emb", r".*\.rel_attn\.(r_s_bias|seg_embed)"),
)
