"""The seqio tasks; importing this package registers them and reads no data.

The tasks do not depend on the models; gin joins the two by a task's name.
"""

import os

# TensorFlow's C++ code logs a missing GPU as an error when it is imported.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from tasks import c4 as c4  # noqa: E402
from tasks import fine_tuning as fine_tuning  # noqa: E402
from tasks import pretrain as pretrain  # noqa: E402
from tasks import stand_in_multilingual as stand_in_multilingual  # noqa: E402
