"""/v1/models: list, load and unload models. Loading and unloading need an admin key."""

import fnmatch
import logging
from typing import Any

from fastapi import APIRouter, Depends, Request, Response

from eca_hub import EcaHubError
from eca_service.api.schemas import LOAD_BODY, ModelResponse, ModelsResponse, describe_response, error_responses
from eca_service.errors import BadSetting, ModelNotLoaded, RepoNotAllowed, UnfitModel
from eca_service.http.dependencies import AppState, StateDep, reject_parameters, require_admin_key, require_api_key
from eca_service.http.responses import json_response
from eca_service.http.strict_json import LoadModelRequest, parse_load_request
from eca_service.inference.types import ParityReport
from eca_service.models.registry import ModelEntry
from eca_service.models.source import ModelSource

_MAX_BODY_BYTES = 65_536

_logger = logging.getLogger(__name__)

router = APIRouter(responses=error_responses(401))


@router.get(
    "/v1/models",
    summary="List the models",
    response_model=None,
    dependencies=[Depends(require_api_key), Depends(reject_parameters)],
    responses={200: describe_response(ModelsResponse), **error_responses(422)},
)
async def list_models(state: StateDep) -> Response:
    """Each with its id, commit, labels, input size, number of parameters and state."""
    return json_response({"models": [describe(entry) for entry in state.registry.entries]})


@router.post(
    "/v1/models",
    summary="Load a model, or another revision of a loaded one",
    response_model=None,
    dependencies=[Depends(require_admin_key), Depends(reject_parameters)],
    responses={
        200: describe_response(ModelResponse),
        **error_responses(400, 403, 404, 408, 409, 413, 415, 422, 429, 502, 503),
    },
    openapi_extra={"requestBody": LOAD_BODY},
)
async def load_model(request: Request, state: StateDep) -> Response:
    """Needs an admin key. Returns when the model is ready: fetched, checked against its hashes and warmed up.

    A loaded model of this id serves until then, and stays if the new revision is bad. The least recently used models
    are unloaded when --max_weights_mib requires it.
    """
    async with state.bodies.read(request.headers, request.receive, max_bytes=_MAX_BODY_BYTES) as body:
        load_request = parse_load_request(body)
    _check_allowed(state, load_request)
    try:
        entry = await state.registry.load(ModelSource(load_request.model, load_request.revision))
    except BadSetting as error:
        # The settings of the start suit the models of the start.
        raise UnfitModel(
            f"{load_request.model} cannot run with the settings of this service: {error.message}", hint=error.hint
        ) from error
    except EcaHubError:
        raise
    except Exception as error:
        _logger.exception("loading %s failed", load_request.model)
        raise UnfitModel(f"The model cannot run here: {type(error).__name__}.", hint="See the log.") from error
    return json_response(describe(entry))


@router.delete(
    "/v1/models/{model_id:path}",
    summary="Unload a model",
    response_model=None,
    dependencies=[Depends(require_admin_key), Depends(reject_parameters)],
    responses={200: describe_response(ModelsResponse), **error_responses(403, 404, 409, 422)},
)
async def unload_model(state: StateDep, model_id: str) -> Response:
    """Needs an admin key. Requests in flight are still completed. Returns the remaining models."""
    if not model_id:
        raise ModelNotLoaded(entry.model_id for entry in state.registry.entries)
    await state.registry.unload(model_id)
    return await list_models(state)


def _check_allowed(state: AppState, load_request: LoadModelRequest) -> None:
    if not any(fnmatch.fnmatchcase(load_request.model, pattern) for pattern in state.allowed_repos):
        raise RepoNotAllowed(
            "This repository may not be loaded here.", hint="The operator lists allowed repositories in --allow_repos."
        )


def describe(entry: ModelEntry) -> dict[str, Any]:
    """Return what clients may know about a model."""
    if entry.model is None:
        return {"id": entry.model_id, "state": entry.state}
    info = entry.model.info
    return {
        "id": entry.model_id,
        "state": entry.state,
        "revision": info.revision,
        "architecture": info.architecture,
        "attention": info.attention,
        "labels": list(info.labels),
        "tasks": list(info.tasks),
        "activation": info.activation,
        **info.facts,
        "num_parameters": info.num_parameters,
        "weights_bytes": info.weights_bytes,
        "device": info.device,
        "precision": info.parity.precision,
        "parity": _parity(info.parity) if info.parity.num_images else None,
    }


def _parity(report: ParityReport) -> dict[str, Any]:
    return {
        "same_top1": report.same_top1,
        "max_difference": report.max_difference,
        "num_images": report.num_images,
        "allowed_difference": report.allowed_difference,
    }
