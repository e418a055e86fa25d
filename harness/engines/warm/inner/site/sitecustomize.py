"""A preloaded interpreter imports this, and comes back from it only in its children."""

import os
import sys

before = set(sys.modules)
here = os.path.dirname(os.path.abspath(__file__))
package = type(sys)("_harness_warm")
package.__path__ = [os.path.dirname(here)]
sys.modules["_harness_warm"] = package
if not __import__("_harness_warm.zygote", fromlist=["main"]).main(here, before):
    # This Python has no such module, so for `site` there is none.
    raise ImportError("No module named 'sitecustomize'", name="sitecustomize")
