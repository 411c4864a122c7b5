"""Plans of the tests' tiny run."""

import tasks  # noqa: F401
from switch_mtf.planning import (
  memory,
)
from switch_mtf.planning import plan as plans

TINY = "tests/gin/tiny.gin"


# Strategies of section 5 of the paper, on small meshes.
STRATEGIES = {
    "data": ("batch:2", "batch:batch"),
    "model": ("model:2", "d_ff:model,heads:model,vocab:model"),
    "model and data": ("model:2,batch:2", "batch:batch,d_ff:model,heads:model"),
    "expert and data": ("batch:2", "batch:batch,experts:batch"),
    "expert, model and data": (
        "model:2,batch:2", "batch:batch,experts:batch,d_ff:model,heads:model"),
}


GROUP = "SwitchFFN.group_size = 8"


def planned(*params, mesh_shape=None, layout=None, device="cpu",
            files=(TINY,)):
  params = list(params)
  if layout:
    params.append(f"utils.run.layout_rules = '{layout}'")
  return plans.plan(list(files), params, device=device, mesh_shape=mesh_shape)


def memory_of(**kinds):
  zero = dict(weights=0, optimizer_slots=0, gradients=0, activations=0,
              dispatch=0, masters=0)
  kinds = zero | kinds
  return memory.Memory(**kinds, peak=sum(kinds.values()) - kinds["masters"])
