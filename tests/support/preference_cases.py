"""What the tests of data share: preference cases."""

from datasets import Dataset

from trl_tokenreward.data.preprocessing import prepare_dataset


CHAT_TEMPLATE = (
    "{% if tools %}<tools>{{ tools | tojson }}\n{% endif %}"
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}<eos>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% if thinking is defined and thinking %}<think>{% endif %}{% endif %}"
)


PROMPT = "Human: how do I bake bread?"


CHOSEN, REJECTED = " This movie was lousy.", " This movie was terrific."


def prepare(rows, tokenizer, **kwargs):
    return prepare_dataset(Dataset.from_list(rows), tokenizer, **kwargs)[0]


def user(content):
    return {"role": "user", "content": content}


def assistant(content):
    return {"role": "assistant", "content": content}


DIALOGUE = "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: how was the movie?\n\nAssistant:"


FORMATS = {
    "standard": {"prompt": PROMPT, "chosen": CHOSEN, "rejected": REJECTED},
    "standard-implicit": {"chosen": PROMPT + CHOSEN, "rejected": PROMPT + REJECTED},
    "dialogue": {"chosen": DIALOGUE + CHOSEN, "rejected": DIALOGUE + REJECTED},
    "conversational": {
        "prompt": [user("how was it?")],
        "chosen": [assistant(CHOSEN)],
        "rejected": [assistant(REJECTED)],
    },
    "conversational-implicit": {
        "chosen": [user("how was it?"), assistant(CHOSEN)],
        "rejected": [user("how was it?"), assistant(REJECTED)],
    },
}


GOOD = FORMATS["standard"]


IDS = {"chosen_ids": [5, 6, 7, 9], "rejected_ids": [5, 8, 9]}
