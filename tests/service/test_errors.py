"""Each code has a status, and no two classes disagree."""

import eca_hub.errors
import eca_service.errors
import eca_service.http.middleware
from eca_hub import EcaHubError


def every_class(base: type[EcaHubError]) -> set[type[EcaHubError]]:
    return {base}.union(*(every_class(child) for child in base.__subclasses__()))


def test_each_code_has_a_status() -> None:
    modules = {eca_hub.errors.__name__, eca_service.errors.__name__, eca_service.http.middleware.__name__}
    classes = {one for one in every_class(EcaHubError) if one.__module__ in modules}
    assert len(classes) > 20
    missing = {one.code for one in classes} - eca_service.errors.STATUS_OF.keys()
    assert not missing


def test_no_hostile_image_causes_an_internal_error() -> None:
    for error in every_class(eca_hub.errors.BadImage):
        assert 400 <= eca_service.errors.STATUS_OF[error.code] < 500
