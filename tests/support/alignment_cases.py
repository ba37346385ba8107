"""What the tests of edits share: alignment cases."""

import re
from functools import cache

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

import tiny
from trl_tokenreward import EditAlignment, EditOperation


KINDS = ["bpe", "metaspace", "wordpiece", "unigram"]


def wrap(normalizer=None, pre_tokenizer=None, post_processor=None, model=None, trainer=None) -> PreTrainedTokenizerFast:
    backend = Tokenizer(model or models.BPE(unk_token="<unk>"))
    if normalizer is not None:
        backend.normalizer = normalizer
    if pre_tokenizer is not None:
        backend.pre_tokenizer = pre_tokenizer
    if post_processor is not None:
        backend.post_processor = post_processor
    special_tokens = ["<pad>", "<eos>", "<unk>"]
    trainer = trainer or trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=special_tokens + [f"<0x{byte:02X}>" for byte in range(256)],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(tiny.CORPUS * 4, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", pad_token="<pad>", unk_token="<unk>")


@cache
def tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """Tokenizers that split words, and that disagree on what an offset is."""
    if kind in KINDS:
        return tiny.tokenizer(kind, vocab_size=400)
    if kind == "trimmed":  # offsets without the space, and empty ones for tokens of white space
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
        return wrap(pre_tokenizer=byte_level, post_processor=processors.ByteLevel(trim_offsets=True))
    if kind == "unsplit":  # tokens that span words, and several with the same offsets
        normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        return wrap(normalizer, model=models.BPE(unk_token="<unk>", byte_fallback=True))
    if kind == "normalized":  # drops accents, case and white space, opens up ligatures
        normalizer = normalizers.Sequence([normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase()])
        pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
        return wrap(normalizer, pre_tokenizer)
    raise ValueError(kind)


def check(alignment: EditAlignment) -> None:
    """What holds for every alignment."""
    original_left = [i for i, masked in zip(alignment.original_ids, alignment.original_mask, strict=True) if not masked]
    edited_left = [i for i, masked in zip(alignment.edited_ids, alignment.edited_mask, strict=True) if not masked]
    assert original_left == edited_left

    for side in ("original", "edited"):
        mask, anchors = getattr(alignment, f"{side}_mask"), getattr(alignment, f"{side}_anchors")
        ranges = [getattr(operation, f"{side}_tokens") for operation in alignment.operations]
        chars = [getattr(operation, f"{side}_chars") for operation in alignment.operations]
        assert [i for i, masked in enumerate(mask) if masked] == [i for span in ranges for i in range(*span)]
        assert len(anchors) == len(mask)
        assert not any(masked and anchor for masked, anchor in zip(mask, anchors, strict=True))
        assert chars == sorted(chars) and ranges == sorted(ranges)

    inserts = any(op.kind == "insert" and op.edited_tokens[0] < op.edited_tokens[1] for op in alignment.operations)
    deletes = any(op.kind == "delete" and op.original_tokens[0] < op.original_tokens[1] for op in alignment.operations)
    assert any(alignment.original_anchors) == (inserts and bool(alignment.original_ids))
    assert any(alignment.edited_anchors) == (deletes and bool(alignment.edited_ids))

    masked = sum(alignment.original_mask) + sum(alignment.edited_mask)
    total = len(alignment.original_ids) + len(alignment.edited_ids)
    assert 0 <= alignment.edit_ratio <= 1
    assert alignment.edit_ratio == (masked / total if total else 0)


def mirror(alignment: EditAlignment) -> EditAlignment:
    kinds = {"insert": "delete", "delete": "insert", "replace": "replace"}
    return EditAlignment(
        original_ids=alignment.edited_ids,
        edited_ids=alignment.original_ids,
        original_mask=alignment.edited_mask,
        edited_mask=alignment.original_mask,
        original_anchors=alignment.edited_anchors,
        edited_anchors=alignment.original_anchors,
        operations=[
            EditOperation(kinds[op.kind], op.edited_chars, op.original_chars, op.edited_tokens, op.original_tokens)
            for op in alignment.operations
        ],
        edit_ratio=alignment.edit_ratio,
    )


def cut_words(text: str, offsets: list[tuple[int, int]], mask: list[bool]) -> list[str]:
    """The words of which some tokens are masked and some are not. Words are found by another way than the library's."""
    cut = []
    for word in re.finditer(r"[^\W_]+(?:['’][^\W_]+)*", text):
        state = {
            masked
            for (start, end), masked in zip(offsets, mask, strict=True)
            if start < word.end() and end > word.start() and text[max(start, word.start()) : min(end, word.end())]
        }
        if len(state) > 1:
            cut.append(word[0])
    return cut
