"""The paper's fine-tuning tasks and their mixtures.

GLUE, SuperGLUE, SQuAD and CNN/DailyMail are T5's tasks, with our data source
and vocabulary object (T5's own object reads the vocabulary from a bucket). The
other tasks are ours: ANLI and XSum use T5's text formats, and the rest those of
`tasks.text_to_text`. Closed-book question answering is split and scored as in
google-research's t5_closed_book_qa.
"""

import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import seqio
import t5.data
import t5.data.tasks  # noqa: F401  (registers T5's tasks)
from t5.data import glue_utils, postprocessors, preprocessors
from t5.evaluation import metrics

from tasks import text_to_text, vocabularies
from tasks.pretrain import as_written
from tasks.tfds_data import TfdsSource

FEATURES = {
    "inputs": seqio.Feature(vocabularies.T5, add_eos=True, required=False),
    "targets": seqio.Feature(vocabularies.T5, add_eos=True),
}
ANLI_ROUNDS = ("anli_r1", "anli_r2", "anli_r3")
ANLI_LABELS = ("entailment", "neutral", "contradiction")
SINGLE = ("squad", "cnn_dailymail", "xsum", "arc_easy", "arc_challenge",
          "winogrande_xl", "natural_questions", "web_questions", "trivia_qa")

# The tasks of T5 that have only some of their data set's splits.
_SPLITS = {
    "glue_ax": ("test",),
    "super_glue_axb": ("test",),
    "super_glue_axg": ("test",),
    "super_glue_wsc_simple_train": ("train",),
    "super_glue_wsc_simple_eval": ("validation", "test"),
}


def our_name(t5_name: str) -> str:
  """Returns the name without T5's version: "glue_cola_v002" -> "glue_cola"."""
  return re.sub(r"_v\d{3}", "", t5_name)


def add_t5s(name: str, t5_name: str) -> None:
  """Registers a T5 task under our name, with our data source and vocabulary."""
  theirs = seqio.TaskRegistry.get(t5_name)
  # T5 uses GLUE 1.0.0, which this TFDS reads but cannot prepare. 2.0.0 differs
  # in the address that QQP is downloaded from.
  data_set = re.sub(
      "^(glue/.*):1.0.0$", r"\1:2.0.0", theirs.source.tfds_dataset.name)
  seqio.TaskRegistry.add(
      name,
      source=TfdsSource(data_set, _SPLITS.get(name)),
      preprocessors=theirs.preprocessors,
      postprocess_fn=theirs.postprocess_fn,
      metric_fns=theirs.metric_fns,
      output_features=FEATURES)


def add_ours(
    name: str, data_set: str, to_text: Sequence[Callable], metric: Callable,
    postprocess: Callable | None = None,
    splits: Iterable[str] | Mapping[str, str] | None = None,
) -> None:
  """Registers a task that T5 lacks, with the steps of T5's tasks.

  Args:
    name: name of the task.
    data_set: TFDS name with version.
    to_text: steps that turn an example into "inputs" and "targets".
    metric: function of targets and predictions.
    postprocess: function that turns text into what the metric takes; see the
      postprocess_fn of seqio.Task.
    splits: splits of the task, as for TfdsSource.
  """
  steps = [*to_text, seqio.preprocessors.tokenize,
           seqio.CacheDatasetPlaceholder(),
           seqio.preprocessors.append_eos_after_trim]
  seqio.TaskRegistry.add(
      name, source=TfdsSource(data_set, splits),
      preprocessors=[as_written(step) for step in steps],
      postprocess_fn=postprocess, metric_fns=[metric],
      output_features=FEATURES)


def _add_anli() -> None:
  """Registers ANLI: one prefix for its rounds, fields and labels as in MNLI."""
  rename = functools.partial(preprocessors.rekey, key_map={
      "hypothesis": "hypothesis", "premise": "context", "label": "label",
      "idx": "uid"})
  to_text = functools.partial(
      preprocessors.glue, benchmark_name="anli", label_names=ANLI_LABELS)
  for name in ANLI_ROUNDS:
    add_ours(
        name, f"anli/{name.removeprefix('anli_')}:0.1.0", [rename, to_text],
        metrics.accuracy, functools.partial(
            postprocessors.string_label_to_class_id, label_classes=ANLI_LABELS))


def _add_choices() -> None:
  """Registers ARC and Winogrande; the model writes out the right choice."""
  postprocess = functools.partial(
      text_to_text.as_generated, vocabulary=vocabularies.T5)
  for name, config in (("arc_easy", "ARC-Easy"),
                       ("arc_challenge", "ARC-Challenge")):
    add_ours(
        name, f"ai2_arc/{config}:1.0.0",
        [functools.partial(text_to_text.arc, name=name)],
        metrics.accuracy, postprocess)
  add_ours(
      "winogrande_xl", "winogrande:1.2.0", [text_to_text.winogrande],
      metrics.accuracy, postprocess,
      {"train": "train_xl", "validation": "validation", "test": "test"})


def _add_closed_book() -> None:
  """Registers closed-book question answering.

  About a tenth of the training questions is held out for validation.
  """
  add_ours(
      "natural_questions", "natural_questions_open:1.0.0",
      [text_to_text.natural_questions], metrics.squad, postprocessors.qa,
      {"train": "train[:79168]", "validation": "train[79168:]",
       "test": "validation"})
  add_ours(
      "web_questions", "web_questions:1.0.0",
      [text_to_text.web_questions], metrics.squad, postprocessors.qa,
      {"train": "train[:3417]", "validation": "train[3417:]", "test": "test"})
  # The answers of TriviaQA's test split are not published.
  add_ours(
      "trivia_qa", "trivia_qa/unfiltered.nocontext:1.1.0",
      [text_to_text.trivia_qa], metrics.trivia_qa, postprocessors.qa,
      {"train": "train[:78785]", "validation": "train[78785:]",
       "test": "validation"})


GLUE_RATES = {our_name(name): rate
              for name, rate in glue_utils.get_glue_weight_mapping().items()}
SUPER_GLUE_RATES = {
    our_name(name): rate
    for name, rate in glue_utils.get_super_glue_weight_mapping().items()}

for _t5_name in (*glue_utils.get_glue_weight_mapping(),
                 *glue_utils.get_super_glue_weight_mapping(),
                 "squad_v010_allanswers", "cnn_dailymail_v002"):
  add_t5s(our_name(_t5_name).removesuffix("_allanswers"), _t5_name)
add_ours(
    "xsum", "xsum:1.1.0",
    [functools.partial(preprocessors.summarize, article_key="document",
                       summary_key="summary")], metrics.rouge)
_add_anli()
_add_choices()
_add_closed_book()

# Rates are numbers of training examples. T5 hard-codes the rates of GLUE and
# SuperGLUE, with 0 for tasks that are only evaluated; the other rates are read
# from the data.
seqio.MixtureRegistry.add("glue", list(GLUE_RATES.items()))
seqio.MixtureRegistry.add("super_glue", list(SUPER_GLUE_RATES.items()))
seqio.MixtureRegistry.add(
    "anli", ANLI_ROUNDS, default_rate=t5.data.rate_num_examples)
# RTE is in GLUE and in SuperGLUE; as in T5, each copy gets half the rate.
seqio.MixtureRegistry.add(
    "fine_tuning",
    [(name, rate / 2 if name.endswith("_rte") else rate)
     for name, rate in (GLUE_RATES | SUPER_GLUE_RATES).items()]
    + [*ANLI_ROUNDS, *SINGLE], default_rate=t5.data.rate_num_examples)
