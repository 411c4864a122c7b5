import json

import numpy as np
import tensorflow.compat.v1 as tf

from switch_mtf.training import metrics


def test_read_sorts_and_the_later_line_of_a_step_counts(tmp_path):
  for step, loss in ((2, 1.0), (1, 5.0), (2, 0.5)):
    metrics.append(str(tmp_path), {"kind": "train", "step": step, "loss": loss})
  metrics.append(str(tmp_path), {"kind": "eval", "name": "a", "step": 1})
  found = metrics.read(str(tmp_path), "train")
  assert [(r["step"], r["loss"]) for r in found] == [(1, 5.0), (2, 0.5)]


def test_read_leaves_out_a_line_cut_short_and_no_other(tmp_path):
  metrics.append(str(tmp_path), {"kind": "train", "step": 1})
  with open(tmp_path / metrics.METRICS_FILE, "a") as f:
    f.write('\n{"kind": "train", "st')
  metrics.append(str(tmp_path), {"kind": "train", "step": 9})
  found = metrics.read(str(tmp_path), "train")
  assert [r["step"] for r in found] == [1, 9]


def test_arrays_become_lists_of_nine_digits(tmp_path):
  metrics.append(
      str(tmp_path), {"load": np.array([1 / 3], np.float32), "n": np.int64(3)})
  line = (tmp_path / metrics.METRICS_FILE).read_text()
  assert json.loads(line) == {"load": [0.333333343], "n": 3}


def test_scalars_are_a_handful():
  found = metrics.scalars({
      "kind": "train", "a/expert_load": [0.25, 0.75], "loss": 2,
      "a/expert_probability": [.5, .6]})
  assert found == {
      "a/expert_load/max": 0.75, "a/expert_load/min": 0.25, "loss": 2.0}


def test_heat_map_of_each_layer(tmp_path):
  # 2 experts, 3 records; a fair share is 1/2, so .25 is half of one.
  loads = [[.5, .5], [.25, .75], [0, 1]]
  records = [{"step": 10 * i, "loss": 1.0, "a/expert_load": load,
              "b/expert_load": load[::-1]} for i, load in enumerate(loads)]
  maps = metrics.heat_maps(records)
  assert list(maps) == ["a/expert_load", "b/expert_load"]
  np.testing.assert_allclose(
      maps["a/expert_load"], [[1, .5, 0], [1, 1.5, 2]])
  writer = tf.summary.FileWriter(str(tmp_path))
  metrics.write_heat_maps(writer, records)
  writer.close()
  path, = tmp_path.glob("events*")
  written = [(event.step, value) for event in tf.train.summary_iterator(
      str(path)) for value in event.summary.value]
  assert [(step, v.tag) for step, v in written] == [
      (20, "a/expert_load_by_step"), (20, "b/expert_load_by_step")]
  with tf.Session() as session:
    image = session.run(tf.image.decode_png(
        written[0][1].image.encoded_image_string, channels=3))
  red, _, blue = image[0, -1].astype(int)  # expert 1 is on top, full
  assert red > blue
  red, _, blue = image[-1, -1].astype(int)
  assert blue > red


def test_heat_map_of_a_long_run():
  # 1,024 records in 512 columns: means of two. One is of another model.
  records = [{"step": -1, "a/expert_load": [1.0]}] + [
      {"step": i, "a/expert_load": [i / 1024, 1 - i / 1024]}
      for i in range(1024)]
  load = metrics.heat_maps(records)["a/expert_load"]
  assert load.shape == (2, 512)
  np.testing.assert_allclose(load[0, :2], 2 * np.array([.5, 2.5]) / 1024)


def test_no_heat_map_without_experts():
  assert metrics.heat_maps([]) == metrics.heat_maps([{"step": 1}]) == {}


def test_an_evaluation_of_another_kind_does_not_replace_the_first(tmp_path):
  # The later one counts, but not if its bindings differ from the training's.
  def add(loss, **more):
    metrics.append(str(tmp_path), {
        "kind": "eval", "name": "t", "step": 1, "split": "validation",
        "loss": loss, **more})

  def read():
    return [r["loss"] for r in metrics.read(str(tmp_path), "eval")]

  add(1.0, bindings={"a.b": "1"})
  assert read() == [1.0]
  add(2.0)
  assert read() == [2.0]
  add(3.0, bindings={"a.b": "1"})
  assert read() == [2.0]
  add(4.0)
  assert read() == [4.0]
  add(5.0, split="test")
  assert sorted(read()) == [4.0, 5.0]


def test_events_are_read(tmp_path):
  writer = tf.summary.FileWriter(str(tmp_path))
  vector = tf.Summary.Value(
      tag="load", tensor=tf.make_tensor_proto(np.array([1.0, 2.0])))
  path = tf.Summary.Value(
      tag="checkpoint_path", tensor=tf.make_tensor_proto(b"model.ckpt-5"))
  number = tf.Summary.Value(tag="accuracy", simple_value=4.0)
  writer.add_summary(tf.Summary(value=[vector, path, number]), 5)
  writer.close()
  found = metrics.read_events(str(tmp_path))
  assert list(found[5].pop("load")) == [1.0, 2.0]
  assert found == {5: {"accuracy": 4.0}}
