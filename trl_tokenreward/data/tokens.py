"""Texts as token ids: who may add special tokens, and which characters a token stands for.

A chat template writes every special token itself. Around any other text the tokenizer may put its own, such as BOS, but
never a second time where the text has them already, and nothing at the end of a prompt, which a completion continues.
"""

from typing import Any

from transformers import PreTrainedTokenizerBase

from ..edits.alignment import TokenizedText


class TextTokenizer:
    """Tokenizes texts as both trainers read them.

    Args:
        tokenizer (`PreTrainedTokenizerBase`):
            One that is not fast gives ids without offsets.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer = tokenizer
        # Tokens that take the white space beside them, which is not theirs.
        added = tokenizer.added_tokens_decoder.items()
        self._greedy = {i: token.content for i, token in added if token.lstrip or token.rstrip}

    def __call__(self, text: str, *, rendered: bool = False, is_open: bool = False) -> TokenizedText:
        """The tokens of a text. Those that the tokenizer adds have the span `(0, 0)`.

        Args:
            text (`str`):
                The text.
            rendered (`bool`, *optional*, defaults to `False`):
                If `True`, a chat template has rendered the text, and no special tokens are added.
            is_open (`bool`, *optional*, defaults to `False`):
                If `True`, something will follow on the text, so that no special tokens are added at its end.
        """
        before, own, offsets, after = self._parts(text, rendered)
        if own[: len(before)] == before:
            before = []
        if is_open or own[len(own) - len(after) :] == after:
            after = []
        if not self.tokenizer.is_fast:
            return TokenizedText([*before, *own, *after], [])
        offsets = [self._own_span(text, i, span) for i, span in zip(own, offsets, strict=True)]
        return TokenizedText([*before, *own, *after], [(0, 0)] * len(before) + offsets + [(0, 0)] * len(after))

    def _parts(self, text: str, rendered: bool) -> tuple[list[int], list[int], list[Any], list[int]]:
        """What the tokenizer adds before the text's own tokens, these with their offsets, and what it adds after
        them."""
        if rendered or not self.tokenizer.is_fast:
            encoding = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=self.tokenizer.is_fast)
            own, offsets = encoding["input_ids"], encoding.get("offset_mapping", [])
            ids = own if rendered else self.tokenizer(text)["input_ids"]
            first = next((i for i in range(len(ids)) if ids[i : i + len(own)] == own), 0)
            return ids[:first], own, offsets, ids[first + len(own) :]
        encoding = self.tokenizer(text, return_offsets_mapping=True, return_special_tokens_mask=True)
        ids, offsets, added = (encoding[name] for name in ("input_ids", "offset_mapping", "special_tokens_mask"))
        first = added.index(0) if 0 in added else 0
        last = len(added) - added[::-1].index(0) if 0 in added else 0
        return ids[:first], ids[first:last], offsets[first:last], ids[last:]

    def _own_span(self, text: str, token: int, span: tuple[int, int]) -> tuple[int, int]:
        if token not in self._greedy:
            return span
        content = self._greedy[token]
        start = text.find(content, *span)
        return span if start < 0 else (start, start + len(content))


def continuation_text(tokenizer: PreTrainedTokenizerBase, prompt_ids: list[int], ids: list[int]) -> str:
    """The text, without special tokens, that tokens add to that of a prompt. By themselves they may lose the space that
    they begin with: tokenizers such as Llama 2's drop it from the beginning of a text."""
    before, whole = (tokenizer.decode(part, skip_special_tokens=True) for part in (prompt_ids, [*prompt_ids, *ids]))
    return whole[len(before) :] if whole.startswith(before) else tokenizer.decode(ids, skip_special_tokens=True)
