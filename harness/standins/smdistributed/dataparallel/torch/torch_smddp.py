"""`import smdistributed.dataparallel.torch.torch_smddp` gives torch.distributed the backend "smddp".

As with AWS's library, importing it is all: it registers the backend, and it puts RANK, WORLD_SIZE and
the rest in the environment, where a script looks for them and `init_process_group("smddp")` too.
"""

from . import _backend, _ranks

_ranks.export()
_backend.register()
