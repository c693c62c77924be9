"""Fields of Hugging Face configs that change no size, no operation and no byte."""

from __future__ import annotations

from typing import Any

_BOOKKEEPING = """
_name_or_path architectures auto_map transformers_version torch_dtype dtype use_cache model_type
quantization_config compression_config name_or_path _commit_hash id2label label2id problem_type
return_dict return_dict_in_generate return_unused_kwargs output_attentions output_hidden_states
output_scores output_past torchscript use_bfloat16 tf_legacy_loss finetuning_task tokenizer_class
task_specific_params prefix gradient_checkpointing use_gradient_checkpointing use_flash_attn
attn_implementation _attn_implementation _attn_implementation_autoset _attn_implementation_internal
_flash_attn_2_enabled use_flash_attention unsloth_version unsloth_fixed pretraining_tp onnx_export
keys_to_ignore_at_inference base_model_tp_plan base_model_pp_plan skip_softmax tokenizer_name
custom_pipelines chat_template license model_name model_version seed summary_activation
summary_first_dropout summary_proj_to_labels summary_type summary_use_proj reorder_and_upcast_attn
scale_attn_weights scale_attn_by_inverse_layer_idx fused_softmax masked_softmax_fusion
attention_softmax_in_fp32 bias_dropout_fusion slow_but_exact use_fused_kernels kernel_config
"""
_GENERATION = """
max_length min_length max_new_tokens do_sample early_stopping num_beams num_beam_groups
diversity_penalty temperature top_k top_p typical_p repetition_penalty length_penalty
no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids num_return_sequences
forced_bos_token_id forced_eos_token_id remove_invalid_values exponential_decay_length_penalty
suppress_tokens begin_suppress_tokens sep_token decoder_start_token_id stop_token_ids
num_logits_to_keep
"""
_INITIALISATION = """
initializer_range initializer_factor init_std init_device initializer_cutoff_factor
embedding_initializer_range rescale_prenorm_residual time_step_min time_step_max time_step_floor
time_step_limit time_step_rank init_method weight_init initialization_range
"""
_POSITIONS = """
rope_theta rope_scaling rope_parameters rope_local_base_freq rope_interleave rotary_dim rotary_emb
rotary_percentage partial_rotary_factor rope_pct rope_traditional original_max_position_embeddings
initial_context_length rope_scaling_factor rope_ntk_alpha rope_ntk_beta rotary_emb_base
rope_embed use_rope rope_type max_sequence_length seq_length n_ctx model_max_length
tokenizer_model_max_length attn_temperature_tuning attn_scale floor_scale rope_percent
default_theta sliding_window_size_hint long_factor short_factor
"""
_NUMERICS = """
hidden_act hidden_activation activation_function activation mlp_hidden_act mamba_hidden_act
rms_norm_eps layer_norm_eps layer_norm_epsilon norm_eps attention_softmax_scale
query_pre_attn_scalar attn_logit_softcapping final_logit_softcapping swiglu_limit swiglu_alpha
residual_in_fp32 use_mamba_kernels chunk_size dropout layerdrop attn_pdrop resid_pdrop
embd_pdrop attention_dropout hidden_dropout residual_dropout dropout_rate ffn_dropout
mamba_chunk_size cache_implementation chunk_size_feed_forward use_kernels
"""
_TRAINING = """
router_aux_loss_coef router_z_loss_coef router_jitter_noise output_router_logits aux_loss_alpha
seq_aux aux_loss_coef norm_topk_prob scoring_func topk_method routed_scaling_factor n_group
topk_group num_expert_group ep_size moe_router_load_balancing_type moe_layer_share
batch_prioritized_routing router_dtype router_ignore_padding_tokens expert_capacity
add_router_probs mtp_loss_scaling_factor mtp_loss_weight label_smoothing
moe_shared_expert_overlap
"""
# Layers that predict further tokens are left out of every count, as in model cards.
_MULTI_TOKEN = """
num_nextn_predict_layers num_mtp_modules mtp_transformer_layers use_mtp mtp_num_layers
mtp_hybrid_override_pattern mtp_layers_block_type mtp_num_hidden_layers mtp_use_dedicated_embeddings
"""

_ALL = (_BOOKKEEPING, _GENERATION, _INITIALISATION, _POSITIONS, _NUMERICS, _TRAINING, _MULTI_TOKEN)
HARMLESS = frozenset(word for words in _ALL for word in words.split())
_SUFFIXES = (
    "_dropout",
    "_token_id",
    "_token_ids",
    "_token_index",
    "_dropout_prob",
    "_dropout_rate",
)

# Fields of every config whose default means nothing, while any other value adds or removes weights.
_DEFAULTS: dict[str, tuple[Any, ...]] = {
    "add_cross_attention": (False, None),
    "cross_attention_hidden_size": (None,),
    "is_encoder_decoder": (False, None),
    "is_decoder": (False, True, None),
    "tie_encoder_decoder": (False, None),
    "pruned_heads": ({}, None),
    "num_labels": (0, 1, 2, None),
    "_num_labels": (0, 1, 2, None),
}


def is_harmless(key: str) -> bool:
    """Return whether a field changes nothing that is counted or timed."""
    return key in HARMLESS or key in _DEFAULTS or key.endswith(_SUFFIXES)


def required_value(key: str, value: Any) -> bool:
    """Return whether a field of every config has a value that changes nothing."""
    return key not in _DEFAULTS or value in _DEFAULTS[key]
