"""How the whole suite is run: one thread in every process, no network, no limit on how long an example takes."""

import os

os.environ.pop("COLUMNS", None)  # a console of the commands takes it over for good where it is set
os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}  # before torch

from hypothesis import settings

# Where other tests run on the same cores, times say nothing.
settings.register_profile("suite", deadline=None)
settings.load_profile("suite")
