"""The openings of a training step: microbatches and the loss."""

import types

import mesh_tensorflow as mtf
import pytest
import tensorflow.compat.v1 as tf
from helpers.graphs import evaluate, lower
from mesh_tensorflow.transformer import transformer

from switch_mtf.upstream import seams, training_step


@pytest.mark.parametrize("microbatches", [1, 4])
def test_sums_of_a_step(microbatches, new_mesh):
  mesh, batch = new_mesh(), mtf.Dimension("batch", 4)
  weight = mtf.get_variable(mesh, "w", mtf.Shape([]))
  found = {}

  def model_fn(features):
    loss = mtf.reduce_sum(features["x"] * weight)
    training_step.sum_over_step(
        {"x": mtf.reduce_sum(features["x"])}, found.update)
    return {"loss": loss}

  features = {"x": mtf.range(mesh, batch, tf.float32)}
  if microbatches == 1:
    outputs = model_fn(features)
  else:
    _, outputs = mtf.serialize_training_step(
        features, model_fn, batch, microbatches)
  assert evaluate(lower(mesh), [found["x"]]) == [6.]  # 0 + 1 + 2 + 3
  assert list(outputs) == ["loss"]


def test_microbatches_are_numbered(new_mesh):
  mesh, batch = new_mesh(), mtf.Dimension("batch", 4)
  weight = mtf.get_variable(mesh, "w", mtf.Shape([]))

  def model_fn(features):
    number = mtf.cast(training_step.microbatch(), tf.float32)
    return {"loss": mtf.reduce_sum(features["x"] * weight),
            "number": number * 10.}

  _, outputs = mtf.serialize_training_step(
      {"x": mtf.ones(mesh, mtf.Shape([batch]))}, model_fn, batch, 4)
  # Outputs are summed: 10 (0 + 1 + 2 + 3).
  assert evaluate(lower(mesh), [outputs["number"]]) == [60.]
  assert training_step.microbatch() is None


def test_extensions_see_the_loss(monkeypatch):
  seen = []
  monkeypatch.setattr(seams, "_extensions", [
      types.SimpleNamespace(see_loss=lambda *args: seen.append(args))])
  model = types.SimpleNamespace(_loss_fn=lambda *args: "the loss")
  loss = transformer.Unitransformer._compute_loss(
      model, "context", "logits", "targets", "vocab")
  assert loss == "the loss"
  assert seen == [(model, "context", "logits", "targets", "vocab")]
