"""Formats a plan as text."""

from switch_mtf.planning import fit
from switch_mtf.planning.configuration import Configuration
from switch_mtf.planning.plan import TRAINING_PASSES, Plan

HINTS = {
    "weights": "split further: experts, d_ff, heads or vocab in layout_rules",
    "optimizer_slots": "small for Adafactor, large for other optimizers",
    "gradients": "includes updates; reduce as weights",
    "activations": "smaller batch per core, microbatches, or more cores",
    "overhead": "free memory between tensors, and parallel operations",
    "dispatch": "slots of experts; lower capacity factor, or as activations",
}


def text(plan: Plan) -> str:
  """Formats a plan for people to read.

  Args:
    plan: plan of a run.

  Returns:
    Lines of text.
  """
  return "\n".join([*_run(plan), "", *_model(plan), "", *_memory(plan), "",
                    *_communication(plan), "", *_verdict(plan)])


def _run(plan: Plan) -> list[str]:
  """Returns the size of the run, and its mesh."""
  config = plan.configuration
  mesh = config.mesh_shape
  lengths = " + ".join(
      f"{length} of {name}" for name, length in config.sequence_length.items())
  return [
      *added(config),
      f"{config.train_steps:,} steps of {config.batch_size:,} sequences "
      f"(tokens: {lengths})" + (
          f", {config.num_microbatches} microbatches per step"
          if config.num_microbatches > 1 else ""),
      f"on {mesh.size:,} {plan.device.name} "
      f"{'core' if mesh.size == 1 else 'cores'}"
      + (f", mesh {fit.written(mesh)}" if mesh.dims else ""),
  ]


def added(config: Configuration) -> list[str]:
  """Returns the command that starts the run, if the given files are not a run.

  Args:
    config: resolved run.

  Returns:
    Lines of text; empty if the given files are a run.
  """
  if not config.added:
    return []
  files, params = config.added
  return [
      "no run was given; planned as the paper's pre-training. To start it:",
      "  python run_t5.py ... --model_dir=DIR "
      + " ".join(f"--gin_file={path}" for path in files),
      *(f'    --gin_param="{param}"' for param in params)]


def _model(plan: Plan) -> list[str]:
  """Returns parameters, FLOPs, capacity and auxiliary losses."""
  params = plan.parameters
  stacks = ", ".join(f"{name} {_short(count)}"
                     for name, count in sorted(params.by_stack.items()))
  lines = [
      f"parameters           {params.total:,} ({stacks})",
      f"  of experts         {params.experts:,}"
      f" ({100 * params.experts / params.total:.1f} %)",
      f"  used per token     {params.active_per_token:,}",
      f"FLOPs per sequence   {_short(plan.flops_per_sequence)} forward, "
      f"{_short(TRAINING_PASSES * plan.flops_per_sequence)} in training",
      f"FLOPs of the run     {_short(plan.training_flops)}",
  ]
  if plan.device.peak_flops:
    seconds = plan.training_flops / (
        plan.device.peak_flops * plan.configuration.mesh_shape.size)
    lines.append(f"  at the peak rate   {seconds / 86400:.2f} days at least")
  for stack, room in plan.capacity.items():
    lines.append(
        f"capacity, {stack}    {room.capacity} slots per expert and group of "
        f"{room.group_size:,} tokens; random routing would drop "
        f"{100 * room.expected_drops:.1f} % of the tokens")
  for name, weights in plan.loss_weights.items():
    lines.append(f"{name:<20} {len(weights)} layers, together weighing "
                 f"{sum(weights):.4g}")
  return lines


def _memory(plan: Plan) -> list[str]:
  """Returns the bytes of each kind of memory, with hints to reduce them."""
  kinds = fit.memory_per_core(plan.memory, plan.device)
  lines = [f"memory per core, of {in_bytes(plan.device.memory)}"]
  for kind, size in kinds.items():
    if size:
      hint = HINTS.get(kind)
      lines.append(f"  {kind:<18} {in_bytes(size):>10}"
                   + (f"   {hint}" if hint else ""))
  if plan.memory.masters:
    lines.append(f"  on the hosts       {in_bytes(plan.memory.masters):>10}   "
                 "the checkpoint's copy, for all cores")
  return lines


def _communication(plan: Plan) -> list[str]:
  """Returns the bytes and the number of each kind of collective."""
  if not plan.communication:
    return ["communication: none"]
  lines = ["communication per core and step (size, number of collectives)"]
  for entry in plan.communication:
    lines.append(f"  {entry['kind']:<10} along {entry['mesh_axis']:<16} "
                 f"{in_bytes(entry['bytes']):>10} in {entry['count']:,}")
  return lines


def _verdict(plan: Plan) -> list[str]:
  """Returns whether the run fits, and else batches and meshes that do."""
  advice, config = plan.advice, plan.configuration
  parts = config.num_microbatches
  if advice.fits:
    at_once = config.batch_size // parts
    return [f"fits: {at_once:,} sequences at once"
            + (f", {parts} times per step" if parts > 1 else "")
            + f"; about {advice.largest_batch:,} should fit, which is not "
            "planned"]
  if advice.flags:
    return ["DOES NOT FIT. With these flags in addition it does, each line for "
            "itself (planned):", *(f"  {flags}" for flags in advice.flags)]
  return ["DOES NOT FIT.", f"  none of {advice.planned} similar runs fits, "
          "with smaller microbatches, other layouts of gin/layouts or a larger "
          "mesh: use a smaller model" + (
              ", or split weights further, by utils.run.layout_rules"
              if config.mesh_shape.size > 1 else "")]


def _short(count: float) -> str:
  """Formats a count with a unit: 1234567 as '1.235M'."""
  for unit, size in (("Z", 1e21), ("E", 1e18), ("P", 1e15), ("T", 1e12),
                     ("B", 1e9), ("M", 1e6), ("k", 1e3)):
    if count >= size:
      return f"{count / size:.4g}{unit}"
  return f"{count:.4g}"


def in_bytes(size: float) -> str:
  """Formats a number of bytes as '1.23 GB' or '1.23 MB'."""
  return f"{size / 1e9:,.2f} GB" if size >= 1e7 else f"{size / 1e6:,.2f} MB"
