"""gin/experiments/paper: a file a row, of which the mesh divides the model."""

import itertools
import re

import gin
import mesh_tensorflow as mtf
import pytest
from absl import flags
from helpers.configs import parse
from helpers.graphs import ROOT
from mesh_tensorflow.transformer import utils

from benchmarks.gin_files import experiments
from switch_mtf.dims import MoeDims

pytestmark = pytest.mark.usefixtures("clean_gin")

FOLDER = "gin/experiments/paper/"
MEGA = 2**20  # tokens

# Tables 1 to 11 row by row, as printed: file -> model, tokens a batch, steps,
# the paper's figures. Where it states neither batch nor steps they are those of
# docs/paper.md.
ROWS = {
    "table1/t5_base": ("t5_base", MEGA // 2, 100_000, "-1.731 1600"),
    "table1/t5_large": ("t5_large", MEGA // 2, 250_000, "-1.550 131.1 470"),
    "table1/moe_base_cf2": (
        "moe_base_e128", MEGA // 2, 250_000, "-1.547 68.7 840"),
    "table1/switch_base_cf2": (
        "switch_base_e128", MEGA // 2, 250_000, "-1.554 72.8 860"),
    "table1/moe_base_cf125": (
        "moe_base_e128", MEGA // 2, 250_000, "-1.559 80.7 790"),
    "table1/switch_base_cf125": (
        "switch_base_e128", MEGA // 2, 250_000, "-1.553 65.0 910"),
    "table1/moe_base_cf1": (
        "moe_base_e128", MEGA // 2, 250_000, "-1.572 80.1 860"),
    "table1/switch_base_cf1": (
        "switch_base_e128", MEGA // 2, 250_000, "-1.561 62.8 1000"),
    "table1/switch_base_plus_cf1": (
        "switch_base_plus_e128", MEGA // 2, 250_000, "-1.534 67.6 780"),
    "table2/float32": ("switch_base_e32", MEGA, 30_000, "-1.718 1160"),
    "table2/bfloat16": ("switch_base_e32", MEGA, 30_000, "-3.780 1390"),
    "table2/selective": ("switch_base_e32", MEGA, 30_000, "-1.716 1390"),
    "table3/init_01": ("switch_base_e32", MEGA, 3_500, "-2.72 0.01"),
    "table3/init_10": ("switch_base_e32", MEGA, 3_500, "-3.60 0.68"),
    "table4/t5_base_d01": ("t5_base", MEGA, 48_400, "82.9 19.6 83.5 72.4"),
    "table4/switch_base_d01": (
        "switch_base_e128", MEGA, 48_400, "84.7 19.1 83.7 73.0"),
    "table4/switch_base_d02": (
        "switch_base_e128", MEGA, 48_400, "84.4 19.2 83.9 73.2"),
    "table4/switch_base_d03": (
        "switch_base_e128", MEGA, 48_400, "83.9 19.6 83.4 70.7"),
    "table4/switch_base_d01_ed04": (
        "switch_base_e128", MEGA, 48_400, "85.2 19.6 83.7 73.0"),
    "table5/t5_base": (
        "t5_base", MEGA, 566_000,
        "84.3 85.5 75.1 66.6 18.7 51.8 56.7 35.5 26.6 25.8 24.5"),
    "table5/switch_base": (
        "switch_base_e128", MEGA, 566_000,
        "86.7 87.2 79.5 73.3 20.3 54.0 61.3 32.8 27.4 26.8 30.7"),
    "table5/t5_large": (
        "t5_large", MEGA, 566_000,
        "87.8 88.1 82.7 79.1 20.9 56.6 68.8 35.5 27.7 27.6 29.5"),
    "table5/switch_large": (
        "switch_large_e128", MEGA, 566_000,
        "88.5 88.6 84.7 83.0 22.3 58.6 66.0 35.5 31.3 29.5 36.9"),
    "table6/t5_base": ("t5_base", MEGA, 150_000, "-1.636"),
    "table6/switch_base": ("switch_base_e64", MEGA, 150_000, "-1.444"),
    "table7/t5_base": ("t5_base", MEGA, 150_000, "-1.636"),
    "table7/switch_base_e16": ("switch_base_e16", MEGA, 150_000, "-1.505"),
    "table7/switch_base_e32": ("switch_base_e32", MEGA, 150_000, "-1.474"),
    "table7/switch_base_e64": ("switch_base_e64", MEGA, 150_000, "-1.444"),
    "table7/switch_base_e128": ("switch_base_e128", MEGA, 150_000, "-1.432"),
    "table7/switch_base_e256": ("switch_base_e256", MEGA, 150_000, "-1.427"),
    "table6/distilled": ("t5_base", MEGA, 150_000, "-1.631"),
    "table6/distilled_init": ("t5_base", MEGA, 150_000, "-1.598"),
    "table6/distilled_init_mix": ("t5_base", MEGA, 150_000, "-1.580"),
    "table6/init": ("t5_base", MEGA, 150_000, "-1.639"),
    "table7/distilled_e16": ("t5_base", MEGA, 150_000, "-1.587"),
    "table7/distilled_e32": ("t5_base", MEGA, 150_000, "-1.585"),
    "table7/distilled_e64": ("t5_base", MEGA, 150_000, "-1.579"),
    "table7/distilled_e128": ("t5_base", MEGA, 150_000, "-1.582"),
    "table7/distilled_e256": ("t5_base", MEGA, 150_000, "-1.578"),
    "table8/distilled": ("t5_base", MEGA, 16_000, "76.6"),
    "table8/t5_base": ("t5_base", MEGA, 566_000, "74.6"),
    "table8/switch_base": ("switch_base_e128", MEGA, 566_000, "81.3"),
    "table9/t5_base": ("t5_base", MEGA, 500_000, "-1.599 -1.556"),
    "table9/t5_large": ("t5_large", MEGA, 500_000, "-1.402 -1.350"),
    "table9/t5_xxl": ("t5_xxl", MEGA, 500_000, "-1.147 -1.095"),
    "table9/switch_base": ("switch_base_e128", MEGA, 500_000, "-1.370 -1.306"),
    "table9/switch_large": (
        "switch_large_e128", MEGA, 500_000, "-1.248 -1.177"),
    "table9/switch_xxl": ("switch_xxl_e128", MEGA, 500_000, "-1.086 -1.008"),
    "table9/switch_c": (
        "switch_c_e2048_paper", MEGA, 500_000, "-1.096 -1.043"),
    "table10/ff_float32": (
        "switch_base_e32", MEGA // 2, 100_000, "-1.548 -1.614 1480"),
    "table10/attention_float32": (
        "switch_base_e32_attention", MEGA // 2, 100_000, "-1.524 -1.606 1330"),
    "table10/attention_bfloat16": (
        "switch_base_e32_attention", MEGA // 2, 100_000, "diverges"),
    "table10/ff_attention_float32": (
        "switch_base_e32_attention_ffn", MEGA // 2, 100_000,
        "-1.513 -1.607 1240"),
    "table10/ff_attention_bfloat16": (
        "switch_base_e32_attention_ffn", MEGA // 2, 100_000, "diverges"),
    "table11/argmax": ("switch_base_e128", MEGA, 100_000, "-1.471"),
    "table11/sample_softmax": ("switch_base_e128", MEGA, 100_000, "-1.570"),
    "table11/input_dropout": ("switch_base_e128", MEGA, 100_000, "-1.480"),
    "table11/input_jitter": ("switch_base_e128", MEGA, 100_000, "-1.468"),
}
# What a row varies, beside its model.
VARIED = {
    "table6/distilled": {
        "%fraction_soft": 1.0, "distillation.copy_weights": False},
    "table6/distilled_init": {"%fraction_soft": 1.0},
    "table6/distilled_init_mix": {"%fraction_soft": 0.25},
    "table6/init": {"%fraction_soft": 0.0},
    "table8/distilled": {
        "%fraction_soft": 0.25,
        "distill_from.config": "gin/models/switch_base_e128.gin"},
    "table1/moe_base_cf2": {"SwitchFFN.capacity_factor_train": 2.0},
    "table1/switch_base_cf2": {"SwitchFFN.capacity_factor_train": 2.0},
    "table1/moe_base_cf125": {"SwitchFFN.capacity_factor_train": 1.25},
    "table1/switch_base_cf125": {"SwitchFFN.capacity_factor_train": 1.25},
    "table1/moe_base_cf1": {"SwitchFFN.capacity_factor_train": 1.0},
    "table1/switch_base_cf1": {"SwitchFFN.capacity_factor_train": 1.0},
    "table1/switch_base_plus_cf1": {"SwitchFFN.capacity_factor_train": 1.0},
    "table2/float32": {"utils.get_variable_dtype.activation_dtype": "float32"},
    "table2/bfloat16": {
        "utils.get_variable_dtype.activation_dtype": "bfloat16",
        "SwitchRouter.float32": False},
    "table2/selective": {
        "utils.get_variable_dtype.activation_dtype": "bfloat16"},
    "table3/init_01": {"init_scale.value": 0.1},
    "table3/init_10": {"init_scale.value": 1.0},
    "table4/t5_base_d01": {"%dropout_rate": 0.1},
    "table4/switch_base_d01": {
        "%dropout_rate": 0.1, "%expert_dropout_rate": 0.1},
    "table4/switch_base_d02": {
        "%dropout_rate": 0.2, "%expert_dropout_rate": 0.2},
    "table4/switch_base_d03": {
        "%dropout_rate": 0.3, "%expert_dropout_rate": 0.3},
    "table4/switch_base_d01_ed04": {
        "%dropout_rate": 0.1, "%expert_dropout_rate": 0.4},
    "table5/switch_large": {
        "%dropout_rate": 0.1, "%expert_dropout_rate": 0.4},
    "table10/attention_float32": {
        "utils.get_variable_dtype.activation_dtype": "float32"},
    "table10/attention_bfloat16": {
        "utils.get_variable_dtype.activation_dtype": "bfloat16"},
}
PAPER = sorted(path.removeprefix(FOLDER).removesuffix(".gin")
               for path in experiments() if path.startswith(FOLDER))


def bound(name, default=None):
  try:
    return gin.query_parameter(name)
  except ValueError:
    return default


def included(path):
  """A gin file and all that it includes of ours."""
  text = (ROOT / path).read_text()
  found = {path}
  for other in re.findall(r"^include '(gin/.*)'", text, re.MULTILINE):
    found |= included(other)
  return found


def mesh():
  return (mtf.convert_to_shape(gin.query_parameter("utils.run.mesh_shape")),
          mtf.convert_to_layout_rules(
              gin.query_parameter("utils.run.layout_rules")))


def sequences(shape, rules):
  return utils.compute_batch_size(
      gin.query_parameter("%sequence_length"), shape, rules,
      gin.query_parameter("%batch_size"))


def test_every_row_has_a_file():
  tables = {name for name in PAPER if name.startswith("table")
            and "/pretrain_" not in name}
  assert tables == set(ROWS)


@pytest.mark.parametrize("name", ROWS)
def test_row(name):
  model, tokens, steps, figures = ROWS[name]
  path = f"{FOLDER}{name}.gin"
  parse(path)
  assert f"gin/models/{model}.gin" in included(path)
  assert sequences(*mesh()) * 512 == tokens
  assert bound("%train_steps") == steps
  for option, value in VARIED.get(name, {}).items():
    assert bound(option) == value
  # In the file's first lines and in the index, in the paper's order.
  header = (ROOT / path).read_text().split("\n\n")[0].replace("\n# ", " ")
  rows = (ROOT / "docs/paper.md").read_text().split(
      f"| `{name.split('/')[0]}/` |")[1]
  row, = re.findall(rf"^\| `{name.split('/')[1]}` .*$",
                    rows.split("\n\n")[0], re.MULTILINE)
  for text in (header, row):
    places = [text.find(figure) for figure in figures.split()]
    assert -1 not in places and places[0] == min(places), figures


def test_index_lists_every_file():
  text = (ROOT / "docs/paper.md").read_text()
  found = set()
  for table in re.split(r"^\| `(?=\w+/`)", text, flags=re.MULTILINE)[1:]:
    folder, rows = table.split("/`", 1)
    found |= {f"{folder}/{row}" for row in re.findall(
        r"^\| `(\w+)` ", rows.split("\n\n")[0], re.MULTILINE)}
  assert found == set(PAPER)


@pytest.mark.parametrize("name", PAPER)
def test_fine_tuning_goes_on_from_the_pre_training(name):
  parse(f"{FOLDER}{name}.gin")
  start, end = bound("%pretrained_steps"), bound("%train_steps")
  if bound("utils.run.model_type") == "bi_student_teacher":
    # On the teacher's task, with its weights and as long as it took.
    assert end == (16_000 if name.startswith("table8") else 150_000)
    return
  if start is None:
    assert bound("%dropout_rate") == 0.0
    assert bound("utils.run.init_checkpoint") is None
    return
  assert end - start == 16_000  # section 4.1
  assert bound("%save_checkpoints_steps") == 200
  # 34B, 576B and 503B tokens: Table 4, Table 5, section 5.6.
  read = {"table4": 34, "table5": 576, "table8": 576, "section5_6": 503}
  assert round(start * MEGA / 1e9) == pytest.approx(
      read[name.split("/")[0]], abs=1)


@pytest.mark.parametrize("name", [n for n in PAPER if "/pretrain_" in n])
def test_pre_training_ends_where_fine_tuning_starts(name):
  parse(f"{FOLDER}{name}.gin")
  steps = bound("%train_steps")
  gin.clear_config()
  parse(f"{FOLDER}{name.split('/')[0]}/_common.gin")
  assert bound("%pretrained_steps") == steps


@pytest.mark.parametrize("name", PAPER)
def test_mesh_divides_the_model(name):
  parse(f"{FOLDER}{name}.gin")
  shape, rules = mesh()
  outer = bound("utils.tpu_estimator_model_fn.outer_batch_size", 1)
  sizes = {
      "batch": sequences(shape, rules) // outer, "outer_batch": outer,
      "d_ff": bound("%d_ff"), "heads": bound("%num_heads"),
      "experts": bound("%num_experts", 0),
      "vocab": 250112 if "figure7" in name else 32128}
  split = dict(rules._pairs)
  assert set(split) <= set(sizes)
  # Each axis is used, and the slice has as many cores as it is called after.
  assert set(shape.dimension_names) <= set(split.values())
  for dimension, axis in split.items():
    ways = shape.get_dim_by_name(axis).size
    assert sizes[dimension] % ways == 0, dimension
  # Of a layout and its parents.
  assert shape.size in {
      int(re.search(r"v3_(\d+)_", path).group(1))
      for path in included(f"{FOLDER}{name}.gin") if "layouts/v3" in path}


@pytest.mark.parametrize("name", PAPER)
def test_groups_are_whole_and_as_large_as_said(name):
  parse(f"{FOLDER}{name}.gin")
  shape, rules = mesh()
  experts = bound("%num_experts")
  if experts is None:  # dense
    return
  outer = bound("utils.tpu_estimator_model_fn.outer_batch_size", 1)
  lengths = bound("%sequence_length")
  batch = mtf.Dimension("batch", sequences(shape, rules) // outer)
  parts = utils.serialize_num_microbatches(batch, lengths, shape, rules)
  # As docs/paper.md evaluates.
  evaluated = utils.compute_batch_size(
      lengths, shape, rules, ("sequences_per_replica", 16)) // outer
  for (stack, length), size in itertools.product(
      (("encoder", "inputs"), ("decoder", "targets")),
      (batch.size // parts, evaluated)):
    group = bound(f"{stack}/SwitchFFN.group_size",
                  bound("SwitchFFN.group_size"))
    dims = MoeDims.create(
        mtf.Shape([mtf.Dimension("outer_batch", outer),
                   mtf.Dimension("batch", size),
                   mtf.Dimension("length", lengths[length]),
                   mtf.Dimension("d_model", bound("%d_model"))]),
        num_experts=experts, hidden_size=bound("%d_ff"), group_size=group,
        capacity_factor=bound("SwitchFFN.capacity_factor_train"),
        min_capacity=bound("SwitchFFN.min_capacity", 4), layout=rules,
        mesh_shape=shape)
    assert dims.group_size_dim.size == group


CHIPS = {32: (4, 4), 128: (8, 8), 512: (16, 16), 1024: (16, 32),
         2048: (32, 32)}


@pytest.mark.parametrize("path", sorted(
    p.relative_to(ROOT).as_posix() for p in ROOT.glob("gin/layouts/*.gin")))
def test_layout(path):
  parse(path)
  if path.endswith("/tpu.gin"):
    return
  shape = mtf.convert_to_shape(gin.query_parameter("utils.run.mesh_shape"))
  devices = bound("utils.run.mesh_devices")
  if devices is not None:
    assert len(devices) == len(set(devices)) == shape.size
  cores = re.search(r"_(\d+)_", path)
  assert shape.size == (int(cores.group(1)) if cores else 1)
  if "/v3_" in path:
    flags.FLAGS.mark_as_parsed()
    placed = mtf.simd_mesh_impl.auto_logical_to_physical_tpu(
        shape.to_integer_list, [*CHIPS[shape.size], 2])
    assert sorted(placed) == list(range(shape.size))


def test_layouts_are_listed():
  text = (ROOT / "docs/layouts.md").read_text()
  for path in ROOT.glob("gin/layouts/*.gin"):
    if path.stem == "tpu":
      continue
    row, = re.findall(rf"^\| `{path.stem}` .*$", text, re.MULTILINE)
    gin.clear_config()
    parse(path.relative_to(ROOT).as_posix())
    mesh_shape = gin.query_parameter("utils.run.mesh_shape")
    assert row.split("|")[2].strip(" `") == mesh_shape
