"""PPO as users of TRL 1.12 write it, for the test of the migration.

Prompts are tokenised beforehand, long ones are dropped; four models are loaded from checkpoints; the pad token is
added to the tokenizer alone. The last prompts are for evaluation, or those of the test split if the trainer is to
evaluate. Only names that TRL 1.12 documents are used.
"""

from accelerate import PartialState
from datasets import Dataset, load_dataset
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from trl import ModelConfig, ScriptArguments, TrlParser, get_peft_config
from trl.experimental.ppo import PPOConfig, PPOTrainer


MAX_PROMPT_LENGTH = 20
NUM_EVAL_SAMPLES = 4


def prepare(dataset: Dataset, tokenizer) -> Dataset:
    def tokenize(batch):
        input_ids = tokenizer(batch["prompt"], padding=False)["input_ids"]
        return {"input_ids": input_ids, "lengths": [len(ids) for ids in input_ids]}

    dataset = dataset.map(tokenize, batched=True, remove_columns=dataset.column_names)
    return dataset.filter(lambda row: row["lengths"] <= MAX_PROMPT_LENGTH)


if __name__ == "__main__":
    parser = TrlParser((ScriptArguments, PPOConfig, ModelConfig))
    script_args, training_args, model_args = parser.parse_args_and_config()

    tokenizer_path = model_args.model_name_or_path or training_args.sft_model_path
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_path, padding_side="left")
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})

    reward_model = AutoModelForSequenceClassification.from_pretrained(training_args.reward_model_path, num_labels=1)
    value_model = AutoModelForSequenceClassification.from_pretrained(training_args.reward_model_path, num_labels=1)
    policy = AutoModelForCausalLM.from_pretrained(training_args.sft_model_path)
    peft_config = get_peft_config(model_args)
    ref_policy = None
    if peft_config is None:
        ref_policy = AutoModelForCausalLM.from_pretrained(training_args.sft_model_path)

    train_dataset = load_dataset(script_args.dataset_name, split=script_args.dataset_train_split)
    if training_args.eval_strategy != "no":
        eval_dataset = load_dataset(script_args.dataset_name, split=script_args.dataset_test_split)
    else:
        size = len(train_dataset)
        eval_dataset = train_dataset.select(range(size - NUM_EVAL_SAMPLES, size))
        train_dataset = train_dataset.select(range(size - NUM_EVAL_SAMPLES))
    with PartialState().local_main_process_first():
        train_dataset = prepare(train_dataset, tokenizer)
        eval_dataset = prepare(eval_dataset, tokenizer)

    trainer = PPOTrainer(
        args=training_args,
        processing_class=tokenizer,
        model=policy,
        ref_model=ref_policy,
        reward_model=reward_model,
        value_model=value_model,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        peft_config=peft_config,
    )
    trainer.train()
    trainer.save_model(training_args.output_dir)
    trainer.generate_completions()
