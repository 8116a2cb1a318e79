"""Values out of JSON whose types are checked: what was written by us may come back edited by others."""

import json
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

T = TypeVar("T")


def checked(kind: TypeAdapter[T], value: object) -> T:
    """`value`, from parsed JSON, as that type, nothing converted.

    Raises ValueError, in one line, naming the first thing that is wrong.
    """
    try:
        return kind.validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, fault["loc"])) or "its content"
        raise ValueError(f"{place}: {fault['msg']}") from None
