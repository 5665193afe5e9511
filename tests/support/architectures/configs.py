"""Small values for the configs of every Mixture-of-Experts architecture of Transformers.

`TEXT` and `TOWER` are given to every config that declares a field of the name; `OWN` is what one
architecture needs besides, or otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.support.tiny import COMMON

E, K, VOCABULARY = 16, 4, 96

# 16 experts and 4 slots: a batch of 4 rows has secondary experts, and K < E leaves some idle.
TEXT: Mapping[str, Any] = COMMON | {
    "unpadded_vocab_size": VOCABULARY,
    "dense_intermediate_size": 32,
    "shared_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "shared_experts_intermediate_size": 16,
    "num_hidden_layers": 3,
    "sliding_window": 16,
    # The experts, by all their names.
    "num_experts": E,
    "num_local_experts": E,
    "n_routed_experts": E,
    "moe_num_experts": E,
    "top_k_experts": K,
    "moe_topk": K,
    "moe_k": K,
    "n_shared_experts": 1,
    "num_shared_experts": 1,
    "moe_num_shared_experts": 1,
    "n_group": 4,
    "topk_group": 2,
    "first_k_dense_replace": 1,
    "num_dense_layers": 1,
    # Multi-head latent attention, and the indexer of sparse attention.
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "index_topk": 8,
    "index_head_dim": 16,
    "index_n_heads": 4,
    # Linear attention.
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_head_dim": 8,
    "linear_num_heads": 4,
}
# What a vision or audio tower needs to be built; no test sends anything through one.
TOWER: Mapping[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 8,
    "depth": 1,
    "num_heads": 4,
    "patch_size": 4,
    "image_size": 16,
    "out_hidden_size": 32,
    "text_hidden_size": 32,
}
_MLA: dict[str, Any] = {"num_key_value_heads": 4}
_ALL_KINDS_OF_LAYER: dict[str, Any] = {
    "layer_types": ["linear_attention", "full_attention", "linear_attention"]
}
_DENSE_FIRST: dict[str, Any] = {"mlp_layer_types": ["dense", "sparse", "sparse"]}
_ROPE: dict[str, Any] = {"rope_type": "default", "rope_theta": 10000.0}
_GEMMA4: dict[str, Any] = {
    "enable_moe_block": True, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": VOCABULARY,
    "layer_types": ["sliding_attention", "full_attention", "full_attention"], "global_head_dim": 8,
}  # fmt: skip
_DOTS3: dict[str, Any] = _MLA | _DENSE_FIRST | {
    "layer_types": ["indexed_attention", "sliding_attention", "indexed_attention"],
    "swa_num_attention_heads": 4, "swa_num_key_value_heads": 4, "swa_q_lora_rank": 16, "swa_kv_lora_rank": 16,
    "swa_head_dim": 16, "swa_qk_nope_head_dim": 8, "swa_v_head_dim": 8,
}  # fmt: skip
_QWEN4: dict[str, Any] = {
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "hc_lowrank": 8, "indexer_n_heads": 4, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 8,
    "indexer_compress_ratio": 4, "ngram_vocab_size_base": 64, "split_ngram_parts": 1, "heads_per_ngram": 2,
    "make_ngram_vocab_size_divisible_by": 8,
}  # fmt: skip
_INKLING: dict[str, Any] = {
    "swa_num_attention_heads": 4, "swa_num_key_value_heads": 2, "swa_head_dim": 8, "sliding_window_size": 16,
    "d_rel": 4, "rel_extent": 32, "layer_types": ["hybrid_sliding", "hybrid", "hybrid_sliding"],
}  # fmt: skip
_INKLING2: dict[str, Any] = _INKLING | {
    "n_layers_per_attn_res_block": 2, "num_hidden_layers": 4, "log_scaling_n_floor": 64,
    "layer_types": ["hybrid_sliding", "hybrid", "hybrid_sliding", "hybrid"],
}  # fmt: skip
# Layers 2 and 3 are visited three times in each pass.
_LOOP: dict[str, Any] = _INKLING2 | {
    "num_hidden_layers": 6, "loop_layer_index_start": 2, "loop_layer_index_end": 4, "loop_num_passes": 3,
    "loop_gate_rank": 4, "layer_types": ["hybrid_sliding", "hybrid"] * 3,
}  # fmt: skip
_INKLING_VISION: dict[str, Any] = {"model_type": "inkling2_vision", "projection_hidden_dim": 32}
_OMNI_THINKER: dict[str, Any] = {
    "vision_start_token_id": 120,
    "text_config": {"rope_parameters": _ROPE | {"mrope_section": [2, 1, 1]}},
    "vision_config": {"deepstack_visual_indexes": [0]},
    "audio_config": {"d_model": 32, "encoder_layers": 1, "encoder_attention_heads": 4, "encoder_ffn_dim": 32,
                     "output_dim": 32, "downsample_hidden_size": 8, "num_mel_bins": 16},
}  # fmt: skip
_OMNI_TALKER: dict[str, Any] = {
    "text_config": {"rope_parameters": _ROPE | {"mrope_section": [2, 1, 1]},
                    "shared_expert_intermediate_size": 16},
    "code_predictor_config": {"num_code_groups": 4, "vocab_size": 16},
    "num_code_groups": 4, "spatial_merge_size": 2, "thinker_hidden_size": 32, "accept_hidden_layer": 1,
}  # fmt: skip
_ENCODER_DECODER: dict[str, Any] = {"d_model": 32}
_OCR_VISION: dict[str, Any] = {
    "sam_config": {"output_channels": 8, "global_attn_indexes": [0], "mlp_dim": 32,
                   "downsample_channels": [8, 32], "image_size": 64, "patch_size": 16},
}  # fmt: skip

OWN: Mapping[str, dict[str, Any]] = {
    "aria": {"vision_config": {"model_type": "idefics3_vision"}, "image_token_index": 1},
    "axk1": _MLA | _DENSE_FIRST,
    "axk2": _MLA | _DENSE_FIRST | {"gated_norm_rank": 4},
    "bailing_hybrid": _MLA | _ALL_KINDS_OF_LAYER,
    "beam": _DENSE_FIRST | {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    "cohere2_moe": {"sliding_window_pattern": 2},
    "dbrx": {"d_model": 32, "n_heads": 4, "n_layers": 3, "max_seq_len": 128,
             "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
             "ffn_config": {"ffn_hidden_size": 16, "moe_num_experts": E, "moe_top_k": K, "hidden_size": 32}},
    "deepseek_ocr2": {"text_config": _DENSE_FIRST, "vision_config": _OCR_VISION},
    "deepseek_v2": _MLA | {"topk_method": "group_limited_greedy"},
    "deepseek_v3": _MLA,
    "deepseek_v32": _MLA,
    "deepseek_v4": {"num_key_value_heads": 1, "o_groups": 2, "o_lora_rank": 8, "hc_mult": 2,
                    "mlp_layer_types": ["hash_moe", "moe", "moe"], "compress_rates": {
                        "compressed_sparse_attention": 4, "heavily_compressed_attention": 8},
                    "layer_types": ["heavily_compressed_attention", "compressed_sparse_attention",
                                    "heavily_compressed_attention"]},
    "diffusion_gemma": {"vision_config": {"model_type": "gemma4_vision", "position_embedding_size": 16},
                        "canvas_length": 8},
    "dots3_note_text": _DOTS3,
    "dots3_note": {"text_config": _DOTS3,
                   "vision_config": {"adapter_in_dim": 32, "adapter_out_dim": 32, "num_local_experts": 4,
                                     "mlp_layer_types": ["sparse"], "moe_intermediate_size": 16},
                   "audio_config": {"adapter_input_size": 32, "adapter_out_dim": 32,
                                    "downsample_hidden_size": 8, "feature_size": 16}},
    "ernie4_5_vl_moe": {"text_config": _DENSE_FIRST | {
        "moe_intermediate_size": [16, 8], "rope_parameters": _ROPE | {"mrope_section": [1, 1, 2]}}},
    "gemma4_text": _GEMMA4,
    "gemma4": {"text_config": _GEMMA4, "vision_config": {"position_embedding_size": 16},
               "audio_config": {"subsampling_conv_channels": [8, 8], "output_proj_dims": 32}},
    "glm4_moe_lite": _MLA | _DENSE_FIRST,
    "glm4v_moe": {"text_config": {"head_dim": 16, "rope_parameters": _ROPE | {
        "mrope_section": [1, 1, 2], "partial_rotary_factor": 0.5}}},
    "glm5_next": {"text_config": _MLA | _DENSE_FIRST | {
        "qk_rope_head_dim": 0, "hc_mult": 2, "index_kpool": 4,
        "layer_types": ["linear_attention", "full_attention", "full_attention"]},
                   "vision_config": {"projection_intermediate_size": 32}},
    "glm_moe_dsa": _MLA,
    "granitemoehybrid": {"layer_types": ["mamba", "attention", "mamba"], "mamba_n_heads": 4,
                         "mamba_d_state": 8, "mamba_d_head": 16, "mamba_chunk_size": 8},
    "hy_v4": _MLA | {"hc_mult": 2},
    "hy_v4_vl": {"text_config": _MLA | {"hc_mult": 2,
                                        "rope_parameters": _ROPE | {"mrope_section": [2, 1, 1]}},
                 "vision_config": {"max_image_size": 16}},
    "inkling_text": _INKLING | _DENSE_FIRST,
    "inkling_mm_model": {"text_config": _INKLING | _DENSE_FIRST,
                         "vision_config": {"num_hidden_layers": 12, "num_channels": 1},
                         "audio_config": {"n_mel_bins": 8, "mel_vocab_size": 16}},
    "inkling2_text": _INKLING2,
    "inkling2": {"text_config": _INKLING2, "vision_config": {"projection_hidden_dim": 32}},
    "inkling2_loop_text": _LOOP,
    "inkling2_loop": {"text_config": _LOOP, "vision_config": _INKLING_VISION},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 1,
              "expert_layer_offset": 0, "mamba_d_state": 8, "mamba_dt_rank": 4},
    "kimi_linear": _MLA | _ALL_KINDS_OF_LAYER | _DENSE_FIRST,
    "laguna": {"layer_types": ["full_attention", "sliding_attention", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv"]},
    "llama4": {"vision_config": {"vision_output_dim": 32, "projector_input_dim": 32,
                                 "projector_output_dim": 32}},
    "longcat_flash": _MLA | {"zero_expert_num": 4, "num_layers": 2, "num_hidden_layers": 4,
                             "ffn_hidden_size": 32, "expert_ffn_hidden_size": 16},
    "minimax_m3_vl": {"projector_hidden_size": 32, "text_config": {"model_type": "minimax_m3_vl_text"},
                      "vision_config": {"model_type": "minimax_m3_vl_vision"}},
    "mistral4": _MLA,
    "mistral_large4": {"text_config": _MLA, "vision_config": {"model_type": "pixtral"},
                       "image_token_index": 1},
    "muse_spark": {"text_config": {"moe_hidden_size": 16}, "out_hidden_size": 32, "projector_hidden_size": 32,
                   "audio_config": {"patch_sizes": [16], "hidden_sizes": [8], "depths": [1],
                                    "out_hidden_size": 32}},
    "nemotron_h": {"layers_block_type": ["mamba", "moe", "attention", "moe"], "ssm_state_size": 8,
                   "mamba_num_heads": 4, "mamba_head_dim": 16, "n_groups": 2, "chunk_size": 8,
                   "moe_shared_expert_intermediate_size": 16, "n_group": 1, "topk_group": 1},
    "nllb-moe": _ENCODER_DECODER | {"encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 32,
                                    "decoder_ffn_dim": 32, "encoder_attention_heads": 4,
                                    "decoder_attention_heads": 4, "encoder_sparse_step": 1,
                                    "decoder_sparse_step": 1},
    # Its router picks two experts, whatever the config says.
    "phimoe": {"num_experts_per_tok": 2},
    "qwen3_5_moe_text": _ALL_KINDS_OF_LAYER,
    "qwen3_5_moe": {"text_config": _ALL_KINDS_OF_LAYER},
    "qwen3_next": _ALL_KINDS_OF_LAYER,
    "qwen3_omni_moe_thinker": _OMNI_THINKER,
    "qwen3_omni_moe": {"thinker_config": _OMNI_THINKER, "talker_config": _OMNI_TALKER,
                       "code2wav_config": {"decoder_dim": 16, "codebook_size": 16, "num_quantizers": 2}},
    "qwen3_vl_moe": {"vision_config": {"deepstack_visual_indexes": [0]},
                     "text_config": {"rope_parameters": _ROPE | {"mrope_section": [2, 1, 1]}}},
    "qwen4_exp_text": _QWEN4,
    "qwen4_exp": {"text_config": _QWEN4},
    "step3p7": {"text_config": _DENSE_FIRST | {"share_expert_dim": 16}},
    "switch_transformers": _ENCODER_DECODER | {"d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 4,
                                               "num_sparse_encoder_layers": 1, "num_decoder_layers": 2,
                                               "num_sparse_decoder_layers": 1},
    "unlimited_ocr": {"vision_config": _OCR_VISION},
    # Its router picks one expert.
    "zaya": {"num_experts_per_tok": 1, "router_hidden_size": 16},
}  # fmt: skip
