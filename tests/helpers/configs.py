"""Parses gin files and builds the models that they configure."""

import os
import types
from unittest import mock

import gin
import mesh_tensorflow as mtf
import tensorflow.compat.v1 as tf
from mesh_tensorflow.transformer import utils

VOCAB = 32128
BATCH, INPUTS, TARGETS = 2, 16384, 8192  # whole groups for each model


def parse(path):
  gin.parse_config_file(
      os.path.join(os.path.dirname(utils.__file__), "gin", "defaults.gin"))
  gin.parse_config_file(path)


def parse_model(name):
  gin.parse_config_files_and_bindings(
      [os.path.join(os.path.dirname(utils.__file__), "gin", "defaults.gin"),
       f"gin/models/{name}.gin"], [])


def name_only(name, *args, **kwargs):
  """Stands for tf.get_variable."""
  scope = tf.get_variable_scope().name
  return types.SimpleNamespace(
      name=f"{scope}/{name}:0" if scope else f"{name}:0")


def build(name, vocab=VOCAB):
  """Every trainable variable of a model, by name; nothing is allocated."""
  parse_model(name)
  model = utils.build_model(
      "bitransformer", vocab, vocab, mtf.convert_to_layout_rules(""),
      mtf.convert_to_shape(""))
  graph = mtf.Graph()
  mesh = mtf.Mesh(graph, "mesh")
  batch = mtf.Dimension("batch", BATCH)
  inputs, targets = (
      mtf.import_tf_tensor(
          mesh, tf.ones([BATCH, length], tf.int32),
          mtf.Shape([batch, mtf.Dimension("length", length)]))
      for length in (INPUTS, TARGETS))
  # Making TensorFlow's own variables takes most of the time.
  with mock.patch.object(tf, "get_variable", name_only):
    model.call_simple(inputs, targets, compute_loss=False,
                      mode=tf.estimator.ModeKeys.TRAIN)
  return {v.name: v.shape for v in graph.trainable_variables}
