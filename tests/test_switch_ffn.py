"""What a Switch layer is made of: its variables, its options."""

import json
import pathlib

import pytest
from helpers.graphs import MODEL, SCOPE, BuiltLayer, make_layer

from switch_mtf.layers.routing import SwitchRouter
from switch_mtf.layers.switch_ffn import SwitchFFN


@pytest.mark.parametrize("name, options", [
    ("relu", {}), ("geglu", {"activation": ["gelu", "linear"]}),
    ("linear", {"hidden_size": None})])
def test_variables(name, options):
  # The golden file is the checkpoint format: names and dimensions of
  # SwitchFFN's docstring. A change makes checkpoints unreadable.
  golden = json.loads(pathlib.Path(__file__).with_name("golden").joinpath(
      "switch_ffn_variables.json").read_text())[name]
  run = BuiltLayer(make_layer(4, 12, **options),
                   f"batch:4,length:6,d_model:{MODEL}", scope=SCOPE)
  assert golden == {name: {d.name: d.size for d in v.shape}
                    for name, v in run.variables.items()}
  assert [list(golden[k]) for k in golden] == [
      [d.name for d in run.variables[k].shape] for k in golden]


@pytest.mark.parametrize("name, value, what", [
    ("num_experts", 0, "a whole number, at least 1"),
    ("num_experts", 2.5, "a whole number, at least 1"),
    ("group_size", 0, "a whole number, at least 1"),
    ("min_capacity", True, "a whole number, at least 1"),
    ("hidden_size", 0, "a whole number, at least 1"),
    ("dropout_rate", 1, "a finite number, at least 0 and less than 1"),
    ("dropout_rate", -1, "a finite number, at least 0 and less than 1"),
    ("capacity_factor_train", 0, "a finite number, greater than 0"),
    ("capacity_factor_eval", float("nan"), "a finite number, greater than 0"),
    ("load_balancing_coef", "1", "a finite number, at least 0"),
    ("router_z_coef", -.5, "a finite number, at least 0")])
def test_out_of_range(name, value, what):
  with pytest.raises(ValueError, match=rf"^SwitchFFN: {name} must be {what}, "
                     rf"with {name}={value!r}\. Set SwitchFFN\.{name}\.(\n|$)"):
    SwitchFFN(**{name: value})


@pytest.mark.parametrize("name, value, text", [
    ("activation", "rellu", r"one of linear, .*, with activation='rellu', "
     r"nearest: relu\. Set SwitchFFN\.activation\."),
    ("activation", ["gelu", 3], r"one of .*, with activation=3\. Set "),
    ("activation", [], r"one of .*, with activation=None\. Set "),
    ("router", SwitchRouter, r"a Router, with router=.*\. Set "
     r"SwitchFFN\.router to @SwitchRouter\(\)\."),
    ("dispatcher", "gather", r"a Dispatcher, with dispatcher='gather'\. Set ")])
def test_of_the_wrong_kind(name, value, text):
  with pytest.raises(ValueError, match=rf"^SwitchFFN: {name} must be {text}"):
    SwitchFFN(**{name: value})
