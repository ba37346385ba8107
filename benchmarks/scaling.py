"""
Arithmetic of PPO past one machine: memory per GPU and tokens per second. It prints the tables of docs/scaling.md:

    python benchmarks/scaling.py

Nothing here is measured. Memory follows from what is kept, in bytes for each parameter; time from floating point
operations and bytes moved, at shares of the hardware's peak that are assumptions. GB are 10^9 bytes.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from trl_tokenreward.nn.lm_head import _CHUNK_BYTES
from trl_tokenreward.nn.unpadding import _TOKENS_PER_PASS


GB = 10**9


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder; the defaults are those of Qwen2.5-7B."""

    vocab_size: int = 152064
    hidden_size: int = 3584
    intermediate_size: int = 18944
    layers: int = 28
    heads: int = 28
    kv_heads: int = 4
    head_size: int = 128

    @property
    def embedding(self) -> int:
        """Parameters of the input embedding, and as many again of the head."""
        return self.vocab_size * self.hidden_size

    @property
    def backbone(self) -> int:
        """Parameters without the head: what a reward or a value model has."""
        queries, keys = self.heads * self.head_size, self.kv_heads * self.head_size
        attention = 2 * self.hidden_size * (queries + keys) + queries + 2 * keys  # q, k, v, o; biases of q, k, v
        mlp, norms = 3 * self.hidden_size * self.intermediate_size, 2 * self.hidden_size
        return self.embedding + self.layers * (attention + mlp + norms) + self.hidden_size

    @property
    def policy(self) -> int:
        """Parameters of the causal language model."""
        return self.backbone + self.embedding

    @property
    def cache_per_token(self) -> int:
        """Bytes of keys and values in bfloat16."""
        return 2 * self.layers * self.kv_heads * self.head_size * 2


@dataclass(frozen=True)
class Hardware:
    """An H100 with 80 GB, eight to a machine; the shares of its peaks are assumptions."""

    memory: float = 80 * GB
    reserved: float = 6 * GB  # CUDA, NCCL's buffers, fragmentation
    flops: float = 989e12  # bfloat16, dense
    mfu: float = 0.4  # share of it in prefill, reading and training
    bandwidth: float = 3.35e12
    decoding: float = 0.3  # share of the bandwidth in transformers' decoding, which launches every kernel from Python
    vllm: float = 0.6  # share of it in vLLM's
    within: float = 450e9  # bytes a second and GPU between GPUs of one machine, NVLink
    between: float = 50e9  # and between machines, one 400 Gb/s adapter to a GPU


@dataclass(frozen=True)
class Job:
    """One update."""

    prompt: int = 512
    response: int = 512
    epochs: int = 4  # num_ppo_epochs
    pass_tokens: int = _TOKENS_PER_PASS["cuda"]  # most tokens in a pass with gradients
    decoded: int = 64  # local_rollout_forward_batch_size

    @property
    def length(self) -> int:
        return self.prompt + self.response


SHAPE, HARDWARE, JOB = Shape(), Hardware(), Job()
ENGINES = ("DDP", "ZeRO-2", "ZeRO-3", "FSDP2")
# What is trained: all weights of both models; adapters in the policy, and all weights of the value model; adapters in
# both. With an adapter in the policy there is no copy of it for reference.
SETUPS = ("full", "LoRA policy", "LoRA both")
LORA = 40_000_000  # parameters of adapters of rank 16 in every linear layer of a 7B model; a bound


def trained_bytes(engine: str, gpus: int) -> float:
    """Bytes on each GPU for each parameter that is trained at mixed precision: weight, gradient and two moments of
    Adam.

    DDP: float32 weight 4 + gradient 4 + Adam 8, and autocast's bfloat16 copy 2. DeepSpeed: bfloat16 weight 2 + gradient
    2, float32 copy 4 + Adam 8; ZeRO-2 spreads all but the weight, ZeRO-3 all. FSDP2: float32 weight 4 + gradient 4 +
    Adam 8, all spread.
    """
    return {"DDP": 18, "ZeRO-2": 2 + 14 / gpus, "ZeRO-3": 16 / gpus, "FSDP2": 16 / gpus}[engine]


def frozen_bytes(engine: str, gpus: int) -> float:
    """Bytes for each parameter that is not trained, in bfloat16."""
    return 2 / gpus if engine in ("ZeRO-3", "FSDP2") else 2


def kept(engine: str, gpus: int, setup: str, shape: Shape = SHAPE) -> float:
    """Memory in use on each GPU all the time: weights of all models, gradients and optimizer."""
    trained = {"full": shape.policy + shape.backbone, "LoRA policy": LORA + shape.backbone, "LoRA both": 2 * LORA}[
        setup
    ]
    frozen = {
        "full": shape.policy + shape.backbone,  # reference, reward
        "LoRA policy": shape.policy + shape.backbone,  # under the adapter, reward
        "LoRA both": shape.policy + 2 * shape.backbone,  # under both adapters, reward
    }[setup]
    return trained * trained_bytes(engine, gpus) + frozen * frozen_bytes(engine, gpus)


def rollout(engine: str, shape: Shape = SHAPE, job: Job = JOB) -> float:
    """What a rollout needs besides: the cache, and the whole weights of the model that is read where they are
    spread."""
    cache = job.decoded * job.length * shape.cache_per_token
    return cache + (2 * shape.policy if engine in ("ZeRO-3", "FSDP2") else 0)


def training(engine: str, setup: str, shape: Shape = SHAPE, job: Job = JOB) -> float:
    """What a pass with gradients needs besides, with gradient checkpointing: the inputs of all layers of both models,
    the values and gradients within one layer, some logits, the gradient of the head, and weights gathered for the
    pass."""
    checkpoints = 2 * shape.layers * shape.hidden_size * 2 * job.pass_tokens
    within_layer = 2 * (8 * shape.hidden_size + 3 * shape.intermediate_size) * 2 * job.pass_tokens
    logits = 3 * _CHUNK_BYTES["cuda"]
    head = 6 * shape.embedding if setup == "full" else 0
    gathered = 0
    if engine in ("ZeRO-3", "FSDP2"):
        # Two layers at a time; embeddings and head from the forward to the backward pass, with their gradients.
        layer = (shape.backbone - shape.embedding) / shape.layers
        gathered = 2 * 2 * layer + 4 * 3 * shape.embedding
    return checkpoints + within_layer + logits + head + gathered


def memory_table(gpus: int, hardware: Hardware = HARDWARE) -> Iterator[str]:
    """Rows of a Markdown table: GB on each of `gpus` GPUs."""
    yield f"| {gpus} GPUs, GB on each | trained | kept | + rollout | + training | |"
    yield "| --- | --- | ---: | ---: | ---: | --- |"
    for engine in ENGINES:
        for setup in SETUPS:
            always = kept(engine, gpus, setup)
            peaks = always + rollout(engine), always + training(engine, setup)
            room = hardware.memory - hardware.reserved - max(peaks)
            verdict = f"fits, {room / GB:.0f} GB to spare" if room >= 0 else "does not fit"
            sizes = " | ".join(f"{size / GB:.0f}" for size in (always, *peaks))
            yield f"| {engine} | {setup} | {sizes} | {verdict} |"


def seconds(
    rows: int, setup: str, share: float, shape: Shape = SHAPE, job: Job = JOB, hardware: Hardware = HARDWARE
) -> dict:
    """Seconds of the parts of one update, for each GPU's `rows` prompts, with decoding at a `share` of the
    bandwidth."""
    rate = hardware.flops * hardware.mfu
    tokens, models = rows * job.length, shape.policy + shape.backbone
    steps = job.response * -(-rows // job.decoded)
    cache = min(rows, job.decoded) * (job.prompt + job.response / 2) * shape.cache_per_token
    # Forward 2 operations for each parameter and token, again 2 to make activations anew, backward 2 for activations,
    # and 2 for the weights that are trained.
    policy, value = {"full": (8, 8), "LoRA policy": (6, 8), "LoRA both": (6, 6)}[setup]
    return {
        "prefill": 2 * shape.policy * rows * job.prompt / rate,
        "decode": steps * (2 * shape.policy + cache) / (hardware.bandwidth * share),
        "read": 2 * 2 * models * tokens / rate,  # policy, reference, value and reward model
        "train": job.epochs * (policy * shape.policy + value * shape.backbone) * tokens / rate,
    }


def time_table(hardware: Hardware = HARDWARE, job: Job = JOB) -> Iterator[str]:
    """Rows of a Markdown table: seconds of one update, and completion tokens per second."""
    yield "| GPUs | prompts per GPU | trained | sampling | prefill | decode | read | train | update, s | tokens/s |"
    yield "| ---: | ---: | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |"
    for gpus, rows in ((8, 64), (64, 16), (64, 64)):
        for setup in ("full", "LoRA both"):
            for sampler, share in (("transformers", hardware.decoding), ("vLLM", hardware.vllm)):
                parts = seconds(rows, setup, share)
                total = sum(parts.values())
                columns = " | ".join(f"{part:.1f}" for part in parts.values())
                rate = gpus * rows * job.response / total
                yield f"| {gpus} | {rows} | {setup} | {sampler} | {columns} | {total:.0f} | {rate:,.0f} |"


def communication_table(shape: Shape = SHAPE, hardware: Hardware = HARDWARE) -> Iterator[str]:
    """Rows of a Markdown table: seconds that a pass computes, and that FSDP2 or ZeRO-3 moves weights and gradients."""
    yield "| tokens in a pass | computes, s | moves on 8 GPUs, s | moves on 64 GPUs, s |"
    yield "| ---: | ---: | ---: | ---: |"
    models = shape.policy + shape.backbone
    # bfloat16 weights for the forward and again for the backward pass, float32 gradients.
    moved = (2 + 2 + 4) * models
    for tokens in (1024, 4096, JOB.pass_tokens):
        compute = 8 * models * tokens / (hardware.flops * hardware.mfu)
        times = moved * 7 / 8 / hardware.within, moved * 63 / 64 / hardware.between
        yield f"| {tokens:,} | {compute:.2f} | {times[0]:.2f} | {times[1]:.2f} |"


def sizes_table(shape: Shape = SHAPE, job: Job = JOB) -> Iterator[str]:
    """Rows of a Markdown table: the sizes that the other tables use."""
    models = shape.policy + shape.backbone
    logits = job.pass_tokens * shape.vocab_size * 4
    yield "| | |"
    yield "| --- | ---: |"
    yield f"| parameters of the policy, and of its reference | {shape.policy / 1e9:.2f} billion |"
    headless = (
        f"parameters of the value model, and of the reward model, which have no head of {shape.vocab_size:,} tokens"
    )
    yield f"| {headless} | {shape.backbone / 1e9:.2f} billion |"
    yield f"| cache of one token | {shape.cache_per_token / 1e3:.0f} kB |"
    cache = job.decoded * job.length * shape.cache_per_token
    yield f"| cache of {job.decoded} rows of {job.length:,} tokens | {cache / GB:.1f} GB |"
    yield f"| logits of {job.pass_tokens:,} tokens in float32, which are never made | {logits / GB:.1f} GB |"
    yield f"| logits that are there at once, at most | {_CHUNK_BYTES['cuda'] / GB:.2f} GB |"
    yield f"| host memory of 8 processes that load four models in bfloat16 | {8 * 2 * 2 * models / GB:.0f} GB |"
    writer = "host memory of the first process while a checkpoint is written under FSDP2 (optimizer)"
    yield f"| {writer} | {8 * models / GB:.0f} GB |"
    yield f"| a checkpoint under FSDP2: float32 weights and optimizer | {12 * models / GB:.0f} GB |"


# Bytes for each weight of the frozen base on one GPU. 4 bits: NF4 in blocks of 64 with a float32 scale each; embeddings
# and head stay in bfloat16.
PRECISIONS = {"bfloat16": 2.0, "4 bits": 0.5 + 4 / 64}


def layer_values(rank: int, shape: Shape = SHAPE, dtype_bytes: int = 2) -> float:
    """Bytes for each token that the backward pass of one decoder layer needs, with adapters in all of its linear
    layers: what norms, attention, the product of the gates and the adapters have read.

    The adapters' weights are float32, so at lower precision PEFT makes a float32 copy of what each of them reads.
    """
    h, i = shape.hidden_size, shape.intermediate_size
    queries, keys = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
    norms, attention, gates = 2 * h * 4, (2 * queries + 2 * keys) * dtype_bytes, 3 * i * dtype_bytes
    # In float32, q, k and v read one tensor, gate and up another, and o what attention has given.
    read = 5 * h + queries + i if dtype_bytes < 4 else 2 * h + i
    return norms + attention + gates + (read + 7 * rank) * 4


def layer_gradients(shape: Shape = SHAPE) -> float:
    """Bytes for each token of the gradients that a layer's backward pass has at once, in float32: at the gates."""
    return 3 * shape.intermediate_size * 4


def one_gpu(precision: str, rank: int = 16, shape: Shape = SHAPE, job: Job = JOB) -> dict[str, float]:
    """Memory of PPO with LoRA on one GPU, part by part: policy, reference, value and reward model on one base, and
    gradient checkpointing. Policy and value model go one after the other."""
    linear = shape.policy - 2 * shape.embedding
    adapter = lora_parameters(rank, shape)
    return {
        "base": linear * PRECISIONS[precision] + 2 * shape.embedding * 2,
        # Float32 weights, gradients and Adam's moments of two adapters; the reward model's is frozen.
        "adapters": 2 * 16 * adapter + 4 * adapter,
        "cache": job.decoded * job.length * shape.cache_per_token,
        "checkpoints": shape.layers * shape.hidden_size * 2 * job.pass_tokens,
        "one layer": (layer_values(rank, shape) + layer_gradients(shape)) * job.pass_tokens,
        "logits": 3 * _CHUNK_BYTES["cuda"],
    }


def one_gpu_peak(sizes: dict[str, float]) -> float:
    """The greatest sum of parts that are there at once: decoding, the head's loss, and the layers' backward pass."""
    kept = sizes["base"] + sizes["adapters"]
    return kept + max(sizes["cache"], sizes["checkpoints"] + max(sizes["one layer"], sizes["logits"]))


def lora_parameters(rank: int, shape: Shape = SHAPE) -> int:
    """Parameters of an adapter of a rank in every linear layer."""
    queries, keys = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
    sides = 2 * (shape.hidden_size + queries) + 2 * (shape.hidden_size + keys)  # q and o; k and v
    sides += 3 * (shape.hidden_size + shape.intermediate_size)
    return rank * shape.layers * sides


def one_gpu_table(hardware: Hardware = HARDWARE) -> Iterator[str]:
    """Rows of a Markdown table: GB on one GPU, with prompts and responses of 512 tokens."""
    parts = list(one_gpu("bfloat16"))
    yield f"| base | batch of a pass | rows decoded at once | {' | '.join(parts)} | peak |"
    yield f"| --- | ---: | ---: |{' ---: |' * (len(parts) + 1)}"
    for precision in PRECISIONS:
        for rows, decoded in ((16, 64), (4, 16), (1, 8)):
            sizes = one_gpu(precision, job=Job(pass_tokens=rows * JOB.length, decoded=decoded))
            peak = one_gpu_peak(sizes)
            columns = " | ".join(f"{size / GB:.1f}" for size in sizes.values())
            yield f"| {precision} | {rows} | {decoded} | {columns} | {peak / GB:.1f} |"


def tables() -> dict[str, str]:
    """All tables, by name."""
    made = {
        "sizes": sizes_table(),
        "memory on 8": memory_table(8),
        "memory on 64": memory_table(64),
        "time": time_table(),
        "communication": communication_table(),
        "one GPU": one_gpu_table(),
    }
    return {name: "\n".join(rows) for name, rows in made.items()}


if __name__ == "__main__":
    print("\n\n".join(tables().values()))
