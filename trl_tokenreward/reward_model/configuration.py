"""Configuration of the token reward model. It needs transformers' configuration code only, not its modeling code."""

from typing import Any

from transformers.configuration_utils import PreTrainedConfig
from transformers.models.auto.configuration_auto import AutoConfig


class TokenRewardModelConfig(PreTrainedConfig):
    r"""
    Configuration of a [`TokenRewardModel`]: the configuration of its backbone, and little else.

    `pad_token_id`, `hidden_size`, `vocab_size`, `max_position_embeddings`, `num_hidden_layers` and
    `num_attention_heads` are the backbone's; setting `pad_token_id` here sets it there.

    Args:
        text_config ([`~transformers.PreTrainedConfig`] or `dict[str, Any]`):
            Configuration of the backbone, a decoder-only language model. A `dict` names its `model_type`.
        kwargs (`dict[str, Any]`):
            The common arguments of [`~transformers.PreTrainedConfig`]. The number of labels is 1.

    Raises:
        `ValueError`: if there is no `text_config`, if it is an encoder-decoder's or a multimodal model's, if its
            `model_type` is unknown, or if the number of labels is not 1.
        `TypeError`: if `text_config` is of another type.
    """

    model_type = "token_reward"
    sub_configs = {"text_config": AutoConfig}
    has_no_defaults_at_init = True  # early releases of transformers 5 make one without arguments where this is not said

    def __init__(self, text_config: PreTrainedConfig | dict[str, Any] | None = None, **kwargs: Any):
        self.text_config = _backbone_config(text_config)
        id2label = kwargs.get("id2label") or {0: "LABEL_0"}
        for num_labels in {kwargs.setdefault("num_labels", 1), len(id2label)} - {1}:
            raise ValueError(f"A token reward model has 1 label, its score, but `num_labels` is {num_labels}.")
        # transformers writes these three down to the sub-configurations, so what the backbone has must go in.
        kwargs.setdefault("attn_implementation", self.text_config._attn_implementation)
        kwargs.setdefault("experts_implementation", self.text_config._experts_implementation)
        kwargs.setdefault("dtype", self.text_config.dtype)
        kwargs["tie_word_embeddings"] = False  # there is no output embedding to tie
        super().__init__(**kwargs)

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: Any, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        # PEFT asks this class for the configuration of whatever checkpoint the model was made of, to see its
        # vocabulary.
        values, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        if values.get("model_type", cls.model_type) != cls.model_type:
            values = {"model_type": cls.model_type, "text_config": values}
        return values, kwargs

    def to_diff_dict(self) -> dict[str, Any]:
        values = super().to_diff_dict()
        # Where the backbone came from may be a private path; the base class drops its own name for the same reason.
        values["text_config"].pop("_name_or_path", None)
        return values

    @property
    def pad_token_id(self) -> int | None:
        return getattr(self.text_config, "pad_token_id", None)

    @pad_token_id.setter
    def pad_token_id(self, value: int | None) -> None:
        self.text_config.pad_token_id = value

    @property
    def hidden_size(self) -> int:
        return self.text_config.hidden_size

    @property
    def vocab_size(self) -> int:
        return self.text_config.vocab_size

    @property
    def max_position_embeddings(self) -> int | None:
        return getattr(self.text_config, "max_position_embeddings", None)

    @property
    def num_hidden_layers(self) -> int:
        return self.text_config.num_hidden_layers

    @property
    def num_attention_heads(self) -> int:
        return self.text_config.num_attention_heads


def _backbone_config(text_config: PreTrainedConfig | dict[str, Any] | None) -> PreTrainedConfig:
    if text_config is None:
        raise ValueError("A `TokenRewardModelConfig` needs `text_config`, the configuration of its backbone.")
    if isinstance(text_config, dict):
        values = dict(text_config)
        if "model_type" not in values:
            raise ValueError("`text_config` names no `model_type`, so there is no telling which backbone it describes.")
        text_config = AutoConfig.for_model(values.pop("model_type"), **values)
    if not isinstance(text_config, PreTrainedConfig):
        raise TypeError(f"`text_config` must be a `PreTrainedConfig` or a `dict`, got {type(text_config).__name__}.")
    if text_config.is_encoder_decoder:
        raise ValueError(
            f"`{text_config.model_type}` is an encoder-decoder: it has no causal backbone whose state after each token "
            "could be scored. Use a decoder-only model."
        )
    if text_config.get_text_config() is not text_config:
        raise ValueError(
            f"`{text_config.model_type}` is made of several models. Pass the language model within it to "
            "`TokenRewardModel.from_backbone`."
        )
    return text_config
