"""Illegal values are found before a run starts."""

import inspect

import pytest
from mesh_tensorflow.transformer import utils

from benchmarks.gin_files import experiments
from switch_mtf import gin_files, gin_values
from switch_mtf.gin_files import OUR_FOLDER, T5_FOLDER


def check(*params, own_modules=False):
  gin_values.check(gin_files.read([], params, []), own_modules)


def complaint(*params, **kwargs):
  with pytest.raises(ValueError) as error:
    check(*params, **kwargs)
  return str(error.value)


ILLEGAL = {
    "utils.run.train_steps": ["4.5", "'20'", "0", "-1", "None", "True"],
    "utils.run.mode": ["'trian'", "None", "1"],
    "utils.run.batch_size": [
        "0", "2.5", "('tokens', 384)", "('tokens_per_batch', 0)", "'8'",
        "('tokens_per_batch',)"],
    "utils.run.sequence_length": [
        "0", "{'inputs': 24}", "{'inputs': 0, 'targets': 6}",
        "{'inputs': 24, 'targets': '6'}", "'24'",
        "{'inputs': 24, 'target': 6}"],
    "utils.run.save_checkpoints_steps": ["0", "-5", "'500'"],
    "utils.run.keep_checkpoint_max": ["0", "-1", "2.0"],
    "utils.run.learning_rate_schedule": ["-0.01", "'fast'", "[1.0, -0.1]"],
    "utils.run.optimizer": ["'adam'", "None", "3"],
    "utils.run.mesh_devices": ["'cpu:0'", "[1]"],
    "mesh_train_dataset_fn.mixture_or_task_name": ["None", "''", "3"],
    "mesh_eval_dataset_fn.num_eval_examples": ["0", "-2", "1.5"],
    "random_seed.value": ["'abc'", "1.5", "None"],
    "linear_warmup.steps_or_fraction": ["'two'", "-1"],
    "transformer.make_layer_stack.num_layers": ["0", "'2'"],
    "Unitransformer.d_model": ["0", "-32", "1.5"],
    "SelfAttention.num_heads": ["'2'", "0"],
    "transformer.sublayer_dropout.dropout_rate": ["1.0", "-0.1", "'0.1'"],
    "Bitransformer.decode.beam_size": ["0"],
    "Bitransformer.decode.temperature": ["-1"],
    "decode_from_file.input_filename": ["''", "None"],
    "train_then.phases": ["'gin/runs/eval.gin'"],
}


@pytest.mark.parametrize("name, value", [
    (name, value) for name, values in ILLEGAL.items() for value in values])
def test_illegal_values(name, value):
  text = complaint(f"{name} = {value}")
  assert text.startswith(f"gin: {name} must be ")
  assert f"with {name}=" in text and "Correct it in --gin_param" in text
  # A scope does not hide it.
  assert complaint(f"encoder/{name} = {value}") == text


@pytest.mark.parametrize("param", [
    "utils.run.train_steps = 1", "utils.run.train_steps = @auto_train_steps",
    "utils.run.batch_size = ('tokens_per_batch', 384)",
    "utils.run.batch_size = ['sequences_per_replica', 2]",
    "utils.run.sequence_length = {'inputs': 24, 'targets': 6}",
    "utils.run.sequence_length = {'targets': 6}",
    "utils.run.sequence_length = {'inputs': %n, 'targets': %n}",
    "utils.run.sequence_length = None", "utils.run.sequence_length = 24",
    "utils.run.keep_checkpoint_max = None",
    "utils.run.learning_rate_schedule = 0.0",
    "utils.run.learning_rate_schedule = [1, %rate, @a.linear_warmup]",
    "utils.run.learning_rate_schedule = @a.noam",
    "utils.run.optimizer = @AdafactorOptimizer",
    "utils.run.mesh_devices = ['gpu:0']",
    "transformer.sublayer_dropout.dropout_rate = 0",
    "mesh_eval_dataset_fn.num_eval_examples = -1",
    "other.run.mode_of = 3", "Layer.num_layers = 0"])
def test_legal_values(param):
  check(param)


def test_the_macro_is_named():
  assert complaint("utils.run.train_steps = %steps", "steps = '20'") == (
      "gin: steps must be a whole number, at least 1, with steps='20', used as "
      "utils.run.train_steps. Likely correction: steps = 20. Correct it in "
      "--gin_param.")


def test_a_macro_inside_a_list_is_named():
  text = complaint("a.run.learning_rate_schedule = [%rate, @linear_warmup]",
                   "rate = 'fast'")
  assert text.startswith("gin: rate must be a number, at least 0, a reference")
  assert "with rate='fast', used as a.run.learning_rate_schedule." in text


def test_only_the_last_value_counts():
  check("utils.run.train_steps = %steps", "steps = '20'", "steps = 20")
  check("utils.run.train_steps = -1", "utils.run.train_steps = 4")
  check("run.train_steps = -1", "mesh_tensorflow.transformer.utils.run.train_"
        "steps = 4")


@pytest.mark.parametrize("value, meant", [
    ("'20'", "20"), ("20.0", "20"), ("'2.0'", "2")])
def test_likely_corrections(value, meant):
  assert f"Likely correction: a.run.train_steps = {meant}." in complaint(
      f"a.run.train_steps = {value}")


def test_the_nearest_mode():
  assert "='trian', nearest: train. Correct" in complaint(
      "utils.run.mode = 'trian'")


# Meshes and layouts.

MESH = "utils.run.mesh_shape = 'batch:2,model:2'"


@pytest.mark.parametrize("mesh", ["'batch:two'", "'batch'", "'batch:0'",
                                  "'batch:2:3'", "'batch=2'"])
def test_meshes_that_cannot_be_read(mesh):
  assert complaint(f"utils.run.mesh_shape = {mesh}").startswith(
      "gin: a mesh must be axes with sizes, as in 'batch:4,model:2', with "
      f"utils.run.mesh_shape={mesh}. Correct")


@pytest.mark.parametrize("rule, said", {
    "exprts:batch": "rule=exprts:batch, nearest: experts",
    "batch:bach": "'batch:2,model:2', nearest: batch",
    "d_ff:modle": "nearest: model", "batch": "with rule='batch'",
    "colour:batch": "rule=colour:batch, known=batch, beam"}.items())
def test_rules_in_vain(rule, said):
  assert said in complaint(
      MESH, f"utils.run.layout_rules = 'heads:model,{rule}'")


def test_layers_of_other_modules_may_have_other_dimensions():
  check(MESH, "utils.run.layout_rules = 'colour:batch'", own_modules=True)
  assert "nearest: experts" in complaint(
      MESH, "utils.run.layout_rules = 'exprts:batch'", own_modules=True)


@pytest.mark.parametrize("mesh, rules", [
    ("'batch:2,model:2'", "'batch:batch,d_ff:model,vocab:model'"),
    ("'a:2;b:2'", "'batch:a;experts:b'"), ("''", "''"), ("[]", "[]"),
    ("@tpu_mesh_shape()", "'batch:batch,heads:model'")])
def test_legal_layouts(mesh, rules):
  check(f"utils.run.mesh_shape = {mesh}", f"utils.run.layout_rules = {rules}")


def test_provided_rules_may_be_for_other_meshes():
  gin_values.check(gin_files.read(
      [gin_files.DEFAULTS, "layouts/ep8_mp4.gin"],
      ["utils.run.mesh_shape = 'batch:2'"], [OUR_FOLDER]))


@pytest.mark.parametrize("path", experiments())
def test_provided_experiments_are_legal(path):
  asked = {"train_steps": "4", "num_experts": "4"}
  folders = [OUR_FOLDER.removesuffix("/gin"), T5_FOLDER]
  bindings = gin_files.read([gin_files.DEFAULTS, path], [
      f"{name} = {asked.get(name, repr('x'))}"
      for name in gin_files.unset(path)], folders)
  gin_values.check(bindings)


def test_what_a_run_records_is_legal(tmp_path):
  # Its operative_config.gin has upstream's defaults, layout rules among them.
  defaults = {
      name: parameter.default for name, parameter in inspect.signature(
          utils.run).parameters.items()
      if isinstance(parameter.default, str | bool | int | float | None)}
  assert len(defaults) > 20
  path = tmp_path / "operative_config.gin"
  path.write_text("".join(f"run.{name} = {value!r}\n"
                          for name, value in defaults.items()
                          # What every run sets.
                          if name not in ("train_steps", "optimizer")))
  gin_values.check(gin_files.read([str(path)], [], []))


def test_a_mesh_has_a_device_for_each_processor():
  two = "utils.run.mesh_devices = ['cpu:0', 'cpu:0']"
  check("utils.run.mesh_shape = 'batch:2'", two)
  assert "mesh_shape='batch:4', processors=4" in complaint(
      "utils.run.mesh_shape = 'batch:4'", two)


def test_beams_are_not_sampled():
  beams, sampled = "Bitransformer.decode.beam_size = 2", (
      "Bitransformer.decode.temperature = 0.5")
  assert "beam_size=2" in complaint(beams, sampled)
  check(beams, "Bitransformer.decode.temperature = 0.0")
  check("Bitransformer.decode.beam_size = 1", sampled)
