"""Model folders as transformers writes them, with tokenizers of the kinds that Llama 3, Qwen and SmolLM have."""

import json

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

TEXT = "a lamp on the wall, a wall on the hill, a hill in the night; naïve 🙂 don't 1234 \n\n x  = (a_b)\n "
BASE = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "initializer_range": 0.2,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 100.0,
    "factor": 8.0,
    "low_freq_factor": 0.2,
    "high_freq_factor": 1.0,
    "original_max_position_embeddings": 8,
}
YARN = {"rope_type": "yarn", "rope_theta": 1000.0, "factor": 4.0, "original_max_position_embeddings": 8}
# What the models are called, and how they differ from BASE.
MODELS = {
    "llama-tied": ("llama", {"tie_word_embeddings": True, "num_key_value_heads": 4}),
    "llama3-untied": ("llama", {"head_dim": 12, "rope_parameters": LLAMA3, "attention_bias": True}),
    "smollm": ("llama", {"tie_word_embeddings": True, "num_key_value_heads": 1, "rms_norm_eps": 1e-5}),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2-untied-yarn": ("qwen2", {"rope_parameters": YARN}),
    "qwen3": ("qwen3", {"head_dim": 16, "tie_word_embeddings": True}),
    "qwen3-untied-linear": (
        "qwen3",
        {"head_dim": 8, "rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}},
    ),
}

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")


def write_tokenizer(folder, kind="smollm", vocab_size=300, chat_template=None):
    """A tokenizer.json and tokenizer_config.json as that family has them."""
    bpe = Tokenizer(models.BPE(ignore_merges=kind == "llama3"))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=kind == "smollm")
    first = {
        "smollm": pre_tokenizers.Digits(individual_digits=True),
        "llama3": pre_tokenizers.Split(Regex(_LLAMA3), "isolated"),
        "qwen2": pre_tokenizers.Split(Regex(_QWEN2), "isolated"),
    }[kind]
    bpe.pre_tokenizer = pre_tokenizers.Sequence([first, byte_level])
    bpe.decoder = decoders.ByteLevel()
    if kind == "qwen2":
        bpe.normalizer = normalizers.NFC()
    special = ["<|begin_of_text|>", "<|end_of_text|>", "<|im_start|>", "<|im_end|>"]
    bpe.train_from_iterator(
        [TEXT * 20],
        trainers.BpeTrainer(
            vocab_size=vocab_size - 10,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    if kind == "llama3":
        bpe.post_processor = processors.TemplateProcessing(
            single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", 0)]
        )
    folder.mkdir(parents=True, exist_ok=True)
    bpe.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|begin_of_text|>",
        "eos_token": "<|end_of_text|>",
    }
    if chat_template is not None:
        config["chat_template"] = chat_template
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def write_model(folder, name="llama-tied", dtype="float32", tokenizer="smollm", **options):
    """The model folder, and the model in float32 as those files have it."""
    import torch
    import transformers

    model_type, changes = MODELS[name]
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(model_type, **{**BASE, **changes, **options.pop("config", {})})
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for value in model.parameters():
            if value.ndim == 1:  # biases begin at 0 and norms at 1, which would hide one that is lost
                value.add_(0.3 * torch.randn_like(value))
    model.to(getattr(torch, dtype)).save_pretrained(folder, **options)
    write_tokenizer(folder, tokenizer)
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="float32", local_files_only=True).eval()


def logits_of(model, ids):
    """float32 (batch, tokens, vocab) from transformers."""
    import torch

    with torch.no_grad():
        return model(torch.tensor(np.asarray(ids))).logits.numpy()
