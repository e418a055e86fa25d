"""Started as a file, by `harness.contract.toolkit_command`."""

import os
import sys

# Neither this folder nor the one above it may be seen by the user's script, whose PYTHONPATH is made from
# sys.path: modules of ours would hide the user's. Python put this folder there, or it didn't
# (PYTHONSAFEPATH).
here = os.path.dirname(os.path.abspath(__file__))
if sys.path[0] == here:
    del sys.path[0]
sys.path.insert(0, os.path.dirname(here))
train = __import__("toolkit._trainer", fromlist=["train"]).train
del sys.path[0]

if __name__ == "__main__":
    sys.exit(train())
