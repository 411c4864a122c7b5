"""What a run needs and costs, from its gin files, before it starts.

  python -m switch_mtf.planning --gin_file=gin/models/switch_c_e2048.gin \
      --mesh_shape=batch:2048 --device=tpu_v3

`configuration` resolves gin as the run would; `graph` builds the run's own
Mesh-TF graph, on a mesh (`mesh`) that computes nothing; `sizes`, `memory` and
`capacity` read from it; `fit` looks for what does fit; `report` and `picture`
show it.
"""

from switch_mtf import layers  # noqa: F401  (known to gin)
