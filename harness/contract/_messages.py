"""StatusMessage texts of SecondaryStatusTransitions, as hosted jobs show them (contract: G4).

They aren't stable in the cloud either: programs read the Status, people read these.
"""

from typing import Final

STARTING: Final = "Starting the training job"
PENDING: Final = "Training job waiting for capacity"
PREPARING: Final = "Preparing the instances for training"
DOWNLOADING: Final = "Downloading input data"
DOWNLOADING_IMAGE: Final = "Downloading the training image"
TRAINING: Final = "Training image download completed. Training in progress."
UPLOADING: Final = "Uploading generated training model"
COMPLETED: Final = "Training job completed"
STOPPING: Final = "Stopping the training job"
STOPPED: Final = "Training job stopped"
FAILED: Final = "Training job failed"
MAX_RUNTIME_EXCEEDED: Final = "Training job runtime exceeded MaxRuntimeInSeconds provided"
MAX_WAIT_TIME_EXCEEDED: Final = "Training job wait time exceeded MaxWaitTimeInSeconds provided"
INTERRUPTED: Final = "Training job interrupted: the spot instance was reclaimed"
RESTARTING: Final = "Restarting the training job"
