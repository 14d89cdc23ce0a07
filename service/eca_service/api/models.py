"""The addresses under /v1/models: which models run, and for whoever has an admin key, which shall.

Never sees weights.
"""

import fnmatch
import logging
from typing import Any

from fastapi import APIRouter, Depends, Request, Response

from eca_hub import EcaHubError
from eca_service.api.schemas import LOAD_BODY, ModelsAnswer, ModelShape, refusals
from eca_service.errors import ModelNotLoaded, RepoNotAllowed, UnfitModel
from eca_service.http.dependencies import House, TheHouse, check_admin_key, check_key
from eca_service.http.responses import json_answer
from eca_service.http.strict_json import LoadBody, load_in_json
from eca_service.models.registry import ModelEntry, ModelSource

_MAX_BODY_BYTES = 65_536

_logger = logging.getLogger(__name__)

router = APIRouter(responses=refusals(401))


@router.get(
    "/v1/models",
    summary="List the models of this process",
    response_model=None,
    dependencies=[Depends(check_key)],
    responses={200: {"model": ModelsAnswer}},
)
async def list_models(house: TheHouse) -> Response:
    """Each with its id, commit, labels, input size, number of parameters and state."""
    return json_answer({"models": [describe(entry) for entry in house.registry.entries]})


@router.post(
    "/v1/models",
    summary="Load a model, or another revision of one that runs",
    response_model=None,
    dependencies=[Depends(check_admin_key)],
    responses={200: {"model": ModelShape}, **refusals(400, 403, 404, 408, 409, 413, 415, 422, 429, 502, 503)},
    openapi_extra={"requestBody": LOAD_BODY},
)
async def load_model(request: Request, house: TheHouse) -> Response:
    """Needs an admin key. Answers when the model does: it has been fetched, checked against its hashes and warmed up.

    A model that runs under this id goes on answering until then, and for good if the new revision turns out to be
    bad. Who was used least recently leaves when the bound on memory asks for it.
    """
    async with house.bodies.read(request.headers, request.receive, max_bytes=_MAX_BODY_BYTES) as body:
        wanted = load_in_json(body)
    _check_allowed(house, wanted)
    try:
        entry = await house.registry.load(ModelSource(wanted.model, wanted.revision))
    except EcaHubError:
        raise
    except Exception as error:
        _logger.exception("loading %s failed", wanted.model)
        raise UnfitModel(f"The model does not run here: {type(error).__name__}.", hint="The log tells more.") from error
    return json_answer(describe(entry))


@router.delete(
    "/v1/models/{model_id:path}",
    summary="Unload a model",
    response_model=None,
    dependencies=[Depends(check_admin_key)],
    responses={200: {"model": ModelsAnswer}, **refusals(403, 404, 409, 422)},
)
async def unload_model(house: TheHouse, model_id: str) -> Response:
    """Needs an admin key. What has been accepted is still answered. Lists the models that are left."""
    if not model_id:
        raise ModelNotLoaded(entry.model_id for entry in house.registry.entries)
    await house.registry.unload(model_id)
    return await list_models(house)


def _check_allowed(house: House, wanted: LoadBody) -> None:
    if not any(fnmatch.fnmatchcase(wanted.model, pattern) for pattern in house.allowed_repos):
        raise RepoNotAllowed(
            "This repository may not be loaded here.", hint="The operator lists what may be in --allow_repos."
        )


def describe(entry: ModelEntry) -> dict[str, Any]:
    """What a caller may know of a model."""
    if entry.model is None:
        return {"id": entry.model_id, "state": entry.state}
    info = entry.model.info
    return {
        "id": info.model_id,
        "state": entry.state,
        "revision": info.revision,
        "architecture": info.architecture,
        "attention": info.attention,
        "labels": list(info.labels),
        "input_px": [info.height_px, info.width_px],
        "num_parameters": info.num_parameters,
        "weights_bytes": info.weights_bytes,
        "device": info.device,
        "precision": info.parity.precision,
        "parity": {
            "same_top1": info.parity.same_top1,
            "max_difference": info.parity.max_difference,
            "num_images": info.parity.num_images,
            "allowed_difference": info.parity.allowed_difference,
        },
    }
