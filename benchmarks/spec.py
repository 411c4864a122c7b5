"""The model and task of a measurement, and the interface that runs them."""

import dataclasses
from typing import Any

SUBJECTS = ("ours", "upstream", "hugging_face")
TASKS = ("train", "forward_backward", "decode", "layer")


@dataclasses.dataclass(frozen=True)
class Spec:
  """A model and its task.

  All subjects have d_model 256, d_ff 1024, 4 + 4 layers, 4 heads of 64, every
  other feed-forward layer sparse, float32 and no dropout.

  Attributes:
    subject: implementation to measure, one of `SUBJECTS`.
    task: one of `TASKS`. "train" is forward, backward and Adafactor; "layer" is
      one feed-forward layer alone, forward and backward, on the inputs.
    experts: experts of each sparse layer; 1 is the dense model.
    vocabulary: rows of the embedding.
    batch: sequences per batch.
    inputs: tokens per input.
    targets: tokens per target, or tokens to decode.
    capacity_factor: capacity factor in training.
    group_size: tokens that compete for slots; halved for two processors.
    processors: processors of the mesh, which splits the batch and the experts.
  """

  subject: str
  task: str
  experts: int = 8
  vocabulary: int = 512
  batch: int = 16
  inputs: int = 256
  targets: int = 64
  capacity_factor: float = 1.25
  group_size: int = 1024
  processors: int = 1

  @property
  def tokens(self) -> int:
    """The tokens that count: those read, or those written in decoding."""
    if self.task == "decode":
      return self.batch * self.targets
    if self.task == "layer":
      return self.batch * self.inputs
    return self.batch * (self.inputs + self.targets)


class Subject:
  """A model that is built and ready to run its task.

  Attributes:
    facts: facts for the record. All subjects have `parameters`; whole models
      have `rss_mb`, the memory of the process at stages of building. Training
      adds `updated_parameters` of one step and, as evidence that no expert was
      idle, `updated_experts`, the least and the most in a layer, or
      `tokens_per_expert`, the least and the most of an expert.
  """

  facts: dict

  def step(self) -> None:
    """Does the task once; returns when the task is done."""
    raise NotImplementedError

  def profile(self) -> dict[str, Any]:
    """Does the task once; returns where its time went, as `trace.summary`."""
    raise NotImplementedError
