"""What plain_t5 makes of a gin configuration, and what it refuses."""

import gin
import pytest
from helpers.checkpoints import save
from helpers.configs import parse

from switch_mtf import gin_files
from switch_mtf.checkpoints import plain_t5

CONFIG = """
import switch_mtf.kernels.norm
d_ff = 64
seed = 3
MIXTURE_NAME = 'a_task'
decoder/LayerStack.sublayers_final = [@rms_norm, @transformer.sublayer_dropout]
decoder/Unitransformer.loss_fn = @cross_entropy_from_ids
decoder/Unitransformer.z_loss = 0.0001
get_vocab_embedding_cls.cls = @GatherEmbedding
encoder/DenseReluDense.hidden_size = %d_ff
encoder/DenseReluDense.dropout_rate = None
teacher/encoder/DenseReluDense.hidden_size = 128
run.batch_size = 4
random_seed.value = %seed
"""


def test_config_by_hand(tmp_path):
  (tmp_path / "config.gin").write_text(CONFIG)
  assert plain_t5.config(str(tmp_path / "config.gin")).splitlines() == [
      "import mesh_tensorflow.transformer.transformer",
      "import mesh_tensorflow.transformer.transformer_layers",
      "",
      "d_ff = 64",
      "MIXTURE_NAME = 'a_task'",
      "",
      "decoder/LayerStack.sublayers_final = [@transformer.sublayer_rms_norm, "
      "@transformer.sublayer_dropout, ]",
      "decoder/Unitransformer.z_loss = 0.0001",
      "encoder/DenseReluDense.hidden_size = %d_ff",
      "encoder/DenseReluDense.dropout_rate = None"]


@pytest.mark.usefixtures("clean_gin")
def test_bound_in_a_scope(tmp_path):
  (tmp_path / "config.gin").write_text(CONFIG)
  parse("gin/experiments/demo_dense.gin")
  gin.bind_parameter("teacher/decoder/Unitransformer.z_loss", 0.5)
  gin_files.bind_in_scope(str(tmp_path / "config.gin"), "teacher")
  bound = {name: gin.query_parameter(f"teacher/{name}") for name in (
      "decoder/Unitransformer.z_loss", "encoder/DenseReluDense.hidden_size",
      "teacher/encoder/DenseReluDense.hidden_size")}
  # What was bound before stays; macros are those of the file.
  assert list(bound.values()) == [0.5, 64, 128]
  assert gin.query_parameter("%d_ff") != 128
  # A wider scope of the run wins over a narrower one of the file.
  gin.bind_parameter("teacher/DenseReluDense.dropout_rate", 0.25)
  gin_files.bind_in_scope(str(tmp_path / "config.gin"), "teacher")
  reference, _ = gin.query_parameter(
      "teacher/decoder/LayerStack.sublayers_final")
  assert reference.selector == "rms_norm"


@pytest.mark.parametrize("value, text", [
    ({"a": (1,), "b": [True, None]}, "{'a': (1, ), 'b': [True, None, ]}"),
    (gin_files.Reference("train/schedule()"), "@train/schedule()"),
    ([gin_files.Macro("d_ff")], "[%d_ff, ]")])
def test_written_as_gin_reads_it(value, text):
  assert gin_files.written(value) == text


def test_switch_models_are_refused(tmp_path):
  (tmp_path / "config.gin").write_text(
      "encoder/make_layer_stack.layers = [@transformer_layers.SelfAttention, "
      "@SwitchFFN]\n")
  with pytest.raises(ValueError, match=(
      "plain_t5: .*make_layer_stack.layers=@SwitchFFN. Distil it")):
    plain_t5.config(str(tmp_path / "config.gin"))


def test_nothing_is_overwritten(tmp_path):
  with pytest.raises(ValueError, match=(
      "plain_t5: --model_dir must be a folder with checkpoints, .*not exist")):
    plain_t5.write(str(tmp_path / "nowhere"), str(tmp_path / "new"))
  save(tmp_path, 3)
  with pytest.raises(ValueError, match="--checkpoint_step=4, .*steps there=3"):
    plain_t5.write(str(tmp_path), str(tmp_path / "new"), 4)
  (tmp_path / "old").mkdir()
  (tmp_path / "old" / "file").touch()
  with pytest.raises(ValueError, match="output must be new, with output=.*old"):
    plain_t5.write(str(tmp_path), str(tmp_path / "old"), 3)
