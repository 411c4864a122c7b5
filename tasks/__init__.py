"""seqio tasks: importing this package registers them and reads no data.

The tasks know nothing of models; gin joins the two by a task's name.
"""

from tasks import pretrain as pretrain
from tasks.names import check_registered as check_registered
from tasks.names import nearest_names as nearest_names
