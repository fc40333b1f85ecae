"""File formats: safetensors in, GGUF out, tokenizers across."""
