"""A local stand-in for AWS's `smdistributed`: its data-parallel library, on any number of CPUs or GPUs.

Not AWS's library and none of its code: the same names, doing the same arithmetic over PyTorch's own
collectives. The real library runs only on a few instance types (contract: K18); a script that imports it
runs here unchanged, and the log says what stands in for what.

Lives on `sys.path` as `smdistributed`, in the image and in the sandbox, so it may import nothing of the
harness, and keeps to Python 3.8 and PyTorch 1.10.
"""
