"""What the torture tests of `edit` do in processes of their own."""

from datasets import Dataset, disable_progress_bars

from trl_tokenreward.editing.edit_dataset import edit_dataset
from trl_tokenreward.editing.editors import EndpointEditor


TEMPLATE = "{criteria}|{prompt}|{answer}|<edited></edited>"


def answers(rows):
    return [f"answer {i} is bad " + "and so on " * (i % 40) for i in range(rows)]


def edit_rows(url, output, rows, **editor):
    disable_progress_bars()
    dataset = Dataset.from_list([{"prompt": "p", "chosen": "c", "rejected": answer} for answer in answers(rows)])
    editor = EndpointEditor(url, "m", **{"concurrency": 3, "backoff": 0.001, **editor})
    edit_dataset(dataset, editor, output, template=TEMPLATE, progress=False)
