"""What an operator may set: one frozen dataclass; each field is an option and an `ECA_*` variable of the same name.

Knows nothing of how settings are read (`__main__`) or used.
"""

import re
from dataclasses import dataclass, replace
from typing import Literal

from eca_service.errors import BadSetting

Precision = Literal["auto", "fp32", "bf16", "fp16"]


@dataclass(frozen=True)
class Settings:
    """How the service runs."""

    model: tuple[str, ...] = ()
    """Model to serve: owner/name, owner/name@revision or a folder. Give it several times for several models; in the
    environment separate them by commas."""
    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = 8000
    """Port to listen on; 0 takes a free one."""
    api_keys_file: str = ""
    """File with keys, of which a caller must send one; or set ECA_API_KEYS, separated by commas. One a line, behind it
    the day or moment on which it ends, if it does; a change counts within seconds."""
    admin_keys_file: str = ""
    """File with admin keys, as above: they load and unload models at /v1/models; or set ECA_ADMIN_KEYS."""
    insecure: bool = False
    """Listen beyond this machine without a key."""
    allow_repos: str = ""
    """Repositories that an admin key may load beside those of --model, separated by commas; * stands for any letters,
    as in acme/*."""
    wait_for_models_s: float = 0.0
    """How long to wait at the start for a hub that does not answer, or that does not have a model yet; until then
    /readyz says 503. 0 gives up at once."""
    watch: float = 0.0
    """Seconds between two looks at the branches that the models come from; when one has moved, its new commit is
    loaded beside the old and takes its place. 0 looks never."""
    max_weights_mib: float = 0.0
    """Size of the weights of all models together; the one that was used least recently leaves for one that is loaded
    later. 0 is no bound."""
    explain: bool = False
    """Answer at /v1/explain what a network looked at; keeps each network a second time in memory."""
    hub_root: str = ""
    """Folder of a local hub to serve at /hub as well, made if it is missing: HF_ENDPOINT=http://127.0.0.1:8000/hub.
    Its tokens are its own, in HUB_ROOT/token or hub_users."""
    hub_users: str = ""
    """JSON file with the users of that hub, as for eca-hub localhub; needed if other machines can reach it."""
    device: str = "auto"
    """Where the networks run: cpu, cuda, cuda:1; auto takes the first GPU if there is one. Several devices, each with
    its own copy: cuda:0,1."""
    precision: Precision = "fp32"
    """Number format of the networks: fp32, bf16 (twice as fast, moves probabilities by up to 0.02), fp16 (on GPUs, up
    to 0.005), or auto, the fastest that the device has. Where a self-test at the start finds that answers move further,
    or that another class comes first, fp32 is used; /v1/models tells."""
    compile: bool = False
    """Compile the networks: takes half a minute for each power of two up to max_batch, and is kept on disk for the next
    start. Meant for GPUs: on a processor the networks are about as fast without."""
    decode_on: Literal["cpu", "gpu"] = "cpu"
    """Where ordinary JPEGs are decoded and resized: cpu; or gpu, the first of the devices, which moves pixels by a few
    grey levels. Other pictures are decoded on the processor all the same."""
    max_batch: int = 0
    """Pictures that go through an engine together, at most; 0 means 4 on a processor, where more gain nothing and keep
    others waiting, and 32 on a GPU."""
    max_wait_ms: float = 5.0
    """How long a free engine waits for pictures that are being decoded; with none on their way it waits not at all."""
    max_queue_images: int = 128
    """Pictures of one model that may be in the house at once; more get 429."""
    max_queue_s: float = 1.7
    """Time that the engines may need for the pictures in the house, as their last batches tell; who comes while they
    need longer, and 64 or more are there, gets 429: whoever is let in is answered within about that time."""
    deadline_ms: float = 10_000.0
    """When a caller gets 504 instead of an answer."""
    hang_timeout_s: float = 1.5
    """When a batch counts as hung and its engine is replaced; never before ten times what it should take."""
    max_image_mib: float = 10.0
    """Size of one picture."""
    max_image_mpx: float = 50.0
    """Width times height of one picture, in millions of pixels."""
    max_request_images: int = 32
    """Pictures in one request."""
    max_request_mib: float = 32.0
    """Size of one request."""
    max_bodies_mib: float = 256.0
    """Size of all requests that are being received or answered; more get 429."""
    body_timeout_s: float = 20.0
    """Time that the body of a request may take to arrive."""
    header_timeout_s: float = 10.0
    """Time that the head of a request may take to arrive, from the connection or its first byte."""
    keep_alive_s: float = 30.0
    """Time that an idle connection stays open."""
    drain_delay_s: float = 0.0
    """After SIGTERM: how long to go on listening while /readyz says 503, so that load balancers notice."""
    drain_timeout_s: float = 15.0
    """After that: how long accepted requests may take before they are cut off."""
    num_engines: int = 0
    """Engine threads of one model on each device; 0 means one for each core, and two for a GPU: one copies while the
    other computes."""
    num_decoders: int = 0
    """Threads that decode pictures; 0 means one for each core."""

    @property
    def devices(self) -> tuple[str, ...]:
        """The names in `device`, each with its kind: `cuda:0,1` is cuda:0 and cuda:1."""
        names: list[str] = []
        for word in (word.strip() for word in self.device.split(",")):
            kind = names[-1].partition(":")[0] if names else ""
            names.append(f"{kind}:{word}" if word.isdigit() and kind else word)
        return tuple(names)

    def on(self, device: str) -> "Settings":
        """The same on this device, which is what `auto` has turned out to be.

        Raises:
            BadSetting: something else that is set does not go with it.
        """
        return replace(self, device=device)

    @property
    def repos_to_allow(self) -> tuple[str, ...]:
        """The patterns in `allow_repos`."""
        return tuple(word.strip() for word in self.allow_repos.split(",") if word.strip())

    def __post_init__(self) -> None:
        if not self.model:
            raise BadSetting(
                "No model is given.",
                hint="Add --model OWNER/NAME, or a folder: eca-hub serve --model acme/eca_resnet50",
            )
        if len(set(self.model)) < len(self.model):
            raise BadSetting("A model is given twice.", hint="Name each model once.")
        if self.hub_users and not self.hub_root:
            raise BadSetting("hub_users is set and hub_root is not.", hint="Set --hub_root to the folder of the hub.")
        if self.device != "auto" and not all(_DEVICE.fullmatch(name) for name in self.devices):
            raise BadSetting(f"device is {self.device!r}.", hint="Set --device to auto, cpu, cuda, cuda:N or cuda:0,1.")
        if self.decode_on == "gpu" and self.devices[0] == "cpu":
            raise BadSetting(
                "--decode_on gpu needs a GPU, and the networks run on cpu.",
                hint="Set --device cuda on a machine that has one, or leave --decode_on out.",
            )
        for name, least, most in _RANGES:
            value = getattr(self, name)
            if not least <= value <= most:
                raise BadSetting(
                    f"{name} is {value}; it must be {least:g} to {most:g}.", hint=f"Set --{name} or ECA_{name.upper()}."
                )
        if self.max_request_mib < self.max_image_mib:
            raise BadSetting(
                f"max_request_mib is {self.max_request_mib:g}, less than one picture of {self.max_image_mib:g} MiB."
            )


_DEVICE = re.compile(r"cpu|cuda(:\d{1,3})?")

_RANGES = (
    ("port", 0, 65535),
    ("wait_for_models_s", 0, 86_400),
    ("watch", 0, 86_400),
    ("max_weights_mib", 0, 10_000_000),
    ("max_batch", 0, 1024),
    ("max_wait_ms", 0, 1000),
    ("max_queue_images", 1, 100_000),
    ("max_queue_s", 0.001, 3600),
    ("deadline_ms", 1, 600_000),
    ("hang_timeout_s", 0.1, 3600),
    ("max_image_mib", 0.001, 1024),
    ("max_image_mpx", 0.001, 178),
    ("max_request_images", 1, 10_000),
    ("max_request_mib", 0.001, 4096),
    ("max_bodies_mib", 0.001, 1_000_000),
    ("body_timeout_s", 0.1, 3600),
    ("header_timeout_s", 0.1, 3600),
    ("keep_alive_s", 0, 3600),
    ("drain_delay_s", 0, 600),
    ("drain_timeout_s", 0, 600),
    ("num_engines", 0, 256),
    ("num_decoders", 0, 256),
)
