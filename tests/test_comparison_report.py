"""The report of a comparison."""

import pytest
import tensorflow.compat.v1 as tf

from switch_mtf.comparison import report


def runs(dense, switch):
  """Runs whose last validation figures are given, one a seed."""
  def one(value):
    return {"validation": [{"step": 5, "neg_log_perplexity": value}],
            "parameters": 7,
            "train": [{"tokens_per_second": v} for v in (10.0, 30.0, 20.0)]}

  found = {("dense", s): one(v) for s, v in enumerate(dense)}
  found.update({("switch", s): one(v) for s, v in enumerate(switch)})
  return found


def test_gain_is_paired_by_seed_and_spread_is_the_larger_range():
  result = report.summarize(
      runs([-4.0, -4.3], [-3.9, -3.8]), ["dense", "switch"], [0, 1])
  gains = result["gains"]["switch"]
  # -3.9 + 4.0 = 0.1 and -3.8 + 4.3 = 0.5: each 0.2 from the mean, so that the
  # sample's standard deviation is sqrt((0.2^2 + 0.2^2) / 1) = 0.2828. Dense
  # ranges over 0.3, Switch over 0.1.
  assert gains["gain"] == pytest.approx([0.1, 0.5])
  assert gains["mean_gain"] == pytest.approx(0.3)
  assert gains["deviation"] == pytest.approx(0.2828, abs=1e-4)
  assert gains["spread"] == pytest.approx(0.3)
  assert result["models"]["dense"]["tokens_per_second"] == [20.0, 20.0]


def test_a_run_that_was_scored_is_judged_by_its_best_step(tmp_path):
  # Means of the tasks' metrics: 10 at step 1, 12.5 at step 2; step 3 lacks one.
  writer = tf.summary.FileWriter(str(tmp_path / "validation_eval"))
  for step, tag, value in ((1, "a/em", 5), (1, "b/f1", 15), (2, "a/em", 5),
                           (2, "b/f1", 20), (3, "a/em", 90)):
    writer.add_summary(tf.Summary(value=[
        tf.Summary.Value(tag=f"eval/{tag}", simple_value=value)]), step)
  writer.close()
  points = report.validation(str(tmp_path), [])
  assert points == [{"step": 1, "score": 10.0}, {"step": 2, "score": 12.5}]
  found = {(model, 0): {"validation": [{"step": 1, "score": score},
                                       {"step": 2, "score": score - 1}],
                        "parameters": 7, "train": [{"tokens_per_second": 1.0}]}
           for model, score in (("dense", 3.0), ("switch", 4.5))}
  result = report.summarize(found, ["dense", "switch"], [0])
  assert result["gains"]["switch"]["gain"] == [1.5]
  assert "better than dense by 1.5000 points" in report.verdict(result)


def test_a_run_that_was_not_evaluated_is_named(tmp_path):
  with pytest.raises(ValueError, match=(
      f"report: a run must have been evaluated, with model_dir={tmp_path}")):
    report.validation(str(tmp_path), [])


def test_a_run_without_checkpoints_is_named(tmp_path):
  with pytest.raises(ValueError, match=(
      f"a run must have a checkpoint, with model_dir={tmp_path}, which")):
    report.count_parameters(str(tmp_path))


def test_verdict_says_when_the_switch_model_is_worse():
  result = report.summarize(
      runs([-4.0], [-4.25]), ["dense", "switch"], [0])
  text = report.verdict(result)
  assert ("switch is WORSE than dense by 0.2500 nats a token after 5 steps "
          "each.") in text


def test_source_is_what_the_evaluations_name_adds():
  names = [{"name": "task_1k_validation_64"},
           {"name": "task_1k_moby_dick_validation_64"}]
  assert report.source_of(names[1]["name"], names) == "moby_dick"
  assert report.source_of(names[0]["name"], names) == ""


def test_layers_of_a_teacher_are_not_the_students():
  record = dict.fromkeys((
      "loss", "decoder/block_000/layer_002/expert_load",
      "encoder/block_000/layer_001/expert_load",
      "teacher/encoder/block_000/layer_001/expert_load",
      "encoder/block_000/layer_001/expert_probability"))
  assert report._layers(record, report.LOAD) == [
      "encoder/block_000/layer_001/expert_load",
      "decoder/block_000/layer_002/expert_load"]


def test_layer_names_are_readable():
  assert (report._readable("encoder/block_001/layer_003/expert_load")
          == "encoder, block 1, layer 3")


def test_the_whole_validation_split_ranks_a_run():
  # Its parts have longer names; another split and fewer examples do not count.
  def evaluated(name, step, **more):
    return {"name": name, "step": step, "loss": 1.0, **more}

  records = [
      evaluated("task_validation_5120", 100, split="validation"),
      evaluated("task_validation_5120", 200),  # of an older run
      evaluated("task_validation_64", 200, split="validation"),
      evaluated("task_test_64", 200, split="test"),
      evaluated("task_part_validation_5120", 200, split="validation")]
  assert report.validation("", records) == records[:2]
