"""Makes routers try experts other than the best one: appendix C, Table 11.

Exploration happens only in training. The noise reaches only the router: the
experts see the tokens without noise, and the weight of a choice is the softmax
probability, computed from the logits without the noise of `preference`.
"""

import gin
import mesh_tensorflow as mtf

from switch_mtf import errors
from switch_mtf.dims import MoeDims
from switch_mtf.layers import stateless


class Exploration:
  """The interface of an exploration; this base class changes nothing."""

  def perturb(self, x_OGSM: mtf.Tensor, dims: MoeDims) -> mtf.Tensor:
    """Returns the router's input for the tokens `x`; same shape and dtype."""
    return x_OGSM

  def preference(self, logits_OGSE: mtf.Tensor, dims: MoeDims) -> mtf.Tensor:
    """Returns scores that rank the experts, best largest; shape of `logits`."""
    return logits_OGSE


@gin.configurable
class Argmax(Exploration):
  """An exploration that keeps the most probable expert."""


@gin.configurable
class SampleSoftmax(Exploration):
  """An exploration that draws experts from softmax(logits / temperature).

  With Gumbel noise added, the largest score is such a draw, and the next ones
  are further draws without replacement.
  """

  def __init__(self, temperature: float = 1.0):
    """Records the temperature.

    Args:
      temperature: spread of the draw; near 0 the most probable expert is
        drawn, at large values any expert.

    Raises:
      ValueError: if `temperature` is not positive.
    """
    errors.require_number("SampleSoftmax", above=0, temperature=temperature)
    self.temperature = temperature

  def preference(self, logits_OGSE, dims):
    """See the base class."""
    # In the open interval (0, 1): either end would give infinite noise.
    u_OGSE = 2.0**-25 + (1.0 - 2.0**-24) * stateless.uniform(
        logits_OGSE.mesh, dims.OGSE, "sample_softmax")
    gumbel_OGSE = -mtf.log(-mtf.log(u_OGSE))
    return mtf.to_float(logits_OGSE) / self.temperature + gumbel_OGSE


@gin.configurable
class InputDropout(Exploration):
  """An exploration that drops features of the router's input."""

  def __init__(self, rate: float = 0.1):
    """Records the rate.

    Args:
      rate: probability of dropping a feature; kept features are divided by
        1 - rate. The paper gives no rate; 0.1 is mesh_tensorflow's.

    Raises:
      ValueError: if `rate` is not in [0, 1).
    """
    errors.require_number("InputDropout", at_least=0, below=1, rate=rate)
    self.rate = rate

  def perturb(self, x_OGSM, dims):
    """See the base class."""
    return x_OGSM * stateless.dropout_mask(x_OGSM, self.rate, "input_dropout")


@gin.configurable
class InputJitter(Exploration):
  """The paper's exploration: router inputs times random numbers near 1."""

  def __init__(self, epsilon: float = 1e-2):
    """Records the size of the noise.

    Args:
      epsilon: size of the jitter; factors are drawn from
        [1 - epsilon, 1 + epsilon]. The paper gives no value; 0.01 is
        mesh_tensorflow's.

    Raises:
      ValueError: if `epsilon` is not in [0, 1).
    """
    errors.require_number("InputJitter", at_least=0, below=1, epsilon=epsilon)
    self.epsilon = epsilon

  def perturb(self, x_OGSM, dims):
    """See the base class."""
    u_OGSM = stateless.uniform(x_OGSM.mesh, dims.OGSM, "jitter")
    # 1 + epsilon * (2 u - 1), in only two passes over the tensor.
    factor_OGSM = (1.0 - self.epsilon) + 2.0 * self.epsilon * u_OGSM
    return x_OGSM * mtf.cast(factor_OGSM, x_OGSM.dtype)
