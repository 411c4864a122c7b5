"""Incremental decoding against teacher forcing, token by token."""

import itertools

import gin
import mesh_tensorflow as mtf
import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from helpers.graphs import as_it_is, lower, make_context
from mesh_tensorflow.transformer import transformer, transformer_layers

from switch_mtf.layers.routers import (
  ExpertChoiceRouter,
  NoTokenLeftBehindRouter,
  Top2Router,
)
from switch_mtf.layers.routing import SwitchRouter
from switch_mtf.layers.switch_attention import SwitchSelfAttention
from switch_mtf.layers.switch_ffn import SwitchFFN

BATCH, LENGTH, VOCAB = 3, 7, 11
SUBLAYERS = [transformer.sublayer_rms_norm, transformer.sublayer_call_layer,
             transformer.sublayer_residual]
ROUTERS = {
    "switch": SwitchRouter,
    "switch, prioritized": lambda: SwitchRouter(prioritized=True),
    "top 2": Top2Router,
    "top 2, prioritized": lambda: Top2Router(prioritized=True),
    "no token left behind": lambda: NoTokenLeftBehindRouter(rounds=3),
}


def ffn(router=SwitchRouter, *, factor=None, **changed):
  # Groups of 21 tokens: one while all positions are there, and one of 3 in each
  # step of decoding.
  return SwitchFFN(num_experts=4, capacity_factor_eval=factor, min_capacity=1,
                   router=router(),
                   **({"group_size": 21, "hidden_size": 16} | changed))


def self_attention(cls=transformer_layers.SelfAttention, **changed):
  return cls(num_heads=2, key_value_size=4, relative_attention_type="bias",
             relative_attention_num_buckets=4, **changed)


def language_model(layers, vocab_size):
  return transformer.Unitransformer(
      transformer.LayerStack(layers=layers, sublayers_initial=[],
                             sublayers_per_layer=SUBLAYERS, sublayers_final=[]),
      d_model=8, input_vocab_size=vocab_size, output_vocab_size=vocab_size,
      autoregressive=True, max_length=LENGTH, name="decoder",
      vocab_divisor=1, positional_embedding=False)


def both_ways(layers):
  """Logits [batch, length, vocab] of all positions at once, and one by one."""
  mesh = mtf.Mesh(mtf.Graph(), "mesh")
  model = language_model(layers, VOCAB)
  batch, length = mtf.Dimension("batch", BATCH), mtf.Dimension("length", LENGTH)
  rng = np.random.default_rng(0)
  ids = mtf.import_tf_tensor(
      mesh, tf.constant(rng.integers(2, VOCAB, [BATCH, LENGTH]), tf.int32),
      mtf.Shape([batch, length]))
  inputs = transformer.autoregressive_inputs(ids)
  dtype = mtf.VariableDType(tf.float32)
  whole, _ = model.call_simple(
      inputs, ids, compute_loss=False, mode=tf.estimator.ModeKeys.EVAL,
      variable_dtype=dtype)
  common = dict(
      model=model, mesh=mesh, batch_dims=[batch], length_dim=length,
      variable_dtype=dtype)
  positions = mtf.range(mesh, length, tf.int32)
  first = transformer.Context(
      mode="first_part", position=positions, position_is_default=True,
      new_states=[], write_priority=positions, read_priority=positions,
      initial_position=mtf.constant(mesh, 0, dtype=tf.int32), **common)
  with tf.variable_scope("decoder", reuse=True):
    model._call_internal(first, mtf.zeros_like(inputs))
  states, steps = [mtf.zeros_like(s) for s in first.new_states], []
  for i in range(LENGTH):
    position = mtf.constant(mesh, i, dtype=tf.int32)
    step = transformer.Context(
        mode="incremental", position=position, states=states, new_states=[],
        write_priority=positions, read_priority=position, **common)
    with tf.variable_scope("decoder", reuse=True):
      steps.append(model._call_internal(step, mtf.gather(
          inputs, position, length)))
    states = step.new_states
  return evaluate_with_random_weights(
      mesh, [whole, mtf.stack(steps, "length", axis=1)])


def evaluate_with_random_weights(mesh, tensors, seed=1):
  lowering = lower(mesh)
  exported = [lowering.export_to_tf_tensor(t) for t in tensors]
  rng = np.random.default_rng(seed)
  with tf.Session(config=as_it_is()) as session:
    for variable in tf.global_variables():
      shape = variable.shape.as_list()
      session.run(variable.initializer)
      variable.load(rng.normal(size=shape) / max(1, shape[-1])**.5, session)
    session.run(lowering.copy_masters_to_slices())
    return session.run(exported)


@pytest.mark.parametrize("router", ROUTERS)
def test_every_router_of_tokens(router):
  whole, one_by_one = both_ways(
      [self_attention(), ffn(ROUTERS[router]), ffn(ROUTERS[router])])
  np.testing.assert_allclose(one_by_one, whole, atol=1e-5)


@pytest.mark.parametrize("hidden_size", [None, 16])
def test_switch_attention(hidden_size):
  attention = self_attention(
      SwitchSelfAttention, projection=lambda: ffn(hidden_size=hidden_size))
  whole, one_by_one = both_ways([attention, ffn(), attention])
  np.testing.assert_allclose(one_by_one, whole, atol=1e-5)


def test_a_prompt_is_not_pushed_out_by_what_is_not_written_yet():
  # Prompts of 2 tokens in sequences of 7, 21 tokens in a group, 4 experts with
  # 5 slots each at factor 1: the prompts' 6 tokens fit, were the other 15
  # positions not in the way, all with the same embedding and in the same
  # expert. Whatever is in them, the prompts come out the same.
  def first_part(filler):
    with tf.Graph().as_default():
      mesh = mtf.Mesh(mtf.Graph(), "mesh")
      dims = mtf.convert_to_shape(
          f"batch:{BATCH},length:{LENGTH},d_model:8").dims
      rng = np.random.default_rng(0)
      values = rng.normal(size=[BATCH, LENGTH, 8]).astype(np.float32)
      values[:, 2:] = filler
      context = make_context(mesh, mode="first_part")
      context.position = mtf.range(mesh, dims[1], tf.int32)
      context.initial_position = mtf.constant(
          mesh, 2, mtf.Shape(dims[:1]), dtype=tf.int32)
      y = ffn(factor=1.0).call(context, mtf.import_tf_tensor(
          mesh, tf.constant(values), mtf.Shape(dims)))
      y, = evaluate_with_random_weights(mesh, [y])
      return y

  one, other = first_part(0), first_part(3.0)
  np.testing.assert_array_equal(one[:, :2], other[:, :2])
  assert (one[:, :2] != 0).any(axis=-1).all()
  assert (one[:, 2:] == 0).all()


def test_a_capacity_that_binds_makes_a_difference():
  # Else the tests above could not fail: 21 tokens, 4 experts, 2 slots each.
  whole, one_by_one = both_ways([self_attention(), ffn(factor=.5)])
  assert np.abs(one_by_one - whole).max() > .01


def test_expert_choice_does_not_decode():
  with pytest.raises(ValueError, match="^ExpertChoiceRouter: the stack must"):
    both_ways([ffn(ExpertChoiceRouter)])


@pytest.mark.parametrize("seed", range(4))
def test_beam_search_finds_the_best_of_all_sequences(seed, clean_gin):
  # 4 tokens, of which 1 ends a sequence, and 3 positions: as many beams as
  # there are beginnings of 2 tokens leave nothing out. By the whole sequences
  # at once, 4 ** 3 of them, the best is the one whose log-likelihood up to its
  # first 1, over ((5 + length) / 6) ** 3, is highest (Wu et al. 2016, equation
  # 14; 3 in place of their 0.6, so that the shortest is not always the best).
  vocab, length, alpha = 4, 3, 3.0
  gin.bind_parameter("beam_search.num_prefilter", vocab)  # all of them
  mesh = mtf.Mesh(mtf.Graph(), "mesh")
  layers = [self_attention(), ffn(group_size=24), ffn(group_size=24)]
  model = language_model(layers, vocab)
  dtype = mtf.VariableDType(tf.float32)
  every = np.array(list(itertools.product(range(vocab), repeat=length)))
  ids = mtf.import_tf_tensor(
      mesh, tf.constant(every, tf.int32),
      mtf.convert_to_shape(f"batch:{len(every)},length:{length}"))
  logits, _ = model.call_simple(
      transformer.autoregressive_inputs(ids), ids, compute_loss=False,
      mode=tf.estimator.ModeKeys.EVAL, variable_dtype=dtype)
  log_probs = mtf.log_softmax(logits, logits.shape.dims[-1])
  with tf.variable_scope("", reuse=True):
    beam = model.beam_search(
        mtf.zeros(mesh, f"batch:1,beam:{vocab**2},length:{length}", tf.int32),
        mtf.constant(mesh, length, dtype=tf.int32), variable_dtype=dtype,
        alpha=alpha)
  (found,), log_probs = evaluate_with_random_weights(
      mesh, [beam, log_probs], seed)

  scores = {}
  for sequence, log_prob in zip(every.tolist(), log_probs, strict=True):
    if 1 in sequence:
      end = sequence.index(1) + 1
      total = log_prob[range(end), sequence[:end]].sum()
      scores[tuple(sequence[:end])] = total / ((5 + end) / 6) ** alpha
  best = max(scores, key=scores.get)
  assert tuple(found) == best + (0,) * (length - len(best))
