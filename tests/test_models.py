"""The models of the paper: their parameters, counted in the Mesh-TF graph."""

import re
import types

import gin
import pytest
from helpers.configs import VOCAB, build, parse_model
from helpers.graphs import ROOT

from switch_mtf.planning import sizes

pytestmark = pytest.mark.usefixtures("clean_gin")

BUCKETS, D_KV = 32, 64


def parameters(d_model, d_ff, layers, heads, *, experts=0, every=2,
               gated=False, tied=True, vocab=VOCAB):
  """From the definition of T5 and of a Switch layer, section 2.

  Matrices without biases; a scale for each layer norm; a table of relative
  positions a stack; E experts and a router of d_model x E in a sparse layer.
  """
  attention = 4 * d_model * heads * D_KV
  ffn = (3 if gated else 2) * d_model * d_ff
  sparse = layers // every if experts else 0
  ffns = (layers - sparse) * ffn + sparse * experts * (ffn + d_model)
  encoder = layers * (attention + 2 * d_model) + ffns
  decoder = layers * (2 * attention + 3 * d_model) + ffns
  return (vocab * d_model * (1 if tied else 2) + encoder + decoder
          + 2 * (d_model + BUCKETS * heads))


BASE, LARGE = (768, 3072, 12, 12), (1024, 4096, 24, 16)
GEGLU_BASE, GEGLU_LARGE = (768, 2048, 12, 12), (1024, 2816, 24, 16)
XXL = (4096, 10240, 24, 64)
GEGLU = dict(gated=True)
UNTIED_GEGLU = dict(gated=True, tied=False)
E128 = dict(experts=128)

# The sizes, and the parameters as the paper or its recount in print has them:
# Tables 6 to 9, section 4.2 and 5.6, Figure 4.
MODELS = {
    "t5_base": (BASE, {}, "222.9M"),
    "t5_base_paper": (GEGLU_BASE, GEGLU, "222.9M"),
    "t5_large": (LARGE, {}, "737.7M"),
    "t5_large_paper": (GEGLU_LARGE, GEGLU, "750.3M"),
    "t5_xxl": (XXL, UNTIED_GEGLU, "11.1B"),
    "switch_base_e2": (BASE, dict(experts=2), "279.5M"),
    "switch_base_e4": (BASE, dict(experts=4), "392.8M"),
    "switch_base_e8": (BASE, dict(experts=8), "619.3M"),
    "switch_base_e16": (BASE, dict(experts=16), "1.1B"),
    "switch_base_e32": (BASE, dict(experts=32), "2.0B"),
    "switch_base_e64": (BASE, dict(experts=64), "3.8B"),
    "switch_base_e128": (BASE, E128, "7.4B"),
    "switch_base_e256": (BASE, dict(experts=256), "14.7B"),
    "switch_base_e128_paper": (GEGLU_BASE, E128 | GEGLU, "7.4B"),
    "switch_base_plus_e128": ((896, 3072, 12, 16), E128, "8.7B"),
    "moe_base_e128": (BASE, E128, "7.4B"),
    "mt5_base": (
        GEGLU_BASE, UNTIED_GEGLU | dict(vocab=250112), "582.4M"),
    "mswitch_base_e128": (
        GEGLU_BASE, E128 | UNTIED_GEGLU | dict(vocab=250112), "7.8B"),
    "switch_large_e128": (LARGE, E128, "26.3B"),
    "switch_large_e128_paper": (GEGLU_LARGE, E128 | GEGLU, "27.1B"),
    "switch_xxl_e128": (XXL, E128 | UNTIED_GEGLU, "394.7B"),
    "switch_xxl_e64_paper": (XXL, dict(experts=64) | UNTIED_GEGLU, "201.4B"),
    "switch_c_e2048": ((2080, 6144, 15, 30), dict(
        experts=2048, every=1, tied=False), "1571.3B"),
    "switch_c_e2048_paper": ((2080, 6144, 15, 32), dict(
        experts=2048, every=1, tied=False), "1571.4B"),
}
# For one CPU, with a vocabulary of 4,096 ids.
SMALL = {
    "small": ((256, 1024, 4, 4), dict(vocab=4096), "8.4M"),
    "switch_small_e16": (
        (256, 1024, 4, 4), dict(vocab=4096, experts=16), "39.9M"),
}

# FLOPs of a sequence, forward: Table 9, and where its rows or the released
# shapes give another figure (recounted with the same rule).
FLOPS = {
    "t5_base": 124e9, "switch_base_e128": 124e9,
    "t5_large": 425e9, "switch_large_e128": 425e9,
    "t5_xxl": 6.3e12, "switch_xxl_e128": 6.3e12, "switch_c_e2048_paper": 890e9,
    "t5_large_paper": 432.8e9, "switch_c_e2048": 869e9,
}


def flops(variables):
  """By the planner, of inputs of 512 and targets of 114 tokens."""
  return sizes.flops_per_sequence(
      types.SimpleNamespace(trainable_variables=[
          types.SimpleNamespace(name=name, shape=shape)
          for name, shape in variables.items()]),
      {"inputs": 512, "targets": 114}, choices=1)


def in_words(count):
  return f"{count / 1e6:.1f}M" if count < 1e9 else f"{count / 1e9:.1f}B"


@pytest.mark.parametrize("name", MODELS | SMALL)
def test_parameters(name):
  sizes, options, words = (MODELS | SMALL)[name]
  expected = parameters(*sizes, **options)
  assert in_words(expected) == words
  found = build(name, options.get("vocab", VOCAB))
  assert sum(shape.size for shape in found.values()) == expected
  if name in FLOPS:
    assert flops(found) == pytest.approx(FLOPS[name], rel=.01)


def test_docs_list_every_model():
  table = (ROOT / "docs/models.md").read_text()
  for name, (_, _, words) in MODELS.items():
    row, = re.findall(rf"^\| `{name}` .*$", table, re.MULTILINE)
    assert row.endswith(f"| {words} |")
  for name, (_, _, words) in SMALL.items():
    row, = re.findall(rf"^\| `{name}` .*$", table, re.MULTILINE)
    assert words in row
  assert set(re.findall(r"^\| `(\w+)`", table, re.MULTILINE)) == {
      path.stem for path in (ROOT / "gin/models").glob("[!_]*.gin")}


@pytest.mark.parametrize("dense, switch", [
    ("tiny", "switch_tiny_e16"), ("mini", "switch_mini_e16"),
    ("small", "switch_small_e16"), ("t5_large", "switch_large_e128"),
    ("t5_xxl", "switch_xxl_e128")])
def test_twins_have_the_same_sizes(dense, switch):
  # Hence the same FLOPs a token. A block may be of two layers, one sparse.
  sizes = []
  blocks = 2 if "e128" in switch or "small" in switch else 1
  for name, layers in ((dense, 1), (switch, blocks)):
    gin.clear_config()
    parse_model(name)
    sizes.append([gin.query_parameter(f"%{m}") for m in (
        "d_model", "d_ff", "num_heads", "d_kv")]
        + [gin.query_parameter("%num_layers") * layers])
  assert sizes[0] == sizes[1]


def test_experts_are_in_every_second_layer():
  # T5's released models have them in layers 1, 3, 5, ... of each stack.
  found = build("switch_base_e8")
  for stack, ffn in (("encoder", (1, 3)), ("decoder", (2, 5))):
    for block in range(6):
      scope = f"{stack}/block_{block:03d}/layer_{{:03d}}"
      dense, sparse = (scope.format(i) for i in ffn)
      assert f"{dense}/DenseReluDense/wi/kernel" in found
      assert found[f"{sparse}/SwitchFFN/wi/kernel"].to_integer_list == [
          8, 768, 3072]


@pytest.mark.parametrize("name, in_ffn", [
    ("switch_base_e32_attention", False),
    ("switch_base_e32_attention_ffn", True)])
def test_experts_in_attention(name, in_ffn):
  # Table 10: the matrices that make queries, and keys that are values too, of
  # every other layer.
  found = build(name)
  experts = [n for n, shape in found.items() if "experts" in [
      d.name for d in shape.dims] and "router" not in n]
  attention = [n for n in experts if "SwitchSelfAttention" in n]
  assert len(attention) == 2 * 6 * 2
  assert len(experts) - len(attention) == (2 * 6 * 2 if in_ffn else 0)
