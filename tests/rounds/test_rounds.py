"""Rounds of editing: what they make, that they resume, and that people may be the editors."""

import json
import re
import shutil

import pytest
import torch
from datasets import Dataset, concatenate_datasets, load_from_disk
from safetensors.torch import load_file

import tiny
from annotating import opened
from tiny import EOS, A, B, C, D, E, F
from trl_tokenreward import (
    EditsPending,
    FineGrainedPPOConfig,
    FineGrainedPPOTrainer,
    RoundConfig,
    TokenRewardConfig,
    TokenRewardModel,
    TokenRewardTrainer,
    read_annotations,
    run_rounds,
)
from trl_tokenreward.cli import main as cli
from trl_tokenreward.data.preprocessing import prepare_dataset
from trl_tokenreward.editing.checks import EditChecks
from trl_tokenreward.editing.editors import FunctionEditor
from trl_tokenreward.rounds import run as rounds_run
from trl_tokenreward.rounds.stages import prepare_pairs, prompts_of_round
from trl_tokenreward.utils.config_file import read_config
from trl_tokenreward.utils.loading import load_split


CPU = {"use_cpu": True, "bf16": False, "report_to": "none", "gradient_checkpointing": False, "disable_tqdm": True}
# After the prompt: "e f b", "e f b d" or "e f c". Of these, "c" is wrong.
WRITES = {A: {E: 1.0}, E: {F: 1.0}, F: {B: 0.4, C: 0.6}, B: {EOS: 0.4, D: 0.6}, C: {EOS: 1.0}, D: {EOS: 1.0}}
PROMPTS = [f"{words} a" for words in ("b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "b c")]
PAIRS = Dataset.from_list([{"prompt": prompt, "chosen": " e f b", "rejected": " e f c"} for prompt in PROMPTS[:4]])
EDITED_ROWS = 6


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    save(folder / "policy", tiny.bigram_lm(WRITES), tiny.word_tokenizer())
    save(folder / "reward", TokenRewardModel.from_backbone(tiny.bigram_lm()), tiny.word_tokenizer())
    return folder


def save(folder, model, tokenizer):
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def config(ppo=None, reward=None, **kwargs):
    sizes = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1, "num_ppo_epochs": 1}
    ppo = {**sizes, "num_mini_batches": 2, "total_episodes": 12, "learning_rate": 1e-2, **(ppo or {})}
    ppo = {"response_length": 6, "stop_token": "eos", "logging_steps": 2, "num_sample_generations": 0, **ppo}
    reward = {"max_steps": 3, "per_device_train_batch_size": 4, "learning_rate": 1e-2, **(reward or {})}
    settings = {"num_prompts": EDITED_ROWS, **kwargs}
    return RoundConfig(TokenRewardConfig(**CPU, **reward), FineGrainedPPOConfig(**CPU, **ppo), **settings)


def put_right(prompts, answers):
    return [answer.replace("c", "b") for answer in answers]


def run(models, output, editor=put_right, prompts=PROMPTS, **kwargs):
    kwargs = {"config": config(), "pairs": PAIRS, "eval_pairs": PAIRS, **kwargs}
    return run_rounds(
        models / "policy", models / "reward", Dataset.from_dict({"prompt": prompts}), editor, output, **kwargs
    )


def weights(folder):
    return load_file(folder / "model.safetensors")


def same(one, other):
    one, other = weights(one), weights(other)
    return all(torch.equal(one[name], other[name]) for name in one)


def test_earlier_rows_of_every_kind_keep_what_they_say(models):
    """Severities, parts that nobody judged, and rows of one side, whose margin is none."""
    none = dict.fromkeys(
        ["chosen", "rejected", "rejected_spans", "completion", "completion_spans", "completion_judged"]
    )
    rows = [
        {**none, "prompt": "a", "chosen": " b", "rejected": " c b", "rejected_spans": [{"start": 1, "end": 2, "severity": 5.0}]},
        {**none, "prompt": "a", "completion": " b c d", "completion_spans": [{"start": 3, "end": 4, "severity": 2.0}],
         "completion_judged": [{"start": 1, "end": 4}]},
    ]  # fmt: skip
    tokenizer, args = tiny.word_tokenizer(), TokenRewardConfig(**CPU, output_dir="x")
    dataset = Dataset.from_list(rows)
    [pair, one], dropped = prepare_pairs(dataset, tokenizer, args, "pairs")
    assert pair["margin"] == 0 and one["margin"] is None and dropped.counts()["kept"] == 2
    assert pair["rejected_token_weights"] == [1, 5, 1, 1] and one["rejected_token_weights"] == [0, 1, 2, 0, 0]
    plain, _ = prepare_pairs(
        Dataset.from_dict({"prompt": ["a"], "chosen": [" b"], "rejected": [" c"]}), tokenizer, args, "x"
    )
    both = concatenate_datasets([plain, prepare_pairs(dataset, tokenizer, args, "pairs")[0]])
    again, _ = prepare_dataset(both, tokenizer)
    assert [row["rejected_token_weights"] for row in again][1:] == [[1, 5, 1, 1], [0, 1, 2, 0, 0]]
    assert [row["margin"] for row in again] == [0, 0, None]


def test_two_rounds(models, tmp_path, capsys):
    one, two = run(models, tmp_path / "out", rounds=2, config=config(replay=0.5))
    assert [path.name for path in sorted((tmp_path / "out").glob("round-*"))] == ["round-01", "round-02"]
    record = json.loads((tmp_path / "out/round-01/round.json").read_text())
    assert {name: record[name] for name in ("data", "samples", "edits", "reward_model", "policy")} == one.figures
    assert record["settings"]["ppo.response_length"] == 6 and record["settings"]["editor"] == {"function": "put_right"}

    samples = [load_split(tmp_path / f"out/round-0{n}/samples.jsonl", "train") for n in (1, 2)]
    # A round goes on in the order of prompts where the one before it stopped.
    assert set(samples[0]["prompt"]) & set(samples[1]["prompt"]) == set()
    assert set(samples[0]["prompt"]) | set(samples[1]["prompt"]) == set(PROMPTS)
    for part, done in zip(samples, (one, two), strict=True):
        wrong = [row for row in part if "c" in row["completion"]]
        edits = load_from_disk(str(done.edits)).to_list()
        assert [(row["prompt"], row["rejected"]) for row in edits] == [(r["prompt"], r["completion"]) for r in wrong]
        assert [row["chosen"] for row in edits] == [row["completion"].replace("c", "b") for row in wrong]
        counts = done.figures["edits"]
        assert (counts["edited"], counts["unchanged"]) == (len(wrong), len(part) - len(wrong))
        assert counts["usage"]["requests"] == len(part)  # what is right is not asked for again
        assert counts["dropped"] == {} and done.figures["samples"]["prompts"] == EDITED_ROWS
    # Half of the pairs that were given; then half of them and of the first round's edits.
    assert one.figures["reward_model"]["replayed"] == 2
    assert two.figures["reward_model"]["replayed"] == round((4 + one.figures["edits"]["edited"]) / 2)
    # Each model goes on from where it was, and the KL is that to the first policy.
    assert two.figures["reward_model"]["before"] == one.figures["reward_model"]["after"]
    assert two.figures["policy"]["before"]["objective/kl"] == pytest.approx(
        one.figures["policy"]["after"]["objective/kl"], abs=0.2
    )
    assert one.figures["policy"]["before"]["objective/kl"] == pytest.approx(0, abs=1e-4)
    assert two.figures["policy"]["before"]["objective/kl"] > 1e-3
    assert two.figures["policy"]["target_length"] == one.figures["policy"]["target_length"]
    assert [done.figures["policy"]["seed"] for done in (one, two)] == [42, 43]
    assert not same(one.policy, two.policy) and not same(one.reward_model, two.reward_model)
    assert two.describe().startswith(f"Round 2: {len(samples[1])} answers, ")


@pytest.mark.slow
def test_the_reference_may_be_the_current_policy(models, tmp_path):
    one, two = run(models, tmp_path, rounds=2, config=config(reference="current"))
    assert two.figures["policy"]["before"]["objective/kl"] == pytest.approx(0, abs=1e-4)


class Killed(BaseException):
    pass


def killed_at(monkeypatch, owner, name, call):
    """The `call`-th call of a function, from 1, is as far as the process gets."""
    calls, function = [], getattr(owner, name)

    def counting(*args, **kwargs):
        calls.append(args)
        if len(calls) == call:
            raise Killed
        return function(*args, **kwargs)

    monkeypatch.setattr(owner, name, counting)


@pytest.mark.slow
def test_a_run_that_was_killed_anywhere_ends_as_if_it_had_not_been(models, tmp_path, monkeypatch):
    often = {"save_strategy": "steps", "save_steps": 1}
    settings = {"rounds": 2, "config": config(ppo={**often, "save_steps": 2}, reward=often)}
    whole = run(models, tmp_path / "whole", **settings)
    output, asked = tmp_path / "killed", []

    def editor(prompts, answers):
        asked.append(prompts)
        return put_right(prompts, answers)

    editor.__qualname__ = "put_right"  # the same function, as far as the settings know
    places = [
        (rounds_run, "edit", 1),  # sampled
        (TokenRewardTrainer, "training_step", 2),  # within the training of the reward model
        (TokenRewardTrainer, "save_model", 1),  # at its end
        (FineGrainedPPOTrainer, "collect_rollout", 2),  # within PPO
        (rounds_run, "train_policy", 2),  # of the second round: there are two stages before it
    ]
    resumed = []
    train = FineGrainedPPOTrainer.train
    monkeypatch.setattr(
        FineGrainedPPOTrainer,
        "train",
        lambda self, resume_from_checkpoint=None: (
            resumed.append(resume_from_checkpoint),
            train(self, resume_from_checkpoint),
        ),
    )
    for place in places:
        with monkeypatch.context() as patch:
            killed_at(patch, *place)
            with pytest.raises(Killed):
                run(models, output, editor, **settings)
    done = run(models, output, editor, **settings)
    assert resumed == [None, True, None]
    assert sum(map(len, asked)) == sum(each.figures["samples"]["sampled"] for each in whole)  # each answer once
    for one, other in zip(done, whole, strict=True):
        assert one.figures == other.figures
        assert same(one.policy, other.policy) and same(one.reward_model, other.reward_model)
        assert same(one.policy / "value_model", other.policy / "value_model")


def test_edits_go_on_after_the_last_row(models, tmp_path):
    calls = []

    def failing(prompts, answers):
        calls.append(prompts)
        if len(calls) == 2:
            raise Killed
        return put_right(prompts, answers)

    editor = FunctionEditor(failing, "failing", batch_size=2)
    with pytest.raises(Killed):
        run(models, tmp_path, editor)
    log = (tmp_path / "round-01/edits/log.jsonl").read_text().splitlines()
    assert len(log) == 3  # settings, and the two rows of the first call
    run(models, tmp_path, editor)
    assert sum(map(len, calls)) == 2 + EDITED_ROWS


def test_rounds_that_are_done_are_only_read_and_more_may_follow(models, tmp_path):
    first = run(models, tmp_path)

    def never(prompts, answers):
        raise AssertionError

    never.__qualname__ = "put_right"
    assert run(models, tmp_path, never) == first
    assert [each.number for each in run(models, tmp_path, rounds=2)] == [1, 2]


@pytest.mark.parametrize(
    ("changed", "names"),
    [
        ({"config": lambda: config(ppo={"kl_coef": 0.3})}, "ppo.kl_coef"),
        ({"config": lambda: config(reward={"max_steps": 4}, replay=0.2)}, "replay, reward.max_steps"),
        ({"config": lambda: config(edit_options={"retries": 0})}, "edit_options.retries"),
        ({"pairs": lambda: PAIRS.select([0])}, "pairs"),
        ({"prompts": lambda: PROMPTS[:7]}, "prompts"),
        ({"editor": lambda: len}, "editor"),
    ],
)
def test_other_settings_are_named(models, tmp_path, changed, names):
    with pytest.raises(EditsPending):
        run(models, tmp_path, "people")
    record = tmp_path / "round-01/round.json"
    record.write_text(record.read_text().replace('"editor": "people"', '"editor": {"function": "put_right"}'))
    before = record.read_text()
    with pytest.raises(ValueError, match=rf"round-01 was begun with other settings \({re.escape(names)}\)"):
        run(models, tmp_path, **{name: make() for name, make in changed.items()})
    assert record.read_text() == before


def test_people_edit(models, tmp_path, capsys):
    folder = tmp_path / "round-01"
    with pytest.raises(EditsPending) as pending:
        run(models, tmp_path, "people")
    annotate, save_edits = re.findall(r"trl-tokenreward (.*)", str(pending.value))
    assert annotate == f"annotate {folder}/samples.jsonl {folder}/annotations"
    with pytest.raises(EditsPending):  # and again, until the edits are there
        run(models, tmp_path, "people")
    with opened(load_split(folder / "samples.jsonl", "train"), folder / "annotations") as store:
        shown = store.show("ada", "t")
        assert shown["preferred"] == ""  # nothing is known to be better
        while shown["row"] is not None:
            if "c" in shown["text"]:
                store.save("ada", "t", shown["row"], shown["text"].replace("c", "b"))
            else:
                store.skip("ada", "t", shown["row"], "nothing_wrong")
            shown = store.show("ada", "t")
    assert cli.main(save_edits.split()) == 0
    [done] = run(models, tmp_path, "people")
    counts = read_annotations(folder / "annotations").counts()
    assert done.figures["edits"] == {
        "edited": counts["edited"],
        "unchanged": counts["nothing_wrong"],
        "dropped": {},
        "people": 1,
    }
    assert done.figures["reward_model"]["edits"]["kept"] == counts["edited"]


def test_peoples_edits_must_be_of_the_samples(models, tmp_path):
    with pytest.raises(EditsPending):
        run(models, tmp_path, "people")
    rows = [{"prompt": "b a", "chosen": "b", "rejected": "something else", "row": 1}]
    Dataset.from_list(rows).save_to_disk(str(tmp_path / "round-01/edits"))
    with pytest.raises(ValueError, match=r"Row 0 of .*round-01/edits is no edit of row 1 of .*samples.jsonl"):
        run(models, tmp_path, "people")


def test_where_nothing_was_wrong_there_is_nothing_to_train_on(models, tmp_path):
    with pytest.raises(ValueError, match=r"No answer in .*samples.jsonl was edited \(\d identical\): there is nothing"):
        run(models, tmp_path, lambda prompts, answers: answers)


def test_answers_without_an_end_are_dropped(models, tmp_path):
    short = config(ppo={"response_length": 1})
    with pytest.raises(ValueError, match="None of the policy's 6 answers ended within `response_length=1` tokens"):
        run(models, tmp_path / "none", config=short)
    # "e f b d" does not end within four tokens.
    some = config(ppo={"response_length": 4, "seed": 3}, num_prompts=12)
    [done] = run(models, tmp_path / "some", config=some)
    samples = load_split(tmp_path / "some/round-01/samples.jsonl", "train")
    assert all("d" not in text for text in samples["completion"])
    assert done.figures["samples"]["unfinished"] == 12 - len(samples) > 0


def test_messages_and_a_tokenizer_that_drops_blanks(models, tmp_path):
    template = (
        "{% for message in messages %}{{ message['role'][0] + ' ' + message['content'] + ' ' }}"
        "{% if message['role'] != 'user' %}<eos>{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'a ' }}{% endif %}"
    )
    tokenizer = tiny.word_tokenizer()
    tokenizer.chat_template = template
    for name in ("policy", "reward"):
        shutil.copytree(models / name, tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    prompts = [[{"role": "user", "content": words}] for words in ("b", "c", "d e", "f", "g", "h")]
    [done] = run(tmp_path, tmp_path / "out", prompts=prompts, pairs=None, eval_pairs=None)
    [row, *_] = load_from_disk(str(done.edits))
    assert row["prompt"] in prompts and row["rejected"] == [{"role": "assistant", "content": "e f c"}]
    assert row["chosen"] == [{"role": "assistant", "content": "e f b"}]
    assert "before" not in done.figures["policy"] and done.figures["policy"]["last_log"]["objective/kl"] is not None

    # A text keeps the blank between the prompt and what the policy wrote.
    assert all(text.startswith(" ") for text in sampled(models, tmp_path / "texts")["completion"])


def sampled(models, output):
    with pytest.raises(EditsPending):
        run(models, output, "people")
    return load_split(output / "round-01/samples.jsonl", "train")


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"rounds": 0}, "`rounds` must be at least 1"),
        ({"editor": "poeple"}, "`editor` must be an Editor, a function, or 'people', got 'poeple'"),
        ({"editor": "people", "config": lambda: config(edit_options={"retries": 1})}, "has no effect on people"),
        ({"config": lambda: config(ppo={"eval_strategy": "steps"}), "eval_pairs": None}, "of `ppo` needs `eval_pairs`"),
        ({"config": lambda: config(ppo={"num_mini_batches": 3})}, "must be a multiple of `num_mini_batches` = 3"),
        ({"config": lambda: config(ppo={"max_prompt_length": 1})}, "Nothing is left of the prompts data set"),
        ({"pairs": Dataset.from_list([{"prompt": "a", "chosen": "b"}])}, "Row 0 of the pairs 1 data set"),
        ({"eval_pairs": Dataset.from_list([{"chosen": "b", "rejected": 1}])}, "Row 0 of the eval_pairs data set"),
        ({"prompts": []}, "`prompts` must be a Dataset with rows"),
    ],
)
def test_errors_come_before_the_work(models, tmp_path, kwargs, message):
    kwargs = {name: value() if callable(value) else value for name, value in kwargs.items()}
    with pytest.raises(ValueError, match=re.escape(message)):
        run(models, tmp_path, **kwargs)
    assert not (tmp_path / "round-01/samples.jsonl").exists()
    with pytest.raises(EditsPending):  # what was wrong may be put right
        run(models, tmp_path, "people")


def test_models_are_checked_before_the_work(models, tmp_path):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter/adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "x"}')
    prompts = Dataset.from_dict({"prompt": PROMPTS})
    for policy, reward, message in (
        (tmp_path / "none", models / "reward", "There is no policy at"),
        (models / "policy", tmp_path / "none", "There is no reward model at"),
        (tmp_path / "adapter", models / "reward", "is an adapter: merge it"),
        (models / "policy", tmp_path / "adapter", "without the head of token scores"),
    ):
        with pytest.raises(ValueError, match=message):
            run_rounds(policy, reward, prompts, put_right, tmp_path / "out", config=config())


def test_another_folder_is_left_alone(models, tmp_path):
    (tmp_path / "round-01").mkdir()
    (tmp_path / "round-01/mine.txt").touch()
    with pytest.raises(ValueError, match="folder with other things in it"):
        run(models, tmp_path)
    (tmp_path / "round-01/round.json").write_text("[]")
    with pytest.raises(ValueError, match="round.json is no record of a round"):
        run(models, tmp_path)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"replay": 1.5}, "`replay` is a share of the earlier pairs"),
        ({"num_prompts": 0}, "`num_prompts` must be at least 1"),
        ({"reference": "last"}, "`reference` must be one of"),
        ({"edit_options": {"limit": 3}}, "`edit_options` takes criteria, template, checks and retries, not limit"),
        ({"ppo": {"output_dir": "mine"}}, "`output_dir` of `ppo` has no effect"),
        ({"reward": {"push_to_hub": True}}, "`push_to_hub` of `reward` has no effect"),
        ({"ppo": {"save_only_model": True}}, "`save_only_model` of `ppo` leaves checkpoints that rounds cannot resume"),
    ],
)
def test_settings_are_checked(kwargs, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        config(**kwargs)
    with pytest.raises(TypeError, match="`ppo` must be a `FineGrainedPPOConfig`"):
        RoundConfig(TokenRewardConfig(**CPU), TokenRewardConfig(**CPU))
    with pytest.raises(TypeError, match="`num_prompts` must be a whole number, but is '3'"):
        config(num_prompts="3")


def test_the_prompts_of_a_round_begin_again_after_the_last():
    prompts = Dataset.from_dict({"prompt": [str(number) for number in range(5)]})
    taken = [prompts_of_round(prompts, number, 3, seed=0)["prompt"] for number in (1, 2, 3)]
    order = [text for part in taken for text in part]
    assert sorted(order[:5]) == prompts["prompt"][:] and order[5:] == order[:4]
    assert prompts_of_round(prompts, 7, None, seed=0) is prompts


# --- the command ----------------------------------------------------------------------------------------------------


def command(models, tmp_path, *more):
    tmp_path.mkdir(exist_ok=True)
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS))
    PAIRS.to_json(tmp_path / "pairs.jsonl")
    settings = config()
    for name, names in {
        "reward": ("max_steps", "per_device_train_batch_size", "learning_rate"),
        "ppo": (
            *("per_device_train_batch_size", "gradient_accumulation_steps", "num_ppo_epochs", "num_mini_batches"),
            *("total_episodes", "learning_rate", "response_length", "stop_token", "num_sample_generations"),
        ),
    }.items():
        values = {**CPU, **{field: getattr(getattr(settings, name), field) for field in names}}
        (tmp_path / f"{name}.yaml").write_text("".join(f"{key}: {json.dumps(x)}\n" for key, x in values.items()))
    arguments = [
        *("round", tmp_path / "prompts.jsonl", tmp_path / "out"),
        *("--policy", models / "policy", "--reward-model", models / "reward", "--num-prompts", EDITED_ROWS),
        *("--pairs", tmp_path / "pairs.jsonl", "--eval-pairs", tmp_path / "pairs.jsonl"),
        *("--reward-config", tmp_path / "reward.yaml", "--ppo-config", tmp_path / "ppo.yaml"),
    ]
    return cli.main([*map(str, arguments), *more])


def test_the_command_with_an_endpoint(models, tmp_path, serve, capsys):
    def respond(text, number):
        answer = re.search(r"<answer>\n(.*)\n</answer>", text, re.DOTALL)[1]
        assert "copy it as it is" in text and "states facts" in text
        return f"<edited>{answer.replace('c', 'b')}</edited>"

    server = serve(respond)
    (tmp_path / "criteria.txt").write_text("The answer states facts.")
    options = ["--endpoint", server.url, "--model", "m", "--criteria", str(tmp_path / "criteria.txt")]
    assert command(models, tmp_path, *options) == 0
    out = capsys.readouterr().out
    assert re.search(r"Round 1: 6 answers, \d edited, \d unchanged, 0 dropped. Held out, reward_model, accuracy: ", out)
    assert f"The policy is in {tmp_path}/out/round-01/policy, the reward model in" in out
    record = json.loads((tmp_path / "out/round-01/round.json").read_text())
    assert record["settings"]["edit_options.checks"] == EditChecks().settings()
    asked = len(server.bodies)
    assert command(models, tmp_path, *options, "--rounds", "1") == 0 and len(server.bodies) == asked


def test_the_command_with_people(models, tmp_path, capsys):
    assert command(models, tmp_path, "--people") == 0
    out = capsys.readouterr().out
    assert f"    trl-tokenreward annotate {tmp_path}/out/round-01/samples.jsonl" in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--endpoint", "http://localhost:1"], "--endpoint needs --model"),
        (["--people", "--max-hunks", "3"], "--people: --model and the options of edits have no effect"),
        (["--people", "--retries", "3", "--prices", "1", "2"], "--people: --retries, --prices has no effect"),
        (["--local", "{tmp}", "--concurrency", "3"], "--local: --concurrency has no effect"),
        (["--endpoint", "", "--model", "a"], "`base_url` must begin with http:// or https://"),
        (["--people", "--pairs", ""], "The name of the data set is empty."),
        (["--local", ""], "The name of the model is empty."),
        (["--endpoint", "http://a", "--model", "a", "--batch-size", "3"], "--endpoint: --batch-size has no effect"),
        (["--people", "--reward-config", "{tmp}/ppo.yaml"], "ppo.yaml is no TokenRewardConfig: it has no field 'num_"),
        (["--people", "--ppo-config", "{tmp}/no.yaml"], "no.yaml"),
        (["--people", "--pairs", "{tmp}/no.jsonl"], "There is no data set at"),
    ],
)
def test_the_command_names_what_is_wrong(models, tmp_path, capsys, options, message):
    assert command(models, tmp_path, *(option.format(tmp=tmp_path) for option in options)) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rate: '1e-5'", "`learning_rate` must be a number, but is '1e-5'."),
        ("whiten_rewards: no", "`whiten_rewards` must be `True` or `False`, but is 'no'."),
        ("total_episodes: 10.5", "`total_episodes` must be a whole number, but is 10.5."),
        ("{kl_estimator: k2, use_cpu: true, bf16: false}", "`kl_estimator` must be one of"),
        ("rate: 1", "it has no field 'rate'."),
        ("learning_rate: [", "while parsing a flow node"),
        ("- learning_rate", "it must have fields and values, but is ['learning_rate']."),
        ("", "it must have fields and values, but is None."),
    ],
)
def test_a_file_with_other_values_is_named_before_the_work(tmp_path, text, message):
    (tmp_path / "ppo.yaml").write_text(text)
    with pytest.raises(ValueError, match=re.escape(f"ppo.yaml is no FineGrainedPPOConfig: {message}")):
        read_config(tmp_path / "ppo.yaml", FineGrainedPPOConfig)


def test_values_of_a_file_are_those_of_yaml_1_2(tmp_path):
    (tmp_path / "ppo.yaml").write_text(
        "{learning_rate: 1e-5, total_episodes: 10000, temperature: 1, report_to: none, use_cpu: true, "
        "lr_scheduler_kwargs: {min_lr: 1e-7}, eval_strategy: no, stop_token: eos}"
    )
    args = read_config(tmp_path / "ppo.yaml", FineGrainedPPOConfig)
    assert (args.learning_rate, args.total_episodes, args.temperature, args.use_cpu) == (1e-5, 10_000, 1, True)
    assert args.eval_strategy == "no" and args.lr_scheduler_kwargs == {"min_lr": 1e-7}
