"""Equal seeds give equal runs: dropout, resuming, meshes, sampling."""

import pytest
from helpers.runs import losses, same_weights, succeed, weights

DROPOUT = ("dropout_rate = 0.3", "expert_dropout_rate = 0.2")


def train(model_dir, steps, *params):
  succeed(model_dir, "--gin_file=tests/gin/tiny.gin",
          *(f"--gin_param={param}" for param in (
              f"train_steps = {steps}", "train_then.phases = []",
              "progress.record_steps = 1", "warmup_steps = 2",
              "progress.train_steps = 6", "linear_decay.steps_or_fraction = 0",
              *DROPOUT, *params)))
  return weights(model_dir)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """A model_dir after 6 steps with dropout, and its weights."""
  model_dir = tmp_path_factory.mktemp("runs") / "whole"
  return model_dir, train(model_dir, 6)


def test_dropout_repeats(whole, tmp_path):
  assert same_weights(train(tmp_path, 6), whole[1])


def test_another_seed_drops_others(whole, tmp_path):
  assert not same_weights(
      train(tmp_path, 6, "random_seed.value = 1"), whole[1])


def test_dropout_goes_on_where_a_run_stopped(whole, tmp_path):
  train(tmp_path, 3)
  assert same_weights(train(tmp_path, 6), whole[1])


@pytest.mark.parametrize("layout", ["batch:a", "experts:a;batch:a", "d_ff:a"])
def test_dropout_is_the_same_on_a_mesh(layout, whole, tmp_path):
  train(tmp_path, 6, "utils.run.mesh_shape = 'a:2'",
        f"utils.run.layout_rules = '{layout}'",
        "utils.run.mesh_devices = ['cpu:0', 'cpu:0']")
  for (step, one), (_, other) in zip(
      losses(whole[0]), losses(tmp_path), strict=True):
    assert other == pytest.approx(one, rel=1e-5), step


def sample(teacher, folder, *params):
  folder.mkdir()
  (folder / "inputs").write_text(
      "The state of the <extra_id_0> is strong.\nCall me <extra_id_0>.\n")
  succeed(teacher, f"--gin_file={teacher}/operative_config.gin",
          "--gin_file=gin/runs/infer.gin", *(
              f"--gin_param={param}" for param in (
                  "batch_size = 6", "Bitransformer.decode.temperature = 1.0",
                  "decode_from_file.repeats = 3",
                  f"input_filename = '{folder}/inputs'",
                  f"output_filename = '{folder}/out'", *params)))
  path, = folder.glob("out-*")
  return path.read_text().splitlines()


def test_sampling_repeats_with_a_seed(teacher, tmp_path):
  one = sample(teacher, tmp_path / "one")
  assert len(one) == 6  # three answers a line, next to each other
  assert len(set(one)) > 4
  assert sample(teacher, tmp_path / "two") == one
  assert sample(teacher, tmp_path / "other", "random_seed.value = 1") != one


def test_each_batch_is_sampled_anew(teacher, tmp_path):
  lines = sample(teacher, tmp_path / "small", "batch_size = 1",
                 "decode_from_file.repeats = 4")
  assert len(set(lines[:4])) > 1


def test_each_microbatch_has_dropout_of_its_own(whole, tmp_path):
  # Microbatches only divide the work, but the draws of a step differ from those
  # of one batch; test_stateless holds that they differ among each other.
  params = ("utils.serialize_num_microbatches."
            "tokens_per_microbatch_per_replica = 32")
  one = train(tmp_path / "one", 6, params)
  assert not same_weights(one, whole[1])
  assert same_weights(train(tmp_path / "two", 6, params), one)
