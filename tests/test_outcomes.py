"""A command that evaluated nothing says so."""

import gin
import pytest

import tasks  # noqa: F401  (registers the task)
from switch_mtf.training import outcomes

pytestmark = pytest.mark.usefixtures("clean_gin")
TASK = "public_domain_span_corruption_1k"


def bind(mode, split):
  gin.parse_config(f"""
      utils.run.mode = '{mode}'
      utils.run.dataset_split = '{split}'
      mesh_eval_dataset_fn.mixture_or_task_name = '{TASK}'""")


def test_an_unknown_split():
  bind("perplexity_eval", "dev")
  with pytest.raises(ValueError) as error:
    outcomes.require_more(outcomes.so_far(), "run_t5")
  assert str(error.value) == (
      "run_t5: something must be evaluated, with mode=perplexity_eval, "
      f"task={TASK}, split=dev, splits there=train, validation. Set "
      "utils.run.dataset_split to one of train, validation.")


def test_a_task_without_metrics(monkeypatch):
  import seqio
  task = seqio.TaskRegistry.get(TASK)
  monkeypatch.setattr(type(task), "metric_fns", [])
  bind("eval", "validation")
  with pytest.raises(ValueError, match=f"tasks without metric_fns={TASK}.*"
                     "gin/runs/perplexity_eval.gin"):
    outcomes.require_more(outcomes.so_far(), "task_metrics")


def test_a_split_of_the_model_api():
  with pytest.raises(ValueError) as error:
    outcomes.refuse_api(TASK, "valdation")
  assert str(error.value) == (
      f"run_t5: something must be evaluated, with mode=eval, task={TASK}, "
      "split=valdation, splits there=train, validation, nearest: validation. "
      "Set --eval_split to one of train, validation.")


def test_something_is_enough():
  bind("eval", "dev")
  before = outcomes.so_far()
  outcomes.count()
  outcomes.require_more(before, "eval")


@pytest.mark.parametrize("mode", ["train", "infer", "export_infer"])
def test_other_modes_have_other_results(mode):
  bind(mode, "dev")
  outcomes.require_more(outcomes.so_far(), "run_t5")
