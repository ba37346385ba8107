"""Tiny models and tokenizers, made in memory: nothing is downloaded in tests."""

import math
from collections.abc import Mapping, Sequence

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from trl_tokenreward import TokenRewardModel


CORPUS = [
    "Human: how do I bake bread?",
    "Assistant: mix the flour, the water and the salt, then wait for an hour.",
    "the quick brown fox jumps over the lazy dog",
    "This movie was terrific. I would watch it again, and my friends would too!",
    "This movie was lousy. I couldn't keep my eyes open; they aren't good actors.",
    "Standard service, above standard food. No thanks, no-thanks.",
    "1 2 3 4 5 6 7 8 9 10 11 12",
]


def tokenizer(
    kind: str = "bpe", vocab_size: int = 300, pad_token: str = "<pad>", corpus: Sequence[str] = tuple(CORPUS)
) -> PreTrainedTokenizerFast:
    """A fast tokenizer trained on `corpus`: `"bpe"` (byte-level), `"metaspace"` (SentencePiece-like BPE),
    `"wordpiece"` or `"unigram"`."""
    special_tokens = ["<pad>", "<eos>", "<unk>"]
    if kind == "bpe":
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=special_tokens,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
    elif kind == "metaspace":
        backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=False))
        backend.pre_tokenizer = pre_tokenizers.Metaspace()
        backend.decoder = decoders.Metaspace()
        trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=special_tokens, show_progress=False)
    elif kind == "wordpiece":
        backend = Tokenizer(models.WordPiece(unk_token="<unk>"))
        backend.normalizer = normalizers.BertNormalizer(lowercase=False)
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        backend.decoder = decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(vocab_size=vocab_size, special_tokens=special_tokens, show_progress=False)
    elif kind == "unigram":
        backend = Tokenizer(models.Unigram())
        backend.pre_tokenizer = pre_tokenizers.Metaspace()
        backend.decoder = decoders.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=vocab_size, special_tokens=special_tokens, unk_token="<unk>", show_progress=False
        )
    else:
        raise ValueError(f"unknown kind of tokenizer {kind!r}")
    backend.train_from_iterator(list(corpus) * 4, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<eos>", pad_token=pad_token, unk_token="<unk>", padding_side="left"
    )


def config(family: str = "llama", vocab_size: int = 300, **kwargs) -> PreTrainedConfig:
    """A two-layer configuration with hidden size 16 of one model family; `kwargs` may say otherwise."""
    kwargs = {"vocab_size": vocab_size, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None, **kwargs}
    if family == "gpt2":
        return GPT2Config(**{"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 128, **kwargs})
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes["max_position_embeddings"] = 128
    if family == "gpt_neox":
        return GPTNeoXConfig(**{**sizes, **kwargs})
    families = {"llama": LlamaConfig, "qwen2": Qwen2Config}
    return families[family](**{**sizes, "num_key_value_heads": 1, **kwargs})


def causal_lm(family: str = "llama", seed: int = 0, **kwargs) -> PreTrainedModel:
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config(family, **kwargs))


def sequence_classifier(family: str = "llama", seed: int = 1, **kwargs) -> PreTrainedModel:
    torch.manual_seed(seed)
    return AutoModelForSequenceClassification.from_config(config(family, num_labels=1, **kwargs))


# The words of `word_tokenizer`.
PAD, EOS = 0, 1
A, B, C, D, E, F = range(3, 9)
PERIOD = 15


def word_tokenizer(pad_token: str = "<pad>", words: str = "abcdefghijkl.") -> PreTrainedTokenizerFast:
    """A tokenizer of 16 words: `<pad>` 0, `<eos>` 1, `<unk>` 2, `a` 3 to `l` 14, and `.` 15."""
    vocabulary = ["<pad>", "<eos>", "<unk>", *words]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<eos>", pad_token=pad_token, unk_token="<unk>", padding_side="left"
    )


# Models over the words of `word_tokenizer` whose output depends on the last token alone, so that it is known by hand.
# They are ordinary Llamas, trainable in all weights.


def bigram_lm(transitions: Mapping[int, Mapping[int, float]] | None = None, **kwargs) -> PreTrainedModel:
    """A causal language model with `transitions[last][next]` as probabilities at temperature 1. After a token that is
    not listed, all 16 tokens are equally likely."""
    model = AutoModelForCausalLM.from_config(config("llama", vocab_size=16, rms_norm_eps=0.0, **kwargs))
    _read_last_token_only(model.model)
    logits = torch.zeros(16, 16)
    for last, probabilities in (transitions or {}).items():
        logits[last] = torch.tensor([math.log(probabilities.get(token, 1e-12)) for token in range(16)])
    model.lm_head.weight.data = logits.T.contiguous() / 4
    return model


def unigram_classifier(scores: Mapping[int, float] | None = None, **kwargs) -> PreTrainedModel:
    """A sequence classifier that scores a text by its last token, `scores[token]` or 0: the prefix scores are known
    too."""
    model = AutoModelForSequenceClassification.from_config(
        config("llama", vocab_size=16, rms_norm_eps=0.0, num_labels=1, **kwargs)
    )
    _read_last_token_only(model.model)
    model.score.weight.data = torch.tensor([[(scores or {}).get(token, 0.0) / 4 for token in range(16)]])
    return model


def unigram_reward_model(
    token_scores: Mapping[int, float] | None = None, sequence_scores: Mapping[int, float] | None = None
) -> TokenRewardModel:
    """A TokenRewardModel whose token scores, and prefix scores, depend on the token alone."""
    model = TokenRewardModel.from_backbone(unigram_classifier(sequence_scores)).eval()
    model.token_score.weight.data = torch.tensor([[(token_scores or {}).get(token, 0.0) / 4 for token in range(16)]])
    return model


def _read_last_token_only(backbone: PreTrainedModel) -> None:
    # Attention and MLP add nothing to the embedding, and RMSNorm makes 4 times itself of a one-hot vector of size 16.
    backbone.embed_tokens.weight.data = torch.eye(16)
    for layer in backbone.layers:
        layer.self_attn.o_proj.weight.data.zero_()
        layer.mlp.down_proj.weight.data.zero_()
