"""What can stop a training run, beside a configuration that cannot work. Knows nothing of Lightning or torch."""

from eca_hub.errors import EcaHubError


class TrainingStopped(EcaHubError):
    """A run that cannot go on: the loss is no number, the disk is full, too many pictures are broken."""

    code = "training_stopped"


class ProcessLost(TrainingStopped):
    """A process that the run needs has died, which is nobody's mistake; --resume goes on."""

    code = "process_lost"
    exit_code = 1


class CheckpointCorrupt(EcaHubError):
    """A checkpoint whose bytes are not those that were written."""

    code = "checkpoint_corrupt"
