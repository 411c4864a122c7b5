"""Plans a run from its gin files: what it needs and costs, before it starts.

  python -m switch_mtf.planning --gin_file=gin/models/switch_c_e2048.gin \
      --mesh_shape=batch:2048 --device=tpu_v3

`configuration` resolves gin as the run would. `graph` builds the run's own
Mesh-TF graph on a mesh that computes nothing (`mesh`). `sizes` and `memory`
count in that graph, `devices` lists processors, and `fit` searches for batches
and meshes that fit. `plan` joins the results; `report`, `picture` and `explain`
show them.
"""

from switch_mtf import layers  # noqa: F401  (known to gin)
