"""Random gin configurations of the layers, legal and illegal."""

import dataclasses
import random
import re


@dataclasses.dataclass(frozen=True)
class Line:
  """A binding, and what kind of mistake it is ('' if none)."""

  name: str
  value: str
  mistake: str = ""

  def __str__(self):
    return f"{self.name} = {self.value}"


WRONG_TYPE = {"a string": "'1'", "a list": "[1]", "None": "None"}
NOT_FINITE = {"NaN": "@nan()", "infinite": "1e999"}


def whole(*legal, **more):
  """Legal values of a positive whole number, and illegal ones."""
  return legal, WRONG_TYPE | {
      "zero": "0", "negative": "-1", "NaN": "@nan()", "infinite": "1e999",
      "a fraction": "2.5"} | more


def real(*legal, **illegal):
  """Legal values of a number, and illegal ones."""
  return legal, WRONG_TYPE | NOT_FINITE | {"negative": "-.5"} | illegal


def switch():
  return ("True", "False"), {"a string": "'no'", "None": "None"}


def optional(numbers):
  """The same numbers, where None is legal."""
  legal, illegal = numbers
  return (*legal, "None"), {k: v for k, v in illegal.items() if k != "None"}


def part(*names, also=(), **illegal):
  """Objects that gin makes."""
  return (*(f"@{n}()" for n in names), *also), {
      "a class, not an object": f"@{names[0]}", "a string": f"'{names[0]}'",
      "a number": "3", "another kind of object": "@AlwaysSecond()",
      "no such name": f"@{names[0]}r()"} | illegal


EXPLORATION = part(
    "InputJitter", "Argmax", "SampleSoftmax", "InputDropout", also=("None",))
SECOND = part("AlwaysSecond", "NeverSecond", "SecondAboveThreshold",
              "RandomSecond", also=("None",))
SECOND[1]["another kind of object"] = "@Argmax()"
FACTOR = optional(real("1.0", "1.25", ".3", "2", "100", "1e30", zero="0"))
ROUTER = {"exploration": EXPLORATION, "float32": switch()}
PARAMETERS = {
    "SwitchFFN": {
        "num_experts": whole("1", "2", "4", "6", "8"),
        "hidden_size": optional(whole("1", "8", "12")),
        "activation": (
            ("'relu'", "'gelu'", "['gelu', 'linear']", "'linear'", "'swish'",
             "['relu']", "['tanh', 'sigmoid', 'linear']"), {
                 "no such function": "'rellu'", "no list's": "['gelu', 'line']",
                 "not a function of one tensor": "'einsum'", "a number": "3",
                 "an empty list": "[]",
                 "no function": "'Tensor'", "not in a list": "[3]"}),
        "group_size": whole("4", "8", "16", "1000000000", "2", "1", "3"),
        "capacity_factor_train": FACTOR,
        "capacity_factor_eval": FACTOR,
        "min_capacity": whole("1", "4", "1000000000"),
        "dropout_rate": real("0", ".1", "0.999", one="1", large="1.5"),
        "load_balancing_coef": real("0", "1e-2", "1", "1000"),
        "router_z_coef": real("0", "1e-3", "1"),
        "router": part("SwitchRouter", "Top2Router", "NoTokenLeftBehindRouter",
                       "ExpertChoiceRouter", also=("None",)),
        "dispatcher": part(
            "EinsumDispatcher", "GatherDispatcher", also=("None",)),
    },
    "SwitchRouter": ROUTER | {"prioritized": switch()},
    "Top2Router": ROUTER | {
        "prioritized": switch(), "second_train": SECOND, "second_eval": SECOND,
        "second_place_weight": real("0", ".5", "1")},
    "NoTokenLeftBehindRouter": ROUTER | {
        "rounds": whole("1", "2", "3", "1000000000")},
    "ExpertChoiceRouter": ROUTER | {"softmax_over_tokens": switch()},
    "SecondAboveThreshold": {
        "threshold": real("0", ".2", ".99", one="1", large="2")},
    "RandomSecond": {"threshold": real(".2", "1", "1e-6", zero="0", large="2")},
    "InputJitter": {"epsilon": real("0", "1e-2", ".9", one="1", large="3")},
    "InputDropout": {"rate": real("0", ".1", ".9", one="1", large="3")},
    "SampleSoftmax": {"temperature": real("1", ".1", "1000", zero="0")},
    "init_scale": {"value": real(".1", "1", "4", zero="0")},
    "attention_init": {"scale": optional(real(".1", "1", zero="0"))},
    "random_seed": {"value": (
        ("0", "-1", "12345678901234567890"), WRONG_TYPE | NOT_FINITE | {
            "a fraction": "2.5"})},
    "SwitchSelfAttention": {
        "num_heads": whole("1", "2", "4"),
        "key_value_size": whole("1", "4", "8"),
        "dropout_rate": real("0", ".1", ".9", one="1", large="1.5"),
        "relative_attention_type": (
            ("None", "'bias'", "'bias_shared'", "'contextual'"),
            {"no such type": "'biased'", "a number": "3",
             "a list": "['bias']"}),
        "relative_attention_num_buckets": whole("8", "32", "4"),
        "projection": (
            ("@SwitchFFN", "@linear/SwitchFFN"), {
                "an object, not a class": "@SwitchFFN()", "None": "None",
                "a string": "'SwitchFFN'", "another class": "@Argmax"}),
    },
}
# Always there, as they make the defaults of the layer small.
SMALL = {"SwitchFFN.hidden_size": "8", "SwitchFFN.group_size": "8",
         "SwitchFFN.num_experts": "4", "SwitchSelfAttention.num_heads": "2",
         "SwitchSelfAttention.key_value_size": "4"}
SHAPES = {
    "train": ["batch:4,length:4,d_model:8", "batch:2,length:8,d_model:8",
              "batch:8,length:2,d_model:8", "batch:1,length:6,d_model:8",
              "outer_batch:2,batch:4,length:4,d_model:8",
              "outer_batch:1,batch:4,length:2,d_model:8"],
    "incremental": ["batch:4,d_model:8", "batch:8,d_model:8",
                    "batch:4,beam:2,d_model:8", "batch:1,d_model:8"],
}
MESHES = ["a:1", "a:2", "a:4", "a:8", "a:3", "a:2;b:2", "a:4;b:2", "a:2;b:4",
          "a:1;b:2", "a:2;b:2;o:2", "o:2;a:2"]
SPLIT = ["batch", "experts", "d_ff", "heads", "outer_batch"]
# Not to be split: see `switch_mtf/dims.py`.
NEVER = ["group", "expert_capacity", "choices", "length", "d_model", "d_kv",
         "experts_unsplit", "expert_tokens", "memory_length"]
# A value by itself is tried out where it is used.
USED_BY = {
    "Top2Router": ("SwitchFFN.router",), "SwitchRouter": ("SwitchFFN.router",),
    "NoTokenLeftBehindRouter": ("SwitchFFN.router",),
    "ExpertChoiceRouter": ("SwitchFFN.router",),
    "SecondAboveThreshold": ("Top2Router.second_train",),
    "RandomSecond": ("Top2Router.second_train",),
    "InputJitter": ("SwitchRouter.exploration",),
    "InputDropout": ("SwitchRouter.exploration",),
    "SampleSoftmax": ("SwitchRouter.exploration",)}
# A dimension twice on one axis, an axis that is not there, one that does not
# divide, one where there is nothing to split.
LAYOUTS = ["experts:a;d_ff:a", "batch:a;experts:a;d_ff:a", "batch:z",
           "batch:a;batch:b", "experts:a;experts:b", "experts:b;batch:a",
           "d_ff:a;experts:b", "heads:a;d_ff:a;batch:b", "vocab:a"]
MISNAMED = ["SwitchFFN.capacity_factor = 1.0", "SwitchFN.num_experts = 4",
            "SwitchRouter.rounds = 2", "Top2Router.second_policy = 'all'",
            "SampleSoftmax.temprature = 1.0"]


class Generator:
  """Draws configurations."""

  def __init__(self, seed: int):
    self._random = random.Random(seed)

  def draw(self) -> list[Line]:
    """A configuration, as bindings of which most or all are legal."""
    rng = self._random
    self._mistakes = rng.choices([0, 1, 2], [45, 50, 5])[0]
    layer = rng.choices(["SwitchFFN", "SwitchSelfAttention"], [3, 1])[0]
    lines = [Line("step.layer", f"@{layer}()"), *self._surroundings()]
    todo, done = [layer, "init_scale", "random_seed"], set()
    if layer != "SwitchFFN":
      todo += ["SwitchFFN", "attention_init"]
    while todo:
      name = todo.pop()
      if name in done or name not in PARAMETERS:
        continue
      done.add(name)
      new = self._bindings(name, everything=name == layer)
      lines += new
      todo += [n for line in new for n in re.findall(r"@(\w+)", line.value)]
    if layer == "SwitchSelfAttention":
      lines.append(Line("linear/SwitchFFN.hidden_size", "None"))
    if rng.random() < .03:
      lines.append(Line(*rng.choice(MISNAMED).split(" = "), "misnamed"))
    return lines

  def _bindings(self, name: str, everything: bool) -> list[Line]:
    """Some parameters of a configurable."""
    rng, lines = self._random, []
    names = list(PARAMETERS[name])
    rng.shuffle(names)
    for parameter in names:
      legal, illegal = PARAMETERS[name][parameter]
      full = f"{name}.{parameter}"
      wrong = self._mistakes and rng.random() < (.15 if everything else .3)
      if wrong:
        self._mistakes -= 1
        mistake = rng.choice(sorted(illegal))
        lines.append(Line(full, illegal[mistake], mistake))
      elif full in SMALL and rng.random() < .6:
        lines.append(Line(full, SMALL[full]))
      elif full in SMALL or rng.random() < .4 or "router" in parameter:
        lines.append(Line(full, rng.choice(legal)))
    return lines

  def _surroundings(self) -> list[Line]:
    """Input, mode and layout."""
    rng = self._random
    mode = rng.choices(["train", "eval", "incremental"], [5, 2, 2])[0]
    shapes = SHAPES.get(mode, SHAPES["train"])
    lines = [Line("step.mode", repr(mode)),
             Line("step.x_shape", repr(rng.choice(shapes)))]
    for name, chance in (
        ("autoregressive", .3), ("bfloat16", .2), ("padding", .4)):
      if rng.random() < chance:
        lines.append(Line(f"step.{name}", "True"))
    if rng.random() < .5:
      mesh = rng.choice(MESHES)
      axes = re.findall(r"\w(?=:)", mesh)
      split = rng.sample(SPLIT, rng.randint(1, 3))
      mistake = ""
      if self._mistakes and rng.random() < .15:
        self._mistakes -= 1
        mistake = "a layout that is not foreseen"
        if rng.random() < .7:
          split.append(rng.choice(NEVER))
        else:
          axes = [*axes, "z"]
      layout = ";".join(f"{dim}:{rng.choice(axes)}" for dim in split)
      lines += [Line("step.mesh_shape", repr(mesh)),
                Line("step.layout", repr(layout), mistake)]
    return lines


def each():
  """A configuration for every value of every parameter, and some layouts."""
  for name, parameters in PARAMETERS.items():
    for parameter, (legal, illegal) in parameters.items():
      for value in legal:
        yield by_itself(name, Line(f"{name}.{parameter}", value))
      for mistake, value in illegal.items():
        yield by_itself(name, Line(f"{name}.{parameter}", value, mistake))
  for layout in [*(f"{dim}:a" for dim in SPLIT + NEVER), *LAYOUTS]:
    for mesh in ("a:2;b:2", "a:3;b:1"):
      for name in ("SwitchFFN", "SwitchSelfAttention"):
        yield by_itself(name, Line("step.layout", repr(layout), "a layout"),
                        Line("step.mesh_shape", repr(mesh)))
  for text in MISNAMED:
    yield by_itself("SwitchFFN", Line(*text.split(" = "), "misnamed"))


def by_itself(name: str, *lines: Line) -> list[Line]:
  """A small configuration in which these bindings matter."""
  layer = "SwitchFFN"
  if name in ("SwitchSelfAttention", "attention_init"):
    layer = "SwitchSelfAttention"
  used = []
  while name in USED_BY:
    used.append(Line(USED_BY[name][0], f"@{name}()"))
    name = USED_BY[name][0].split(".")[0]
  given = {line.name for line in lines}
  small = [Line(k, v) for k, v in SMALL.items()
           if k not in given and k.startswith(("SwitchFFN", layer))]
  if layer != "SwitchFFN":
    small.append(Line("linear/SwitchFFN.hidden_size", "None"))
    relative = "SwitchSelfAttention.relative_attention_type"
    if relative not in given:
      small.append(Line(relative, "'bias'"))
  # What an evaluation uses, a run of training does not.
  if any(line.name.endswith("_eval") for line in lines):
    small.append(Line("step.mode", "'eval'"))
  return [Line("step.layer", f"@{layer}()"), *small, *used, *lines]
