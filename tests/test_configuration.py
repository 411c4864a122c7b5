"""A run's configuration, as the planner resolves it."""

import re
import shlex

import gin
import pytest
from helpers.graphs import ROOT

import tasks  # noqa: F401
from switch_mtf.planning import (
  configuration,
)


@pytest.fixture(autouse=True)
def gin_is_clean(clean_gin):
  """Every plan starts from T5's defaults."""


def test_a_model_alone_is_planned_as_the_paper_trains_it():
  # 2^20 tokens a batch, inputs of 512 and targets of 114. On 2,048 cores each
  # has one sequence: its groups of 2,048 are cut to 512 and 114.
  config = configuration.resolve(
      ["gin/models/switch_c_e2048.gin"], mesh_shape="batch:2048")
  assert config.batch_size == 2048 and config.device == "tpu_v3"
  assert config.sequence_length == {"inputs": 512, "targets": 114}
  assert {stack: gin.query_parameter(f"{stack}/SwitchFFN.group_size")
          for stack in ("encoder", "decoder")} == {
              "encoder": 512, "decoder": 114}


def test_a_model_with_a_layout_is_planned_as_the_paper_trains_it():
  # 2,048 sequences on 2 replicas of 16 cores: 64 a core, computed 8 at a time,
  # in groups of 8 x 512 and 8 x 114 tokens.
  config = configuration.resolve(
      ["gin/models/switch_base_e16.gin",
       "gin/layouts/v3_32_expert_replicas.gin"])
  assert config.batch_size == 2048 and config.mesh_shape.size == 32
  assert config.num_microbatches == 8
  assert {stack: gin.query_parameter(f"{stack}/SwitchFFN.group_size")
          for stack in ("encoder", "decoder")} == {
              "encoder": 4096, "decoder": 912}


@pytest.mark.parametrize("page", ["docs/models.md", "docs/layouts.md"])
def test_commands_of_the_docs_are_runs(page):
  # The last of each page, up to the graph.
  text, = re.findall(r"^python run_t5.py --gin_file=gin/models/.*?(?=^```)",
                     (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)
  arguments = shlex.split(text.replace("\\\n", " "))
  files, params = ([a.split("=", 1)[1] for a in arguments if a.startswith(flag)]
                   for flag in ("--gin_file=", "--gin_param="))
  config = configuration.resolve(files, params)
  assert config.mode == "train" and config.added is None
