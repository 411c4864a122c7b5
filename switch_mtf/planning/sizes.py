"""Counts parameters and FLOPs from the variables of a Mesh-TF graph."""

import dataclasses
import math

import mesh_tensorflow as mtf

EXPERTS = "experts"


@dataclasses.dataclass(frozen=True)
class Parameters:
  """Parameter counts of a model.

  Attributes:
    total: number of all parameters.
    by_stack: "encoder", "decoder", "shared" (the embedding) -> parameters.
    experts: parameters of experts, without their routers.
    active_per_token: parameters that one token uses, which include only the
      experts that it is sent to. Embeddings count whole.
  """

  total: int
  by_stack: dict[str, int]
  experts: int
  active_per_token: int


def parameters(graph: mtf.Graph, choices: int) -> Parameters:
  """Counts the parameters of a model.

  Args:
    graph: graph with the model's variables.
    choices: number of experts that a token is sent to.

  Returns:
    The counts.
  """
  by_stack: dict[str, int] = {}
  experts = active = 0
  for variable in originals(graph):
    size = variable.shape.size
    stack = variable.name.split("/")[0]
    by_stack[stack] = by_stack.get(stack, 0) + size
    if is_expert(variable):
      experts += size
      size = size * choices // num_experts(variable)
    active += size
  return Parameters(sum(by_stack.values()), by_stack, experts, active)


@dataclasses.dataclass(frozen=True)
class _Original:
  """A trainable variable as it was before Mesh-TF stacked variables."""

  name: str
  shape: mtf.Shape


def originals(graph: mtf.Graph) -> list[_Original]:
  """Returns the trainable variables; unstacks those that Mesh-TF stacked.

  Mesh-TF stacks variables of the same shape so that graphs build faster.
  """
  found = []
  for variable in graph.trainable_variables:
    if isinstance(variable, mtf.ops.StackedVariable):
      shape = mtf.Shape(variable.shape.dims[1:])
      found += [_Original(name, shape) for name in variable.original_names]
    else:
      found.append(_Original(variable.name, variable.shape))
  return found


def is_expert(variable) -> bool:
  """Returns whether a variable holds experts, and is not a router."""
  return EXPERTS in variable.shape.dimension_names and (
      "/router/" not in variable.name)


def num_experts(variable) -> int:
  """Returns the number of experts that a variable holds."""
  return variable.shape.get_dim_by_name(EXPERTS).size


def flops_per_sequence(
    graph: mtf.Graph, sequence_length: dict[str, int], choices: int
) -> float:
  """Counts the FLOPs of a forward pass by the rule of Table 9.

  The rule is that of Kaplan et al. (https://arxiv.org/abs/2001.08361), section
  2.1. Each token costs two FLOPs per parameter that is not an embedding, and 2
  n_layer n_ctx d_attn for attention. The logits of the targets are added;
  routers are left out. With inputs of 512 and targets of 114 tokens, the result
  agrees with the figures of the paper.

  Args:
    graph: graph with the model's variables.
    sequence_length: tokens of "inputs" and "targets".
    choices: number of experts that a token is sent to.

  Returns:
    FLOPs per sequence.
  """
  total = 0.0
  vocabulary_entries = 0
  for variable in originals(graph):
    stack = variable.name.split("/")[0]
    tokens = sequence_length["targets" if stack == "decoder" else "inputs"]
    size = variable.shape.size
    if "vocab" in variable.shape.dimension_names:
      vocabulary_entries = size  # an untied output embedding is last
      continue
    if "/router/" in variable.name or "relative_attention" in variable.name:
      continue
    if is_expert(variable):
      size = size * choices // num_experts(variable)
    total += 2.0 * size * tokens
    if variable.name.endswith("Attention/o"):  # [d_attn, d_model], per layer
      context = sequence_length["inputs"] if "EncDec" in variable.name else (
          tokens)
      total += 2.0 * tokens * context * (
          size // variable.shape.get_dim_by_name("d_model").size)
  return total + 2.0 * vocabulary_entries * sequence_length["targets"]


def einsum_flops(lowering: mtf.Lowering) -> float:
  """Returns the FLOPs of a step's einsums, as lowered, on all processors."""
  return 2.0 * sum(
      size for name, size in lowering.counters if name == "einsum")


def binomial_overflow(tokens: int, experts: int, capacity: int) -> float:
  """Computes the expected fraction of dropped tokens if routing is random.

  Args:
    tokens: tokens of a group.
    experts: number of experts, which a token chooses with equal probability.
    capacity: slots of an expert for one group.

  Returns:
    The expected fraction of the tokens.
  """
  if experts == 1:
    return max(0, tokens - capacity) / tokens
  p = 1.0 / experts

  def log_probability(count: int) -> float:
    return (math.lgamma(tokens + 1) - math.lgamma(count + 1)
            - math.lgamma(tokens - count + 1)
            + count * math.log(p) + (tokens - count) * math.log1p(-p))

  over = sum((count - capacity) * math.exp(log_probability(count))
             for count in range(capacity + 1, tokens + 1))
  return over * experts / tokens
