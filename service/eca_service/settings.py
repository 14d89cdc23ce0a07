"""What an operator can set: each field is an option `--name` and an environment variable `ECA_NAME`.

The first sentence of a description is what `eca-hub serve --help` shows; all of it is in `--help_all`.
"""

import re
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidatorFunctionWrapHandler, model_validator

from eca_hub import DEFAULT_RELEASE
from eca_service.errors import BadSetting

Precision = Literal["auto", "fp32", "bf16", "fp16"]
Group = Literal["model", "network", "limits", "speed", "keys"]

RENAMED = {
    "watch": "revision_poll_s",
    "max_queue_images": "max_inflight_images",
    "max_queue_s": "max_queue_delay_s",
}
"""Names of before -> names of today; both are read, the old ones with a warning."""

JSON_COPIES = 4
"""How often the bytes of a JSON body are in memory at once while it is parsed: the body, its text, its strings, the
images."""

_REPO_PATTERN = re.compile(r"[\w.*?!\[\]-]+/[\w.*?!\[\]-]+|[\w.?!\[\]-]*\*[\w.*?!\[\]-]*", re.ASCII)
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}
_DEVICE = re.compile(r"cpu|cuda(:\d{1,3})?")


def _option(
    group: Group,
    default: Any,
    description: str,
    low: float | None = None,
    high: float | None = None,
    *,
    rare: bool = True,
) -> Any:
    return Field(
        default,
        description=description,
        ge=low,
        le=high,
        allow_inf_nan=None if low is None else False,
        json_schema_extra={"group": group, "is_rare": rare},
    )


class Settings(BaseModel):
    """How the service runs."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    model: tuple[str, ...] = _option(
        "model",
        (DEFAULT_RELEASE,),
        "Model to serve: owner/name[@revision], a folder or id=folder. The default is part of eca-hub. Repeat it for "
        "several models; in the environment separate them by commas. Clients see the id of a folder, by default its "
        "last part, never its path.",
        rare=False,
    )
    explain: bool = _option(
        "model",
        False,
        "Serve /v1/explain, which explains a classification. Keeps each network a second time in memory.",
        rare=False,
    )
    revision_poll_s: float = _option(
        "model",
        0.0,
        "Seconds between two polls of the models' branches; 0: never. When a branch has moved, its new commit is "
        "loaded beside the old one and takes its place.",
        0,
        86_400,
        rare=False,
    )
    wait_for_models_s: float = _option(
        "model",
        0.0,
        "How long to wait at the start for a hub or a model that is not there yet. Until then /readyz returns 503; 0 "
        "fails at once.",
        0,
        86_400,
    )
    allow_repos: str = _option(
        "model",
        "",
        "Repositories that an admin key may load, separated by commas. Those of --model always; * stands for any "
        "letters, as in acme/*.",
    )
    hub_root: str = _option(
        "model",
        "",
        "Folder of a local hub to serve at /hub. It is created if it is missing; clients set "
        "HF_ENDPOINT=http://127.0.0.1:8000/hub. Its tokens are its own, in HUB_ROOT/token or --hub_users.",
    )
    hub_users: str = _option(
        "model",
        "",
        "JSON file with the users of that hub, as for eca-hub localhub. Required when other machines can reach it.",
    )

    host: str = _option("network", "127.0.0.1", "Address to listen on.", rare=False)
    port: int = _option("network", 8000, "Port to listen on; 0: a free one.", 0, 65535, rare=False)
    root_path: str = _option(
        "network",
        "",
        "Path prefix that a reverse proxy strips, such as /vision. Links, redirects and /docs then carry it.",
    )
    allowed_hosts: str = _option(
        "network",
        "",
        "Host names that clients may use, separated by commas. *.example.com is a pattern, * any. By default any name "
        "where a key is required or --insecure is set; otherwise only localhost, because a web page could reach the "
        "service under a name of its own (DNS rebinding).",
    )
    cors_origins: str = _option(
        "network",
        "",
        "Origins whose pages may call the service (CORS), separated by commas; * allows any. Without it CORS is off.",
        rare=False,
    )
    header_timeout_s: float = _option(
        "network",
        10.0,
        "Time for request line and headers, from the connection or their first byte.",
        0.1,
        3600,
    )
    body_timeout_s: float = _option("network", 20.0, "Time for a request's body to arrive.", 0.1, 3600)
    write_timeout_s: float = _option(
        "network", 20.0, "Time within which a client must take some of its response.", 0.1, 3600
    )
    keep_alive_s: float = _option(
        "network", 30.0, "Time that an idle connection stays open; 0: one request a connection.", 0, 3600
    )
    drain_delay_s: float = _option(
        "network", 0.0, "After SIGTERM: how long to accept requests while /readyz already returns 503.", 0, 600
    )
    drain_timeout_s: float = _option(
        "network", 15.0, "After that: how long accepted requests may take before they are cancelled.", 0, 600
    )
    access_log: Literal["auto", "on", "off"] = _option(
        "network",
        "auto",
        "Log id, route, status and milliseconds of each request: on, off or auto. auto is off on a terminal and on "
        "elsewhere. Keys and images are never logged.",
    )
    log_format: Literal["auto", "text", "json"] = _option(
        "network", "auto", "Format of the log: text, json, or auto, which is text on a terminal and json elsewhere."
    )
    otlp_endpoint: str = _option(
        "network",
        "",
        "OpenTelemetry collector (OTLP over HTTP) that gets a trace of each request, such as http://collector:4318. "
        "Needs pip install 'eca-hub[otel]'. The variables OTEL_SERVICE_NAME and OTEL_TRACES_SAMPLER apply.",
    )

    max_inflight_images: int = _option(
        "limits", 128, "Images of one model in flight; beyond it requests get 429.", 1, 100_000, rare=False
    )
    max_queue_delay_s: float = _option(
        "limits",
        1.3,
        "Expected wait beyond which requests get 429, estimated from the last batches. A batch takes at most half of "
        "it, with fewer images on a slow machine; two batches for each engine are always admitted.",
        0.001,
        3600,
        rare=False,
    )
    deadline_ms: float = _option("limits", 10_000.0, "Time after which a request gets 504.", 1, 600_000, rare=False)
    max_image_mib: float = _option("limits", 10.0, "Size of one image, encoded.", 0.001, 1024, rare=False)
    max_image_mpx: float = _option("limits", 50.0, "Width times height of one image, in megapixels.", 0.001, 178)
    max_request_images: int = _option("limits", 32, "Images in one request.", 1, 10_000)
    max_request_mib: float = _option(
        "limits", 32.0, "Size of one request's body; max_bodies_mib must be four times as much.", 0.001, 4096
    )
    max_bodies_mib: float = _option(
        "limits", 256.0, "Memory for the bodies of all requests; beyond it they get 429.", 0.001, 1_000_000
    )
    max_connections: int = _option(
        "limits",
        1000,
        "Open connections; a new one takes the place of an idle one or gets 503. Fewer where the process may open "
        "fewer files.",
        1,
        1_000_000,
    )
    max_weights_mib: float = _option(
        "limits",
        0.0,
        "Weights of all models together; 0: no limit. The least recently used model is unloaded for one that is loaded "
        "later.",
        0,
        10_000_000,
    )
    hang_timeout_s: float = _option(
        "limits", 1.5, "Time after which an idle batch counts as hung; at least ten times its usual time.", 0.1, 3600
    )

    device: str = _option(
        "speed",
        "auto",
        "cpu, cuda, cuda:1 or several, cuda:0,1; auto: the first GPU if any. Each device has its own copy of a model.",
        rare=False,
    )
    precision: Precision = _option(
        "speed",
        "auto",
        "fp32, bf16, fp16 or auto, the fastest that passes a parity check at the start. Its criterion: the same top "
        "class for every stored image, probabilities moved by at most 0.02 in bf16 and 0.005 in fp16. /v1/models shows "
        "the result; fp32 is exact. Detectors always run in fp32.",
        rare=False,
    )
    max_batch: int = _option(
        "speed",
        0,
        "Largest batch; 0: 4 on a CPU, 32 on a GPU, for detectors 1 and 8. Larger ones gain nothing on a CPU.",
        0,
        1024,
        rare=False,
    )
    max_wait_ms: float = _option(
        "speed",
        5.0,
        "How long a free engine waits for images that are being decoded. With none of them it does not wait.",
        0,
        1000,
    )
    compile: bool = _option(
        "speed",
        False,
        "Compile the networks with torch.compile. Takes half a minute for each power of two up to max_batch, and is "
        "cached on disk. Meant for GPUs: on a CPU networks are about as fast without.",
    )
    decode_on: Literal["cpu", "gpu"] = _option(
        "speed",
        "cpu",
        "Where ordinary JPEGs are decoded and resized: cpu or gpu. On the first GPU, which moves pixels by a few gray "
        "levels. Other images are decoded on the CPU.",
    )
    num_engines: int = _option(
        "speed",
        0,
        "Engine threads of a model on each device; 0: one for each core, two for a GPU. On a CPU it is also the most "
        "cores that a single image uses. On a GPU one engine copies while the other computes.",
        0,
        256,
    )
    num_decoders: int = _option("speed", 0, "Threads that decode images; 0: one for each core.", 0, 256)

    api_keys_file: str = _option(
        "keys",
        "",
        "File with keys, one a line; or set ECA_API_KEYS, separated by commas. A line is KEY or KEY 2027-01-31, the "
        "moment at which it expires. Changes apply within two seconds: an empty file revokes all of its keys; while "
        "the file is missing or malformed, its last keys stay valid and an error is logged every minute.",
        rare=False,
    )
    admin_keys_file: str = _option(
        "keys", "", "File with keys that may load and unload models; or set ECA_ADMIN_KEYS.", rare=False
    )
    insecure: bool = _option("keys", False, "Listen beyond this machine without a key.", rare=False)

    @property
    def devices(self) -> tuple[str, ...]:
        """The names in `device`, each with its kind: `cuda:0,1` is cuda:0 and cuda:1."""
        names: list[str] = []
        for word in (word.strip() for word in self.device.split(",")):
            kind = names[-1].partition(":")[0] if names else ""
            names.append(f"{kind}:{word}" if word.isdigit() and kind else word)
        return tuple(names)

    def on(self, device: str) -> "Settings":
        """Return a copy for this device, which is what `auto` was resolved to.

        Raises:
            BadSetting: another setting does not go with it.
        """
        return Settings(**{**self.model_dump(), "device": device})

    @property
    def repos_to_allow(self) -> tuple[str, ...]:
        """The patterns in `allow_repos`."""
        return split(self.allow_repos)

    @property
    def allowed_origins(self) -> tuple[str, ...]:
        """The origins in `cors_origins` as browsers write them: in lower case and without the scheme's own port."""
        origins = [origin.lower() for origin in split(self.cors_origins)]
        return tuple(origin.removesuffix(_DEFAULT_PORTS.get(origin.partition(":")[0], "")) for origin in origins)

    @model_validator(mode="wrap")
    @classmethod
    def _translate_errors(cls, values: Any, validate: ValidatorFunctionWrapHandler) -> Self:
        try:
            settings: Self = validate(values)
        except ValidationError as error:
            raise _first_problem(error) from None
        settings._check_together()
        return settings

    def _check_together(self) -> None:
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
            raise BadSetting(
                f"--device must be auto, cpu, cuda, cuda:N or several as cuda:0,1, not {self.device!r}.",
                hint="Change --device or ECA_DEVICE.",
            )
        if self.decode_on == "gpu" and self.devices[0] == "cpu":
            raise BadSetting(
                "--decode_on gpu needs a GPU, and the networks run on cpu.",
                hint="Set --device cuda on a machine that has one, or omit --decode_on.",
            )
        if self.max_request_mib < self.max_image_mib:
            raise BadSetting(
                f"--max_request_mib is {self.max_request_mib:g}, less than one image of {self.max_image_mib:g} MiB.",
                hint="Raise --max_request_mib or lower --max_image_mib.",
            )
        if (needed_mib := JSON_COPIES * self.max_request_mib) > self.max_bodies_mib:
            raise BadSetting(
                f"--max_request_mib is {self.max_request_mib:g}, and a JSON body of that size takes {needed_mib:g} MiB "
                f"while it is parsed, more than --max_bodies_mib {self.max_bodies_mib:g}.",
                hint="Raise --max_bodies_mib or lower --max_request_mib.",
            )
        if self.root_path and not re.fullmatch(r"(/[A-Za-z0-9._~-]+)+", self.root_path):
            raise BadSetting(
                f"--root_path must be a path such as /vision, not {self.root_path!r}.",
                hint="Begin with a slash and end without one.",
            )
        if self.otlp_endpoint and not re.fullmatch(r"https?://[^/\s]+(/\S*)?", self.otlp_endpoint):
            raise BadSetting(
                f"--otlp_endpoint must be an address such as http://collector:4318, not {self.otlp_endpoint!r}.",
                hint="Write scheme, host and port.",
            )
        for name in ("allowed_hosts", "cors_origins", "allow_repos"):
            if (text := getattr(self, name)) and not split(text):
                raise BadSetting(f"--{name} has no name, only {text!r}.", hint=f"Add names to --{name}, or omit it.")
        for pattern in self.repos_to_allow:
            if not _REPO_PATTERN.fullmatch(pattern):
                raise BadSetting(
                    f"--allow_repos has {pattern!r}, which matches no repository.",
                    hint="Write owner/name, or a pattern such as acme/*.",
                )
        for host in split(self.allowed_hosts):
            if not re.fullmatch(r"\*|(\*\.)?[A-Za-z0-9._-]+|\[?[0-9A-Fa-f:]+\]?", host):
                raise BadSetting(
                    f"--allowed_hosts has {host!r}, which is not a host name.",
                    hint="Write names without scheme and port, such as vision.example.com or *.example.com.",
                )
        for origin in split(self.cors_origins):
            if not re.fullmatch(r"\*|https?://[^/\s]+", origin):
                raise BadSetting(
                    f"--cors_origins has {origin!r}, which is not an origin.",
                    hint="Write scheme, host and port without a path, such as https://shop.example.",
                )


def split(text: str) -> tuple[str, ...]:
    """Split a list that is separated by commas."""
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _first_problem(error: ValidationError) -> BadSetting:
    """Describe the first problem in one sentence."""
    problem = error.errors(include_url=False)[0]
    name = str(problem["loc"][0])
    if name not in Settings.model_fields:
        return BadSetting(f"There is no setting {name}.", hint="eca-hub serve --help_all lists them.")
    return BadSetting(
        f"--{name} must be {_allowed(name)}, not {problem['input']!r}.", hint=f"Change --{name} or ECA_{name.upper()}."
    )


def _allowed(name: str) -> str:
    field = Settings.model_fields[name]
    bounds = {kind: getattr(limit, kind) for limit in field.metadata for kind in ("ge", "le") if hasattr(limit, kind)}
    kind = {int: "a whole number", float: "a number", bool: "true or false"}.get(field.annotation, "")  # type: ignore[arg-type]
    if bounds:
        return f"{kind}, {bounds['ge']:g} to {bounds['le']:g}"
    if kind:
        return kind
    choices = [str(choice) for choice in getattr(field.annotation, "__args__", ()) if isinstance(choice, str)]
    return " or ".join([", ".join(choices[:-1]), choices[-1]]) if choices else "text"
