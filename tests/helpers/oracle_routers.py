"""Four routers and their layer in NumPy, a token at a time, with gradients.

Written from the papers, knows nothing of switch_mtf. Switch and no token left
behind: Fedus, Zoph, Shazeer, arXiv 2101.03961, sections 2.1, 2.2 and appendix
B. Two experts a token: Shazeer et al., arXiv 1701.06538, with the slots of
Lepikhin et al., GShard, arXiv 2006.16668, algorithm 1. Order by probability:
Riquelme et al., V-MoE, arXiv 2106.05974, section 4. Experts choose: Zhou et
al., arXiv 2202.09368, section 3. z-loss: Zoph et al., arXiv 2202.08906, eq. 5.

A router gets the logits [S, E] of one group, whether each token is real, and
the capacity, and returns for each token a list of its choices, an empty one for
padding. It ranks experts by logit, not by probability: the order is the same
and a tie stays one.
"""

import dataclasses

import numpy as np
from helpers.oracle import load_balancing_loss, relu, softmax


@dataclasses.dataclass
class Choice:
  expert: int
  slot: int | None  # None: the expert was full, or was not asked
  weight: float  # 0 without a slot
  # Every weight here is `share` * exp(logit) / the sum of exp over the logits
  # [token, expert] of `among`: what its gradient follows from.
  among: list
  share: float = 1.0


def ranking(values):
  """Indices, highest value first, the lower index where two are equal."""
  return sorted(range(len(values)), key=lambda i: (-values[i], i))


def order_of(logits, real, prioritized):
  """The real tokens in the order in which they are served."""
  tokens = [s for s in range(len(logits)) if real[s]]
  if prioritized:
    best = [softmax(logits[s]).max() for s in tokens]
    tokens = [tokens[i] for i in ranking(best)]
  return tokens


def serve(order, asked, taken, capacity):
  """Gives a slot, or None, to each token of `order` at the expert it asks."""
  slots = {}
  for s in order:
    i = asked[s]
    slots[s] = None
    if taken[i] < capacity:
      slots[s] = taken[i]
      taken[i] += 1
  return slots


def choose(logits, s, i, slot):
  """A choice whose weight is the softmax probability of expert `i`."""
  return Choice(i, slot, 0.0 if slot is None else softmax(logits[s])[i],
                [(s, j) for j in range(logits.shape[1])])


def switch(logits, real, capacity, prioritized=False):
  order = order_of(logits, real, prioritized)
  best = {s: ranking(logits[s])[0] for s in order}
  slots = serve(order, best, [0] * logits.shape[1], capacity)
  return [[choose(logits, s, best[s], slots[s])] if real[s] else []
          for s in range(len(logits))]


def always(g2, drawn):
  return True


def never(g2, drawn):
  return False


def above(threshold):
  return lambda g2, drawn: g2 > threshold


def at_random(threshold):
  """With probability min(1, g2 / threshold), `drawn` being uniform in [0, 1).
  """
  return lambda g2, drawn: drawn < g2 / threshold


def pair(logits):
  """The two best experts of one token, and their renormalised probabilities."""
  probs = softmax(logits)
  two = ranking(logits)[:2]
  return two, [probs[i] / sum(probs[j] for j in two) for i in two]


def top2(logits, real, capacity, policy=always, prioritized=False, drawn=None):
  """`drawn`: a number in [0, 1) for each token, for `at_random`."""
  order = order_of(logits, real, prioritized)
  experts, gates = {}, {}
  for s in order:
    experts[s], gates[s] = pair(logits[s])
  taken = [0] * logits.shape[1]
  slots = [serve(order, {s: experts[s][0] for s in order}, taken, capacity)]
  if logits.shape[1] > 1:
    asking = [s for s in order
              if policy(gates[s][1], None if drawn is None else drawn[s])]
    slots.append(serve(
        asking, {s: experts[s][1] for s in order}, taken, capacity))
  routes = []
  for s in range(len(logits)):
    choices = []
    for k, slots_k in enumerate(slots if real[s] else []):
      slot = slots_k.get(s)
      choices.append(Choice(
          experts[s][k], slot, 0.0 if slot is None else gates[s][k],
          [(s, i) for i in experts[s]]))
    routes.append(choices)
  return routes


def no_token_left_behind(logits, real, capacity, rounds=2):
  routes = [[] for _ in logits]
  left = order_of(logits, real, prioritized=False)
  everyone, taken = list(left), [0] * logits.shape[1]
  for r in range(min(rounds, logits.shape[1])):
    asked = {s: ranking(logits[s])[r] for s in everyone}
    slots = serve(left, asked, taken, capacity)
    for s in everyone:
      routes[s].append(choose(logits, s, asked[s], slots.get(s)))
    left = [s for s in left if slots[s] is None]
  return routes


def expert_choice(logits, real, capacity, softmax_over_tokens=False):
  tokens = [s for s in range(len(logits)) if real[s]]
  num_experts = logits.shape[1]
  slots = [{} for _ in logits]
  for i in range(num_experts):
    if softmax_over_tokens:
      # The order of an expert's probabilities is that of its logits.
      scores = [logits[s, i] for s in tokens]
    else:
      scores = [softmax(logits[s])[i] for s in tokens]
    for slot, place in enumerate(ranking(scores)[:capacity]):
      slots[tokens[place]][i] = slot
  routes = [[] for _ in logits]
  for s in tokens:
    for i in range(num_experts):
      choice = choose(logits, s, i, slots[s].get(i))
      if softmax_over_tokens:
        choice.among = [(t, i) for t in tokens]
        choice.share = 1 / max(1, len(slots[s]))
        if choice.slot is not None:
          probs = softmax(logits[tokens, i])
          choice.weight = probs[tokens.index(s)] / len(slots[s])
      routes[s].append(choice)
  return routes


# Losses, of all groups: logits [G, S, E], real [G, S].


def balance(logits, real):
  """Equations 4 to 6 without alpha, by the first choices."""
  found = []
  for logits_g, real_g in zip(logits, real, strict=True):
    found.append(load_balancing_loss(
        [softmax(t) for t in logits_g],
        [ranking(t)[0] if r else None
         for t, r in zip(logits_g, real_g, strict=True)]))
  found = [loss for loss in found if loss is not None]
  return sum(found) / max(1, len(found))


def second_place(logits, real):
  """The same for the second choices: the first expert is out of the race."""
  num_experts = logits.shape[2]
  if num_experts == 1:
    return 0.0
  found = []
  for logits_g, real_g in zip(logits, real, strict=True):
    probs, seconds = [], []
    for t, r in zip(logits_g, real_g, strict=True):
      first, second = ranking(t)[:2]
      p = softmax(t)
      p[first] = 0
      probs.append(p / p.sum())
      seconds.append(second if r else None)
    found.append(load_balancing_loss(probs, seconds))
  found = [loss for loss in found if loss is not None]
  return sum(found) / max(1, len(found))


def z_loss(logits, real):
  """Mean over the real tokens of all groups of (log sum exp)^2."""
  found = []
  for logits_g, real_g in zip(logits, real, strict=True):
    for t, r in zip(logits_g, real_g, strict=True):
      if r:
        found.append((t.max() + np.log(np.exp(t - t.max()).sum()))**2)
  return sum(found) / max(1, len(found))


@dataclasses.dataclass(frozen=True)
class Coefficients:
  balance: float = 0.0
  second_place: float = 0.0  # relative to `balance`
  z: float = 0.0


def total_loss(logits, real, coefs):
  return coefs.z * z_loss(logits, real) + coefs.balance * (
      balance(logits, real) + coefs.second_place * second_place(logits, real))


# The layer: x [G, S, M], and routes, for each group what a router returned.


def hidden(x, weights, i):
  """Of one token; without wi the experts are linear maps."""
  return relu(x @ weights["wi/kernel"][i]) if "wi/kernel" in weights else x


def layer(x, weights, routes):
  y = np.zeros_like(x)
  for g, routes_g in enumerate(routes):
    for s, choices in enumerate(routes_g):
      for c in choices:
        if c.slot is not None:
          y[g, s] += c.weight * (
              hidden(x[g, s], weights, c.expert)
              @ weights["wo/kernel"][c.expert])
  return y


def softmax_backward(probs, d_probs):
  return probs * (d_probs - (probs * d_probs).sum())


def losses_backward(logits, real, coefs):
  """Gradient of total_loss; the shares f_i are constants, as in section 2.2."""
  d = np.zeros_like(logits)
  num_groups, _, num_experts = logits.shape
  groups = sum(any(r) for r in real)
  tokens = sum(bool(r) for real_g in real for r in real_g)
  for g in range(num_groups):
    in_group = [s for s in range(len(real[g])) if real[g][s]]
    ranks = {s: ranking(logits[g, s]) for s in in_group}
    for k, coef in ((0, coefs.balance),
                    (1, coefs.balance * coefs.second_place)):
      if k == num_experts:
        continue
      f = np.zeros(num_experts)
      for s in in_group:
        f[ranks[s][k]] += 1 / len(in_group)
      for s in in_group:
        race = ranks[s][k:]
        d[g, s, race] += softmax_backward(
            softmax(logits[g, s, race]),
            coef * num_experts * f[race] / len(in_group) / groups)
    for s in in_group:
      top = logits[g, s].max()
      log_z = top + np.log(np.exp(logits[g, s] - top).sum())
      d[g, s] += coefs.z * 2 * log_z / tokens * softmax(logits[g, s])
  return d


def gradients(x, weights, real, routes, dy, coefs):
  """Of sum(y * dy) + total_loss, the assignment being constant."""
  router = weights["router/kernel"]
  logits = x @ router
  d = {name: np.zeros_like(value) for name, value in weights.items()}
  dx, d_logits = np.zeros_like(x), losses_backward(logits, real, coefs)
  for g, routes_g in enumerate(routes):
    for s, choices in enumerate(routes_g):
      for c in choices:
        if c.slot is None:
          continue
        i, x_s, wo = c.expert, x[g, s], weights["wo/kernel"][c.expert]
        h = hidden(x_s, weights, i)
        d["wo/kernel"][i] += np.outer(h, c.weight * dy[g, s])
        dh = wo @ (c.weight * dy[g, s])
        if "wi/kernel" in weights:
          dh = dh * (h > 0)
          d["wi/kernel"][i] += np.outer(x_s, dh)
          dh = weights["wi/kernel"][i] @ dh
        dx[g, s] += dh
        rows, columns = zip(*c.among, strict=True)
        d_among = np.zeros(len(c.among))
        d_among[c.among.index((s, i))] = c.share * (h @ wo) @ dy[g, s]
        d_logits[g, rows, columns] += softmax_backward(
            softmax(logits[g, rows, columns]), d_among)
  d["router/kernel"] += np.einsum("gsm,gse->me", x, d_logits)
  d["x"] = dx + d_logits @ router.T
  return d
