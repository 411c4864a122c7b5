"""Span corruption in 100 languages, the stand-in for mC4.

The tasks share one data set, with a pair of splits per language as in TFDS's
c4/multilingual. Each language has a task; a mixture samples them all; and one
task holds the text of all languages, unweighted. Reading the mixture takes
minutes, reading this task a second.

T5's vocabulary was made for four languages and lacks most scripts, and no
package was found that holds mT5's. These tasks therefore have a vocabulary of
their own, of 4,000 pieces. The mixture has two names, with `_4k` and without.
"""

import gin
import seqio

from tasks import vocabularies
from tasks.pretrain import add_span_corruption
from tasks.stand_in_data import MULTILINGUAL
from tasks.stand_in_languages import DECLARATIONS
from tasks.stand_ins import source

LANGUAGES = tuple(DECLARATIONS)
MIXTURE = f"{MULTILINGUAL}_span_corruption"
JOINT = f"{MULTILINGUAL}_all_span_corruption"


def task_of(language: str) -> str:
  """Returns the name of a language's task."""
  return f"{MULTILINGUAL}_{language}_span_corruption"


_LANGUAGE_OF = {task_of(language): language for language in LANGUAGES}


@gin.configurable(module="tasks")
def stand_in_language_rate(task: seqio.Task, alpha: float = 0.3) -> float:
  """Returns a language's rate in the mixture: its size in bytes ** alpha.

  mT5 (arXiv 2010.11934, section 3.2) takes the number of examples as the size.
  Here each language has the same 26 articles, so the size is in bytes.

  Args:
    task: task of the language.
    alpha: exponent. 1 samples languages in proportion to their text, 0 all
      languages equally often.
  """
  splits = task.source.tfds_dataset.info.splits
  return splits[_LANGUAGE_OF[task.name]].num_bytes ** alpha


for _language in LANGUAGES:
  add_span_corruption(
      task_of(_language),
      source(MULTILINGUAL, splits={
          "train": _language, "validation": f"{_language}-validation"}),
      vocabularies.MULTILINGUAL_4K)

add_span_corruption(
    JOINT,
    source(MULTILINGUAL, splits={
        "train": "+".join(LANGUAGES),
        "validation": "+".join(f"{name}-validation" for name in LANGUAGES)}),
    vocabularies.MULTILINGUAL_4K)

for _name in (MIXTURE, f"{MIXTURE}_4k"):
  seqio.MixtureRegistry.add(
      _name, [task_of(language) for language in LANGUAGES],
      default_rate=stand_in_language_rate)
