"""A Switch layer in NumPy, a token at a time, written from the paper.

Fedus, Zoph, Shazeer, Switch Transformers, arXiv 2101.03961: equations 1 to 6,
section 2.2 and appendix F; two things are from mesh_tensorflow, which the paper
names as its code: the capacity is truncated to an integer, and it has a lower
bound. Knows nothing of switch_mtf. It computes in the dtype of its inputs.
"""

import dataclasses
import math

import numpy as np


def capacity(tokens, experts, factor, minimum):
  """Equation 3: (tokens / experts) * factor. A group cannot fill more."""
  slots = int(tokens * factor / experts)
  if slots < minimum:
    slots = minimum
  if slots > tokens:
    slots = tokens
  return slots


def softmax(logits):
  """Equation 1, for one token."""
  e = np.exp(logits - logits.max())
  return e / e.sum()


def relu(x):
  return np.maximum(x, 0)


def gelu(x):
  """Hendrycks and Gimpel, arXiv 1606.08415, the tanh form that T5 uses."""
  return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def expert(x, weights, i):
  """E_i(x), for one token; GEGLU where there are wi_0 and wi_1."""
  if "wi/kernel" in weights:
    hidden = relu(x @ weights["wi/kernel"][i])
  else:
    hidden = gelu(x @ weights["wi_0/kernel"][i]) * (
        x @ weights["wi_1/kernel"][i])
  return hidden @ weights["wo/kernel"][i]


@dataclasses.dataclass
class Routes:
  """Where the tokens of one group go; a list has an entry for each token."""

  probs: list  # of the router, one array a token
  experts: list  # the token's expert, by argmax; None for padding
  slots: list  # its slot there; None for padding and where it is full


def route(x, router, real, slots_per_expert):
  """Sends the tokens of one group [S, M] to experts, first come, first served.

  Args:
    x: what the router sees.
    router: W_r [M, E].
    real: whether each token is real; padding asks for no slot.
    slots_per_expert: the capacity.
  """
  routes = Routes([], [], [])
  taken = [0] * router.shape[1]
  for x_s, real_s in zip(x, real, strict=True):
    probs = softmax(x_s @ router)
    i = int(np.argmax(probs)) if real_s else None
    slot = None
    if real_s and taken[i] < slots_per_expert:
      slot = taken[i]
      taken[i] += 1
    routes.probs.append(probs)
    routes.experts.append(i)
    routes.slots.append(slot)
  return routes


def load_balancing_loss(probs, experts):
  """Equations 4 to 6 without alpha, over the real tokens of one group.

  Returns None where the group has no real token.
  """
  real = [s for s, i in enumerate(experts) if i is not None]
  if not real:
    return None
  loss = 0.0
  num_experts = len(probs[0])
  for i in range(num_experts):
    f = sum(experts[s] == i for s in real) / len(real)
    p = sum(probs[s][i] for s in real) / len(real)
    loss += num_experts * f * p
  return loss


@dataclasses.dataclass
class Result:
  y: np.ndarray  # [G, S, M]
  loss: float  # not scaled; the mean over the groups that have a real token
  load: np.ndarray  # share of the real tokens that choose each expert
  dropped: float  # share of the real tokens that got no slot
  entropy: float  # mean over the real tokens, in nats
  routes: list  # Routes, one a group


def switch_layer(x, weights, slots_per_expert, real=None, router_x=None):
  """Applies a Switch layer to groups of tokens [G, S, M].

  Args:
    x: the tokens.
    weights: router/kernel [M, E], wi/kernel [E, M, F] (or wi_0, wi_1),
      wo/kernel [E, F, M].
    slots_per_expert: the capacity.
    real: [G, S], 0 for padding.
    router_x: what the router sees, if that is not x.
  """
  if real is None:
    real = np.ones(x.shape[:2])
  if router_x is None:
    router_x = x
  y = np.zeros_like(x)
  routes, losses, entropies = [], [], []
  load = np.zeros(weights["router/kernel"].shape[1])
  dropped = 0
  for g in range(x.shape[0]):
    r = route(router_x[g], weights["router/kernel"], real[g], slots_per_expert)
    routes.append(r)
    losses.append(load_balancing_loss(r.probs, r.experts))
    for s, (probs, i, slot) in enumerate(
        zip(r.probs, r.experts, r.slots, strict=True)):
      if i is None:
        continue
      load[i] += 1
      entropies.append(-(probs * np.log(probs + 1e-30)).sum())
      if slot is None:
        dropped += 1
      else:
        y[g, s] = probs[i] * expert(x[g, s], weights, i)
  tokens = max(1, len(entropies))
  losses = [loss for loss in losses if loss is not None]
  return Result(
      y=y, loss=sum(losses) / max(1, len(losses)), load=load / tokens,
      dropped=dropped / tokens, entropy=sum(entropies) / tokens, routes=routes)


def finite_differences(f, values, eps=1e-5):
  """Central differences of f() by every number of `values`, in place."""
  gradient, flat = np.zeros_like(values), values.reshape(-1)
  for i in range(flat.size):
    old = flat[i]
    flat[i] = old + eps
    above = f()
    flat[i] = old - eps
    gradient.reshape(-1)[i] = (above - f()) / (2 * eps)
    flat[i] = old
  return gradient


def distance_to_a_jump(x, weights):
  """How far the router is from a tie, and a hidden unit from relu's corner."""
  sorted_probs = np.sort(
      [softmax(t @ weights["router/kernel"]) for t in x], axis=-1)
  tie = (sorted_probs[:, -1] - sorted_probs[:, -2]).min()
  hidden = np.einsum("sm,emf->esf", x, weights["wi/kernel"])
  return min(tie, np.abs(hidden).min())
