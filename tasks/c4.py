"""The paper's pre-training tasks: span corruption on C4 and on mC4.

The steps are those of T5's `c4_v220_span_corruption`. Each language of mC4 is a
task; the mixture `mc4_span_corruption` samples the languages as mT5 does.
"""

import gin
import seqio
from tensorflow_datasets.text.c4 import MC4_LANGUAGES

from tasks import vocabularies
from tasks.pretrain import add_span_corruption
from tasks.tfds_data import TfdsSource

C4 = "c4/en:2.2.0"
# mT5 was trained on 3.0.1, which this TFDS cannot prepare.
MC4 = "c4/multilingual:3.1.0"


@gin.configurable(module="tasks")
def mc4_rate(task: seqio.Task, alpha: float = 0.3) -> float:
  """Returns the mixing rate of a language: its number of pages ** alpha.

  mT5, https://arxiv.org/abs/2010.11934, section 3.2.

  Args:
    task: task of one language.
    alpha: exponent. 1 samples all pages equally often, 0 all languages; mT5
      uses 0.3.

  Raises:
    ValueError: if alpha is not between 0 and 1.
  """
  if not 0 <= alpha <= 1:
    raise ValueError(
        f"mc4_rate: alpha must be from 0 to 1, with alpha={alpha}. Set "
        "mc4_rate.alpha = 0.3.")
  return seqio.mixing_rate_num_examples(task) ** alpha


def mc4_task(language: str) -> str:
  """Returns the name of a language's task; task names have no hyphens."""
  return f"mc4_{language.replace('-', '_')}_span_corruption"


add_span_corruption(
    "c4_span_corruption", TfdsSource(C4, ("train", "validation")),
    vocabularies.T5)
for _language in MC4_LANGUAGES:
  add_span_corruption(
      mc4_task(_language),
      TfdsSource(MC4, {"train": _language,
                       "validation": f"{_language}-validation"}),
      vocabularies.MT5)
seqio.MixtureRegistry.add(
    "mc4_span_corruption", [mc4_task(language) for language in MC4_LANGUAGES],
    default_rate=mc4_rate)
