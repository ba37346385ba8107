"""Fixtures of the tests of data."""

import pytest

from preference_cases import CHAT_TEMPLATE
from tiny import tokenizer as make_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    tokenizer = make_tokenizer("bpe")
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
