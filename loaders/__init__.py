"""Files in, files out: GGUF, safetensors, tokenizers, chat templates. Imports only quant."""
