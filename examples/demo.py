# /// script
# dependencies = ["trl-tokenreward[demo]"]
# ///
"""The whole method on a small scale: a policy and a token reward model trained on the spot, then PPO twice.

From one start policy and one reward model, PPO is run with the reward model's terminal score and with its token scores,
everything else equal. A table, a report to look at and the models are written to one folder.

    python examples/demo.py --output demo-output
    python examples/demo.py --output demo-output --dataset Anthropic/hh-rlhf
    python examples/demo.py --output demo-output --dataset pairs.jsonl
    python examples/demo.py --output demo-output --model HuggingFaceTB/SmolLM2-135M-Instruct

Without `--dataset` it runs on a corpus of its own, and an exact judge decides which answer wins. With a data set in
HH-RLHF's or TRL's preference format, the judge is a reward model trained on a part of the data that nothing else sees.
"""

import argparse
import copy
import json
import logging
import math
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from rich.console import Console
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    TrainerCallback,
    set_seed,
)
from trl import SFTConfig, SFTTrainer

from demo_corpus import judge as corpus_judge
from demo_corpus import make_corpus
from report import Arm, GeneratedAnswer, HeldOutPair, TableRow, Token, Value, require_matplotlib, write_report
from trl_tokenreward import (
    FineGrainedPPOConfig,
    FineGrainedPPOTrainer,
    RewardHackingCallback,
    RewardModelJudge,
    TokenRewardConfig,
    TokenRewardModel,
    TokenRewardTrainer,
)
from trl_tokenreward.data.formats import ASSISTANT, HUMAN, SIDES, preference_prompt, row_format
from trl_tokenreward.data.preprocessing import prepare_dataset
from trl_tokenreward.evaluation.sampler import AnswerSampler
from trl_tokenreward.ppo.prompts import prepare_prompts
from trl_tokenreward.reward_model.scoring import token_texts
from trl_tokenreward.utils.loading import load_split
from trl_tokenreward.utils.statistics import bootstrap_interval, pairwise_outcomes, win_rate


console = Console()

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '\n\nHuman: ' if message['role'] == 'user' else '\n\nAssistant: ' }}"
    "{{ message['content'] }}{% if message['role'] != 'user' and loop.last %}<eos>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\n\nAssistant:' }}{% endif %}"
)
# Scores of completions: prompts and completions as texts to one float each; higher is better.
Judge = Callable[[list[str], list[str]], list[float]]


class Data(NamedTuple):
    """The rows of a run: what the policy and the reward model learn from, what is held out, and the judge's own
    part."""

    train: Dataset
    evaluation: Dataset
    judge: Dataset | None

    def as_messages(self) -> "Data":
        """The same dialogues as messages, for a model with a chat template."""
        return Data(*(None if part is None else part.map(dialogue_as_messages) for part in self))


class Run(NamedTuple):
    """Settings that every stage of the run needs."""

    output: Path
    seed: int
    sizes: "Sizes"


class Sizes(NamedTuple):
    """Sizes of models and data, chosen so that the default takes some minutes on two cores."""

    rows: int = 2500
    evaluation_rows: int = 256
    vocabulary: int = 1024
    hidden_size: int = 192
    layers: int = 2
    sft_epochs: float = 5
    reward_epochs: float = 1.5
    reward_batch_size: int = 16
    reward_learning_rate: float = 1e-3
    updates: int = 20
    batch_size: int = 64
    ppo_learning_rate: float = 2e-4
    examinations: int = 8
    max_length: int = 256
    bf16: bool = False


# A model of some hundred million parameters takes half an hour on two cores with these.
PRETRAINED = Sizes(
    rows=400,
    evaluation_rows=48,
    reward_epochs=1,
    reward_batch_size=8,
    reward_learning_rate=3e-5,
    updates=8,
    batch_size=16,
    ppo_learning_rate=1e-5,
    examinations=4,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--output", type=Path, default=Path("demo-output"), help="Folder for the report and the models."
    )
    parser.add_argument("--dataset", help="Path or Hub name of preference data; the embedded corpus if not given.")
    parser.add_argument(
        "--model", help="Path or Hub name of a causal language model: the policy and the backbone of the reward model."
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--updates", type=int, help="PPO updates of each arm.")
    parser.add_argument("--rows", type=int, help="Most rows to train on.")
    parser.add_argument("--evaluation-rows", type=int, help="Most rows to hold out.")
    arguments = parser.parse_args()
    given = {name: getattr(arguments, name) for name in ("updates", "rows", "evaluation_rows")}
    sizes = Sizes() if arguments.model is None else PRETRAINED._replace(bf16=multiplies_bf16())
    sizes = sizes._replace(**{name: value for name, value in given.items() if value is not None})
    start = time.time()
    arguments.output.mkdir(parents=True, exist_ok=True)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    set_seed(arguments.seed)

    require_matplotlib()
    run = Run(arguments.output, arguments.seed, sizes)
    stage("Data")
    data = load_data(arguments.dataset, sizes, run.seed)
    questions = None
    if arguments.model is None:
        tokenizer = train_tokenizer(data.train, sizes.vocabulary)
    else:
        tokenizer, start_policy = load_pretrained(arguments.model)
        if tokenizer.chat_template is not None and arguments.dataset is None:
            questions = [preference_prompt(row) for row in data.evaluation]
            data = data.as_messages()
    train, dropped = prepare_dataset(data.train, tokenizer, max_length=sizes.max_length, name="train")
    evaluation, held_out = prepare_dataset(data.evaluation, tokenizer, max_length=sizes.max_length, name="evaluation")
    console.print(f"Training: {dropped.describe()}.\nHeld out: {held_out.describe()}.")

    if arguments.model is None:
        stage("Start policy: supervised on the answers as they were before the edit")
        start_policy = train_policy(tokenizer, train, run)

    stage("Token reward model: edited tokens and whole answers")
    reward_model, reward_metrics = train_reward_model("reward_model", start_policy, tokenizer, train, evaluation, run)
    judge, judge_name = make_judge(data, start_policy, tokenizer, evaluation, run)
    prompts = held_out_prompts(data, evaluation, tokenizer, sizes)
    length = response_length(train)
    examiner = Examiner(start_policy, judge, tokenizer, prompts, length, run.seed, questions=questions)

    exams, curves, hacking = {"start policy": examiner.start}, {}, {}
    for name, settings in ARMS.items():
        stage(f"PPO with {name}")
        trainer = run_ppo(name, settings, start_policy, reward_model, tokenizer, train, examiner, run)
        curves[name], hacking[name] = (
            callback(trainer, LearningCurve).points,
            callback(trainer, RewardHackingCallback).signs,
        )
        exams[name] = examiner.examine(trainer.policy_model)

    stage("Result")
    table = [*reward_rows(reward_metrics), *policy_rows(exams, run.seed)]
    notes = [
        f"Judge: {judge_name}. Policy and reward model have {start_policy.num_parameters():,} parameters and "
        f"{'were trained on the spot' if arguments.model is None else f'start from {Path(arguments.model).name}'}.",
        f"Data: {Path(arguments.dataset).name if arguments.dataset else 'the embedded corpus'}. Training: "
        f"{dropped.describe()}. Held out: {held_out.describe()}.",
        f"Seed {run.seed}, {sizes.updates} updates of {sizes.batch_size} completions for each arm; the win rate is "
        f"against the start policy on {len(prompts)} held-out prompts, with its 95 % bootstrap interval. The whole "
        f"run took {time.time() - start:.0f} s.",
        "Both arms have the learning rate and the KL coefficient that suit the dense one: this shows the method at "
        "work and is no comparison. benchmarks/density.py, grpo_density.py and imdb.py compare arms that are tuned "
        "alike, GRPO's among them, at equal KL; a third arm here would take as long again as each of these.",
        *(f"Reward hacking, {name}: {'; '.join(signs.values()) or 'no signs'}." for name, signs in hacking.items()),
    ]
    examples = [
        *held_out_pairs(reward_model, tokenizer, evaluation),
        *generated_answers(exams, reward_model, tokenizer, prompts["input_ids"]),
    ]
    command = shlex.join(["python", *sys.argv])
    title = "PPO with dense rewards from minimal edits"
    write_report(run.output, title=title, table=table, curves=curves, examples=examples, command=command, notes=notes)
    (run.output / "table.md").write_text(markdown(table, notes), encoding="utf-8")
    (run.output / "figures.json").write_text(json.dumps(figures(table), indent=1), encoding="utf-8")
    console.print(f"\nThe report, the curves and the models are in [bold]{run.output}[/]; open report.html.")


# Both arms: the same models, prompts, seed, number of updates, learning rate and KL coefficient. For token scores the
# defaults do the rest; the score of the whole answer gets their scale and their hold on the length here.
ARMS: dict[str, dict[str, Any]] = {
    "terminal reward": {"reward_signal": "sequence_score", "reward_scale": 0.2, "hold_length": True},
    "dense rewards": {"reward_signal": "token_scores"},
}


def stage(title: str) -> None:
    console.rule(f"[bold]{title}", align="left")


# --- data ----------------------------------------------------------------------------------------------------------


def load_data(name: str | None, sizes: Sizes, seed: int) -> Data:
    """The embedded corpus, or a data set of the user's cut into three parts by a seeded shuffle."""
    if name is None:
        return Data(
            Dataset.from_list(make_corpus(sizes.rows, seed)),
            Dataset.from_list(make_corpus(sizes.evaluation_rows, seed, split="evaluation")),
            None,
        )
    rows = load_split(name, "train").shuffle(seed=seed)
    held_out = min(sizes.evaluation_rows, len(rows) // 6)
    judged = len(rows) // 4
    if held_out == 0:
        raise SystemExit(
            f"{name} has {len(rows)} rows; the demo needs at least 6 to train on some and hold out others."
        )
    train = rows.select(range(held_out + judged, min(len(rows), held_out + judged + sizes.rows)))
    return Data(train, rows.select(range(held_out)), rows.select(range(held_out, held_out + judged)))


def multiplies_bf16() -> bool:
    """Whether this machine multiplies bf16 matrices faster than float32 ones: a GPU, or a processor with AMX."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    processors = Path("/proc/cpuinfo")
    return processors.is_file() and "amx_bf16" in processors.read_text()


def load_pretrained(name: str) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """A causal language model, in float32 since it is trained in full, and its tokenizer."""
    on_cpu = not torch.cuda.is_available()
    tokenizer = AutoTokenizer.from_pretrained(name, padding_side="left", trust_remote_code=False)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    settings = {"dtype": torch.float32, "use_safetensors": True, "trust_remote_code": False}
    if on_cpu:  # where attention's own backward pass is slow
        settings["attn_implementation"] = "eager"
    model = AutoModelForCausalLM.from_pretrained(name, **settings)
    return tokenizer, model.to("cpu" if on_cpu else "cuda")


def dialogue_as_messages(row: dict[str, str]) -> dict[str, Any]:
    """A pair of HH-RLHF's dialogues in TRL's conversational format."""
    prompt = preference_prompt(row)
    messages = []
    for turn in prompt.split(HUMAN)[1:]:
        question, *answers = turn.split(ASSISTANT)
        messages.append({"role": "user", "content": question.strip()})
        messages += [{"role": "assistant", "content": answer.strip()} for answer in answers if answer.strip()]
    sides = {side: [{"role": "assistant", "content": row[side][len(prompt) :].strip()}] for side in SIDES}
    return {"prompt": messages, **sides}


def texts_of(value: str | list[dict[str, str]]) -> list[str]:
    return [value] if isinstance(value, str) else [message["content"] for message in value]


def train_tokenizer(dataset: Dataset, vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on the data set's texts."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<pad>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    columns = [column for column in ("prompt", "chosen", "rejected") if column in dataset.column_names]
    backend.train_from_iterator((text for row in dataset for c in columns for text in texts_of(row[c])), trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<eos>", pad_token="<pad>", padding_side="left"
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def prompt_ids(row: dict[str, Any]) -> list[int]:
    return [i for i, inside in zip(row["rejected_ids"], row["rejected_completion_mask"], strict=True) if not inside]


def completion_ids(row: dict[str, Any], side: str) -> list[int]:
    return [i for i, inside in zip(row[f"{side}_ids"], row[f"{side}_completion_mask"], strict=True) if inside]


def response_length(dataset: Dataset, most: int = 96) -> int:
    """The 95th percentile of the answers' lengths, in tokens."""
    lengths = sorted(sum(mask) for mask in dataset["rejected_completion_mask"])
    return min(most, lengths[int(0.95 * (len(lengths) - 1))] + 4)


# --- training ------------------------------------------------------------------------------------------------------


def common_settings(run: Run, name: str) -> dict[str, Any]:
    return {
        "output_dir": str(run.output / name),
        "seed": run.seed,
        "bf16": run.sizes.bf16,
        "use_cpu": not torch.cuda.is_available(),
        "disable_tqdm": False,  # transformers shows no progress where it logs errors alone
        "gradient_checkpointing": False,
        "report_to": "none",
        "save_strategy": "no",
    }


def train_policy(
    tokenizer: PreTrainedTokenizerFast, train: Dataset, run: Run, name: str = "start_policy"
) -> PreTrainedModel:
    """A small Llama, trained from scratch to answer as the unedited answers do."""
    sizes = run.sizes
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=sizes.hidden_size,
        intermediate_size=3 * sizes.hidden_size,
        num_hidden_layers=sizes.layers,
        num_attention_heads=4,
        max_position_embeddings=2 * sizes.max_length,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    columns = {"rejected_ids": "input_ids", "rejected_completion_mask": "completion_mask"}
    dataset = train.select_columns(list(columns)).rename_columns(columns)
    trainer = SFTTrainer(
        model=LlamaForCausalLM(config),
        args=SFTConfig(
            **common_settings(run, name),
            num_train_epochs=sizes.sft_epochs,
            completion_only_loss=True,
            per_device_train_batch_size=16,
            learning_rate=3e-3,
            warmup_steps=50,
            logging_steps=50,
            max_length=None,
        ),
        train_dataset=dataset,
        processing_class=tokenizer,
    )
    trainer.train()
    trainer.save_model()
    # SFTTrainer leaves its own `forward` on the model, which copies would inherit together with this model's weights.
    return LlamaForCausalLM.from_pretrained(trainer.args.output_dir, dtype=torch.float32).to(trainer.args.device)


def train_reward_model(
    name: str,
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    train: Dataset,
    evaluation: Dataset,
    run: Run,
    **settings: Any,
) -> tuple[TokenRewardModel, dict[str, float]]:
    trainer = TokenRewardTrainer(
        model=TokenRewardModel.from_backbone(policy),
        args=TokenRewardConfig(
            **common_settings(run, name),
            num_train_epochs=run.sizes.reward_epochs,
            per_device_train_batch_size=run.sizes.reward_batch_size,
            per_device_eval_batch_size=4 * run.sizes.reward_batch_size,
            learning_rate=run.sizes.reward_learning_rate,
            lr_scheduler_type="cosine",
            logging_steps=50,
            **settings,
        ),
        train_dataset=train,
        eval_dataset=evaluation,
        processing_class=tokenizer,
    )
    trainer.train()
    trainer.save_model()
    return trainer.model, trainer.evaluate()


def make_judge(
    data: Data,
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    evaluation: Dataset,
    run: Run,
) -> tuple[Judge, str]:
    """The judge: the corpus's own rules, or a reward model trained on the judge's part of the data."""
    if data.judge is None:
        return lambda prompts, texts: [corpus_judge(*pair) for pair in zip(prompts, texts, strict=True)], (
            "the embedded corpus's own rules, exact, seen by no training"
        )
    stage("Judge: a sequence reward model of its own part of the data")
    rows, dropped = prepare_dataset(data.judge, tokenizer, max_length=run.sizes.max_length, name="judge")
    model, metrics = train_reward_model(
        "judge",
        policy,
        tokenizer,
        rows,
        evaluation,
        run,
        token_loss_weight=0.0,
    )
    return RewardModelJudge(model, tokenizer, batch_size=64).scores, (
        f"a sequence reward model of pairs that nothing else sees ({dropped.describe()}), right on "
        f"{metrics['eval_accuracy']:.1%} of the held-out pairs"
    )


def held_out_prompts(data: Data, evaluation: Dataset, tokenizer: PreTrainedTokenizerBase, sizes: Sizes) -> Dataset:
    """The prompts that policies answer. A reward model that judges gets messages, to render them as it was trained."""
    if data.judge is None or row_format(data.evaluation[0]) != "conversational":
        return Dataset.from_dict({"input_ids": [prompt_ids(row) for row in evaluation]})
    asked = data.evaluation.map(lambda row: {"prompt": preference_prompt(row)}).remove_columns(list(SIDES))
    return prepare_prompts(asked, tokenizer, "evaluation", max_prompt_length=sizes.max_length)


def run_ppo(
    name: str,
    settings: dict[str, Any],
    start_policy: PreTrainedModel,
    reward_model: TokenRewardModel,
    tokenizer: PreTrainedTokenizerFast,
    train: Dataset,
    examiner: "Examiner",
    run: Run,
) -> FineGrainedPPOTrainer:
    sizes = run.sizes
    trainer = FineGrainedPPOTrainer(
        args=FineGrainedPPOConfig(
            **common_settings(run, name.replace(" ", "_")),
            per_device_train_batch_size=sizes.batch_size,
            num_ppo_epochs=2,
            num_mini_batches=2,
            total_episodes=sizes.updates * sizes.batch_size,
            response_length=response_length(train),
            stop_token="eos",
            temperature=1.0,
            learning_rate=sizes.ppo_learning_rate,
            lr_scheduler_type="constant",
            # At the default of .05 both arms left the start policy further than the reward model can be trusted.
            kl_coef=0.1,
            vf_coef=0.5,
            logging_steps=8,
            num_sample_generations=0,
            **settings,
        ),
        processing_class=tokenizer,
        model=copy.deepcopy(start_policy),
        reward_model=reward_model,
        train_dataset=Dataset.from_dict({"input_ids": [prompt_ids(row) for row in train]}),
    )
    trainer.add_callback(
        LearningCurve(examiner, trainer.schedule.steps_per_update, every=max(1, sizes.updates // sizes.examinations))
    )
    trainer.train()
    trainer.save_model()
    return trainer


def callback(trainer: FineGrainedPPOTrainer, kind: type) -> Any:
    return next(each for each in trainer.callback_handler.callbacks if isinstance(each, kind))


# --- evaluation ----------------------------------------------------------------------------------------------------


class Exam(NamedTuple):
    """A policy's answers to the held-out prompts, with the judge's score, the KL to the start policy in nats and the
    length in tokens of each."""

    prompts: list[str]
    answers: list[str]
    completions: list[list[int]]
    scores: list[float]
    kl: list[float]
    lengths: list[int]


class Examiner:
    """Has a policy answer the held-out prompts, with the same random numbers for every policy, and measures the
    answers."""

    def __init__(
        self,
        start_policy: PreTrainedModel,
        judge: Judge,
        tokenizer: PreTrainedTokenizerFast,
        prompts: Dataset,
        length: int,
        seed: int,
        batch_size: int = 64,
        questions: list[str] | None = None,
    ):
        self.start_policy, self.judge, self.questions = start_policy, judge, questions
        self.sampler = AnswerSampler(tokenizer, prompts, response_length=length, batch_size=batch_size, seed=seed)
        self.start = self.examine(start_policy)

    def examine(self, policy: PreTrainedModel) -> Exam:
        prompts, answers = self.questions or self.sampler.prompts, self.sampler(policy)
        logps = (self.sampler.log_probabilities(model, answers) for model in (policy, self.start_policy))
        return Exam(
            prompts,
            [answer.text for answer in answers],
            [answer.ids for answer in answers],
            self.judge(prompts, [answer.text for answer in answers]),
            [p - q for p, q in zip(*logps, strict=True)],
            [len(answer.ids) for answer in answers],
        )


class LearningCurve(TrainerCallback):
    """Examines the policy every so many updates."""

    def __init__(self, examiner: Examiner, steps_per_update: int, every: int):
        self.examiner, self.steps_per_update, self.every = examiner, steps_per_update, every
        self.points: dict[str, list[tuple[float, float]]] = {}

    def on_train_begin(self, args, state, control, **kwargs):
        self._record(0, self.examiner.start)  # every arm begins as a copy of the start policy

    def on_step_end(self, args, state, control, model=None, **kwargs):
        update, within = divmod(state.global_step, self.steps_per_update)
        if within == 0 and update % self.every == 0:
            self._record(update, self.examiner.examine(model.policy))

    def _record(self, update: int, exam: Exam) -> None:
        outcomes = pairwise_outcomes(exam.scores, self.examiner.start.scores)
        for name, values in {
            "judge's score": exam.scores,
            "win rate against the start policy": outcomes,
            "KL to the start policy (nats)": exam.kl,
            "length (tokens)": exam.lengths,
        }.items():
            self.points.setdefault(name, []).append((update, sum(values) / len(values)))


def reward_rows(metrics: dict[str, float]) -> list[TableRow]:
    names = {
        "sequence accuracy on held-out pairs": "eval_accuracy",
        "token accuracy (edited-in above edited-out)": "eval_token_accuracy",
        "AUROC of wrong tokens": "eval_token_auroc",
    }
    return [TableRow(name, {"reward model": metrics[key]}) for name, key in names.items() if key in metrics]


def policy_rows(exams: dict[str, Exam], seed: int) -> list[TableRow]:
    start = exams["start policy"]
    win_rates = {}
    for name in ARMS:
        outcomes = pairwise_outcomes(exams[name].scores, start.scores)
        win_rates[name] = Value(win_rate(exams[name].scores, start.scores), *bootstrap_interval(outcomes, seed))

    def means(field: str) -> dict[str, float]:
        return {name: sum(getattr(exam, field)) / len(exam.scores) for name, exam in exams.items()}

    return [
        TableRow("judge's score", means("scores")),
        TableRow("win rate against the start policy", win_rates),
        TableRow("KL to the start policy (nats)", means("kl"), digits=2),
        TableRow("mean length (tokens)", means("lengths"), digits=1),
    ]


def markdown(table: list[TableRow], notes: list[str]) -> str:
    columns = list(dict.fromkeys(column for row in table for column in row.values))
    lines = [f"| | {' | '.join(columns)} |", f"| --- |{' --- |' * len(columns)}"]
    for row in table:
        cells = []
        for column in columns:
            cell = row.values.get(column)
            value = cell if isinstance(cell, Value) else Value(cell if cell is not None else math.nan)
            text = "" if cell is None else f"{value.value:.{row.digits}f}"
            if value.low is not None:
                text += f" ({value.low:.{row.digits}f} to {value.high:.{row.digits}f})"
            cells.append(text)
        lines.append(f"| {row.metric} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *notes, ""])


def figures(table: list[TableRow]) -> dict[str, dict[str, float]]:
    """Metric to column to number, for programs."""
    return {
        row.metric: {name: cell.value if isinstance(cell, Value) else cell for name, cell in row.values.items()}
        for row in table
    }


def scored_tokens(
    model: TokenRewardModel, tokenizer: PreTrainedTokenizerFast, prompt: list[int], ids: list[int], edited: list[int]
) -> list[Token]:
    """The tokens of a completion with the reward model's score of each."""
    with torch.no_grad():
        scores = model(torch.tensor([prompt + ids], device=model.device)).token_scores[0, len(prompt) :].tolist()
    texts = token_texts(ids, tokenizer, context=prompt)
    return [
        Token(text, score, bool(changed))
        for i, text, score, changed in zip(ids, texts, scores, edited, strict=True)
        if text and i not in tokenizer.all_special_ids
    ]


def held_out_pairs(
    model: TokenRewardModel, tokenizer: PreTrainedTokenizerFast, evaluation: Dataset, number: int = 8
) -> list[HeldOutPair]:
    pairs = []
    for row in evaluation.select(range(min(number, len(evaluation)))):
        prompt = prompt_ids(row)
        sides = []
        for side in ("rejected", "chosen"):
            ids = completion_ids(row, side)
            sides.append(scored_tokens(model, tokenizer, prompt, ids, row[f"{side}_edit_mask"][-len(ids) :]))
        pairs.append(HeldOutPair(tokenizer.decode(prompt), *sides))
    return pairs


def generated_answers(
    exams: dict[str, Exam],
    model: TokenRewardModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt_tokens: list[list[int]],
    number: int = 8,
) -> list[GeneratedAnswer]:
    prompts = exams["start policy"].prompts
    answers = []
    for i in range(min(number, len(prompts))):
        prompt = prompt_tokens[i]
        arms = [
            Arm(
                name,
                scored_tokens(model, tokenizer, prompt, exam.completions[i], [0] * exam.lengths[i]),
                exam.scores[i],
            )
            for name, exam in exams.items()
        ]
        answers.append(GeneratedAnswer(prompts[i], arms))
    return answers


if __name__ == "__main__":
    main()
