"""The checks that an edit must pass."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from ..edits.alignment import EditAlignment, align_words
from ..utils.chat_endpoint import Prompt
from ..utils.validation import check_least, check_list, check_share


Score = Callable[[list[Prompt], list[str]], list[float]]

DEFAULT_CRITERIA = "The answer is helpful, correct and harmless."
EDITED = "edited"


@dataclass
class EditChecks:
    """Checks of one edit: its size and, with `score`, that it is better than the original.

    Args:
        max_edit_ratio (`float`, *optional*, defaults to `0.5`):
            Largest share of edited words among the words of both sides, see [`~edits.alignment.word_edit_ratio`].
        max_hunks (`int`, *optional*, defaults to `16`):
            Most places where something is edited.
        max_length_change (`float`, *optional*, defaults to `0.5`):
            By which share of its characters the answer may become shorter or longer.
        score (`Callable`, *optional*):
            Takes prompts (texts, or messages where the data set has messages) and answers, returns one float for each
            answer, as [`RewardModelJudge`]'s `scores`. The edit must score higher than the original. A `ValueError`
            means that this answer cannot be scored.

    Raises:
        `ValueError`: for a bad argument.
    """

    max_edit_ratio: float = 0.5
    max_hunks: int = 16
    max_length_change: float = 0.5
    score: Score | None = None

    def __post_init__(self):
        check_share(max_edit_ratio=self.max_edit_ratio)
        check_least(max_hunks=(self.max_hunks, 1), max_length_change=(self.max_length_change, 0))

    def __call__(self, prompt: Prompt, original: str, edited: str) -> tuple[str, str]:
        """Returns `("edited", "")`, or the reason to drop the edit and a sentence that explains it."""
        if problem := self.check_length(original, edited):
            return "length", problem  # a long text is not aligned, which takes long
        reason, detail = self.check_size(original, edited, align_words(original, edited))
        if reason != EDITED or self.score is None:
            return reason, detail
        try:
            new, old = check_list(self.score([prompt, prompt], [edited, original]), "`score`", 2)
        except ValueError as error:
            return "not_scored", str(error)
        if not new > old:
            return "not_better", f"The edited answer is no better: it scores {new:.4g}, the original {old:.4g}."
        return EDITED, ""

    def check_size(self, original: str, edited: str, alignment: EditAlignment) -> tuple[str, str]:
        """As `__call__`, but without `score`. `alignment` is the result of [`align_words`] for the two texts."""
        ratio, hunks = alignment.edit_ratio, len(alignment.operations)
        if problem := self.check_length(original, edited):
            return "length", problem
        if not ratio:
            return "identical", "No word was changed."
        if ratio > self.max_edit_ratio:
            return "edit_ratio", f"{ratio:.0%} of the words were changed; at most {self.max_edit_ratio:.0%} may be."
        if hunks > self.max_hunks:
            return "hunks", f"The answer was changed in {hunks} places; at most {self.max_hunks} may be."
        return EDITED, ""

    def check_length(self, original: str, edited: str) -> str:
        """A sentence on the change of length if it is too large, or `""`."""
        if abs(length_change(original, edited)) <= self.max_length_change:
            return ""
        limit = f"at most {self.max_length_change:.0%} is allowed"
        return f"The length went from {len(original)} to {len(edited)} characters; {limit}."

    def settings(self) -> dict[str, Any]:
        """The arguments as JSON-compatible values."""
        settings = {field.name: getattr(self, field.name) for field in fields(self)}
        if self.score is not None:
            settings["score"] = getattr(self.score, "__qualname__", type(self.score).__name__)
        return settings


def length_change(original: str, edited: str) -> float:
    """The change of length as a share of the original's characters; below 0 if the edit is shorter."""
    return len(edited) / len(original) - 1
