"""Load the network of a package onto a device: the base of `Classifier` and `Detector`."""

from pathlib import Path
from typing import Any, Self

import torch
from torch import nn

from eca_hub.errors import InvalidConfig
from eca_hub.hub.package import Package
from eca_hub.hub.pull import pull


class Predictor:
    """A network in evaluation mode, and where it comes from.

    Args:
        model: The network.
        config: Labels and preprocessing.
        model_id: Hub `owner/name`, or the path of the folder that it came from.
        revision: 40 hexadecimal digits: the commit, or for a folder the hash of its files.
    """

    def __init__(self, model: nn.Module, config: Any, *, model_id: str, revision: str) -> None:
        self.model = model.eval()
        self.config = config
        self.model_id = model_id
        self.revision = revision

    @classmethod
    def from_pretrained(
        cls,
        id_or_folder: str | Path,
        revision: str | None = None,
        *,
        device: str | torch.device = "cpu",
        endpoint: str | None = None,
        token: str | None = None,
    ) -> Self:
        """Load a package from the Hub or from a folder.

        Args:
            id_or_folder: `owner/name`, `owner/name@revision`, the address of its page, or a folder with a package.
            revision: Branch, tag or commit; the main branch when none is given.
            device: Device of the network, such as `cpu` or `cuda:1`.
            endpoint: Address of the hub; HF_ENDPOINT when none is given.
            token: Key to private repositories; HF_TOKEN or the client's login when none is given.

        Raises:
            HubError: the package cannot be downloaded or used, is for another task, or its bytes are not what the hub
                announced.
            CheckpointMismatch: the weights do not fit the network that config.json describes.
            InvalidConfig: this machine has no such device.
        """
        checked_device = check_device(device)
        return cls.from_package(pull(id_or_folder, revision, endpoint=endpoint, token=token), checked_device)

    @classmethod
    def from_package(cls, package: Package, device: torch.device) -> Self:
        """Make the network of a package whose bytes are checked, on a device that this machine has."""
        model, config = cls.read_package(package)
        return cls(model.to(device), config, model_id=package.model_id, revision=package.revision)

    @staticmethod
    def read_package(package: Package) -> tuple[nn.Module, Any]:
        """Make the network of a package, and its configuration."""
        raise NotImplementedError


def check_device(name: str | torch.device) -> torch.device:
    """Return the device, if this machine has it."""
    try:
        device = torch.device(name)
        if device.type == "meta":
            raise ValueError("the meta device has no memory")
        torch.empty(0, device=device)
    # Each backend of torch raises exceptions of its own types when it is absent.
    except Exception as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")
        reason = "torch has no such device" if reason.startswith("Expected one of") else reason[:200]
        raise InvalidConfig(
            f"device {str(name)!r} cannot be used: {reason}.", hint="Devices are cpu, cuda, cuda:1 or mps."
        ) from None
    return device
