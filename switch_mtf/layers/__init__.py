"""The mechanisms of the paper: routers, dispatch, experts, and the layers.

Importing the package registers all of it with gin.
"""

from switch_mtf import kernels  # noqa: F401  (in the place of T5's own parts)
from switch_mtf.layers import (  # noqa: F401  (registered by their import)
    dispatch,
    exploration,
    initialization,
    routers,
    switch_attention,
    switch_ffn,
)
