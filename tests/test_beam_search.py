"""Beam search of upstream, as `upstream.fixes` leaves it, against lists."""

import mesh_tensorflow as mtf
import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from helpers.graphs import lower
from mesh_tensorflow import beam_search

END = 1


def search(table, beams, alpha, **options):
  """Ids and score of the best beam.

  `table` holds the logits of a token by position and by the token before.
  """
  length, vocab, _ = table.shape
  mesh = mtf.Mesh(mtf.Graph(), "mesh")
  dims = {name: mtf.Dimension(name, size) for name, size in dict(
      batch=1, beam=beams, length=length, step=length, before=vocab,
      vocab=vocab).items()}
  logits = mtf.import_tf_tensor(
      mesh, tf.constant(table, tf.float32),
      mtf.Shape([dims["step"], dims["before"], dims["vocab"]]))

  def logits_fn(step, ids, states):
    before = mtf.gather(ids, mtf.maximum(step - 1, 0), dims["length"])
    return mtf.gather(
        mtf.gather(logits, step, dims["step"]), before, dims["before"],
        output_shape=mtf.Shape(
            [dims["batch"], dims["beam"], dims["vocab"]])), states

  ids = mtf.zeros(
      mesh, mtf.Shape([dims["batch"], dims["beam"], dims["length"]]), tf.int32)
  found = beam_search.beam_search(
      logits_fn, ids, alpha, states=[], layout="", mesh_shape="", **options)
  lowering = lower(mesh)
  with tf.Session() as session:
    ids, scores = session.run(
        [lowering.export_to_tf_tensor(x) for x in found])
  return tuple(ids[0, 0]), scores[0, 0]


def by_hand(table, beams, alpha):
  """The search of Wu et al. 2016 (section 7), with lists.

  A step takes the 2 x beams best continuations. Those that end are ranked by
  log-likelihood over ((5 + length) / 6) ** alpha, and the best others go on.
  Where nothing has ended within the limit, the best of the others counts.
  """
  length, vocab, _ = table.shape
  log_probs = table - np.log(np.exp(table).sum(-1, keepdims=True))
  alive, ended = [((), 0.0)], []
  for step in range(length):
    penalty = ((5 + step + 1) / 6) ** alpha
    grown = [((*ids, new), total + log_probs[step, ids[-1] if ids else 0, new])
             for ids, total in alive for new in range(vocab)]
    grown = sorted(grown, key=lambda x: -x[1])[:2 * beams]
    ended += [(ids, x / penalty) for ids, x in grown if ids[-1] == END]
    ended = sorted(ended, key=lambda x: -x[1])[:beams]
    alive = [x for x in grown if x[0][-1] != END][:beams]
    if ended and ended[-1][1] > alive[0][1] / ((5 + length) / 6) ** alpha:
      break
  ids, score = (ended or alive)[0]
  return ids + (0,) * (length - len(ids)), score


@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("seed", range(6))
def test_default_is_exact(seed, alpha):
  rng = np.random.default_rng(seed)
  length, beams = int(rng.integers(2, 6)), int(rng.integers(2, 5))
  table = 2 * rng.normal(size=[length, 9, 9])
  if seed % 2:
    table[..., END] -= 9  # nothing ends
  ids, score = search(table, beams, alpha)
  expected_ids, expected = by_hand(table, beams, alpha)
  assert ids == expected_ids
  assert score == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_a_dead_beam_does_not_win(seed):
  # Each token has its logit whatever stands before it. The end is the third
  # best, so that a search of two continuations a beam never takes it: the best
  # ids are the argmaxes, and nothing ends. Upstream returns [worst, END] here,
  # or the like, with a score of about -1e7 / 1.3.
  rng = np.random.default_rng(seed)
  logits = rng.normal(size=[5, 12])
  others = np.delete(logits, END, axis=-1)
  logits[:, END] = np.sort(others, axis=-1)[:, -3:-1].mean(axis=-1)
  table = np.repeat(logits[:, None], 12, axis=1)
  ids, score = search(table, 3, 0.6, num_prefilter=2)
  log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  assert ids == tuple(logits.argmax(axis=-1))
  assert score == pytest.approx(log_probs.max(axis=-1).sum(), rel=1e-5)
