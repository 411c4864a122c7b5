"""The seqio tasks; importing this package registers them and reads no data.

The tasks do not depend on the models; gin joins the two by a task's name.
"""

from tasks import c4 as c4
from tasks import fine_tuning as fine_tuning
from tasks import pretrain as pretrain
from tasks import stand_in_multilingual as stand_in_multilingual
