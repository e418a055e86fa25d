"""What the image's `train` is, for hosts that have no image: the sandbox.

Behaves as AWS's `sagemaker-training` 5.1.4 with `sagemaker-pytorch-training` 3.0.0 does in a PyTorch
image. It is a program, started by the interpreter of the user's script (Python 3.8 or newer, standard
library only, nothing of the harness), and it delays that script: so it imports little, and late.

Variables that the engine may give it, none of which the script sees:

HARNESS_MASTER_PORT    the port to use for 7777, where hosts of several jobs share one network
HARNESS_EXTRA_PATH     directories that go to the end of PYTHONPATH, separated by colons
HARNESS_TOOLKIT_SHELL  1: put the command through a shell as toolkits up to 5.1.1 do (contract: D29, D31)
"""
