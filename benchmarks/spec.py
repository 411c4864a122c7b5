"""What is built and timed: one value that names it."""

import dataclasses
from typing import Any

SUBJECTS = ("ours", "upstream", "hugging_face")
TASKS = ("train", "forward_backward", "decode", "layer")


@dataclasses.dataclass(frozen=True)
class Spec:
  """A model and what it is to do.

  d_model 256, d_ff 1024, 4 + 4 layers, 4 heads of 64, every other feed-forward
  layer sparse, float32, no dropout: the same for everybody.

  Attributes:
    subject: whose code, one of `SUBJECTS`.
    task: one of `TASKS`. "train" is forward, backward and Adafactor; "layer" is
      one feed-forward layer alone, forward and backward, on the inputs.
    experts: of each sparse layer; 1 is the dense model.
    vocabulary: rows of the embedding.
    batch: sequences.
    inputs: tokens of one input.
    targets: tokens of one target, or tokens to decode.
    capacity_factor: in training.
    group_size: tokens that compete for slots; half of it for two processors.
    processors: of the mesh, which splits the batch and the experts.
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
    """Tokens that count: those read, or those written in decoding."""
    if self.task == "decode":
      return self.batch * self.targets
    if self.task == "layer":
      return self.batch * self.inputs
    return self.batch * (self.inputs + self.targets)


class Subject:
  """A model that has been built and waits for its turns.

  Attributes:
    facts: what it says of itself, for the record: `parameters`; of training
      also `updated_parameters` of one step, and what shows that experts were
      busy: `updated_experts`, the least and the most of any layer, or
      `tokens_per_expert`, the least and the most that one got. `rss_mb` is
      what the process held at stages of building it.
  """

  facts: dict

  def step(self) -> None:
    """Does the task once and returns when it is done."""
    raise NotImplementedError

  def profile(self) -> dict[str, Any]:
    """Does the task once and says where its time went, as `trace.summary`."""
    raise NotImplementedError
