"""What gin accepts and should not is found before a run starts."""

import importlib
import importlib.util

import pytest

from switch_mtf import gin_checks, gin_files


def write(folder, name, text):
  path = folder / name
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(text)
  return str(path)


def check(*bindings):
  gin_checks.check_run([], bindings, [])


def complaint(*bindings):
  with pytest.raises(ValueError) as error:
    check(*bindings)
  return str(error.value)


def test_scope_that_nobody_enters():
  assert complaint("deccoder/Layer.size = 1") == (
      "gin: a scope must be one that is entered, with scope=deccoder, nearest: "
      "decoder, encoder, binding=deccoder/Layer.size. Correct it in "
      "--gin_param.")


def test_scope_that_a_reference_enters():
  check("train/rate.start = 1", "run.rate = @train/rate()")


def test_required_macro_without_a_value():
  text = complaint("steps = %gin.REQUIRED", "Layer.size = %gin.REQUIRED",
                   "batch = %gin.REQUIRED", "batch = 1")
  assert text.startswith("gin: every required value must be set, with "
                         "unset=Layer.size, steps; required by --gin_param")
  assert '--gin_param="steps = ..."' in text


def test_macro_that_is_mistyped():
  text = complaint("train_steps = 1", "run.steps = [0, {'a': %train_stps}]")
  assert "macro=train_stps, nearest: train_steps." in text


def test_macro_that_nothing_uses(tmp_path, capsys):
  assert "with macro=sise, nearest: size. Correct it" in complaint(
      "size = 2", "Layer.size = %size", "sise = 3")
  assert "with macro=idle. Correct it in --gin_param" in complaint("idle = 3")
  path = write(tmp_path, "mine.gin", "size = 2\nLayer.size = %size\nsise = 3\n")
  with pytest.raises(ValueError, match="macro=sise, nearest: size. Correct it "
                     f"in {path}, line 3"):
    gin_checks.check_run([path], [], [])
  # One that resembles no other may be for other models; a phase that follows
  # may use it.
  phase = write(tmp_path, "phase.gin", "steps = 1\nLayer.steps = %steps\n")
  run = write(tmp_path, "run.gin",
              f"idle = 1\ntrain_then.phases = ['{phase}']\n")
  gin_checks.check_run([run], ["steps = 2"], [str(tmp_path)])
  assert f"nothing uses the macro idle of {run}, line 1" in (
      capsys.readouterr().err)


def test_an_old_configuration_may_have_idle_macros(tmp_path):
  gin_checks.check_run([write(
      tmp_path, "operative_config.gin",
      "size = 2\nLayer.size = %size\nsise = 3\n")], [], [])


RECORDED = """
encoder/SwitchFFN.num_experts = 16
decoder/SwitchFFN.num_experts = %num_experts
num_experts = 16
encoder/a.SwitchFFN.hidden_size = 8
"""


@pytest.mark.parametrize("params, hidden_by", [
    (["SwitchFFN.num_experts = 4"], ["encoder", "decoder"]),
    (["x.y.SwitchFFN.num_experts = 4"], ["encoder", "decoder"]),
    (["SwitchFFN.num_experts = 4", "encoder/SwitchFFN.num_experts = 4"],
     ["decoder"]),
    (["SwitchFFN.num_experts = 16"], []),
    (["SwitchFFN.num_experts = %num_experts"], []),
    (["encoder/SwitchFFN.num_experts = 4"], []),
    (["num_experts = 4", "encoder/SwitchFFN.num_experts = 4"], []),
    (["SwitchFFN.capacity_factor_eval = 1.0"], [])])
@pytest.mark.parametrize("in_file", [False, True])
def test_a_binding_that_scopes_hide(params, hidden_by, in_file, tmp_path):
  recorded = write(tmp_path, "operative_config.gin", RECORDED)
  own = write(tmp_path, "own.gin", "\n".join(params))
  call = (([recorded, own], []) if in_file else ([recorded], params))
  bindings = gin_files.read(*call, [])
  if not hidden_by:
    gin_checks.check_hidden(bindings)
    return
  with pytest.raises(ValueError) as error:
    gin_checks.check_hidden(bindings)
  for scope in ("encoder", "decoder"):
    assert (f"{scope}/{params[0]}" in str(error.value)) == (
        scope in hidden_by)
  place = f"{own}, line 1: " if in_file else "--gin_param: --gin_param="
  assert f"Give the scope, too, in {place}" in str(error.value)


def test_exceptions_of_a_models_files_are_as_they_should(tmp_path):
  # A file of the user's may give a default, and an exception before it.
  path = write(tmp_path, "own.gin", "encoder/A.b = 1\nA.b = 2\n")
  gin_checks.check_hidden(gin_files.read([path], [], []))
  with pytest.raises(ValueError, match="encoder/A.b = 3"):
    gin_checks.check_hidden(gin_files.read([path], ["A.b = 3"], []))


def test_a_phase_must_be_there(tmp_path):
  with pytest.raises(ValueError, match="phase=runs/perplexity_evl.gin, nearest"
                     ": runs/perplexity_eval.gin,.*Set train_then.phases"):
    gin_checks.check_run([], [
        "train_then.phases = ['runs/perplexity_evl.gin']"],
        [gin_files.OUR_FOLDER])


def test_a_dotted_macro_is_a_constant_of_some_module():
  check("run.steps = %module.CONSTANT")


@pytest.mark.parametrize("folder, line, right", [
    ("models", "utils.run.mesh_shape = 'a:1'", "layouts"),
    ("models", "utils.run.batch_size = 1", "runs"),
    ("layouts", "SwitchFFN.num_experts = 4", "models"),
    ("layouts", "train_steps = 4", "runs"),
    ("runs", "d_model = 4", "models"),
    ("runs", "utils.get_variable_dtype.slice_dtype = 'float32'", "layouts")])
def test_binding_in_the_wrong_folder(tmp_path, folder, line, right):
  path = write(tmp_path, f"gin/{folder}/mine.gin", line)
  with pytest.raises(ValueError, match=f"belongs to {right}/"):
    gin_checks.check_run([path], [], [])
  # In a file of experiments anything may stand.
  path = write(tmp_path, "gin/experiments/mine.gin", line)
  gin_checks.check_run([path], [], [])


def test_t5s_own_files_are_t5s_matter():
  # It binds utils.run.model_type.
  path = "models/bi_bert_base.gin"
  bindings = gin_files.read([path], [], [gin_files.T5_FOLDER])
  assert "utils.run.model_type" in {b.name for b in bindings}
  gin_checks.check_run([path], [], [gin_files.T5_FOLDER])


@pytest.mark.parametrize("folder, line", [
    ("models", "d_model = 4"), ("layouts", "utils.run.mesh_shape = 'a:1'"),
    ("runs", "train_steps = 4"), ("runs", "utils.run.batch_size = 1"),
    ("models", "dropout_rate = 0.1")])
def test_binding_in_its_folder(tmp_path, folder, line):
  path = write(tmp_path, f"gin/{folder}/mine.gin", line)
  gin_checks.check_run([path], [], [])


@pytest.mark.parametrize("text, line", [
    ("\nimport switch_mtf.training.compare\n", 2),
    ("x = 1\nswitch_mtf.training.compare.compare.seeds = [1]", 2),
    ("run.train_model_fn = @switch_mtf.training.compare.compare", 1),
    ("run.train_model_fn = @a/switch_mtf.training.compare.compare()", 1)])
def test_module_that_has_moved(tmp_path, text, line):
  path = write(tmp_path, "old.gin", text)
  with pytest.raises(ValueError) as error:
    gin_checks.check_run([path], [], [])
  assert str(error.value) == (
      "gin: a module must be named by its present place, with "
      "module=switch_mtf.training.compare, place now="
      f"switch_mtf.comparison.compare. Correct it in {path}, line {line}.")


@pytest.mark.parametrize("text", [
    "import switch_mtf.training.blanks\n",
    "switch_mtf.training.blanks.fill_blanks.tokens = 3\n"])
def test_module_of_a_phase_that_has_moved(tmp_path, text):
  phase = write(tmp_path, "phase.gin", text)
  with pytest.raises(ValueError, match=(
      r"place now=switch_mtf\.comparison\.blanks\. Correct it in .*phase.gin, "
      "line 1")):
    gin_checks.check_run([], [f"train_then.phases = ['{phase}']"], [])


def test_name_of_a_module_that_was_divided():
  assert "place now=switch_mtf.distillation.teacher.distill_from." in complaint(
      "switch_mtf.training.distillation.distill_from.checkpoint = 'a'")
  assert "place now=switch_mtf.distillation.loss." in complaint(
      "switch_mtf.training.distillation.distillation.replaced = 'fresh'")


@pytest.mark.parametrize("old, new", gin_checks.MOVED.items())
def test_places_of_modules(old, new):
  room, _, name = new.rpartition(".")
  assert hasattr(importlib.import_module(room), name) or (
      importlib.util.find_spec(new))
  with pytest.raises(ImportError):
    importlib.import_module(old)
