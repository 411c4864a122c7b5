"""Feeds the layers random gin configurations, legal and illegal.

  PYTHONPATH=.:tests python tests/helpers/fuzz_layers.py --count 500 --seed 0
  PYTHONPATH=.:tests python tests/helpers/fuzz_layers.py --each  # one by one

Each is parsed, built through gin, and run for one step, forward and backward.
A legal one must run and give finite numbers. An illegal one must be refused, in
words that tell the user what to change: `<who>: <what must hold>, with
<name=value, ...>. <what to change>.` Anything else is a finding, printed with
the smallest configuration that still shows it; then the exit code is 1.
"""

import switch_mtf.upstream  # noqa: F401  isort:skip  (before mesh_tensorflow)

import argparse
import collections
import dataclasses
import json
import os
import re
import sys
import time
import traceback
import types

import gin
import mesh_tensorflow as mtf
import numpy as np
import tensorflow.compat.v1 as tf
from helpers.fuzz_values import Generator, Line, each
from mesh_tensorflow.transformer import transformer

from switch_mtf import errors
from switch_mtf.layers import (  # noqa: F401  (known to gin by its import)
  initialization,
  routers,
  stateless,
  switch_attention,
  switch_ffn,
)

PACKAGE = os.path.dirname(switch_mtf.__file__) + os.sep
HOUSE_FORM = re.compile(
    r"[\w. ]+: .+ must .+, with .+[=:].*\. [A-Z].*\.?", re.DOTALL)
# Why a layer is refused of which every binding by itself is legal.
FORESEEN = re.compile(
    "divide|divisible|be autoregressive|exploration must leave|"
    "split by different mesh axes|split by one mesh axis|must not split")
APPENDIX = "\n  In call to configurable"  # gin's own appendix to a message


@gin.configurable
def nan() -> float:
  """Not a number: gin has no way to write it."""
  return float("nan")


@gin.configurable
def step(
    layer,
    x_shape: str = "batch:4,length:4,d_model:8",
    mode: str = "train",
    autoregressive: bool = False,
    bfloat16: bool = False,
    padding: bool = False,
    mesh_shape: str = "",
    layout: str = "",
) -> dict[str, np.ndarray]:
  """Runs a layer once in a graph of its own, as a model would.

  Args:
    layer: a TransformerLayer.
    x_shape: of its input.
    mode: "train", "eval" or "incremental"; in the last `x` has no length.
    autoregressive: whether the layer is in a decoder, as it always is while
      decoding.
    bfloat16: whether activations are.
    padding: whether the ends of the sequences are.
    mesh_shape: processors, all on this CPU.
    layout: of the tensors.

  Returns:
    Outputs, losses and gradients of their sum.
  """
  mesh = mtf.Mesh(mtf.Graph(), "mesh")
  mesh_shape = mtf.convert_to_shape(mesh_shape)
  layout = mtf.convert_to_layout_rules(layout)
  autoregressive = autoregressive or mode == "incremental"
  try:
    context, x = _context(
        mesh, mtf.convert_to_shape(x_shape), mode, padding,
        tf.bfloat16 if bfloat16 else tf.float32, types.SimpleNamespace(
            layout=layout, mesh_shape=mesh_shape,
            autoregressive=autoregressive, fully_autoregressive=autoregressive,
            ensemble_dim=None, ensemble_dims=[]))
    tf.set_random_seed(stateless.random_seed())
    initialization.scale_attention(tf.get_variable_scope())
    with tf.variable_scope("block_000/layer_001/layer") as scope:
      y = _call(layer, context, x, scope)
    found = {"y": y, **{f"loss {i}": t for i, t in enumerate(context.losses)}}
    total = mtf.add_n([
        mtf.reduce_sum(mtf.to_float(t)) for t in found.values()])
    inputs = {v.name: v.outputs[0] for v in mesh.graph.trainable_variables}
    inputs["x"] = x
    found |= {f"d {name}": d for name, d in zip(
        inputs, mtf.gradients([total], list(inputs.values())), strict=True)}
    return _evaluate(mesh, found, mesh_shape, layout)
  except Exception as error:
    # As a training run does it.
    better = errors.explain_mesh_error(error, mesh_shape, layout)
    if better is None:
      raise
    raise better from error


def _context(mesh, x_shape, mode, padding, dtype, model):
  """What a stack tells its layers, and their input."""
  rng = np.random.default_rng(0)
  *token_dims, model.model_dim = x_shape.dims
  length = mtf.Dimension("length", 4)  # in the cache, while decoding
  batch = token_dims
  if mode != "incremental":
    *batch, length = token_dims
  positions = mtf.range(mesh, length, tf.int32)
  context = transformer.Context(
      model, mesh, batch_dims=batch, length_dim=length, mode=mode,
      variable_dtype=mtf.VariableDType(tf.float32, tf.float32, dtype),
      position=positions, position_is_default=True, losses=[],
      write_priority=positions if model.autoregressive else None,
      read_priority=positions if model.autoregressive else None)
  if mode != "incremental":
    # T5 always passes this: upstream's attention needs a mask on a mesh.
    real = rng.integers(1, length.size + 1, [d.size for d in batch] + [1])
    real = np.arange(length.size) < (real if padding else length.size)
    context.sequence_id = mtf.import_tf_tensor(
        mesh, tf.constant(np.int32(real * np.ones(
            [d.size for d in token_dims]))), mtf.Shape(token_dims))
  x = mtf.import_tf_tensor(
      mesh, tf.constant(rng.normal(size=x_shape.to_integer_list), dtype),
      x_shape)
  return context, x


def _call(layer, context, x, scope):
  """Runs the layer; while decoding, on the state that it left behind."""
  if context.mode != "incremental":
    return layer.call(context, x)
  length = context.length_dim
  context.mode, context.new_states = "first_part", []
  layer.call(context, mtf.broadcast(
      x, mtf.Shape([*x.shape.dims[:-1], length, x.shape.dims[-1]])))
  context.mode, context.losses = "incremental", []
  context.states, context.new_states = context.new_states, []
  context.position = mtf.constant(x.mesh, 1, dtype=tf.int32)
  if context.read_priority is not None:
    context.read_priority = context.position
  scope.reuse_variables()
  return layer.call(context, x)


def _evaluate(mesh, tensors, mesh_shape, layout):
  """Mtf tensors as arrays; a gradient may be None."""
  impl = mtf.placement_mesh_impl.PlacementMeshImpl(
      mesh_shape, layout, [""] * mesh_shape.size)
  lowering = mtf.Lowering(mesh.graph, {mesh: impl})
  exported = {name: tf.cast(lowering.export_to_tf_tensor(t), tf.float32)
              for name, t in tensors.items() if t is not None}
  # Graphs this small take longer to optimise than to run.
  config = tf.ConfigProto()
  config.graph_options.rewrite_options.disable_meta_optimizer = True
  with tf.Session(config=config) as session:
    session.run(tf.global_variables_initializer())
    session.run(lowering.copy_masters_to_slices())
    return session.run(exported)


# What comes of it.


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What became of a configuration.

  Attributes:
    kind: "ran", "refused" or "finding".
    label: the same for outcomes that are alike.
    message: of the error, if there was one.
  """

  kind: str
  label: str
  message: str = ""


def try_out(lines: list[Line]) -> Outcome:
  """Parses, builds, runs, and judges."""
  gin.clear_config()
  mistakes = [f"{line.name}: {line.mistake}" for line in lines if line.mistake]
  try:
    with tf.Graph().as_default():
      gin.parse_config([str(line) for line in lines])
      found = step()
  except Exception as error:  # noqa: BLE001  (which error is the question)
    return _judge(error, mistakes)
  finally:
    gin.clear_config()
  wild = [name for name, value in found.items() if not np.isfinite(value).all()]
  if wild:
    return Outcome("finding", "ran, to numbers that are not finite",
                   f"{', '.join(wild)}; {'; '.join(mistakes)}")
  # A layout may be unforeseen and work, and linear experts of attention have
  # no hidden units.
  attention = any("@SwitchSelfAttention" in str(line) for line in lines)
  mistakes = [m for m in mistakes if not m.startswith("step.") and not (
      attention and m.startswith("SwitchFFN.hidden_size"))]
  if mistakes:
    return Outcome("finding", f"ran, though illegal: {mistakes[0]}",
                   "; ".join(mistakes))
  return Outcome("ran", "ran")


def _judge(error: Exception, mistakes: list[str]) -> Outcome:
  """An error that the user can read, or a finding."""
  text = errors.user_message(error)
  # `run_t5.py` catches no others.
  if text and HOUSE_FORM.match(text) and isinstance(
      error, ValueError | OSError):
    label = re.split(r", with ", text)[0]
    if mistakes or FORESEEN.search(label):
      return Outcome("refused", label, text)
    return Outcome("finding", f"refused, though legal: {label}", text)
  frames = traceback.extract_tb(error.__traceback__)
  # Not by name alone: a virtual environment may lie in a folder of that name.
  ours = [f for f in frames if f.filename.startswith(PACKAGE)]
  where = f" in {ours[-1].name}" if ours else ""
  text = str(error).split(APPENDIX)[0]
  # gin raises a subclass of its own, of the same name.
  # What follows may hold a set, printed in any order.
  label = re.sub(r"\d+(\.\d+)?", "N", text.strip().split("\n")[0])[:60]
  return Outcome("finding", f"{type(error).__name__}{where}: {label}", text)


def smallest(lines: list[Line], label: str) -> list[Line]:
  """The configuration without each line that does not matter."""
  for line in list(lines):
    fewer = [other for other in lines if other is not line]
    if line.name != "step.layer" and try_out(fewer).label == label:
      lines = fewer
  return lines


def fuzz(configurations: list[list[Line]], report=print,
         seconds_between_lines: float = 10.0, verbose: bool = False) -> dict:
  """Tries out configurations.

  Args:
    configurations: what to try.
    report: is given each line of progress.
    seconds_between_lines: of progress.
    verbose: whether to report each configuration before it is tried.

  Returns:
    ran: a number; refused: number by message; findings: by label a dict of
      number, message, the smallest gin text, and number by mistake.
  """
  refused, findings = collections.Counter(), {}
  start, said, count = time.monotonic(), time.monotonic(), len(configurations)
  for done, lines in enumerate(configurations, start=1):
    if verbose:
      report("trying:\n  " + "\n  ".join(map(str, lines)))
    outcome = try_out(lines)
    if outcome.kind == "refused":
      refused[outcome.label] += 1
    elif outcome.kind == "finding":
      if outcome.label not in findings:
        findings[outcome.label] = {
            "number": 0, "message": outcome.message, "mistakes": {},
            "gin": [str(s) for s in smallest(lines, outcome.label)]}
        report(f"finding: {outcome.label}\n  " +
               "\n  ".join(findings[outcome.label]["gin"]))
      findings[outcome.label]["number"] += 1
      for line in lines:
        if line.mistake:
          seen = findings[outcome.label]["mistakes"]
          what = f"{line.name}: {line.mistake}"
          seen[what] = seen.get(what, 0) + 1
    now = time.monotonic()
    if now - said > seconds_between_lines or done == count:
      said, left = now, (now - start) / done * (count - done)
      report(f"{done} of {count}, {len(findings)} findings, "
             f"{left / 60:.1f} minutes left")
  ran = count - sum(refused.values()) - sum(
      f["number"] for f in findings.values())
  return {"ran": ran, "refused": dict(refused), "findings": findings}


def table(results: dict) -> str:
  """The results, for people."""
  lines = [f"{results['ran']:6d}  ran"]
  lines += [f"{n:6d}  refused: {label}" for label, n in sorted(
      results["refused"].items(), key=lambda item: -item[1])]
  for label, finding in results["findings"].items():
    lines += [f"{finding['number']:6d}  FINDING: {label}",
              f"        {finding['message'][:300]}",
              *(f"          {line}" for line in finding["gin"]),
              *(f"        {n} with {m}" for m, n in
                finding["mistakes"].items())]
  return "\n".join(lines)


def main() -> int:
  """The command."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--count", type=int, default=500)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--each", action="store_true",
                      help="every value by itself, instead of random ones")
  parser.add_argument("--verbose", action="store_true",
                      help="print each configuration before it is tried")
  parser.add_argument("--output", help="a JSON file for the results")
  arguments = parser.parse_args()
  generator = Generator(arguments.seed)
  results = fuzz(
      list(each()) if arguments.each else [
          generator.draw() for _ in range(arguments.count)],
      verbose=arguments.verbose, report=lambda text: print(text, flush=True))
  print(table(results))
  if arguments.output:
    with open(arguments.output, "w") as f:
      json.dump(results, f, indent=2)
  return 1 if results["findings"] else 0


if __name__ == "__main__":
  tf.logging.set_verbosity(tf.logging.ERROR)
  sys.exit(main())
