"""What is claimed about speed and memory, as commands.

`python -m benchmarks.<suite>` for `train_step`, `layer`, `decode`, `memory`,
`startup` and `scale`, then `python -m benchmarks.report`. A suite is a list of
groups whose processes take turns (`harness.py`); what runs in a process is
`worker.py`, what it runs `mesh_model.py`, `layer_model.py` or
`hugging_face.py`; `balance.py` gives all of them the same tokens an expert.
"""
