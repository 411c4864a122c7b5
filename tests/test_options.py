"""docs/options.md names every option, with its default and legal values."""

import ast
import inspect
import re

import gin
import pytest
from helpers.options_page import (
  CONFIGURABLES,
  GIN,
  OPTIONS,
  OURS,
  PAGE,
  PROSE,
  code,
  parameters,
  parse,
  sections,
  table,
)
from mesh_tensorflow.transformer import transformer, transformer_layers
from mesh_tensorflow.transformer.moe import MoE1D

from switch_mtf.layers.routers import ExpertChoiceRouter
from switch_mtf.layers.switch_attention import SwitchSelfAttention
from switch_mtf.layers.switch_ffn import SwitchFFN

pytestmark = pytest.mark.usefixtures("clean_gin")

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
