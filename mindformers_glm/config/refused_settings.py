"""Settings of upstream that are never accepted, each with the reason the user is told."""

TRAINING = "this project runs inference only; training belongs to MindSpore Transformers"
NO_CKPT = "weights are read from the Hugging Face files and sliced while they are loaded"
NO_PROFILE = "profiling a prediction is not offered by this version"
DENSE = "GLM-4-0414 models are dense, they have no experts"
_ARCHITECTURE = "the architecture is read from config.json in pretrained_model_dir"
_TOKENIZER = "tokenizer and special tokens are read from the files in pretrained_model_dir"
_QUANTIZED = (
    "weights that are quantized already are told by the folder's own files; the setting "
    "quantization at the top level quantizes float weights while they are loaded"
)
_LORA = "LoRA is not offered by this version"

# (reason, block the names lie in, names). A name that is a block refuses all settings below it.
_TABLE: tuple[tuple[str, str, str], ...] = (
    (
        TRAINING,
        "",
        "train_dataset_dir eval_dataset_dir epochs batch_size gradient_accumulation_steps "
        "sink_mode num_samples runner_config recompute_config swap_config runner_wrapper "
        "optimizer lr_schedule metric train_dataset train_dataset_task eval_dataset "
        "eval_dataset_task callbacks eval_callbacks monitor_config eval_step_interval "
        "eval_epoch_interval ignore_data_skip data_skip_steps layer_scale layer_decay lr_scale "
        "lr_scale_factor micro_batch_interleave_num train_precision_sync",
    ),
    (TRAINING, "parallel_config", "optimizer_shard"),
    (
        NO_PROFILE,
        "",
        "profile_communication profile_memory init_start_profile profile_start_step "
        "profile_stop_step profile_rank_ids profile_pipeline profile_level mstx",
    ),
    (NO_CKPT, "", "strategy_load_checkpoint"),
    (NO_CKPT, "parallel", "strategy_ckpt_save_file strategy_ckpt_load_file strategy_ckpt_config"),
    (
        _ARCHITECTURE,
        "model.model_config",
        "type model_type architectures hidden_size intermediate_size num_layers num_hidden_layers "
        "num_heads num_attention_heads n_kv_heads num_key_value_heads head_dim vocab_size "
        "rms_norm_eps rope_theta partial_rotary_factor attention_bias tie_word_embeddings "
        "hidden_act max_position_embeddings",
    ),
    (_ARCHITECTURE, "model", "arch"),
    (_TOKENIZER, "", "processor"),
    (_TOKENIZER, "model.model_config", "eos_token_id bos_token_id pad_token_id"),
    (_TOKENIZER, "generation_config", "eos_token_id bos_token_id pad_token_id"),
    (DENSE, "", "moe_config"),
    (_LORA, "", "adapter_id"),
    (_LORA, "model.model_config", "pet_config"),
    (_QUANTIZED, "model.model_config", "quantization quantization_config quant_config"),
    ("use pretrained_model_dir", "model.model_config", "checkpoint_name_or_path"),
    ("results stay on this machine, where save_file says", "", "remote_save_url"),
    (
        "the GLM classes register themselves and outside code is not loaded; import your module "
        "in a script of your own",
        "",
        "register_path",
    ),
    ("use num_threads", "context", "runtime_num_threads"),
    ("write the settings of both files into one", "", "base_config"),
)
REFUSED: dict[str, str] = {
    f"{block}.{name}" if block else name: reason
    for reason, block, names in _TABLE
    for name in names.split()
}


def find_refusal(name: str) -> str | None:
    """Why `name` (dotted), or a block it lies in, is refused; None if it is not."""
    parts = name.split(".")
    prefixes = (".".join(parts[:count]) for count in range(1, len(parts) + 1))
    return next((REFUSED[prefix] for prefix in prefixes if prefix in REFUSED), None)
