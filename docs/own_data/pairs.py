"""A task on two TSV files: an input, a tab and a target in each line.

A copy of it is a task of your own: change the name, the files and the metrics.
"""

import functools
import os

import seqio
from t5.data import preprocessors
from t5.evaluation import metrics

from tasks import vocabularies

FOLDER = os.path.dirname(os.path.abspath(__file__))
# The vocabulary that t5_vocabulary.path binds.
FEATURE = seqio.Feature(vocabularies.T5, add_eos=True)

seqio.TaskRegistry.add(
    "own_pairs",
    source=seqio.TextLineDataSource({
        "train": os.path.join(FOLDER, "pairs.tsv"),
        "validation": os.path.join(FOLDER, "pairs_validation.tsv")}),
    preprocessors=[
        functools.partial(
            preprocessors.parse_tsv, field_names=["inputs", "targets"]),
        seqio.preprocessors.tokenize,
        seqio.preprocessors.append_eos_after_trim],
    output_features={"inputs": FEATURE, "targets": FEATURE},
    metric_fns=[metrics.accuracy])
