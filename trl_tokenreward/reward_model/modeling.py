"""The token reward model: a causal backbone with a head that scores sequences and a head that scores tokens."""

import os
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers import initialization as init
from transformers.utils import ModelOutput, is_peft_available, logging

from ..data.tokens import TextTokenizer
from ..nn.modules import backbone_of, make_trainable, max_positions
from ..nn.unpadding import packing_order, reordered
from ..utils.text import unicode_problem
from ..utils.validation import check_least, check_tokenizer
from .configuration import TokenRewardModelConfig
from .heads import ScoreHead, head_of
from .saved_adapter import load_merged, read_config
from .text_scores import TextScores, columns_of_text, scores_of_ids


logger = logging.get_logger(__name__)

_SEQUENCE_CLASSIFIER = "ForSequenceClassification"
_TOKEN_CLASSIFIER = "ForTokenClassification"


@dataclass
class TokenRewardOutput(ModelOutput):
    """
    Scores of a [`TokenRewardModel`] for a batch of B rows and L columns, in float32. In columns that
    `attention_mask` masks, `token_scores` and `prefix_scores` are finite but have no meaning.

    Args:
        logits (`Tensor` of shape `(B, 1)`):
            Score of each sequence: its prefix score at the last column where `attention_mask` is 1.
        token_scores (`Tensor` of shape `(B, L)`):
            Score of the token in each column, given what stands before it: the token head, after the model has read the
            token.
        prefix_scores (`Tensor` of shape `(B, L)`):
            Score of the row up to and including each column: the sequence head everywhere. Read as a potential, its
            differences are rewards that add up to the sequence score; in a value model, these are the values.
        hidden_states (`tuple[Tensor, ...]`, *optional*):
            The backbone's, with `output_hidden_states=True`.
        attentions (`tuple[Tensor, ...]`, *optional*):
            The backbone's, with `output_attentions=True`.
    """

    logits: Tensor | None = None
    token_scores: Tensor | None = None
    prefix_scores: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class TokenRewardModel(PreTrainedModel):
    r"""
    A reward model that scores each token and each sequence: a causal backbone (`model`) with two linear heads on its
    last hidden state. One forward pass of the backbone gives all the scores.

    - `score`, without bias, is the sequence head. It has the name and the shape of a sequence classifier's, so code
      for sequence-classification reward models, such as TRL's, works with this model.
    - `token_score`, with bias, is the token head. It starts at zero, so an untrained head scores every token 0 and
      [`~TokenRewardModel.token_head_is_trained`] is `False`.

    Load one with [`~TokenRewardModel.from_pretrained`] or make one of a model in memory with
    [`~TokenRewardModel.from_backbone`]. With PEFT, name both heads in `modules_to_save`, or they stay as they are.

    Args:
        config ([`TokenRewardModelConfig`]):
            Configuration.
        backbone ([`~transformers.PreTrainedModel`], *optional*):
            The backbone, whose configuration `config.text_config` must be. One with random weights is made if `None`.

    Raises:
        `ValueError`: if the backbone is not causal.
    """

    config_class = TokenRewardModelConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    # The heads impose nothing: which implementations of attention and experts the backbone supports, it checks itself.
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    @classmethod
    def _can_set_experts_implementation(cls) -> bool:
        return True

    def __init__(self, config: TokenRewardModelConfig, backbone: PreTrainedModel | None = None):
        super().__init__(config)
        if backbone is None:
            backbone = AutoModel.from_config(config.text_config)
        else:
            # `post_init` initialises modules without this mark, and those that the user replaced (by
            # for example `set_input_embeddings`) have none.
            for module in backbone.modules():
                module._is_hf_initialized = True
        _check_causal(backbone)
        self.model = backbone
        place = {"device": backbone.device, "dtype": backbone.dtype}
        # OPT-350m projects its last states to the size of its embeddings.
        size = getattr(config.text_config, "word_embed_proj_dim", None) or config.hidden_size
        self.score = ScoreHead(size, bias=False, **place)
        self.token_score = ScoreHead(size, bias=True, **place)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if module is self.token_score:
            init.zeros_(module.weight)
            init.zeros_(module.bias)
        else:
            super()._init_weights(module)

    def is_custom_code(self) -> bool:
        # In code that is not its own, transformers initialises no module without weights of its own; but some compute
        # their layers' buffers, which no checkpoint has (Falcon-H1, seen in transformers 5.23).
        return self.model.is_custom_code()

    def get_input_embeddings(self) -> nn.Module:
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.set_input_embeddings(value)

    # The sequence head's weight where it was made, at random, and not loaded.
    _random_score: Tensor | None = None

    @property
    def sequence_head_is_new(self) -> bool:
        """Whether the sequence head still has the random weights that it was made with: nothing has been loaded into
        it, also no adapter's head, and nothing has trained it. Its scores are refused as rewards, and
        `TokenRewardTrainer` zeroes one that it does not train."""
        made, now = self._random_score, self.score.weight
        if made is None:
            return False
        now = getattr(now, "full_tensor", lambda: now)()  # of FSDP2
        # The model may have been at low precision since.
        rounded = [made.to(dtype) for dtype in (now.dtype, torch.bfloat16, torch.float16)]
        return any(torch.equal(made.to(now), now) for made in rounded)

    @property
    def sequence_head_is_trained(self) -> bool:
        """`False` if the sequence head's weight is all zero, as [`TokenRewardTrainer`] leaves a new one that no row has
        trained. A new head that no trainer has seen has random weights, and counts as trained."""
        return bool(self.score.weight.any())

    @property
    def token_head_is_trained(self) -> bool:
        """`False` while the token head's weight and bias are all zero, as they start."""
        return bool(self.token_score.weight.any()) or bool(self.token_score.bias.any())

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> TokenRewardOutput:
        r"""
        Args:
            input_ids (`Tensor` of shape `(B, L)`, *optional*):
                Token ids. Either these or `inputs_embeds`.
            attention_mask (`Tensor` of shape `(B, L)`, *optional*):
                1 for real tokens, 0 for padding. Everything is real if `None`.
            position_ids (`Tensor` of shape `(B, L)`, *optional*):
                Position of each column. If `None`, they are counted from the first real token of each row, so that
                padding on the left and on the right give the same scores.
            inputs_embeds (`Tensor` of shape `(B, L, H)`, *optional*):
                Embeddings, instead of `input_ids`.
            kwargs:
                Passed to the backbone, such as `output_hidden_states`.

        Returns:
            [`TokenRewardOutput`]

        Raises:
            `ValueError`: if `attention_mask` is not two-dimensional or leaves a row without a real token, and for
                `labels`, `past_key_values`, `use_cache=True` or `return_dict=False`, which this model has no use for.
        """
        _refuse_unsupported(kwargs)
        real = None if attention_mask is None else _real_columns(attention_mask)
        # No token reads what stands after it, so padding goes there: before it, some recurrent models read it.
        order = None if real is None else packing_order(real)
        inputs = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "inputs_embeds": inputs_embeds,
        }
        # Some backbones have no `position_ids`, so arguments that are not given are not passed.
        inputs = {name: value for name, value in inputs.items() if value is not None}
        if order is not None:
            inputs = {name: reordered(value, order) for name, value in inputs.items()}
        outputs = self.model(**inputs, use_cache=False, **kwargs)
        if order is not None:
            _put_back(outputs, order.argsort(dim=1))

        hidden_states = outputs.last_hidden_state.float()
        prefix_scores = self.score(hidden_states).squeeze(-1)
        token_scores = self.token_score(hidden_states).squeeze(-1)
        if real is None:
            logits = prefix_scores[:, -1:]
        else:
            columns = torch.arange(real.shape[1], device=real.device)
            last = (real * columns).argmax(dim=1, keepdim=True)
            logits = prefix_scores.gather(1, last.to(prefix_scores.device))
        return TokenRewardOutput(
            logits=logits,
            token_scores=token_scores,
            prefix_scores=prefix_scores,
            hidden_states=outputs.get("hidden_states"),
            attentions=outputs.get("attentions"),
        )

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike | None, *model_args: Any, **kwargs: Any
    ) -> "TokenRewardModel":
        r"""
        Load a token reward model, or make one of another checkpoint:

        - its own checkpoints;
        - a sequence classifier with one label (a reward model): its `score` head is kept, the token head starts at
          zero;
        - a token classifier with one label: its head becomes the token head, `score` is initialised;
        - a causal language model: `score` is initialised (normal, with the backbone's `initializer_range`; seed torch
          for reproducible weights), the token head starts at zero;
        - the adapter of a token reward model, as [`TokenRewardTrainer`] saves it: it is merged into its base model.

        Only safetensors checkpoints are loaded, and code from the Hub only where `trust_remote_code=True` is passed.

        Args:
            pretrained_model_name_or_path (`str` or `os.PathLike`):
                Name on the Hub or folder.
            kwargs:
                Arguments of [`~transformers.PreTrainedModel.from_pretrained`], such as `dtype`, `attn_implementation`,
                `revision` or `device_map`. `num_labels` may be 1. `output_loading_info` works with this model's own
                checkpoints only.

        Returns:
            [`TokenRewardModel`]: in evaluation mode.

        Raises:
            `ValueError`: if the checkpoint is a classifier with more than one label, an encoder-decoder, a
                bidirectional encoder, a multimodal model or the adapter of another model, or if an argument asks for
                what is not supported.
        """
        num_labels = kwargs.pop("num_labels", None)
        if num_labels not in (None, 1):
            raise ValueError(f"A token reward model has 1 label, its score, but `num_labels` is {num_labels}.")
        if kwargs.setdefault("use_safetensors", True) is not True:
            raise ValueError(
                "`use_safetensors` must be `True`: pickled weights can run any code when they are loaded. Convert the "
                "checkpoint to safetensors first."
            )
        kwargs.setdefault("trust_remote_code", False)
        config = kwargs.get("config")
        if not isinstance(config, PreTrainedConfig):
            path = pretrained_model_name_or_path if config is None else config
            config = read_config(path, kwargs)
            if path is not None and not isinstance(config, PreTrainedConfig):
                return load_merged(cls.from_pretrained, config, path, kwargs)
        if isinstance(config, TokenRewardModelConfig):
            kwargs.pop("code_revision", None)
            return super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)

        if model_args:
            raise TypeError("`from_pretrained` takes one positional argument, the checkpoint.")
        if kwargs.pop("output_loading_info", False):
            raise ValueError(
                f"`output_loading_info` works with the checkpoints of token reward models, and "
                f"{pretrained_model_name_or_path} is one of `{config.model_type}`."
            )
        auto_class = _loader(config, pretrained_model_name_or_path)
        model = cls._assemble(auto_class.from_pretrained(pretrained_model_name_or_path, **kwargs))
        return model.eval()

    @classmethod
    def from_backbone(cls, model: PreTrainedModel, copy: bool = True) -> "TokenRewardModel":
        r"""
        Make a token reward model of a model in memory, with the heads that [`~TokenRewardModel.from_pretrained`] would
        give it. This is how PPO makes a value model of the reward model or of the policy.

        Args:
            model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
                A causal language model, sequence classifier or token classifier with one label, backbone or
                [`TokenRewardModel`]. The adapter of a PEFT model is merged into the copy.
            copy (`bool`, *optional*, defaults to `True`):
                If `True`, the weights are copied: `model` stays unchanged and all parameters of the copy are trainable.
                If `False`, the new model is made of `model`'s own modules: training one trains the other.

        Returns:
            [`TokenRewardModel`]: in the mode, training or evaluation, of `model`.

        Raises:
            `TypeError`: if `model` is not a model of transformers.
            `ValueError`: if a classifier has more than one label, if the model is not causal, if the part of it below
                its head is not known, if it is a PEFT model and `copy` is `False`, or if it is what a PEFT model wraps
                (pass the PEFT model).
        """
        if is_peft_available():
            from peft import PeftModel

            if isinstance(model, PeftModel):
                if not copy:
                    raise ValueError(
                        "A PEFT model's weights cannot be shared, for its adapter has to be merged into them."
                    )
                return make_trainable(cls.from_backbone(deepcopy(model).merge_and_unload(), copy=False))
        if not isinstance(model, PreTrainedModel):
            raise TypeError(f"`model` must be a `PreTrainedModel`, got {type(model).__name__}.")
        if getattr(model, "peft_config", None):
            raise ValueError(f"This {type(model).__name__} holds a PEFT adapter. Pass the PEFT model around it.")
        if isinstance(model, TokenRewardModel):
            assembled = model
        else:
            assembled = cls._assemble(model)
        if copy:
            assembled = make_trainable(deepcopy(assembled))
        return assembled.train(model.training)

    @classmethod
    def _assemble(cls, model: PreTrainedModel) -> "TokenRewardModel":
        """A token reward model made of the modules of `model`, nothing copied."""
        backbone = backbone_of(model)
        config = TokenRewardModelConfig(
            text_config=backbone.config, name_or_path=backbone.config.name_or_path, dtype=backbone.dtype
        )
        if backbone is model and model.get_output_embeddings() is not None:
            raise ValueError(
                f"Which part of a {type(model).__name__} gives the states below its head is not known. Pass that part."
            )
        assembled = cls(config, backbone=backbone)
        architecture = type(model).__name__
        if architecture.endswith(_SEQUENCE_CLASSIFIER):
            head = head_of(model, backbone)
            if head.bias is not None:
                raise ValueError(f"The head of {architecture} has a bias, which a sequence score has not.")
            assembled.score.weight = head.weight
        else:
            assembled._random_score = assembled.score.weight.detach().clone()
        if architecture.endswith(_TOKEN_CLASSIFIER):
            head = head_of(model, backbone)
            assembled.token_score.weight = head.weight
            if head.bias is not None:
                assembled.token_score.bias = head.bias
        # What the loader notes on the model, and Trainer and PEFT look for there.
        for name in ("hf_device_map", "hf_quantizer", "is_quantized", "quantization_method"):
            if hasattr(model, name):
                setattr(assembled, name, getattr(model, name))
        for name in ("is_loaded_in_4bit", "is_loaded_in_8bit"):
            if getattr(model, name, False):
                setattr(assembled, name, True)
        return assembled

    @torch.no_grad()
    def score_texts(
        self,
        texts: Sequence[str],
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[str] | None = None,
        batch_size: int = 8,
        max_length: int | None = None,
        append_eos: bool = True,
    ) -> list[TextScores]:
        r"""
        Score texts, and each of their tokens, with the characters that it stands for.

        Tokens that the tokenizer adds (such as BOS) are read but not listed; none is added where the text has it
        already, as a text from a chat template has. The model's mode, training or evaluation, is restored.

        Args:
            texts (`Sequence[str]`):
                The texts, in any number.
            tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
                The model's tokenizer, a fast one.
            prompts (`Sequence[str]`, *optional*):
                What stands before each text. It is tokenized together with the text; only the text's tokens are listed,
                and spans are relative to the text. A token of both belongs to the text, with the part of its span that
                lies in it.
            batch_size (`int`, *optional*, defaults to `8`):
                Number of texts per forward pass.
            max_length (`int`, *optional*):
                Number of tokens, prompt and special tokens included, that a text may have. Defaults to the backbone's
                `max_position_embeddings`. Nothing is truncated.
            append_eos (`bool`, *optional*, defaults to `True`):
                If `True`, the EOS token is appended to texts that do not end in it, if the tokenizer has one. The
                sequence score is then read there, as reward models are trained on plain texts. It is not among the
                listed tokens. If `False`, nothing is added at the end, also by a tokenizer that appends EOS itself.

        Returns:
            `list[TextScores]`: one for each text, in order.

        Raises:
            `TypeError`: if `texts` or `prompts` is a single string or holds something else than strings, or the
                tokenizer is none.
            `ValueError`: if the tokenizer is not a fast one, if a text is not Unicode text, has no tokens at all or
                more than `max_length`, or if there are not as many prompts as texts.
        """
        _check_strings("texts", texts)
        if prompts is None:
            prompts = [""] * len(texts)
        _check_strings("prompts", prompts)
        if len(prompts) != len(texts):
            raise ValueError(f"There are {len(texts)} texts, but {len(prompts)} prompts.")
        check_least(batch_size=(batch_size, 1))
        check_tokenizer(tokenizer, "tokenizer")
        if not self.token_head_is_trained:
            logger.warning("The token head is untrained, so every token scores 0.")
        if not tokenizer.is_fast:
            raise ValueError(
                f"{type(tokenizer).__name__} does not tell which characters a token stands for. Use a fast tokenizer."
            )
        if max_length is None:
            max_length = max_positions(self)

        eos = tokenizer.eos_token or ""
        tokenize, encodings = TextTokenizer(tokenizer), []
        for index, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
            ending = eos if append_eos and not text.endswith(eos) else ""
            encoding = tokenize(prompt + text + ending, is_open=not append_eos)
            length = len(encoding.ids)
            if length == 0:
                raise ValueError(f"Text {index} has no tokens, so there is nothing to score.")
            if max_length is not None and length > max_length:
                raise ValueError(
                    f"Text {index} has {length} tokens, more than {max_length}. Shorten it, or pass a greater "
                    "`max_length` if the model can read that far."
                )
            encodings.append(encoding)

        results = []
        scores = scores_of_ids(self, [encoding.ids for encoding in encodings], batch_size)
        for encoding, prompt, text, of_ids in zip(encodings, prompts, texts, scores, strict=True):
            columns, spans = columns_of_text(encoding.offsets, prompt, text)
            results.append(
                TextScores(
                    text=text,
                    score=of_ids.score,
                    token_scores=[of_ids.token_scores[column] for column in columns],
                    tokens=tokenizer.convert_ids_to_tokens([encoding.ids[column] for column in columns]),
                    spans=spans,
                )
            )
        return results

    def export_token_classification(self, directory: str | os.PathLike) -> None:
        r"""
        Write a checkpoint of the backbone and the token head that `AutoModelForTokenClassification` loads, without this
        package. Its `logits[..., 0]` are the token scores, given `position_ids` or padding on the right.

        Args:
            directory (`str` or `os.PathLike`):
                Folder to write. The tokenizer is not this model's to save.

        Raises:
            `ValueError`: if the backbone's architecture has no token classifier, or if the model holds an adapter or is
                quantized.
        """
        self._export(MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING, "token classifier", self.token_score, directory)

    def export_sequence_classification(self, directory: str | os.PathLike) -> None:
        r"""
        Write a checkpoint of the backbone and the sequence head that `AutoModelForSequenceClassification` loads,
        without this package. Its `logits` are the sequence scores. It finds the last token by `pad_token_id`, so that
        must be set in the configuration for batches, and must not occur within a sequence.

        Args:
            directory (`str` or `os.PathLike`):
                Folder to write. The tokenizer is not this model's to save.

        Raises:
            `ValueError`: if the backbone's architecture has no sequence classifier, or if the model holds an adapter or
                is quantized.
        """
        self._export(MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, "sequence classifier", self.score, directory)

    def _export(self, architectures: Any, kind: str, head: nn.Linear, directory: str | os.PathLike) -> None:
        config = deepcopy(self.config.text_config)
        if type(config) not in architectures:
            raise ValueError(f"transformers has no {kind} for `{config.model_type}`, so there is nothing to export to.")
        if getattr(self, "is_quantized", False):
            raise ValueError("The model is quantized: export it before quantization, or dequantize it first.")
        config.num_labels = 1
        # On the meta device nothing is allocated; the exported model is this one's modules under other names.
        with torch.device("meta"):
            exported = architectures[type(config)](config)
        expected = set(exported.state_dict())
        setattr(exported, exported.base_model_prefix, self.model)
        exported_head = head_of(exported, self.model)
        exported_head.weight = nn.Parameter(head.weight.detach())
        if head.bias is not None:
            exported_head.bias = nn.Parameter(head.bias.detach())
        unknown = set(exported.state_dict()) ^ expected
        if unknown:
            raise ValueError(
                f"The backbone is not a plain `{config.model_type}`: its parameters differ from a {kind}'s in "
                f"{sorted(unknown)[0]!r}. If it holds an adapter, merge that first (`merge_and_unload`)."
            )
        exported.save_pretrained(directory)


def _refuse_unsupported(kwargs: dict[str, Any]) -> None:
    """Removes arguments that this model does not support; raises an error if one of them would have an effect."""
    if kwargs.pop("labels", None) is not None:
        raise ValueError("`labels` are of no use: the model computes no loss. Train it with `TokenRewardTrainer`.")
    if kwargs.pop("use_cache", None):
        raise ValueError("`use_cache=True` is not supported: the model scores a whole text at once and keeps no cache.")
    if kwargs.pop("past_key_values", None) is not None:
        raise ValueError("`past_key_values` are not supported: pass the whole text.")
    if kwargs.pop("return_dict", None) is False:
        raise ValueError("`return_dict=False` is not supported: the output is a `TokenRewardOutput`.")


def _put_back(outputs: ModelOutput, columns: Tensor) -> None:
    """Move a backbone's outputs to the columns of its inputs before they were packed."""
    outputs.last_hidden_state = reordered(outputs.last_hidden_state, columns)
    if outputs.get("hidden_states") is not None:
        outputs.hidden_states = tuple(reordered(x, columns) for x in outputs.hidden_states)
    if outputs.get("attentions") is not None:
        outputs.attentions = tuple(reordered(reordered(x, columns, 2), columns, 3) for x in outputs.attentions)


def _real_columns(attention_mask: Tensor) -> Tensor:
    if attention_mask.dim() != 2:
        raise ValueError(f"`attention_mask` must have the shape (B, L), got {tuple(attention_mask.shape)}.")
    real = attention_mask != 0
    empty = ~real.any(dim=1)
    if empty.any():
        raise ValueError(
            f"Row {int(empty.nonzero()[0])} has no real token: `attention_mask` is 0 everywhere, so there is nothing "
            "to score."
        )
    return real


def _check_causal(backbone: PreTrainedModel) -> None:
    for name, module in backbone.named_modules():
        if getattr(module, "is_causal", True) is False:
            raise ValueError(
                f"{type(backbone).__name__} is not causal: `{name}` attends to later tokens, so the score of a token "
                "would depend on what follows it. Use a decoder-only language model."
            )


def _loader(config: PreTrainedConfig, path: str | os.PathLike | None) -> Any:
    """The auto class that loads the checkpoint with those heads that this model keeps."""
    if config.is_encoder_decoder:
        raise ValueError(f"{path} is an encoder-decoder (`{config.model_type}`). Use a decoder-only model.")
    architecture = config.architectures[0] if config.architectures else ""
    if architecture.endswith(_SEQUENCE_CLASSIFIER):
        auto_class = AutoModelForSequenceClassification
    elif architecture.endswith(_TOKEN_CLASSIFIER):
        auto_class = AutoModelForTokenClassification
    else:
        if "Reward" in architecture:
            logger.warning(f"{path} is a {architecture}: its backbone is loaded, its head is not.")
        return AutoModel
    if config.num_labels != 1:
        raise ValueError(
            f"{path} is a {architecture} with {config.num_labels} labels, but a score has one. Load its backbone with "
            "`AutoModel` and pass that to `TokenRewardModel.from_backbone` to start with new heads."
        )
    return auto_class


def _check_strings(name: str, values: Sequence[str]) -> None:
    if isinstance(values, str):
        raise TypeError(f"`{name}` must be a sequence of strings, got a single one: put it in a list.")
    for index, value in enumerate(values):
        if not isinstance(value, str):
            raise TypeError(f"`{name}` must hold strings, but number {index} is a {type(value).__name__}.")
        if problem := unicode_problem(value):
            raise ValueError(f"Number {index} of `{name}` {problem}")
