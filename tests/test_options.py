"""docs/options.md: every option is there, and what it says of each is true."""

import ast
import functools
import importlib
import importlib.util
import inspect
import os
import pathlib
import pkgutil
import re
from collections import Counter

import gin
import mesh_tensorflow as mtf
import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from conftest import (
  BuiltLayer,
  make_context,
  random_weights,
  recorded_metrics,
)
from mesh_tensorflow.transformer import transformer, transformer_layers, utils
from mesh_tensorflow.transformer.moe import MoE1D

import switch_mtf.layers
import switch_mtf.training.extension  # noqa: F401  (registers `progress`)
from switch_mtf.dims import MoeDims, expert_capacity
from switch_mtf.layers import dispatch, routing
from switch_mtf.layers.exploration import Argmax
from switch_mtf.layers.initialization import kernel_initializer
from switch_mtf.layers.routers import ExpertChoiceRouter
from switch_mtf.layers.switch_attention import SwitchSelfAttention
from switch_mtf.layers.switch_ffn import SwitchFFN

for _module in pkgutil.iter_modules(switch_mtf.layers.__path__):
  importlib.import_module(f"switch_mtf.layers.{_module.name}")

ROOT = pathlib.Path(__file__).resolve().parents[1]
T5_GIN = pathlib.Path(
    *importlib.util.find_spec("t5").submodule_search_locations, "models/gin")
PAGE = (ROOT / "docs/options.md").read_text()
GIN = re.findall(r"```gin\n(.*?)```", PAGE, re.DOTALL)
PROSE = re.sub(r"```.*?```", "", PAGE, flags=re.DOTALL)

# All that gin can configure, by its last name; and what is ours.
CONFIGURABLES = {c.name: c.wrapped for _, c in gin.config._REGISTRY.items()}
OURS = {c.name: c.module for _, c in gin.config._REGISTRY.items()
        if c.module.startswith("switch_mtf.layers.")}

TOKENS = "batch:4,length:4,d_model:6"


@pytest.fixture(autouse=True)
def clean_gin():
  gin.clear_config()
  for folder in (ROOT, T5_GIN):
    gin.add_config_file_search_path(str(folder))
  yield
  gin.clear_config()


def parse(fence):
  """The fence on top of T5's defaults and the model that the page names."""
  gin.parse_config_file(os.path.join(
      os.path.dirname(utils.__file__), "gin", "defaults.gin"))
  gin.parse_config_file("models/bi_v1.gin")
  gin.parse_config(fence)


# The page as data.


@functools.cache
def sections():
  """Title to text, for headings of any depth; a text ends at the next one."""
  _, *parts = re.split(r"^#+ (.*)\n", PROSE, flags=re.MULTILINE)
  return dict(zip(parts[::2], parts[1::2], strict=True))


def table(section, first):
  """Rows of the section's table whose header starts with `first`."""
  rows = [[cell.strip() for cell in line.strip("|").split("|")]
          for line in sections()[section].splitlines() if line.startswith("|")]
  found = []
  for header, line, *_ in zip(rows, rows[1:], strict=False):
    if header[0] == first and set("".join(line)) <= set("-:"):
      assert not found, f"two such tables in {section}"
      start = rows.index(header) + 2
      found = rows[start:]
      end = [i for i, row in enumerate(found) if set("".join(row)) <= set("-:")]
      found = found[:end[0] - 1] if end else found
      assert all(len(row) == len(header) for row in found), section
  return found


def code(cell):
  """What stands in backquotes."""
  return re.findall(r"`([^`]+)`", cell)


def parameters(name):
  """The parameters of a configurable, without *args and **kwargs."""
  return {p.name: p.default
          for p in inspect.signature(CONFIGURABLES[name]).parameters.values()
          if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}


OPTIONS = {row[0].strip("`"): row[1:]
           for name in sections() for row in table(name, "option")}


# Every option, once, with its default.


def test_something_is_registered():
  assert {"SwitchFFN", "SwitchSelfAttention", "ExpertChoiceRouter", "Argmax",
          "RandomSecond", "GatherDispatcher", "init_scale",
          "random_seed"} <= set(OURS)


@pytest.mark.parametrize("name", OURS)
def test_every_configurable_has_a_section(name):
  assert len(re.findall(rf"^### {name}$", PROSE, re.MULTILINE)) == 1
  # It says where it is, first of all.
  assert sections()[name].strip().startswith(f"`{OURS[name]}`.")


@pytest.mark.parametrize("name", sections())
def test_every_parameter_has_one_row(name):
  found = [row[0] for row in table(name, "option")]
  right = parameters(name) if name in OURS else {}
  assert found == [f"`{name}.{p}`" for p in right]
  if name in OURS and not right:
    assert "No options." in sections()[name]


@pytest.mark.parametrize("option", OPTIONS)
def test_defaults(option):
  name, parameter = option.split(".")
  right = parameters(name)[parameter]
  default, = code(OPTIONS[option][0])
  if callable(right):
    assert default == right.__name__
  else:
    found = ast.literal_eval(default)
    assert found == right and type(found) is type(right)


# Legal values.


def ranges(legal):
  """Values inside and outside of what a cell says; none if it is no range."""
  inside, outside = [], []
  if found := re.match(r"at least (\d+)", legal):
    low = int(found[1])
    inside, outside = [low, low + 1], [low - 1, -1]
  elif found := re.match(r"greater than (\d+)", legal):
    low = int(found[1])
    inside, outside = [low + .01, low + 10], [low, -1]
  elif found := re.match(r"in ([\[(])(\d+), (\d+)([\])])", legal):
    low, high = int(found[2]), int(found[3])
    inside, outside = [(low + high) / 2], [low - .01, high + .01]
    (inside if found[1] == "[" else outside).append(low)
    (inside if found[4] == "]" else outside).append(high)
  if inside and "or `None`" in legal:
    inside.append(None)
  return inside, outside


def test_every_number_has_a_range():
  numbers = {option for option, (default, legal, *_) in OPTIONS.items()
             if ranges(legal)[0]
             or type(ast.literal_eval(default.strip("`"))
                     if default != "`linear_experts`" else "") in (int, float)}
  assert len(numbers) > 20
  assert {o for o in numbers if not ranges(OPTIONS[o][1])[0]} == {
      "random_seed.value"}


@pytest.mark.parametrize(
    "option", [o for o, row in OPTIONS.items() if ranges(row[1])[0]])
def test_legal_values(option):
  name, parameter = option.split(".")
  inside, outside = ranges(OPTIONS[option][1])
  for value in inside:
    CONFIGURABLES[name](**{parameter: value})
  for value in outside:
    with pytest.raises(ValueError, match=rf"^{name}: {parameter} must be .*"
                       rf"Set {name}\.{parameter}\b"):
      CONFIGURABLES[name](**{parameter: value})


def test_expert_choice_takes_all_explorations_but_one():
  names = ["Argmax", "InputDropout", "InputJitter", "SampleSoftmax"]
  assert {n for n in OURS if OURS[n] == OURS["Argmax"]} == set(names)
  for name in names:
    exploration = CONFIGURABLES[name]()
    if f"but `@{name}()`" in OPTIONS["ExpertChoiceRouter.exploration"][1]:
      with pytest.raises(ValueError, match="^ExpertChoiceRouter: exploration"):
        ExpertChoiceRouter(exploration)
    else:
      ExpertChoiceRouter(exploration)


def test_none_stands_for_what_the_page_says():
  # "..., or `None`: `@InputJitter()`".
  found = 0
  for option, (_, legal, *_) in OPTIONS.items():
    name, parameter = option.split(".")
    default = re.search(r"or `None`: `@(\w+)\(\)`$", legal)
    if default:
      found += 1
      value = getattr(CONFIGURABLES[name](), parameter)
      assert type(value).__name__ == default[1], option
  assert found == 7


# Names.


@pytest.mark.parametrize("option", OPTIONS)
def test_upstream_names(option):
  upstream = OPTIONS[option][3]
  for name in code(upstream):
    owner, parameter = name.split(".")
    assert owner not in OURS
    assert parameter in parameters(owner)
  assert code(upstream) or upstream == "-"


def test_bindings_in_the_text_exist():
  # `SwitchFFN.router`, `attention/SwitchFFN.hidden_size = None`, ...
  count = 0
  for span in code(PROSE):
    found = re.match(r"(?:\w+/)*(?:[a-z_]+\.)*(\w+)\.(\w+)( =|$)", span)
    if found and found[1] in CONFIGURABLES:
      count += 1
      assert found[2] in parameters(found[1]) or hasattr(
          CONFIGURABLES[found[1]], found[2]), span
  assert count > 2 * len(OPTIONS)


def test_references_exist():
  names = set(re.findall(r"@(?:\w+/)*(\w+)\(\)", PROSE))
  assert len(names) > 10
  assert names <= set(OURS)


def test_every_argument_of_moe1d_is_migrated():
  rows = table("From MoE1D", "MoE1D")
  theirs = {p.name: p.default
            for p in inspect.signature(MoE1D).parameters.values()}
  assert sorted(row[0].strip("`") for row in rows) == sorted(theirs)
  assert parameters("MoE1D") == theirs
  for name, here, differs in rows:
    change = re.search(r"Default (\d+), not (\d+)", differs)
    if change:
      owner, parameter = here.strip("`").split(".")
      assert parameters(owner)[parameter] == int(change[1])
      assert theirs[name.strip("`")] == int(change[2])


@pytest.mark.parametrize("section, first", [
    ("From MoE1D", "MoE1D"), ("From Hugging Face", "Hugging Face"),
    ("From T5X and Flaxformer", "T5X")])
def test_migration_leads_to_options(section, first):
  rows = table(section, first)
  assert len(rows) > 10
  for _, here, _ in rows:
    assert here == "-" or here.strip("`") in OPTIONS, here


def test_links_lead_somewhere():
  anchors = {title.lower().replace(" ", "-") for title in sections()}
  links = set(re.findall(r"\]\(#([\w-]+)\)", PROSE))
  assert links and links <= anchors


def test_lines_are_short():
  assert [line for line in PAGE.splitlines()
          if len(line) > 80 and not line.startswith("|")] == []


# gin.


@pytest.mark.parametrize("fence", GIN)
def test_gin_parses(fence):
  parse(fence)
  gin.finalize()  # raises if a macro is unknown
  assert set(re.findall(r"^(\w+)/", fence, re.MULTILINE)) <= {
      "encoder", "decoder"}


STACKS = [fence for fence in GIN if "# experts in " in fence]


@pytest.mark.parametrize("fence", STACKS)
def test_layers_with_experts(fence):
  # "# experts in encoder layers: 1 3 5", or none; attention alike.
  parse(fence)
  said = {where: [int(n) for n in numbers.split() if n != "none"]
          for where, numbers in re.findall(r"# experts in (.*): (.*)", fence)}
  for scope in ("encoder", "decoder"):
    with gin.config_scope(scope):
      layers = transformer.make_layer_stack()._layers
    attention = [y for y in layers
                 if type(y) in (transformer_layers.SelfAttention,
                                SwitchSelfAttention)]
    feed_forward = [y for y in layers if isinstance(y, (
        SwitchFFN, transformer_layers.DenseReluDense))]
    assert len(attention) == len(feed_forward)
    assert sum(isinstance(y, transformer_layers.EncDecAttention)
               for y in layers) == len(attention) * (scope == "decoder")
    assert said[f"{scope} layers"] == [
        n for n, y in enumerate(feed_forward) if isinstance(y, SwitchFFN)]
    assert said.get(f"{scope} attention", []) == [
        n for n, y in enumerate(attention)
        if isinstance(y, SwitchSelfAttention)]
    if f"{scope}/transformer.make_layer_stack.num_layers = 1\n" not in fence:
      assert len(attention) == 12


def test_there_are_all_kinds_of_stacks():
  text = "\n".join(STACKS)
  for kind in ("encoder layers: none", "decoder layers: none",
               "encoder layers: 0 2 4", "encoder layers: 1 3 5",
               "encoder layers: 0 1 2", "encoder layers: 2 5 8",
               "encoder attention"):
    assert f"# experts in {kind}" in text


def test_an_entry_may_have_options_of_its_own():
  fence, = [f for f in STACKS if "[@SwitchFFN, {" in f]
  parse(fence)
  with gin.config_scope("encoder"):
    found = [layer.num_experts
             for layer in transformer.make_layer_stack()._layers
             if isinstance(layer, SwitchFFN)]
  assert found == [SwitchFFN().num_experts, 64]


def test_two_thresholds_of_one_policy():
  # The scope that the migration table has for it.
  assert "`evaluation/RandomSecond.threshold`" in PROSE
  parse("Top2Router.second_eval = @evaluation/RandomSecond()\n"
        "RandomSecond.threshold = .5\n"
        "evaluation/RandomSecond.threshold = .25")
  router = CONFIGURABLES["Top2Router"]()
  assert router.second_train.threshold == .5
  assert router.second_eval.threshold == .25


# What the tables say of interactions, where a few lines can tell.


def test_bindings_reach_the_objects_that_none_stands_for():
  parse("SwitchRouter.prioritized = True\nInputJitter.epsilon = .5\n"
        "RandomSecond.threshold = .75")
  assert SwitchFFN().router.prioritized
  assert SwitchFFN().router.exploration.epsilon == .5
  router = CONFIGURABLES["Top2Router"]()
  assert router.exploration.epsilon == .5
  assert router.second_train.threshold == .75


def test_bindings_that_reach_switch_attention():
  parse("SelfAttention.z_loss_coeff = .5\nSelfAttention.num_heads = 3\n"
        "SwitchFFN.group_size = 16\nencoder/SwitchFFN.num_experts = 5")
  with gin.config_scope("encoder"):
    layer = SwitchSelfAttention()
  assert layer.z_loss_coeff == .5 and layer.num_heads == 8
  for projection in (layer.query_projection, layer.memory_projection):
    assert projection.group_size == 16
    assert projection.num_experts == 5
    assert projection.hidden_size is None
  parse("SwitchSelfAttention.projection = @attention/SwitchFFN\n"
        "attention/SwitchFFN.num_experts = 6")
  layer = SwitchSelfAttention()
  assert layer.query_projection.num_experts == 6
  assert layer.memory_projection.hidden_size == 2048


def test_t5s_bindings_do_not_reach_the_experts():
  parse("d_ff = 7\ndropout_rate = .5\nVarianceScalingInitializer.scale = 3.0")
  layer = SwitchFFN()
  assert (layer.hidden_size, layer.dropout_rate) == (2048, 0)
  assert kernel_initializer().scale == .1
  assert mtf.layers.VarianceScalingInitializer().scale == 3


@pytest.mark.parametrize("processors, legal", [(1, True), (2, False)])
def test_fewer_tokens_than_a_group(processors, legal):
  create = functools.partial(
      MoeDims.create, mtf.convert_to_shape(TOKENS), num_experts=2,
      hidden_size=1, group_size=32, capacity_factor=1.0, min_capacity=1,
      layout="batch:a", mesh_shape=f"a:{processors}")
  if legal:
    assert create().group_size_dim.size == 16
  else:
    with pytest.raises(ValueError, match="group_size must divide"):
      create()


# Precision.


@pytest.mark.parametrize(
    "mode, activations, router, moved",
    [row[:4] for row in table("Precision", "mode")])
def test_precision(mode, activations, router, moved, new_mesh, monkeypatch):
  fence, = [f for f in GIN if f.startswith(f"# precision: {mode}\n")]
  parse(fence)
  assert utils.get_variable_dtype().activation_dtype == activations
  seen = {"router": [], "moved": []}

  def watch(owner, name, kind):
    original = getattr(owner, name)

    @functools.wraps(original)
    def watched(*args):
      seen[kind].append(next(a.dtype for a in args if hasattr(a, "dtype")))
      return original(*args)

    monkeypatch.setattr(owner, name, watched)

  watch(routing.Router, "probabilities", "router")
  watch(dispatch, "to_experts_side", "moved")
  watch(dispatch, "to_groups_side", "moved")
  mesh = new_mesh()
  context = make_context(mesh)
  context.activation_dtype = tf.as_dtype(activations)
  context.variable_dtype = mtf.VariableDType(
      tf.float32, tf.float32, context.activation_dtype)
  x = mtf.zeros(mesh, mtf.convert_to_shape("batch:2,length:4,d_model:4"),
                dtype=context.activation_dtype)
  y = SwitchFFN(num_experts=2, hidden_size=4, group_size=8).call(context, x)
  assert y.dtype == activations
  assert seen["router"] == [router]
  assert seen["moved"] == [moved, moved]


# Layouts.

REPLICAS = "outer_batch:2,batch:2,length:4,d_model:6"
LAYOUTS = [[c.strip("`") for c in row[:2]] + row[2:]
           for row in table("Layouts", "`mesh_shape`")]
KINDS = {"all-to-all": "alltoall", "all-reduce": "allreduce",
         "all-gather": "allconcat"}


@functools.cache
def run_layer(mesh_shape="", layout="", shape=TOKENS):
  # Without noise, to be quick; test_layouts.py has it.
  layer = BuiltLayer(
      SwitchFFN(num_experts=4, hidden_size=8, group_size=4,
                router=routing.SwitchRouter(Argmax())),
      shape, mesh_shape=mesh_shape, layout=layout, gradients=True)
  rng = np.random.default_rng(0)
  x, dy = rng.normal(size=[2, *mtf.convert_to_shape(shape).to_integer_list])
  return layer, layer(random_weights(rng), x, dy=dy)


def communication(layer):
  """(kind, axes) to how often, without the sums of losses and metrics."""
  return Counter(
      (kind, frozenset(map(int, re.findall(r"\d+", axes))))
      for kind, axes, op in (name.split("/") for name, _ in layer.counters
                             if name.startswith(tuple(KINDS.values())))
      if op != "reduce_op")


@pytest.mark.parametrize("mesh_shape, rules, forward, gradients", LAYOUTS)
def test_layout(mesh_shape, rules, forward, gradients):
  axes = [d.name for d in mtf.convert_to_shape(mesh_shape)]
  said = Counter()
  for n, kind, axis in re.findall(
      r"(\d+) (all-[a-z-]+?)s? over `(\w+)`", forward):
    # The backward pass repeats it.
    said[KINDS[kind], frozenset([axes.index(axis)])] += 2 * int(n)
  for part in gradients.split("; ") if gradients != "none" else []:
    variables, over = map(code, part.split(" over "))
    said["allreduce", frozenset(map(axes.index, over))] += len(variables)
  assert forward == "none" or said
  shape = REPLICAS if "outer_batch" in rules else TOKENS
  layer, found = run_layer(mesh_shape, rules, shape)
  assert communication(layer) == said
  _, right = run_layer()
  for name, value in right.items():
    np.testing.assert_allclose(
        found[name].reshape(value.shape), value, atol=1e-5, rtol=1e-5,
        err_msg=name)


def test_layouts_use_the_rules_of_the_page():
  rules = {rule.split(":")[0]
           for _, layout, *_ in LAYOUTS for rule in layout.split(";")}
  assert rules == {
      row[0].strip("`").split(":")[0] for row in table("Layouts", "rule")}


def test_default_rules_are_those_of_the_page():
  # "batch and experts over the axis batch, d_ff over the axis model".
  parse("")
  rules = gin.query_parameter("utils.run.layout_rules")
  assert {"batch:batch", "experts:batch", "d_ff:model"} <= set(rules.split(","))


# Slots, metrics.


@pytest.mark.parametrize("row", table("Slots", "`group_size`"))
def test_slots(row):
  group, experts, factor, minimum, slots, effective = map(float, row)
  group, experts, minimum = map(int, (group, experts, minimum))
  assert expert_capacity(group, experts, factor, minimum) == slots
  assert slots * experts / group == pytest.approx(effective, abs=1e-9)


@pytest.mark.parametrize("router", ["SwitchRouter", "ExpertChoiceRouter"])
def test_metrics(router):
  layer = BuiltLayer(
      SwitchFFN(num_experts=3, hidden_size=4, group_size=4, router_z_coef=1.0,
                router=CONFIGURABLES[router]()), TOKENS, mode="eval")
  with layer.graph.as_default():
    found = {name.split("/")[-1]: "E" if value.shape == [3] else str(
        value.shape.num_elements())
             for name, value in recorded_metrics().items()}
  said = {name.strip("`"): size
          for name, size, meaning in table("Metrics", "name")
          if f"Not with `{router}`" not in meaning}
  assert found == said


# The tests above can fail.


@pytest.mark.parametrize("legal, inside, outside", [
    ("at least 1", [1, 2], [0, -1]),
    ("greater than 0, or `None`", [.01, 10, None], [0, -1]),
    ("in [0, 1)", [.5, 0], [-.01, 1.01, 1]),
    ("in (0, 1]", [.5, 1], [-.01, 1.01, 0]),
    ("`True`, `False`", [], []),
    ("a router, or `None`", [], [])])
def test_ranges(legal, inside, outside):
  assert ranges(legal) == (inside, outside)
