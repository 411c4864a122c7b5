"""Commands that measure the project's claims about speed and memory.

Run `python -m benchmarks.<suite>` for `train_step`, `layer`, `decode`,
`memory`, `startup` and `scale`, then `python -m benchmarks.report`. A suite is
a list of groups whose processes take turns (`harness.py`). Each process is a
`worker.py` that runs a model of `mesh_model.py`, `layer_model.py` or
`hugging_face.py`. `balance.py` spreads tokens evenly over the experts of the
first two; `hugging_face.py` does so itself.
"""
