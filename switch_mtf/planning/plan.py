"""Joins everything that the planner finds into one plan."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import gin
import mesh_tensorflow as mtf

from switch_mtf.dims import expert_capacity
from switch_mtf.layers.switch_ffn import SwitchFFN
from switch_mtf.planning import configuration as configurations
from switch_mtf.planning import devices, fit, graph, memory, sizes
from switch_mtf.planning.configuration import Configuration
from switch_mtf.planning.devices import Device

# A backward pass takes twice the FLOPs of a forward pass.
TRAINING_PASSES = 3


@dataclasses.dataclass(frozen=True)
class Capacity:
  """The capacity of a stack's experts in training.

  Attributes:
    experts: number of experts of a layer.
    group_size: tokens of a group.
    capacity: slots of an expert for one group.
    expected_drops: fraction of the tokens that would be dropped if each chose
      an expert at random, as is expected before routers learn.
  """

  experts: int
  group_size: int
  capacity: int
  expected_drops: float


@dataclasses.dataclass(frozen=True)
class Plan:
  """The needs and costs of a training run on a mesh of some device.

  Attributes:
    configuration: resolved run.
    device: kind of each processor.
    parameters: parameter counts of the model.
    flops_per_sequence: FLOPs of a forward pass, by the rule of Table 9.
    einsum_flops_per_core: FLOPs of the einsums of a step (forward, backward and
      optimizer), counted in the lowered graph.
    memory: memory of one processor.
    communication: collectives of one processor in a step, added up: kind, mesh
      axes, bytes, elements, count.
    capacity: stack -> capacity of its layers; empty for a dense model.
    advice: batches and meshes that fit.
    variables: (name, shape) of each trainable variable.
    loss_weights: auxiliary loss -> its weight in the model's loss, per layer.
  """

  configuration: Configuration
  device: Device
  parameters: sizes.Parameters
  flops_per_sequence: float
  einsum_flops_per_core: float
  memory: memory.Memory
  communication: list[dict[str, Any]]
  capacity: dict[str, Capacity]
  advice: fit.Advice
  variables: list[tuple[str, mtf.Shape]]
  loss_weights: dict[str, list[float]]

  @property
  def training_flops(self) -> float:
    """The FLOPs of the whole run, by the rule of Table 9."""
    config = self.configuration
    return (self.flops_per_sequence * TRAINING_PASSES * config.batch_size
            * config.train_steps)

  def as_dict(self) -> dict[str, Any]:
    """Returns the plan as --json prints it."""
    config = self.configuration
    return {
        "device": self.device.name,
        "mesh_shape": config.mesh_shape.to_string,
        "cores": config.mesh_shape.size,
        "batch_size": config.batch_size,
        "sequence_length": config.sequence_length,
        "train_steps": config.train_steps,
        "num_microbatches": config.num_microbatches,
        "parameters": self.parameters.total,
        "parameters_by_stack": self.parameters.by_stack,
        "expert_parameters": self.parameters.experts,
        "active_parameters_per_token": self.parameters.active_per_token,
        "flops_per_sequence": self.flops_per_sequence,
        "training_flops_per_sequence": (
            TRAINING_PASSES * self.flops_per_sequence),
        "einsum_flops_per_core_and_step": self.einsum_flops_per_core,
        "memory_per_core": fit.memory_per_core(self.memory, self.device),
        "memory_of_device": self.device.memory,
        "memory_of_hosts": self.memory.masters,
        "communication_per_step": self.communication,
        "capacity": {stack: dataclasses.asdict(capacity)
                     for stack, capacity in self.capacity.items()},
        "fits": self.advice.fits,
        "largest_batch_at_once": self.advice.largest_batch,
        "meshes_that_fit": self.advice.meshes,
        "flags_that_fit": self.advice.flags,
    }


def plan(
    gin_files: Sequence[str],
    gin_params: Sequence[str] = (),
    *,
    device: str | None = None,
    mesh_shape: str | None = None,
) -> Plan:
  """Plans a training run.

  Args:
    gin_files: gin files, as for `run_t5.py`; a model without a run is planned
      as the paper's pre-training.
    gin_params: bindings that override the files.
    device: one of `devices.names()`; by default cpu for one processor and
      tpu_v3 for several.
    mesh_shape: mesh that replaces `utils.run.mesh_shape`.

  Returns:
    The plan.

  Raises:
    ValueError: if the run would raise one before its first step.
  """
  config = configurations.resolve(
      gin_files, gin_params, device=device, mesh_shape=mesh_shape)
  kind = devices.device(config.device)
  built = graph.build(config)
  mtf_graph = built.lowering.graph
  choices = _choices(mtf_graph)
  needed = memory.of_training(built)
  return Plan(
      configuration=config, device=kind,
      parameters=sizes.parameters(mtf_graph, choices),
      flops_per_sequence=sizes.flops_per_sequence(
          mtf_graph, config.sequence_length, choices),
      einsum_flops_per_core=(
          sizes.einsum_flops(built.lowering) / built.mesh_impl.size
          * config.num_microbatches),  # updates have few einsums
      memory=needed,
      communication=_communication(built, config.num_microbatches),
      capacity=_capacity(mtf_graph),
      advice=fit.advise(needed, config, kind, mtf_graph),
      variables=[(v.name, v.shape) for v in sizes.originals(mtf_graph)],
      loss_weights=built.loss_weights)


def _choices(mtf_graph: mtf.Graph) -> int:
  """Returns the experts that a token is sent to; 1 for a dense model."""
  return max((dim.size for op in graph.operations(mtf_graph)
              for out in op.outputs for dim in out.shape.dims
              if dim.name == "choices"), default=1)


def _capacity(mtf_graph: mtf.Graph) -> dict[str, Capacity]:
  """Returns the capacity of each stack's layers, as gin configures them."""
  if not any(sizes.is_expert(v) for v in mtf_graph.trainable_variables):
    return {}
  found = {}
  for stack in ("encoder", "decoder"):
    with gin.config_scope(stack):
      layer = SwitchFFN()
    experts, group = layer.num_experts, layer.group_size
    factor = layer.capacity_factor_train
    capacity = group if factor is None else expert_capacity(
        group, experts, factor, layer.min_capacity)
    found[stack] = Capacity(experts, group, capacity,
                            sizes.binomial_overflow(group, experts, capacity))
  return found


def _communication(
    built: graph.TrainingGraph, num_microbatches: int
) -> list[dict[str, Any]]:
  """Adds up the collectives of a step by kind and mesh axes."""
  found = {}
  for collective in built.mesh_impl.collectives:
    times = num_microbatches if collective.in_loop else 1
    key = collective.kind, ",".join(collective.mesh_axes)
    total = found.setdefault(key, {
        "kind": key[0], "mesh_axis": key[1], "bytes": 0, "elements": 0,
        "count": 0})
    total["bytes"] += collective.bytes * times
    total["elements"] += collective.elements * times
    total["count"] += times
  return [found[key] for key in sorted(found)]
