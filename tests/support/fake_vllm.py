"""A stand-in for vLLM under TRL's own `VLLMGeneration` and `VLLMClient`, which run as they are.

It generates with a transformers model that has no weights but those that came to it the way that vLLM's do. It stops
where vLLM stops: at a stop token, at EOS unless that is ignored, after `max_tokens`, and where its context ends.
"""

import json
import math
import threading
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from unittest import mock

import torch
from transformers import AutoModelForCausalLM

from trl_tokenreward.ppo.prompts import Prompts
from trl_tokenreward.ppo.sampling import generate


class FakeVLLM:
    """The model, what was loaded into it, and what it was asked for.

    `uniforms` are the random numbers to sample with, one row for each prompt; `error` is what is added to the
    log-probability of the first token of each completion.
    """

    def __init__(self, path, max_model_len=None):
        self.model = AutoModelForCausalLM.from_pretrained(path).eval()
        self.max_model_len = max_model_len or self.model.config.max_position_embeddings
        self.uniforms = None
        self.error = 0.0
        self.loads = []  # the names of each transfer
        self.requests = []  # (prompts, sampling parameters)
        self.generated_with = []  # the weights at each request

    def weights(self):
        return {name: parameter.detach().clone() for name, parameter in self.model.named_parameters()}

    def load_weights(self, named):
        parameters = dict(self.model.named_parameters())
        for name, tensor in named:
            assert parameters[name].shape == tensor.shape, name
            parameters[name].data.copy_(tensor)
            self.loads[-1].append(name)

    def complete(self, prompts, params):
        """Token ids and log-probabilities of one completion for each prompt."""
        assert params.pop("n") == 1 and params.pop("logprobs") == 0
        # Nothing that would change the distribution.
        neutral = {"repetition_penalty": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0}
        assert {name: params.pop(name) for name in neutral} == neutral
        self.requests.append((prompts, dict(params)))
        self.generated_with.append(self.weights())
        length = params.pop("max_tokens")
        uniforms = self.uniforms
        if uniforms is None:
            uniforms = torch.rand(len(prompts), length, dtype=torch.float64)
        width = max(map(len, prompts))
        ids = torch.tensor([[0] * (width - len(row)) + row for row in prompts])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in prompts])
        completions = generate(
            self.model,
            Prompts(ids, mask),
            uniforms[: len(prompts)],
            temperature=params.pop("temperature"),
            stop_token_id=None,
            pad_token_id=0,
        )
        stops = set(params.pop("stop_token_ids", ()))
        if not params.pop("ignore_eos", False):
            stops.add(self.model.config.eos_token_id)
        assert params == {}
        results = []
        for prompt, row, logps in zip(
            prompts, completions.ids.tolist(), completions.per_token_logps.tolist(), strict=True
        ):
            end = next((t + 1 for t, token in enumerate(row) if token in stops), length)
            end = min(end, self.max_model_len - len(prompt))
            logps[0] += self.error
            results.append((row[:end], logps[:end]))
        return results


class FakeLLM(FakeVLLM):
    """vLLM's `LLM` as far as TRL uses it."""

    def __init__(self, model, *, max_model_len, enable_sleep_mode, **settings):
        super().__init__(model, max_model_len)
        self.enable_sleep_mode = enable_sleep_mode
        self.settings = settings
        worker = SimpleNamespace(model_runner=SimpleNamespace(model=SimpleNamespace(load_weights=self._load)))
        self.llm_engine = SimpleNamespace(model_executor=SimpleNamespace(driver_worker=worker))
        self.awake = {"weights", "kv_cache"}
        self.loads.append([])

    def _load(self, named):
        assert "weights" in self.awake
        self.load_weights(named)

    def reset_prefix_cache(self):
        # It ends a transfer.
        self.loads.append([])

    def sleep(self, level):
        assert self.enable_sleep_mode and level == 2
        self.awake = set()
        for parameter in self.model.parameters():
            parameter.data.fill_(math.nan)

    def wake_up(self, tags):
        self.awake |= set(tags)

    def generate(self, prompts, sampling_params, use_tqdm):
        assert self.awake == {"weights", "kv_cache"} and not use_tqdm
        prompts = [prompt["prompt_token_ids"] for prompt in prompts]
        return [
            SimpleNamespace(
                prompt_token_ids=prompt,
                outputs=[
                    SimpleNamespace(
                        token_ids=ids,
                        logprobs=[
                            {token: SimpleNamespace(logprob=logp, rank=3)}
                            for token, logp in zip(ids, logps, strict=True)
                        ],
                    )
                ],
            )
            for prompt, (ids, logps) in zip(prompts, self.complete(prompts, dict(sampling_params)), strict=True)
        ]


@contextmanager
def colocate():
    """vLLM as `LLM`, `SamplingParams` a plain `dict`. Yields the list of the `LLM`s that TRL makes."""
    from trl.generation import vllm_generation

    made = []

    def make(**settings):
        made.append(FakeLLM(**settings))
        return made[-1]

    with ExitStack() as stack:
        for name, value in {"LLM": make, "SamplingParams": dict, "is_vllm_available": lambda: True}.items():
            stack.enter_context(mock.patch.object(vllm_generation, name, value, create=True))
        # TRL tells vLLM of the processes by the environment, which other tests share.
        stack.enter_context(mock.patch.dict("os.environ"))
        yield made


@contextmanager
def server(path):
    """An HTTP server with the endpoints that TRL's client calls, on a free port. Yields its model, with `url` and
    `announced`, the names, types and shapes of each transfer.

    What is missing is NCCL, over which the tensors themselves go: they are taken where TRL hands them to it.
    """
    from trl.generation import vllm_client, vllm_generation

    fake = FakeVLLM(path)
    fake.announced = []
    announcement = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def answer(self, body):
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def do_GET(self):
            self.answer(GETS[self.path.partition("?")[0]])

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or "{}")
            self.answer(POSTS[self.path](body))

        def log_message(self, *_):
            pass

    def complete(body):
        expected = {"model": "fake", "return_token_ids": True, "return_tokens_as_token_ids": True}
        assert {name: body.pop(name) for name in expected} == expected
        prompts = [prompt for prompt in body.pop("prompt") for _ in range(body["n"])]
        choices = []
        for prompt, (ids, logps) in zip(prompts, fake.complete(prompts, {**body, "n": 1}), strict=True):
            names = [f"token_id:{token}" for token in ids]
            logprobs = {
                "tokens": names,
                "token_logprobs": logps,
                "top_logprobs": [{name: logp} for name, logp in zip(names, logps, strict=True)],
            }
            choices.append({"prompt_token_ids": prompt, "token_ids": ids, "logprobs": logprobs})
        return {"choices": choices}

    def update(body):
        info = body["update_info"]
        fake.announced.append(list(zip(info["names"], info["dtype_names"], info["shapes"], strict=True)))
        announcement.set()
        return {}

    def send(iterator, trainer_args):
        assert announcement.wait(30)
        announcement.clear()
        fake.loads.append([])
        sent = [(name, tensor.clone()) for name, tensor in iterator]
        assert [(name, str(tensor.dtype)[6:], list(tensor.shape)) for name, tensor in sent] == fake.announced[-1]
        fake.load_weights(sent)

    GETS = {
        "/health": {},
        "/v1/models": {"data": [{"id": "fake"}]},
        "/server_info": {"vllm_config": {"model_config": {"logprobs_mode": "processed_logprobs"}}},
    }
    POSTS = {
        "/v1/completions": complete,
        "/update_weights": update,
        **dict.fromkeys(("/start_weight_update", "/finish_weight_update", "/reset_prefix_cache"), lambda body: {}),
    }
    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    fake.url = f"http://127.0.0.1:{http.server_port}"
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    with ExitStack() as stack:
        for module in (vllm_client, vllm_generation):
            stack.enter_context(mock.patch.object(module, "is_vllm_available", lambda: True))
        engine = SimpleNamespace(trainer_send_weights=send)
        for name, value in {"NCCLWeightTransferEngine": engine, "NCCLTrainerSendWeightsArgs": dict}.items():
            stack.enter_context(mock.patch.object(vllm_client, name, value, create=True))
        # It asks for a CUDA device and opens the NCCL group.
        stack.enter_context(mock.patch.object(vllm_client.VLLMClient, "init_communicator", lambda self, device: None))
        stack.enter_context(mock.patch.dict("os.environ", {"NO_PROXY": "127.0.0.1"}))
        try:
            yield fake
        finally:
            http.shutdown()
            http.server_close()
            thread.join()
