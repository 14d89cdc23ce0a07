"""The tree of errors: every class has a code of its own and reads as one sentence."""

import eca_hub.errors
from eca_hub.errors import EcaHubError, UnknownName


def all_errors(base: type[EcaHubError] = EcaHubError) -> list[type[EcaHubError]]:
    return [base, *(each for child in base.__subclasses__() for each in all_errors(child))]


def ours() -> list[type[EcaHubError]]:
    return [each for each in all_errors() if each.__module__ == "eca_hub.errors"]


def test_every_error_has_a_code_of_its_own() -> None:
    codes = [error.code for error in ours()]
    assert len(codes) == len(set(codes))


def test_the_tree_in_the_docstring_is_the_tree_in_the_code() -> None:
    drawn = eca_hub.errors.__doc__ or ""
    assert [error.__name__ for error in ours() if error.__name__ not in drawn] == []


def test_the_message_and_the_hint_make_one_text() -> None:
    error = EcaHubError("The image has 20 MiB; the limit is 10 MiB.", hint="Shrink it.")
    assert str(error) == "The image has 20 MiB; the limit is 10 MiB. Shrink it."


def test_an_unknown_name_comes_with_the_closest_ones() -> None:
    error = UnknownName.among("architecture", "resnet5", ["resnet50", "vgg"], listing="eca-hub models")
    assert str(error) == "There is no architecture 'resnet5'. Did you mean 'resnet50'? All names: eca-hub models"
    error = UnknownName.among("attention", "SIMAM", ["SimAM", "eca"], listing="eca-hub models")
    assert error.hint == "Did you mean 'SimAM'? All names: eca-hub models"
