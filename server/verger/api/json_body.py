"""JSON request bodies: bytes → plain objects → typed structs, each fault a 400 naming the field.

Called by the codecs of `api/`. Must not know any particular API's fields.
"""

import re
from typing import Any, NoReturn, TypeVar

import msgspec

from verger.errors import InvalidRequest

MAX_JSON_DEPTH = 64

T = TypeVar("T")

# "Expected `str`, got `int` - at `$.messages[0].role`", or "… - at `key` in `$.logit_bias`".
_PLACE = re.compile(r" - at (?:`key` in )?`\$([^`]*)`\Z")
_MISSING_FIELD = re.compile(r"Object missing required field `(\w+)`")


def decode_object(body: bytes) -> dict[str, Any]:
    """Decode a JSON object of bounded depth; NaN, Infinity and broken UTF-8 are not JSON."""
    try:
        decoded = msgspec.json.decode(body)
    except msgspec.ValidationError as error:
        _raise_invalid(str(error))
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"The body is not valid JSON: {error}.") from None
    except RecursionError:
        _raise_too_deep()
    if not isinstance(decoded, dict):
        raise InvalidRequest("The body must be a JSON object.")
    if _depth_exceeds(decoded, MAX_JSON_DEPTH):
        _raise_too_deep()
    return decoded


def to_struct(decoded: dict[str, Any], struct: type[T]) -> T:
    """Check every field's type and bounds against a struct; unknown fields are left out."""
    try:
        return msgspec.convert(decoded, struct, str_keys=True)
    except msgspec.ValidationError as error:
        _raise_invalid(str(error))


def _raise_invalid(fault: str) -> NoReturn:
    place = _PLACE.search(fault)
    what = fault[: place.start()] if place else fault
    path = place[1].replace("[...]", "") if place else ""
    param = re.sub(r"\[(\d+)\]", r".\1", path).strip(".")
    if missing := _MISSING_FIELD.fullmatch(what):
        param = f"{param}.{missing[1]}".strip(".")
        raise InvalidRequest(f"Missing required parameter: '{param}'.", param=param)
    if not param:
        raise InvalidRequest(f"Invalid body: {what}.")
    raise InvalidRequest(f"Invalid value for '{param}': {what}.", param=param)


def _raise_too_deep() -> NoReturn:
    raise InvalidRequest(f"The body is nested more than {MAX_JSON_DEPTH} levels deep.") from None


def _depth_exceeds(root: dict[str, Any], max_depth: int) -> bool:
    """Walk level by level, so that a bomb costs no stack."""
    level: list[Any] = [root]
    for _ in range(max_depth):
        children: list[Any] = []
        for container in level:
            children.extend(container.values() if isinstance(container, dict) else container)
        level = [child for child in children if isinstance(child, dict | list)]
        if not level:
            return False
    return True
