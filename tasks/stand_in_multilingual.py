"""Span corruption in 100 languages: what stands in for mC4.

One data set, with a pair of splits for each language as TFDS's c4/multilingual
has them; a task for each language, a mixture of all, and one task with the
text of all as it is: a mixture takes minutes to read, that a second.

T5's vocabulary was made for four languages, and most scripts are unknown to it;
no package was found that holds mT5's. So these tasks have a vocabulary of their
own, of 4,000 pieces, and the mixture has two names, with `_4k` and without.
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
  """Returns a language's rate in the mixture: its size to the power alpha.

  mT5 (arXiv 2010.11934, section 3.2) samples mC4 so, by number of examples.
  Here each language has the same 26 articles, so the size is in bytes.

  Args:
    task: of the language.
    alpha: 1 samples languages in proportion to their text, 0 all alike.
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
