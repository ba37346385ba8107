"""The page of settings lists every field beyond TRL's, with its default."""

import re
from dataclasses import fields
from pathlib import Path

import pytest
from trl import GRPOConfig, RewardConfig

from trl_tokenreward import FineGrainedGRPOConfig, FineGrainedPPOConfig, TokenRewardConfig
from trl_tokenreward._trl_ppo_config import PPOConfig


pytestmark = pytest.mark.any_trl

PAGE = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text(encoding="utf-8")
ROWS = dict(re.findall(r"^\| `(\w+)` \| .*? \| `(.*?)`.*? \| .* \|$", PAGE, re.MULTILINE))


def own_fields(config: type, base: type) -> dict[str, object]:
    inherited = {field.name for field in fields(base)}
    return {field.name: field.default for field in fields(config) if field.name not in inherited}


OWN = {
    **own_fields(FineGrainedGRPOConfig, GRPOConfig),
    **own_fields(FineGrainedPPOConfig, PPOConfig),
    **own_fields(TokenRewardConfig, RewardConfig),
}


def test_the_page_lists_exactly_the_fields_beyond_trls():
    assert set(ROWS) == set(OWN)


@pytest.mark.parametrize("name", OWN)
def test_defaults(name):
    default = OWN[name]
    shown = f'"{default}"' if isinstance(default, str) else str(default)
    assert ROWS[name] == shown
