"""Records made from JSON objects that a person wrote: fields are read with their type checked, and named in errors."""

from dataclasses import dataclass, field, replace
from typing import ClassVar, Self

from mmrole.base.errors import RecordError, Where, shown
from mmrole.base.json_values import JsonObject

UNPLACED = Where()
"""For a record that does not come from a file."""


@dataclass(frozen=True, slots=True)
class JsonRecord:
    """A record and the JSON object that it was made from. Its attributes are what the project uses of that.

    A class of records adds its attributes, and `_values`, which reads them.
    """

    UNIQUE_IDS: ClassVar[bool] = True
    """Whether no two records of a file may have the same id."""

    json: JsonObject = field(repr=False, hash=False)
    where: Where = field(repr=False, compare=False)
    """Where the record was read, for messages."""

    @classmethod
    def from_json(cls, obj: object, where: Where = UNPLACED) -> Self:
        """Reads a record.

        Raises:
            RecordError: `obj` is not such a record.
        """
        obj = read_object(obj, where)
        where = replace(where, id=cls._id(obj, where))
        return cls(**cls._values(obj, where), json=obj, where=where)

    def to_json(self) -> JsonObject:
        """The published form of the record: the object that it was made from, which must not be changed."""
        return self.json

    @classmethod
    def _id(cls, obj: JsonObject, where: Where) -> str | None:
        """What messages call the record."""
        return read_text(obj, "id", where)

    @classmethod
    def _values(cls, obj: JsonObject, where: Where) -> JsonObject:
        """The attributes of the class by name, or `RecordError`."""
        raise NotImplementedError


def read_object(value: object, where: Where, name: str = "the record") -> JsonObject:
    """`value`, which must be a JSON object; `name` is what a message calls it.

    Raises:
        RecordError: it is something else.
    """
    if not isinstance(value, dict):
        raise RecordError(f"{where}: {name} must be an object ({{…}}), not {shown(value)}")
    return value


def read_text(obj: JsonObject, key: str, where: Where, inside: str = "", *, empty: bool = False) -> str:
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


def read_optional(obj: JsonObject, key: str, where: Where) -> str | None:
    """The text `obj[key]`, or None if the field is missing or null.

    Raises:
        RecordError: it is something else.
    """
    return None if obj.get(key) is None else read_text(obj, key, where, empty=True)
