"""Who adds special tokens, and which characters a token stands for."""

import copy

import pytest
from tokenizers import AddedToken
from tokenizers.processors import TemplateProcessing
from transformers import ByT5Tokenizer

import tiny
from trl_tokenreward.data.tokens import TextTokenizer


pytestmark = pytest.mark.any_trl


def adding(around):
    """A tokenizer that puts special tokens around every text."""
    tokenizer = tiny.word_tokenizer(words="abc")
    special = [(token, tokenizer.convert_tokens_to_ids(token)) for token in ("<unk>", "<eos>")]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=around, special_tokens=special)
    return tokenizer


@pytest.mark.parametrize(
    ("text", "kwargs", "expected"),
    [
        ("a b", {}, "<unk> a b <eos>"),
        ("a b", {"is_open": True}, "<unk> a b"),
        ("a b", {"rendered": True}, "a b"),
        ("<unk> a <eos>", {}, "<unk> a <eos>"),  # neither is there twice
        ("<unk> a <eos> b", {"is_open": True}, "<unk> a <eos> b"),  # what the text has stays
        ("a <eos>", {"is_open": True}, "<unk> a <eos>"),
        ("<unk> a", {"rendered": True}, "<unk> a"),
    ],
)
def test_special_tokens_are_added_where_they_belong_and_once(text, kwargs, expected):
    tokenizer = adding("<unk> $A <eos>")
    tokens = TextTokenizer(tokenizer)(text, **kwargs)
    assert tokenizer.convert_ids_to_tokens(tokens.ids) == expected.split()
    spans = [text[start:end] for start, end in tokens.offsets]
    assert all(span in ("", token) for span, token in zip(spans, expected.split(), strict=True))
    assert "".join(spans) == text.replace(" ", "")


def test_a_tokenizer_that_is_not_fast():
    tokenize = TextTokenizer(ByT5Tokenizer())  # ends every text with EOS, 1
    assert tokenize("ab").ids == [100, 101, 1]
    assert tokenize("ab", is_open=True).ids == tokenize("ab", rendered=True).ids == [100, 101]


@pytest.mark.parametrize("side", ["lstrip", "rstrip"])
def test_a_special_token_that_takes_white_space_stands_for_itself_alone(side):
    tokenizer = copy.deepcopy(tiny.tokenizer("bpe"))
    tokenizer.add_special_tokens({"additional_special_tokens": [AddedToken("<|end|>", special=True, **{side: True})]})
    text = "the fox  <|end|>  jumps"
    tokens = TextTokenizer(tokenizer)(text)
    [place] = [i for i, token in enumerate(tokens.ids) if token == tokenizer.convert_tokens_to_ids("<|end|>")]
    assert text[slice(*tokens.offsets[place])] == "<|end|>"
