"""The model cards that TRL writes, with an example that runs."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import Trainer


def correct_card(trainer: Trainer, example: Callable[[str, Any], str], model_name: str | None) -> None:
    """Puts an example into the place of TRL's on the card in a trainer's folder, and takes out the name of the model
    that was trained where TRL found none, for it calls a model that is not on the Hub "None".

    Args:
        trainer ([`~transformers.Trainer`]):
            Its process may be any.
        example (`Callable`):
            Called with the name of the model and the processing class, returns Python.
        model_name (`str`, *optional*):
            What the card calls the model.
    """
    if not trainer.is_world_process_zero():
        return
    folder = trainer.args.output_dir
    code = example(trainer.hub_model_id or model_name or folder, trainer.processing_class)
    path = Path(folder, "README.md")
    card = path.read_text("utf-8")
    card = card.replace(" a fine-tuned version of [None](https://huggingface.co/None)", " fine-tuned")
    card = re.sub(r"```python\n.*?```", lambda _: f"```python\n{code}\n```", card, count=1, flags=re.DOTALL)
    path.write_text(card, "utf-8")


def policy_example(name: str, processing_class: Any) -> str:
    """How to have the policy in `name` answer: messages if it has a chat template, else a text."""
    question = "What is a token?"
    is_chat = getattr(processing_class, "chat_template", None) is not None
    prompt = [{"role": "user", "content": question}] if is_chat else question
    return f"""from transformers import pipeline

generator = pipeline("text-generation", model="{name}")
prompt = {json.dumps(prompt)}
print(generator(prompt, max_new_tokens=128, return_full_text=False)[0]["generated_text"])"""


def reward_example(name: str, processing_class: Any) -> str:
    """How to have the token reward model in `name` score a text."""
    return f"""from transformers import AutoTokenizer
from trl_tokenreward import TokenRewardModel

tokenizer = AutoTokenizer.from_pretrained("{name}")
model = TokenRewardModel.from_pretrained("{name}")
[scores] = model.score_texts([" Paris."], tokenizer, prompts=["The capital of France is"])
print(scores.score)
print(list(zip(scores.tokens, scores.token_scores)))"""
