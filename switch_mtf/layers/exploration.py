"""How a router tries other experts than its favourite: appendix C, Table 11.

Only in training. The noise is the router's alone: the experts see the tokens
as they are, and the weight of a choice is its noiseless softmax probability,
given the logits.
"""

import gin
import mesh_tensorflow as mtf

from switch_mtf import errors
from switch_mtf.dims import MoeDims
from switch_mtf.layers import stateless


class Exploration:
  """The contract, and its neutral element: changes nothing."""

  def perturb(self, x_OGSM: mtf.Tensor, dims: MoeDims) -> mtf.Tensor:
    """The router's input, given the tokens; same shape and dtype."""
    return x_OGSM

  def preference(self, logits_OGSE: mtf.Tensor, dims: MoeDims) -> mtf.Tensor:
    """What experts are ranked by, largest first; shape of `logits`."""
    return logits_OGSE


@gin.configurable
class Argmax(Exploration):
  """No exploration: the most probable expert."""


@gin.configurable
class SampleSoftmax(Exploration):
  """Draws the expert from softmax(logits / temperature).

  Adds Gumbel noise, so that the largest is such a draw, and the next ones are
  draws without replacement.
  """

  def __init__(self, temperature: float = 1.0):
    """Records the temperature.

    Args:
      temperature: towards 0 the most probable expert, large any expert.

    Raises:
      ValueError: if it is not positive.
    """
    errors.require_number("SampleSoftmax", above=0, temperature=temperature)
    self.temperature = temperature

  def preference(self, logits_OGSE, dims):
    """See the base class."""
    # From (0, 1), as either end would be infinite.
    u_OGSE = 2.0**-25 + (1.0 - 2.0**-24) * stateless.uniform(
        logits_OGSE.mesh, dims.OGSE, "sample_softmax")
    gumbel_OGSE = -mtf.log(-mtf.log(u_OGSE))
    return mtf.to_float(logits_OGSE) / self.temperature + gumbel_OGSE


@gin.configurable
class InputDropout(Exploration):
  """Drops features of the router's input."""

  def __init__(self, rate: float = 0.1):
    """Records the rate.

    Args:
      rate: probability of dropping a feature; kept ones are divided by
        1 - rate. The paper does not give it; 0.1 is mesh_tensorflow's.

    Raises:
      ValueError: if it is not in [0, 1).
    """
    errors.require_number("InputDropout", at_least=0, below=1, rate=rate)
    self.rate = rate

  def perturb(self, x_OGSM, dims):
    """See the base class."""
    return x_OGSM * stateless.dropout_mask(x_OGSM, self.rate, "input_dropout")


@gin.configurable
class InputJitter(Exploration):
  """Multiplies the router's input by numbers near 1: what the paper uses."""

  def __init__(self, epsilon: float = 1e-2):
    """Records the size of the noise.

    Args:
      epsilon: factors are drawn from [1 - epsilon, 1 + epsilon]. The paper does
        not give it; 0.01 is mesh_tensorflow's.

    Raises:
      ValueError: if it is not in [0, 1).
    """
    errors.require_number("InputJitter", at_least=0, below=1, epsilon=epsilon)
    self.epsilon = epsilon

  def perturb(self, x_OGSM, dims):
    """See the base class."""
    u_OGSM = stateless.uniform(x_OGSM.mesh, dims.OGSM, "jitter")
    # 1 + epsilon * (2 u - 1), in two passes over it.
    factor_OGSM = (1.0 - self.epsilon) + 2.0 * self.epsilon * u_OGSM
    return x_OGSM * mtf.cast(factor_OGSM, x_OGSM.dtype)
