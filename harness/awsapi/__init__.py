"""botocore's service model as our validator, and the request rules that AWS checks beyond it.

The model is read as data, without importing botocore: its types, required members, lengths, ranges,
enumerations and *patterns* (botocore's client checks neither patterns nor most maxima). What is wrong
comes back in the words of AWS's own `ValidationException`.
"""

from __future__ import annotations

from harness.awsapi._defaults import describe_defaults
from harness.awsapi._lint import warnings
from harness.awsapi._model import allowed_values, botocore_version, nodes
from harness.awsapi._rules import check_training, training_rules
from harness.awsapi._validate import Violation, closest, message, validate, violations

__all__ = [
    "Violation",
    "allowed_values",
    "botocore_version",
    "check_training",
    "closest",
    "describe_defaults",
    "message",
    "nodes",
    "training_rules",
    "validate",
    "violations",
    "warnings",
]
