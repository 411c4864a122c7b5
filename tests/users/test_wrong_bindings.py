"""Gin text and values that a run cannot have are refused at its start."""

import pytest
from helpers.runs import run

WRONG = {
    # What gin cannot read.
    "MIXTURE_NAME = name": 'Likely correction: MIXTURE_NAME = "name".',
    "train_steps 20": "Likely correction: train_steps = 20.",
    "sequence_length = {'inputs': 24": "every { must be closed",
    # Types.
    "train_steps = '20'": "Likely correction: train_steps = 20.",
    "train_steps = 4.5": "train_steps must be a whole number",
    "learning_rate = 'fast'": "learning_rate must be a number, at least 0",
    "warmup_steps = 'two'": "warmup_steps must be a number",
    "seed = 'abc'": "seed must be a whole number",
    "num_heads = '2'": "Likely correction: num_heads = 2.",
    "batch_size = ('tokens', 384)": "batch_size must be a number of sequences",
    "utils.run.optimizer = 'adam'": "must be a reference",
    "MIXTURE_NAME = None": "MIXTURE_NAME must be a text",
    # Ranges.
    "learning_rate = -0.01": "learning_rate=-0.01",
    "num_layers = 0": "num_layers must be a whole number, at least 1",
    "d_model = -8": "d_model must be a whole number, at least 1",
    "sequence_length = {'inputs': 0, 'targets': 6}": "lengths of at least 1",
    "sequence_length = {'inputs': 24}": "with that of targets",
    "save_checkpoints_steps = 0": "save_checkpoints_steps must be",
    "utils.run.keep_checkpoint_max = 0": "or None, which keeps all",
    # What nothing obeys.
    "trian_steps = 2": "macro=trian_steps, nearest: train_steps",
    "utils.run.mesh_shape = 'batch:two'": "a mesh must be axes with sizes",
    "utils.run.layout_rules = 'exprts:batch'":
        "must be one of the mesh, with rule=exprts:batch",
    "train_then.phases = ['gin/runs/evl.gin']": "nearest: gin/runs/eval.gin",
}


@pytest.mark.parametrize("param", WRONG)
@pytest.mark.parametrize("in_file", [False, True])
def test_refused_before_anything_is_made(param, in_file, tmp_path):
  own = tmp_path / "own.gin"
  own.write_text(f"{param}\n" if in_file else "")
  done = run(tmp_path / "run", "--gin_file=tests/gin/tiny.gin",
             f"--gin_file={own}", *(
                 [] if in_file else [f"--gin_param={param}"]))
  assert done.returncode == 1
  line, = done.stderr.strip().splitlines()
  assert WRONG[param] in line
  if in_file and "train_then" not in param and "mesh_shape" not in param:
    assert f"{own}, line 1" in line or f"line 1 of {own}" in line
  assert not (tmp_path / "run").exists()
