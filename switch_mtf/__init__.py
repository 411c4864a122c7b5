"""Switch Transformers on Mesh-TensorFlow, trained through T5."""

import os
import sys

if any(word.startswith("switch_mtf.") for word in getattr(
    sys, "orig_argv", ())):
  # A command of ours, without TensorFlow's log. Not setdefault: TensorFlow
  # itself leaves a value here for the processes that it starts.
  os.environ.update(TF_CPP_MIN_LOG_LEVEL="3")

# upstream comes first, since it makes upstream importable. Only `python -m
# switch_mtf.doctor` imports nothing here, so as to report what that raises.
if "switch_mtf.doctor" not in getattr(sys, "orig_argv", ()):
  from switch_mtf import upstream as upstream  # isort:skip
  from switch_mtf import kernels as kernels
  from switch_mtf.dims import MoeDims as MoeDims
  from switch_mtf.kernels import attention as attention
  from switch_mtf.kernels import matmuls as matmuls
  from switch_mtf.layers.dispatch import EinsumDispatcher as EinsumDispatcher
  from switch_mtf.layers.dispatch import GatherDispatcher as GatherDispatcher
  from switch_mtf.layers.routers import ExpertChoiceRouter as ExpertChoiceRouter
  from switch_mtf.layers.routers import (
    NoTokenLeftBehindRouter as NoTokenLeftBehindRouter,
  )
  from switch_mtf.layers.routers import Top2Router as Top2Router
  from switch_mtf.layers.routing import Router as Router
  from switch_mtf.layers.routing import Routing as Routing
  from switch_mtf.layers.routing import SwitchRouter as SwitchRouter
  from switch_mtf.layers.switch_attention import (
    SwitchSelfAttention as SwitchSelfAttention,
  )
  from switch_mtf.layers.switch_ffn import SwitchFFN as SwitchFFN

  upstream.compute_faster_off_tpu(
      matmuls.einsum, attention.attention, attention.self_attention,
      attention.enc_dec_attention)
