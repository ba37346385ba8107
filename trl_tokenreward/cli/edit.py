"""`trl-tokenreward edit`: have a language model minimally edit the rejected answers of a preference data set."""

import argparse
import json
from pathlib import Path
from typing import Any

from .options import about, add_checks, add_split, read_checks, read_text, say


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "edit",
        help="have a language model minimally edit the rejected answers of a preference data set",
        description="Have a language model minimally edit the rejected answer of each row of a preference data set. "
        "Each edit is checked; what fails is tried again, then dropped with its reason. An interrupted run resumes "
        "when it is called again. The result is a data set for TokenRewardTrainer, with a data card.",
    )
    add = parser.add_argument
    add("dataset", help="a JSON, JSON Lines, CSV or Parquet file, a folder, or a name on the Hub")
    add("output", help="folder for the result, or of the run to go on with")
    editor = parser.add_mutually_exclusive_group(required=True)
    editor.add_argument(
        "--endpoint", metavar="URL", help="OpenAI-compatible endpoint, such as http://localhost:8000/v1"
    )
    editor.add_argument(
        "--local", metavar="MODEL", help="causal language model to run here: a folder or a name on the Hub"
    )
    add("--model", metavar="NAME", help="the endpoint's name of the model; its key is taken from OPENAI_API_KEY")
    add_split(parser)
    add("--limit", type=int, metavar="N", help="edit the first N rows only")
    add_checks(parser)
    add(
        "--prompt-template",
        type=Path,
        metavar="FILE",
        help="text with {prompt}, {answer}, {criteria}, <edited>, </edited>",
    )
    add("--reward-model", metavar="PATH", help="an edit must get a higher score from it than the original")
    add("--retries", type=int, default=2, help="how often a refused edit is tried again (default: %(default)s)")
    add("--concurrency", type=int, default=8, help="most requests to the endpoint at a time (default: %(default)s)")
    add("--batch-size", type=int, default=8, help="answers that the local model edits at a time (default: %(default)s)")
    add("--max-new-tokens", type=int, help="most tokens in an edited answer (default: 1024, or the endpoint's)")
    add("--prices", type=float, nargs=2, metavar=("IN", "OUT"), help="of a million tokens, to know the cost")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    if args.endpoint and not args.model:
        raise ValueError("--endpoint needs --model, the endpoint's name of the model.")
    if args.local and args.model:
        raise ValueError("--model goes with --endpoint; --local names its model itself.")
    from ..editing.edit_dataset import FAILURES, edit_dataset
    from ..editing.editors import DEFAULT_TEMPLATE
    from ..utils.loading import load_split

    checks, criteria = read_checks(args)
    template = read_text(args.prompt_template) if args.prompt_template else DEFAULT_TEMPLATE
    dataset = load_split(args.dataset, args.split, args.config)
    editor = _editor(args)
    if args.reward_model:
        checks.score = _score(args.reward_model)
    result = edit_dataset(
        dataset,
        editor,
        args.output,
        criteria=criteria,
        template=template,
        checks=checks,
        retries=args.retries,
        limit=args.limit,
        about=about(args, **{"reward model": args.reward_model}),
    )
    say(result.describe())
    if all(reason in FAILURES for reason, number in result.counts.items() if number):
        last = json.loads(Path(args.output, "dropped.jsonl").read_text(encoding="utf-8").splitlines()[-1])
        raise ValueError(f"No request was answered. The last, for row {last['row']}: {last['detail']}")
    say(f"They are in {args.output}; see its README.md.")


def _editor(args: argparse.Namespace) -> Any:
    from ..editing.editors import EndpointEditor, LocalEditor

    if args.endpoint:
        settings = {"max_tokens": args.max_new_tokens} if args.max_new_tokens else None
        prices = tuple(args.prices) if args.prices else None
        return EndpointEditor(args.endpoint, args.model, settings=settings, concurrency=args.concurrency, prices=prices)
    from transformers import AutoModelForCausalLM

    from ..utils.loading import check_source, load_tokenizer

    check_source(args.local, "model")
    model = AutoModelForCausalLM.from_pretrained(
        args.local, dtype="auto", device_map="auto", use_safetensors=True, trust_remote_code=False
    )
    return LocalEditor(
        model, load_tokenizer(args.local), batch_size=args.batch_size, max_new_tokens=args.max_new_tokens or 1024
    )


def _score(path: str) -> Any:
    import torch

    from ..evaluation.judges import RewardModelJudge
    from ..reward_model.modeling import TokenRewardModel
    from ..utils.loading import check_source, load_tokenizer

    check_source(path, "reward model")
    model = TokenRewardModel.from_pretrained(path).to("cuda" if torch.cuda.is_available() else "cpu")
    return RewardModelJudge(model, load_tokenizer(path)).scores
