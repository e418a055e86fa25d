"""The ledger: what happens here to each field of a CreateTrainingJob request, and why.

Nothing is ignored silently. Every node of CreateTrainingJob in the installed botocore has an entry (a
test keeps it so); one that a newer botocore adds is told as `unclassified`.

When is a cloud-only field *visible*, so that `--strict` refuses it? Somebody who says `--strict` wants to
know that the script went through here what it will go through there. So the rule asks what the script
meets on the platform's own ground (files below /opt/ml, variables, arguments, how it is started and
stopped, the data in its channels), and not what it could find out by calling AWS or measuring:

* visible: with this value the platform would have put something there that is not there now, or started
  the script differently. A warm pool's cache directory, an MLflow server, `mpirun`.
* not visible: what is outside the host (billing, placement, encryption, tags, rules, uploads), what the
  machine has instead (instances and disks are *mapped*, and the plan compares them), and what might
  happen or not (a spot interruption).
* RoleArn is not visible although a script that calls AWS fails here without credentials: every request
  has one, and a switch that refuses every request would be used by nobody.

An unclassified field is refused as well: nobody knows what the script would see.
"""

from __future__ import annotations

from harness.ledger._entry import Case, Entry, Given, Verdict
from harness.ledger._treat import ENTRIES, HYPERPARAMETERS, blockers, treat

__all__ = ["ENTRIES", "HYPERPARAMETERS", "Case", "Entry", "Given", "Verdict", "blockers", "treat"]
