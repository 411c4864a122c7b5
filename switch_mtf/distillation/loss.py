"""Distillation: a student also learns from a teacher's probabilities (4.2).

With `utils.run.model_type = "bi_student_teacher"`, the student is the model
that gin configures outside of any scope, as without a teacher. Its loss is

  (1 - fraction_soft) * hard + fraction_soft * temperature^2 * soft

hard is the student's loss without a teacher. soft is the cross-entropy of
softmax(student's logits / temperature) with softmax(teacher's logits /
temperature) as targets. A Switch student's router losses are added. Differences
from upstream's StudentTeacher:

- The teacher is in evaluation mode: no dropout, no jitter, its capacity factor
  of evaluation.
- The run's checkpoints hold the student only, under the names that it has
  without a teacher, so that any command can use them. The teacher is read anew
  at each start.
- A student can copy weights from a teacher whose blocks are longer.
"""

import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

import gin
import mesh_tensorflow as mtf
import tensorflow.compat.v1 as tf
from mesh_tensorflow.transformer import transformer

from switch_mtf import errors
from switch_mtf.distillation import logit_cache, student_init
from switch_mtf.distillation.teacher import (
    TEACHER,
    Teacher,
    distill_from,
    most_used_experts,
)
from switch_mtf.kernels import embedding
from switch_mtf.layers import initialization
from switch_mtf.upstream import seams

TRAIN = tf.estimator.ModeKeys.TRAIN


@gin.configurable("distillation")
class Distillation(transformer.StudentTeacher):
  """A student and its teacher; see the module."""

  def __init__(
      self,
      student: transformer.Bitransformer,
      find_teacher: Callable[[], Teacher],
      models: Mapping[str, Any],
      *,
      temperature: float = 1.0,
      fraction_soft: float = 0.25,
      start_step: int = 0,
      copy_weights: bool = True,
      replaced: str = student_init.FRESH,
  ):
    """Configures the loss and the student's initial weights.

    Args:
      student: the model to train.
      find_teacher: returns the teacher; called only when a teacher is needed.
      models: arguments of `Teacher.build`.
      temperature: divides both models' logits in the soft loss. The paper does
        not give one.
      fraction_soft: weight of the soft loss, 0.25 in the paper.
      start_step: first step with a soft loss; earlier steps use the hard loss
        alone.
      copy_weights: whether a new student copies the teacher's weights that do
        not depend on the experts.
      replaced: if copy_weights, the initial value of a feed-forward layer where
        the teacher has experts: "fresh", "mean_expert" or "most_used_expert".

    Raises:
      ValueError: if an option has an illegal value.
    """
    who = "distillation"
    errors.require_number(who, above=0.0, temperature=temperature)
    errors.require_number(
        who, at_least=0.0, at_most=1.0, fraction_soft=fraction_soft)
    errors.require_whole(who, at_least=0, start_step=start_step)
    errors.require_flag(who, copy_weights=copy_weights)
    errors.require_one_of(who, student_init.WAYS, replaced=replaced)
    super().__init__(
        student, None, temperature=temperature, fraction_soft=fraction_soft,
        distill_start_step=start_step, initialize_student_weights=copy_weights)
    self.replaced = replaced
    self._cached = logit_cache.logit_cache()
    self._find_teacher = find_teacher
    self._models = models
    self._hard_loss = (
        student.decoder._loss_fn or embedding.cross_entropy_from_ids)

  def call_simple(
      self, inputs: mtf.Tensor, targets: mtf.Tensor, compute_loss: bool,
      mode: str = TRAIN, **kwargs: Any,
  ) -> tuple[mtf.Tensor, mtf.Tensor | None]:
    """Returns the student's logits and the loss; see the base class.

    Args:
      inputs: int32 [batch dims, length].
      targets: int32 [batch dims, length].
      compute_loss: whether to return a loss; only in training does it include
        the soft loss.
      mode: a tf.estimator.ModeKeys.
      **kwargs: other arguments of both models' `call_simple`.
    """
    self.student.decoder._loss_fn = self._hard_loss
    if self._cached and self._cached.fill:
      return self._fill(inputs, targets, **kwargs)
    if compute_loss and mode == TRAIN and self.fraction_soft > 0:
      self.student.decoder._loss_fn = self._mixed_loss(
          self.teacher_logits(inputs, targets, **kwargs))
    with tf.variable_scope(
        tf.get_variable_scope(),
        custom_getter=initialization.seed_by_name):
      return self.student.call_simple(
          inputs, targets, compute_loss, mode=mode, **kwargs)

  def teacher_logits(
      self, inputs: mtf.Tensor, targets: mtf.Tensor, **kwargs: Any
  ) -> mtf.Tensor:
    """Returns the teacher's logits in evaluation mode, without a gradient.

    Args:
      inputs: int32 [batch dims, length].
      targets: int32 [batch dims, length].
      **kwargs: see `Bitransformer.call_simple`.

    Returns:
      float32 [batch dims, length, vocab].
    """
    if self._cached:
      return mtf.stop_gradient(self._cached.read(
          inputs, targets, self.student.decoder.output_vocab_dim))
    graph = inputs.mesh.graph
    before = set(graph.trainable_variables)
    with tf.variable_scope(TEACHER):
      logits, _ = self._call_teacher(
          inputs, targets, compute_loss=False, **kwargs)
    graph.make_variables_untrainable(
        [v for v in graph.trainable_variables if v not in before])
    return mtf.stop_gradient(mtf.to_float(logits))

  def _call_teacher(
      self, *args: Any, **kwargs: Any
  ) -> tuple[mtf.Tensor, mtf.Tensor | None]:
    """Calls the teacher in evaluation mode; builds it at the first call."""
    if self.teacher is None:
      self.teacher = self._find_teacher().build(**self._models)
    with gin.config_scope(TEACHER):
      return self.teacher.call_simple(
          *args, mode=tf.estimator.ModeKeys.EVAL, **kwargs)

  def _fill(
      self, inputs: mtf.Tensor, targets: mtf.Tensor, **kwargs: Any
  ) -> tuple[mtf.Tensor, mtf.Tensor]:
    """Runs the teacher alone, named as in its checkpoint, to fill the cache."""
    logits, loss = self._call_teacher(
        inputs, targets, compute_loss=True, **kwargs)
    return self._cached.write(inputs, targets, logits), loss

  def _mixed_loss(self, teacher_logits: mtf.Tensor):
    """Returns a `Unitransformer.loss_fn` that mixes hard and soft loss."""

    def loss_fn(model, context, logits, targets, vocab_dim):
      hard = self._hard_loss(model, context, logits, targets, vocab_dim)
      soft = mtf.layers.softmax_cross_entropy_with_logits(
          mtf.to_float(logits) / self.temperature,
          mtf.softmax(teacher_logits / self.temperature, vocab_dim),
          vocab_dim, z_loss=model.z_loss)
      real = mtf.cast(mtf.greater(targets, 0), soft.dtype)
      soft = mtf.reduce_sum(soft * real) / model.loss_denominator(
          targets, context.num_microbatches)
      share = self._share()
      return (hard * tf.cast(1.0 - share, hard.dtype)
              + mtf.cast(soft, hard.dtype) * tf.cast(
                  self.temperature**2 * share, hard.dtype))

    return loss_fn

  def _share(self) -> tf.Tensor:
    """Returns the weight of the soft loss at the current step."""
    step = tf.train.get_or_create_global_step()
    return tf.where(step >= self.distill_start_step, self.fraction_soft, 0.0)

  def decode(self, *args: Any, **kwargs: Any) -> mtf.Tensor:
    """Decodes with the student."""
    return self.student.decode(*args, **kwargs)

  def initialize(self) -> None:
    """Initialises the teacher and a new student from the teacher's checkpoint.

    Called when the graph is complete. Opens the cache if the run has one.

    Raises:
      ValueError: if the checkpoint does not match the teacher's model.
    """
    if self.fraction_soft == 0 and not self.initialize_student_weights:
      return
    checkpoint = self._find_teacher().trained()
    if self._cached and self.fraction_soft > 0:
      self._cached.start(checkpoint)
    shapes = {name: tuple(shape)
              for name, shape in tf.train.list_variables(checkpoint)}
    variables = {v.op.name: v for v in tf.global_variables()}
    teacher = {name.removeprefix(f"{TEACHER}/"): variable
               for name, variable in variables.items()
               if name.startswith(f"{TEACHER}/")}
    _check_teacher(teacher, shapes, checkpoint)
    tf.train.init_from_checkpoint(checkpoint, teacher)
    _leave_out_of_checkpoints(teacher.values())
    if self.initialize_student_weights:
      self._initialize_student(variables, shapes, checkpoint)

  def _initialize_student(
      self, variables: Mapping[str, tf.Variable],
      shapes: Mapping[str, tuple[int, ...]], checkpoint: str,
  ) -> None:
    """Initialises the student and prints which weights it copies."""
    student = {
        name: v for name, v in variables.items()
        if not name.startswith(f"{TEACHER}/") and "_slot_" not in name
        and name != "global_step"}
    shapes = {name: shape for name, shape in shapes.items()
              if "_slot_" not in name and name != "global_step"}
    start = student_init.match(
        {name: tuple(v.shape.as_list()) for name, v in student.items()}, shapes,
        self.replaced)
    used = {}
    if self.replaced == student_init.MOST_USED:
      used = most_used_experts(os.path.dirname(checkpoint))
    student_init.assign(student, start, checkpoint, used)
    for line in student_init.lines(start):
      print(f"distillation: {line}", file=sys.stderr)


def _check_teacher(
    teacher: Mapping[str, tf.Variable], shapes: Mapping[str, tuple[int, ...]],
    checkpoint: str,
) -> None:
  """Raises ValueError unless the checkpoint fits the teacher's variables."""
  for name, variable in teacher.items():
    wanted = tuple(variable.shape.as_list())
    if shapes.get(name) != wanted:
      raise ValueError(
          "distillation: the teacher's checkpoint must match the teacher's "
          f"model, with {name}={list(wanted)} in the model, "
          f"{list(shapes[name]) if name in shapes else 'nothing'} in "
          f"checkpoint={checkpoint}. Correct distill_from.checkpoint, or the "
          "model in distill_from.config. If this is an embedding, the "
          "vocabularies differ: set MIXTURE_NAME to a task with the teacher's.")


def _leave_out_of_checkpoints(variables) -> None:
  """Makes variables local: each new session initialises them."""
  names = {v.op.name for v in variables}
  kept = [v for v in tf.get_collection_ref(tf.GraphKeys.GLOBAL_VARIABLES)
          if v.op.name not in names]
  tf.get_collection_ref(tf.GraphKeys.GLOBAL_VARIABLES)[:] = kept
  for variable in variables:
    tf.add_to_collection(tf.GraphKeys.LOCAL_VARIABLES, variable)


def make_student_teacher(
    input_vocab_size: int, output_vocab_size: int, layout: Any = None,
    mesh_shape: Any = None,
) -> Distillation:
  """Builds student and teacher; replaces upstream's `make_bi_student_teacher`.

  Args:
    input_vocab_size: size of the run's input vocabulary.
    output_vocab_size: size of the run's output vocabulary.
    layout: layout rules of the run.
    mesh_shape: mesh of the run.

  Returns:
    The student, and the teacher to build when needed.
  """
  arguments = dict(input_vocab_size=input_vocab_size,
                   output_vocab_size=output_vocab_size, layout=layout,
                   mesh_shape=mesh_shape)
  return Distillation(
      transformer.make_bitransformer(**arguments), distill_from, arguments)


seams.make_student_teacher_with(make_student_teacher)
