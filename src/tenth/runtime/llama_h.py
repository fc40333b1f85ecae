"""What ``include/llama.h`` and ``ggml.h`` of llama.cpp b11549 declare, as far as `tenth.runtime.llama` uses
it.
"""

from __future__ import annotations

import ctypes

_i32, _u32, _f32, _bool, _ptr = (
    ctypes.c_int32,
    ctypes.c_uint32,
    ctypes.c_float,
    ctypes.c_bool,
    ctypes.c_void_p,
)
TO_FLOAT = ctypes.CFUNCTYPE(None, _ptr, _ptr, ctypes.c_int64)
LOG = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, _ptr)


class ModelParams(ctypes.Structure):
    """The fields of llama.h's ``struct llama_model_params``."""

    _fields_ = (
        ("devices", _ptr),
        ("tensor_buft_overrides", _ptr),
        ("n_gpu_layers", _i32),
        ("split_mode", _i32),
        ("load_mode", _i32),
        ("lazy_mode", _i32),
        ("main_gpu", _i32),
        ("tensor_split", _ptr),
        ("progress_callback", _ptr),
        ("progress_callback_user_data", _ptr),
        ("kv_overrides", _ptr),
        ("vocab_only", _bool),
        ("check_tensors", _bool),
        ("use_extra_bufts", _bool),
        ("no_host", _bool),
        ("no_alloc", _bool),
        ("load_mtp", _bool),
    )


class ContextParams(ctypes.Structure):
    """The fields of llama.h's ``struct llama_context_params``."""

    _fields_ = (
        ("n_ctx", _u32),
        ("n_batch", _u32),
        ("n_ubatch", _u32),
        ("n_seq_max", _u32),
        ("n_rs_seq", _u32),
        ("n_outputs_max", _u32),
        ("n_outputs_max_per_seq", _u32),
        ("n_threads", _i32),
        ("n_threads_batch", _i32),
        ("ctx_type", _i32),
        ("rope_scaling_type", _i32),
        ("pooling_type", _i32),
        ("attention_type", _i32),
        ("flash_attn_type", _i32),
        ("rope_freq_base", _f32),
        ("rope_freq_scale", _f32),
        ("yarn_ext_factor", _f32),
        ("yarn_attn_factor", _f32),
        ("yarn_beta_fast", _f32),
        ("yarn_beta_slow", _f32),
        ("yarn_orig_ctx", _u32),
        ("defrag_thold", _f32),
        ("cb_eval", _ptr),
        ("cb_eval_user_data", _ptr),
        ("type_k", _i32),
        ("type_v", _i32),
        ("moe_cache_size", ctypes.c_size_t),
        ("abort_callback", _ptr),
        ("abort_callback_data", _ptr),
        ("embeddings", _bool),
        ("offload_kqv", _bool),
        ("no_perf", _bool),
        ("op_offload", _bool),
        ("swa_full", _bool),
        ("kv_unified", _bool),
        ("samplers", _ptr),
        ("n_samplers", ctypes.c_size_t),
        ("ctx_other", _ptr),
    )


class Batch(ctypes.Structure):
    """``struct llama_batch``; n_seq_id and seq_id may be null, which means sequence 0."""

    _fields_ = (
        ("n_tokens", _i32),
        ("token", _ptr),
        ("embd", _ptr),
        ("pos", _ptr),
        ("n_seq_id", _ptr),
        ("seq_id", _ptr),
        ("logits", _ptr),
    )


class TypeTraits(ctypes.Structure):
    """The fields of ggml.h's ``struct ggml_type_traits``."""

    _fields_ = (
        ("type_name", ctypes.c_char_p),
        ("blck_size", ctypes.c_int64),
        ("blck_size_interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t),
        ("is_quantized", _bool),
        ("to_float", TO_FLOAT),
        ("from_float_ref", _ptr),
    )


# name -> (result, *arguments)
SIGNATURES: dict[str, tuple[object, ...]] = {
    "llama_backend_init": (None,),
    "llama_log_set": (None, LOG, _ptr),
    "llama_print_system_info": (ctypes.c_char_p,),
    "llama_model_default_params": (ModelParams,),
    "llama_context_default_params": (ContextParams,),
    "llama_model_load_from_file": (_ptr, ctypes.c_char_p, ModelParams),
    "llama_init_from_model": (_ptr, _ptr, ContextParams),
    "llama_model_free": (None, _ptr),
    "llama_free": (None, _ptr),
    "llama_model_get_vocab": (_ptr, _ptr),
    "llama_vocab_n_tokens": (_i32, _ptr),
    "llama_tokenize": (_i32, _ptr, ctypes.c_char_p, _i32, _ptr, _i32, _bool, _bool),
    "llama_vocab_bos": (_i32, _ptr),
    "llama_vocab_get_add_bos": (_bool, _ptr),
    "llama_vocab_eos": (_i32, _ptr),
    "llama_vocab_get_attr": (_i32, _ptr, _i32),
    "llama_vocab_is_eog": (_bool, _ptr, _i32),
    "llama_token_to_piece": (_i32, _ptr, _i32, _ptr, _i32, _i32, _bool),
    "llama_model_n_ctx_train": (_i32, _ptr),
    "llama_n_ctx": (_u32, _ptr),
    "llama_get_memory": (_ptr, _ptr),
    "llama_memory_clear": (None, _ptr, _bool),
    "llama_memory_seq_rm": (_bool, _ptr, _i32, _i32, _i32),
    "llama_decode": (_i32, _ptr, Batch),
    "llama_get_logits": (_ptr, _ptr),
    "ggml_get_type_traits": (ctypes.POINTER(TypeTraits), _i32),
    # type, float32 source, destination, first element, rows, columns, importance of each column or null
    "ggml_quantize_chunk": (
        ctypes.c_size_t,
        _i32,
        _ptr,
        _ptr,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_int64,
        _ptr,
    ),
}

# What the default-parameter functions of b11549 return, from the first field to the last.
MODEL_DEFAULTS: dict[str, object] = {
    "devices": None,
    "n_gpu_layers": -1,
    "split_mode": 1,
    "load_mode": -1,
    "lazy_mode": 1,
    "main_gpu": 0,
    "kv_overrides": None,
    "vocab_only": False,
    "use_extra_bufts": True,
    "no_alloc": False,
    "load_mtp": False,
}
CONTEXT_DEFAULTS: dict[str, object] = {
    "n_ctx": 512,
    "n_batch": 2048,
    "n_ubatch": 512,
    "n_seq_max": 1,
    "n_outputs_max": 0,
    "n_outputs_max_per_seq": 1,
    "flash_attn_type": -1,
    "yarn_ext_factor": -1.0,
    "defrag_thold": -1.0,
    "cb_eval": None,
    "type_k": 1,
    "type_v": 1,
    "moe_cache_size": 0,
    "abort_callback": None,
    "embeddings": False,
    "offload_kqv": True,
    "no_perf": True,
    "op_offload": True,
    "swa_full": True,
    "kv_unified": False,
    "samplers": None,
    "n_samplers": 0,
    "ctx_other": None,
}
