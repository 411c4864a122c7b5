"""The wording of errors, and what errors of upstream mean."""

import gin
import mesh_tensorflow as mtf
import pytest
from helpers.graphs import lower
from mesh_tensorflow.transformer import utils

import tasks  # noqa: F401
from switch_mtf import errors
from switch_mtf.errors import legal_divisors
from switch_mtf.layers import switch_ffn  # noqa: F401


@pytest.mark.parametrize("binding, text", [
    ("SwitchFN.num_experts = 4",
     "a binding must name a configurable, with name=SwitchFN, nearest: "
     "SwitchFFN"),
    ("SwitchFFN.num_expert = 4",
     "a binding must name a parameter of SwitchFFN, with "
     "parameter=num_expert, nearest: num_experts"),
])
def test_unknown_binding_names_the_nearest(binding, text):
  with pytest.raises(ValueError) as error:
    gin.parse_config(binding)
  readable = errors.user_message(error.value)
  assert text in readable
  assert "line 1" in readable


def test_unknown_task_names_the_nearest():
  import seqio
  with pytest.raises(ValueError) as error:
    seqio.get_mixture_or_task("public_domain_span_coruption_1k")
  readable = errors.user_message(error.value)
  assert "mixture_or_task_name=public_domain_span_coruption_1k" in readable
  assert "nearest: public_domain_span_corruption_1k" in readable
  assert "MIXTURE_NAME" in readable


@pytest.mark.parametrize("tokens, length, near", [
    (32768, 24, 32760), (16, 24, 24)])
def test_batch_of_broken_sequences(tokens, length, near):
  # As upstream raises it and gin adds to it.
  with pytest.raises(ValueError) as error:
    utils.compute_batch_size(
        {"inputs": length, "targets": 6}, mtf.convert_to_shape(""),
        mtf.convert_to_layout_rules(""), ("tokens_per_batch", tokens))
  text = errors.user_message(ValueError(
      f"{error.value}\n  In call to configurable 'run' (<function run>)"))
  assert f"tokens={tokens}, longest sequence={length}. " in text
  assert text.endswith(f"multiple of {length}, such as {near}.")


def test_an_error_of_the_program_keeps_its_traceback():
  assert errors.user_message(ValueError("too many values to unpack")) is None


def test_gins_call_stack_is_left_out():
  error = ValueError("SwitchFFN: group_size must divide.\n  In call to "
                     "configurable 'run' (<function run at 0x7f>)")
  assert errors.user_message(error) == "SwitchFFN: group_size must divide."


def test_mesh_that_does_not_divide(new_mesh):
  mesh = new_mesh()
  mtf.zeros(mesh, [mtf.Dimension("batch", 8), mtf.Dimension("d_ff", 30)])
  with pytest.raises(ValueError) as error:
    lower(mesh, "data:2,model:4", "batch:data,d_ff:model")
  better = str(errors.explain_mesh_error(
      error.value, mtf.convert_to_shape("data:2,model:4"),
      mtf.convert_to_layout_rules("batch:data,d_ff:model")))
  assert "dimension d_ff=30, mesh axis model=4" in better
  assert "Give d_ff the size 28 or 32" in better
  assert "or model one of 2, 3, 5, 6" in better
  assert "utils.run.layout_rules" in better


def test_two_dimensions_on_one_mesh_axis():
  mesh_shape = mtf.convert_to_shape("a:2")
  layout = mtf.convert_to_layout_rules("heads:a;batch:a")
  try:
    layout.tensor_layout(
        mtf.convert_to_shape("batch:4,heads:2,d_kv:8"), mesh_shape)
  except ValueError as error:
    better = str(errors.explain_mesh_error(error, mesh_shape, layout))
  assert better == (
      "run_t5: dimensions of one tensor must be split by different mesh axes, "
      "with dimensions=batch, heads, axis=a. Change utils.run.layout_rules.")


@pytest.mark.parametrize("size, near, count, divisors", [
    (12, 5, 4, [2, 3, 4, 6]),  # at distances 3, 2, 1, 1; 1 and 12 are further
    (7, 100, 4, [1, 7]),  # there are no more
    (12, 1, 2, [1, 2]),
])
def test_legal_divisors(size, near, count, divisors):
  assert legal_divisors(size, near, count) == divisors


def test_a_check_inside_a_graph_is_read():
  error = Exception(
      "assertion failed: [data: ids must be small, with id=] [7] [. Set it.]\n"
      "\t [[{{node Assert/Assert}}]]\n")
  assert errors.user_message(error) == (
      "data: ids must be small, with id= 7. Set it.")


@pytest.mark.parametrize("error, said", [
    (RuntimeError("Required bindings for `tpu_mesh_shape` not provided in "
                  "config: ['tpu_topology']"),
     "with unset=tpu_mesh_shape.tpu_topology. Bind it, or add"),
    (ValueError("Task dataset is missing expected output feature after "
                "preprocessing: inputs"), "with missing=inputs. Correct the")])
def test_what_is_missing_is_named(error, said):
  assert said in errors.user_message(error)
