"""Hugging Face's Switch Transformers and T5, set up for the best speed.

torch uses all cores, in float32, without dropout or padding. The Adafactor is
transformers' own, and so is `generate`, with its cache on. The models are not
compiled: transformers marks its Switch model as one that cannot be
(`_can_compile_fullgraph`).
"""

import math
import os
from typing import Any

import psutil
import torch
import transformers
from transformers.models.switch_transformers import (
  modeling_switch_transformers as modeling,
)
from transformers.optimization import Adafactor

from benchmarks.spec import TASKS, Spec, Subject

D_MODEL = 256
D_FF = 1024
LAYERS = 4  # per stack
SPARSE_LAYERS = 2  # per stack: every other layer
HEADS = 4
D_KV = 64
FIRST_ID = 2  # 0 is padding, 1 the end of a sequence
# T5's default; T5 also has eager attention, the Switch model has only that.
DENSE_ATTENTION = "sdpa"
MATMULS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm")


def build(spec: Spec) -> Subject:
  """Builds the model with random weights.

  Args:
    spec: model and task; 1 expert is T5.

  Returns:
    A subject whose facts are complete after its first step.

  Raises:
    ValueError: if the task is unknown or needs more than one processor.
  """
  if spec.task not in TASKS:
    raise ValueError(
        f"Spec: task must be one of {', '.join(TASKS)}, with "
        f"task={spec.task}. Correct Spec.task.")
  if spec.processors != 1:
    raise ValueError(
        "hugging_face: there must be one processor, with "
        f"processors={spec.processors}. Set Spec.processors to 1.")
  torch.manual_seed(0)
  torch.set_num_threads(os.cpu_count() or 1)
  transformers.logging.set_verbosity_error()
  libraries = psutil.Process().memory_info().rss / 1e6
  model = _model(spec)
  subject = (_Decoding if spec.task == "decode" else _Training)(spec, model)
  subject.facts["rss_mb"] = {"libraries": libraries}
  return subject


def expert_capacity(spec: Spec) -> int:
  """Returns the expert capacity, which Hugging Face counts per sequence."""
  return math.ceil(spec.capacity_factor * spec.inputs / spec.experts)


def _model(spec: Spec) -> transformers.PreTrainedModel:
  """Builds T5 for 1 expert, else the Switch model with `_route_evenly`."""
  sizes = dict(
      vocab_size=spec.vocabulary, d_model=D_MODEL, d_ff=D_FF, d_kv=D_KV,
      num_heads=HEADS, num_layers=LAYERS, num_decoder_layers=LAYERS,
      dropout_rate=0.0, decoder_start_token_id=0, tie_word_embeddings=True)
  if spec.experts == 1:
    return transformers.T5ForConditionalGeneration(transformers.T5Config(
        feed_forward_proj="relu", attn_implementation=DENSE_ATTENTION,
        **sizes))
  modeling.SwitchTransformersTop1Router.forward = _route_evenly
  return transformers.SwitchTransformersForConditionalGeneration(
      transformers.SwitchTransformersConfig(
          num_experts=spec.experts, num_sparse_encoder_layers=SPARSE_LAYERS,
          num_sparse_decoder_layers=SPARSE_LAYERS, router_jitter_noise=0.0,
          router_aux_loss_coef=0.01, router_z_loss_coef=0.0,
          expert_capacity=expert_capacity(spec), **sizes))


def _route_evenly(router: Any, hidden_states: torch.Tensor):
  """Replaces the router's forward: token i goes to expert i mod experts.

  With its initial weights, the original router sends nearly all tokens to a few
  experts. The loop over experts and the optimizer skip the others, so that this
  subject would do less work than the rest. Only the arg max is replaced; the
  router still computes logits, probabilities, the weight (the probability of
  the chosen expert), the capacity and, from the logits, the losses.

  Args:
    router: the router module.
    hidden_states: [batch, length, d_model] - the tokens.

  Returns:
    The same as the original: a one-hot choice [batch, length, experts], its
      probability [batch, length, 1] and the logits.
  """
  logits = router.classifier(hidden_states)
  probabilities = torch.softmax(logits, dim=-1)
  expert = torch.arange(hidden_states.shape[0] * hidden_states.shape[1])
  expert = (expert % router.num_experts).view(hidden_states.shape[:2])
  choice = torch.nn.functional.one_hot(expert, router.num_experts)
  slot = torch.cumsum(choice, dim=-2)
  choice = choice * (slot <= router.expert_capacity)
  if getattr(router, "load", None) is not None:
    router.load += choice.sum(dim=(0, 1))
  return choice, probabilities.gather(-1, expert[..., None]), logits


def _ids(spec: Spec, length: int) -> torch.Tensor:
  """Returns random token ids, [batch, length], without padding."""
  return torch.randint(FIRST_ID, spec.vocabulary, (spec.batch, length))


class _HuggingFace(Subject):
  """A subject whose first step counts the tokens of each expert."""

  def __init__(self, spec: Spec, model: transformers.PreTrainedModel):
    self._model = model
    self._inputs = _ids(spec, spec.inputs)
    self._counted = False
    self.facts = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "attention": model.config._attn_implementation}

  def step(self) -> None:
    if self._counted:
      self._step()
      return
    routers = [m for m in self._model.modules()
               if isinstance(m, modeling.SwitchTransformersTop1Router)]
    for router in routers:
      router.load = torch.zeros(router.num_experts, dtype=torch.long)
    self._step()
    if routers:
      loads = torch.stack([router.load for router in routers])
      self.facts["tokens_per_expert"] = {
          "min": int(loads.min()), "max": int(loads.max())}
    for router in routers:
      router.load = None
    self._counted = True

  def profile(self) -> dict[str, Any]:
    """Profiles the matmuls alone, which cost the profiler little time."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], with_flops=True
    ) as profiler:
      self.step()
    matmuls = [e for e in profiler.key_averages() if e.key in MATMULS]
    seconds = sum(e.self_cpu_time_total for e in matmuls) / 1e6
    gflop = sum(e.flops for e in matmuls) / 1e9
    return {"seconds": {"matmul": seconds}, "matmul_gflop": gflop,
            "matmul_gflop_per_second": gflop / seconds}

  def _step(self) -> None:
    """Does the task once."""
    raise NotImplementedError


class _Training(_HuggingFace):
  """Training: forward and backward, and Adafactor if the task is "train"."""

  def __init__(self, spec: Spec, model: transformers.PreTrainedModel):
    super().__init__(spec, model.train())
    self._targets = _ids(spec, spec.targets)
    # Training adds the load-balancing loss, which needs the router logits.
    self._options = {} if spec.experts == 1 else {"output_router_logits": True}
    self._optimizer = Adafactor(
        model.parameters(), lr=1e-3, relative_step=False, scale_parameter=True)
    self._updates = spec.task == "train"

  def _step(self) -> None:
    loss = self._model(
        input_ids=self._inputs, labels=self._targets, **self._options).loss
    loss.backward()
    loss = loss.detach()
    if self._updates:
      self._optimizer.step()
    if not self._counted:
      self.facts["updated_parameters"] = self._updates * sum(
          p.numel() for p in self._model.parameters() if p.grad is not None)
    self._optimizer.zero_grad()
    if not math.isfinite(float(loss)):
      raise ValueError(
          f"hugging_face: the loss must be finite, with loss={float(loss)}. "
          "Lower the learning rate in benchmarks/hugging_face.py.")


class _Decoding(_HuggingFace):
  """Greedy decoding of exactly `targets` tokens, with the cache."""

  def __init__(self, spec: Spec, model: transformers.PreTrainedModel):
    super().__init__(spec, model.eval())
    self._length = spec.targets

  @torch.inference_mode()
  def _step(self) -> None:
    written = self._model.generate(
        input_ids=self._inputs, num_beams=1, do_sample=False,
        min_new_tokens=self._length, max_new_tokens=self._length)
    if written.shape[1] != 1 + self._length:
      raise ValueError(
          "hugging_face: generate must write as many tokens as asked for, with "
          f"tokens={written.shape[1] - 1}, targets={self._length}. Correct its "
          "arguments in benchmarks/hugging_face.py.")
