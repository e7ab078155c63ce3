"""The fields of a JSON object that a person wrote: read with their type checked, and named in the error."""

from typing import Any

from data_utils.errors import RecordError, Where, shown

Json = dict[str, Any]


def read_object(value: object, where: Where, name: str = "the record") -> Json:
    """`value`, which must be a JSON object; `name` is what a message calls it.

    Raises:
        RecordError: it is something else.
    """
    if not isinstance(value, dict):
        raise RecordError(f"{where}: {name} must be an object ({{…}}), not {shown(value)}")
    return value


def read_identified(value: object, where: Where) -> tuple[Where, Json]:
    """`value`, which must be an object with a text `id`, and `where` with that id.

    Raises:
        RecordError: it is not.
    """
    obj = read_object(value, where)
    return where._replace(id=read_text(obj, "id", where)), obj


def read_text(obj: Json, key: str, where: Where, inside: str = "", *, empty: bool = False) -> str:
    """The text `obj[key]`, which must be there.

    Args:
        obj: an object of the record.
        key: the name of the field.
        where: the record.
        inside: what a message calls `obj`, if it is not the record itself.
        empty: whether the text may be empty or blank.

    Raises:
        RecordError: the field is missing, not a text, or blank.
    """
    name = f'"{key}"' + (f" of {inside}" if inside else "")
    wanted = "a text" if empty else "a non-empty text"
    if key not in obj:
        raise RecordError(f"{where}: {name} is missing; give {wanted}")
    value = obj[key]
    if not isinstance(value, str) or not (empty or value.strip()):
        raise RecordError(f"{where}: {name} must be {wanted}, not {shown(value)}")
    return value


def read_optional(obj: Json, key: str, where: Where) -> str | None:
    """The text `obj[key]`, or None if the field is missing or null.

    Raises:
        RecordError: it is something else.
    """
    return None if obj.get(key) is None else read_text(obj, key, where, empty=True)
