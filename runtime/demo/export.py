"""Writes a trained demo model and its tokenizer as one GGUF file with Q8_0 matrices."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
from tokenizers import Tokenizer

from .corpus import CHAT_TEMPLATE, END_OF_TEXT, TURN_END
from .model import DemoConfig, DemoModel
from .tokens import PRE_TOKENIZER, SPECIAL_TOKENS


def write_gguf(path: Path, model: DemoModel, tokenizer: Tokenizer) -> None:
    """The file that llama.cpp and naiad load. Matrices become Q8_0, norms stay F32."""
    writer = gguf.GGUFWriter(path, "llama")
    add_model_keys(writer, model.config)
    add_tokenizer_keys(writer, tokenizer, model.config.n_vocab)
    for name, parameter in model.named_parameters():
        values = parameter.detach().numpy()
        if values.ndim == 2:
            q8_0 = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quants.quantize(values, q8_0), raw_dtype=q8_0)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_model_keys(writer: gguf.GGUFWriter, config: DemoConfig) -> None:
    """general.* and llama.*"""
    writer.add_name("naiad demo")
    writer.add_description("A very small model that tells short stories and answers simple questions")
    writer.add_license("mit")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(config.n_vocab)
    writer.add_context_length(config.n_ctx)
    writer.add_embedding_length(config.n_embd)
    writer.add_feed_forward_length(config.n_ff)
    writer.add_block_count(config.n_layers)
    writer.add_head_count(config.n_heads)
    writer.add_head_count_kv(config.n_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_base)
    writer.add_layer_norm_rms_eps(config.norm_eps)


def add_tokenizer_keys(writer: gguf.GGUFWriter, tokenizer: Tokenizer, n_vocab: int) -> None:
    """tokenizer.*

    Raises:
        ValueError: the tokenizer has not exactly the model's `n_vocab` tokens.
    """
    if tokenizer.get_vocab_size() != n_vocab:
        raise ValueError(f"the model wants {n_vocab} tokens, the tokenizer has {tokenizer.get_vocab_size()}")
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    tokens = [tokenizer.id_to_token(index) for index in range(n_vocab)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(PRE_TOKENIZER)
    writer.add_token_list(tokens)
    writer.add_token_types([control if token in SPECIAL_TOKENS else normal for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]])
    writer.add_bos_token_id(tokenizer.token_to_id(END_OF_TEXT))
    writer.add_eos_token_id(tokenizer.token_to_id(TURN_END))
    writer.add_eot_token_id(tokenizer.token_to_id(TURN_END))
    writer.add_pad_token_id(tokenizer.token_to_id(END_OF_TEXT))
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)
