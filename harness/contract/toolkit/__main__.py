"""Started as a file, by `harness.contract.toolkit_command`."""

import os
import sys

# Neither this folder nor the one above it may be seen by the user's script, whose PYTHONPATH is made from
# sys.path: modules of ours would hide the user's.
sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
train = __import__("toolkit._trainer", fromlist=["train"]).train
del sys.path[0]

if __name__ == "__main__":
    sys.exit(train())
