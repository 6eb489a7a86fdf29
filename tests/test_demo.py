"""The demo model's corpus, tokenizer and export, and the shipped file itself."""

import hashlib
import random
import re
from pathlib import Path

import gguf
import jinja2
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from naiad.runtime.demo import corpus, demo_model, export, stories, tokens, train, words
from naiad.runtime.demo.model import END_OF_TEXT_ID, DemoConfig, DemoModel, document_mask

TINY = DemoConfig(n_vocab=512, n_ctx=64, n_embd=256, n_ff=256, n_layers=2)
SENTENCE_ENDS = (".", "!", "?", '"', "。", "！", "？", "”")


@pytest.fixture(scope="module")
def documents() -> list[corpus.Document]:
    return list(corpus.generate(seed=3, n=3000))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return tokens.train_tokenizer((d.render() for d in corpus.generate(seed=5, n=400)), TINY.n_vocab)


@pytest.fixture(scope="module")
def tiny_file(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> tuple[DemoModel, gguf.GGUFReader]:
    torch.manual_seed(1)
    model, path = DemoModel(TINY), tmp_path_factory.mktemp("demo") / "tiny.gguf"
    export.write_gguf(path, model, tokenizer)
    return model, gguf.GGUFReader(path)


@pytest.fixture(scope="module")
def shipped() -> gguf.GGUFReader:
    return gguf.GGUFReader(demo_model())


def test_corpus_depends_on_its_seed_alone() -> None:
    first = list(corpus.generate(seed=11, n=200))
    assert first == list(corpus.generate(seed=11, n=300))[:200]
    assert first != list(corpus.generate(seed=12, n=200))


def test_corpus_is_the_one_the_shipped_model_learnt() -> None:
    """Whoever changes the corpus trains the model again (make demo) and writes the new digest here."""
    texts = "\0".join(document.render() for document in corpus.generate(seed=7, n=500))
    assert (
        hashlib.sha256(texts.encode()).hexdigest() == "fd7bae5de57711d1569d4eafa57b90baedcd8518acb2996dfc610860bf5e64cb"
    )


@pytest.mark.parametrize(
    ("name", "mistake"),
    [
        ("unfilled slot or choice", r"[{}]|\([^)]*\|"),
        ("wrong article", r"\b[Aa] (?!uni|use|one\b|Euro|UNI|USE)[aeiouAEIOU]\w+|\b[Aa]n (?!hour)[^aeiouAEIOU\s]"),
        ("doubled word", r"\b(?!bye\b|please\b)([a-z]+) \1\b"),
        ("doubled mark or space", r"[.!?,]{2}|  | [.,!?]"),
    ],
    ids=lambda value: value if isinstance(value, str) and value.isascii() and value[0].isalpha() else "",
)
def test_documents_are_clean(documents: list[corpus.Document], name: str, mistake: str) -> None:
    answers = [turn.text for d in documents for turn in d.turns if turn.role == "assistant"]
    texts = answers + [document.plain for document in documents if document.plain]
    assert not [text for text in texts if re.search(mistake, text)], name


def test_answers_are_whole_sentences(documents: list[corpus.Document]) -> None:
    for document in documents:
        assert bool(document.turns) != bool(document.plain)
        for turn in document.turns:
            assert turn.text == turn.text.strip() != ""
            assert turn.role != "assistant" or turn.text.endswith(SENTENCE_ENDS), turn.text


def test_chats_alternate_and_end_with_an_answer(documents: list[corpus.Document]) -> None:
    for document in documents:
        roles = [turn.role for turn in document.turns if turn.role != "system"]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        assert all(turn.role != "system" for turn in document.turns[1:])
        text = document.render()
        assert text.count(corpus.TURN_START) == text.count(corpus.TURN_END) == len(document.turns)


def test_sums_are_right(documents: list[corpus.Document]) -> None:
    sums = re.findall(r"(\d+) ([+-]) (\d+) = (\d+)", "".join(document.render() for document in documents))
    assert len(sums) > 300
    for left, sign, right, result in sums:
        assert int(left) + int(right) * (1 if sign == "+" else -1) == int(result)


def test_friends_are_mutual_and_names_their_own() -> None:
    assert all(words.CAST[other][2] == kind for kind, (_, _, other) in words.CAST.items())
    assert len({name for name, _, _ in words.CAST.values()}) == len(words.CAST)


@pytest.mark.parametrize("kind", words.CAST)
def test_a_story_keeps_to_its_subject(kind: str) -> None:
    for told in (stories.story(rng, kind) for rng in map(random.Random, range(50))):
        sentences = re.findall(r"[^.!?]+[.!?]", told.text)
        assert kind in sentences[0] and told.name in told.text and 5 <= len(sentences) <= 18
        names = {name for name, _, _ in words.CAST.values() if re.search(rf"\b{name}\b", told.text)}
        assert names <= {told.name, told.friend}


def test_chat_template_writes_what_the_model_was_trained_on(documents: list[corpus.Document]) -> None:
    template = jinja2.Environment().from_string(corpus.CHAT_TEMPLATE)
    for document in [d for d in documents if d.turns][:100]:
        messages = [{"role": turn.role, "content": turn.text} for turn in document.turns]
        assert template.render(messages=messages) == document.render()
        prompt = template.render(messages=messages[:-1], add_generation_prompt=True)
        assert prompt + messages[-1]["content"] + "<|im_end|>\n" == document.render()


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "Once upon a time",
        "  two\n\n\tspaces  \r\n",
        "12345 + 678",
        "你好，小猫！",
        "naïve Brasília",
        "🐱👩‍🚀 z̈",
        "it's WE'LL",
    ],
)
def test_tokenizer_gives_back_every_text(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_tokenizer_knows_the_markers_and_splits_digits(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("<|im_start|>12<|im_end|><|endoftext|>").tokens == [
        "<|im_start|>", "1", "2", "<|im_end|>", "<|endoftext|>",
    ]  # fmt: skip
    assert tokenizer.get_vocab_size() == TINY.n_vocab


def test_packed_rows_begin_with_a_document(tokenizer: Tokenizer) -> None:
    documents = list(corpus.generate(seed=2, n=200))
    starts = {tuple(tokenizer.encode(d.render() + corpus.END_OF_TEXT).ids[:8]) for d in documents}
    rows = list(tokens.pack(documents, tokenizer, 129))
    assert len(rows) > 20
    assert all(len(row) == 129 and tuple(row[:8]) in starts for row in rows)


def test_a_token_sees_its_own_document_up_to_itself() -> None:
    ids = torch.tensor([[5, 6, END_OF_TEXT_ID, 7, 8]])
    seen = [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 1, 1]]
    assert document_mask(ids)[0, 0].int().tolist() == seen


def test_rate_rises_and_falls_to_zero() -> None:
    rates = [train.rate_at(step, 500) for step in range(501)]
    top = rates.index(max(rates))
    assert rates[:top] == sorted(rates[:top]) and rates[top + 1 :] == sorted(rates[top + 1 :], reverse=True)
    assert max(rates) == 1.0 and rates[-1] == pytest.approx(0.0, abs=1e-12)


def test_model_sees_no_future() -> None:
    model = DemoModel(TINY).eval()
    ids = torch.randint(0, TINY.n_vocab, (2, 33))
    changed = ids.clone()
    changed[:, 20:] = (changed[:, 20:] + 1) % TINY.n_vocab
    with torch.no_grad():
        torch.testing.assert_close(model(ids)[:, :20], model(changed)[:, :20])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("general.architecture", "llama"),
        ("general.license", "mit"),
        ("general.file_type", 7),
        ("llama.vocab_size", 512),
        ("llama.context_length", 64),
        ("llama.embedding_length", 256),
        ("llama.feed_forward_length", 256),
        ("llama.block_count", 2),
        ("llama.attention.head_count", 4),
        ("llama.attention.head_count_kv", 2),
        ("llama.attention.layer_norm_rms_epsilon", pytest.approx(1e-5)),
        ("llama.rope.dimension_count", 64),
        ("llama.rope.freq_base", 10000.0),
        ("tokenizer.ggml.model", "gpt2"),
        ("tokenizer.ggml.pre", "qwen2"),
        ("tokenizer.ggml.bos_token_id", 0),
        ("tokenizer.ggml.eos_token_id", 2),
        ("tokenizer.ggml.eot_token_id", 2),
        ("tokenizer.ggml.add_bos_token", False),
        ("tokenizer.chat_template", corpus.CHAT_TEMPLATE),
    ],
    ids=lambda value: value if isinstance(value, str) and "." in value and " " not in value else "",
)
def test_exported_keys(tiny_file: tuple[DemoModel, gguf.GGUFReader], key: str, value: object) -> None:
    assert tiny_file[1].fields[key].contents() == value


def test_exported_vocabulary(tiny_file: tuple[DemoModel, gguf.GGUFReader], tokenizer: Tokenizer) -> None:
    fields = tiny_file[1].fields
    assert fields["tokenizer.ggml.tokens"].contents() == [tokenizer.id_to_token(i) for i in range(TINY.n_vocab)]
    assert fields["tokenizer.ggml.token_type"].contents() == [3] * 3 + [1] * (TINY.n_vocab - 3)
    assert len(fields["tokenizer.ggml.merges"].contents()) == TINY.n_vocab - 256 - 3


def test_exported_tensors(tiny_file: tuple[DemoModel, gguf.GGUFReader]) -> None:
    model, reader = tiny_file
    parameters = dict(model.named_parameters())
    assert {tensor.name for tensor in reader.tensors} == parameters.keys()
    for tensor in reader.tensors:
        expected = parameters[tensor.name].detach().numpy()
        assert tuple(reversed(tensor.shape.tolist())) == expected.shape
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        # A Q8_0 value is off by at most half a step, and the largest of 32 is 127 steps.
        assert np.abs(values - expected).max() <= np.abs(expected).max() * (0.5 / 127 + 2**-10)


def test_export_refuses_another_vocabulary(tmp_path: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match=r"640 tokens.*512"):
        export.write_gguf(tmp_path / "x.gguf", DemoModel(DemoConfig(n_vocab=640, n_layers=1)), tokenizer)


def test_shipped_file_is_small() -> None:
    assert demo_model().stat().st_size < 9_000_000


def test_shipped_tensors(shipped: gguf.GGUFReader) -> None:
    q8_0, f32 = gguf.GGMLQuantizationType.Q8_0, gguf.GGMLQuantizationType.F32
    for tensor in shipped.tensors:
        assert tensor.tensor_type == (f32 if len(tensor.shape) == 1 else q8_0), tensor.name
        assert tensor.shape[0] % 256 == 0, tensor.name
        assert np.isfinite(gguf.quants.dequantize(tensor.data, tensor.tensor_type)).all(), tensor.name
    assert 4_000_000 <= sum(int(tensor.n_elements) for tensor in shipped.tensors) <= 8_000_000


def test_shipped_file_has_todays_keys(shipped: gguf.GGUFReader) -> None:
    """The shipped file fits the code beside it: the same tensor names, sizes and template."""
    config, fields = DemoConfig(), shipped.fields
    assert {tensor.name for tensor in shipped.tensors} == {name for name, _ in DemoModel(config).named_parameters()}
    assert fields["llama.context_length"].contents() == config.n_ctx
    assert fields["llama.block_count"].contents() == config.n_layers
    assert len(fields["tokenizer.ggml.tokens"].contents()) == config.n_vocab
    assert fields["tokenizer.chat_template"].contents() == corpus.CHAT_TEMPLATE
