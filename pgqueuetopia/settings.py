"""The settings that job_configs holds, as a model that stays in step on every instance."""

import json
from collections.abc import Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from pgqueuetopia.errors import Misconfigured


class Settings(BaseModel):
    """Subclass it with your own fields, each with a default; a config of the same key sets it.

    Values are text in the database and are parsed by pydantic ("10", "true", "1.5"; JSON for lists and
    objects). Configs without a field are ignored. Raises Misconfigured for a field without a default.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    suspended: bool = False

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        required = [name for name, field in cls.model_fields.items() if field.is_required()]
        if required:
            raise Misconfigured(f"{cls.__name__} needs a default for: {', '.join(required)}")

    @classmethod
    def parsed(cls, name: str, text: str) -> object:
        """One field's value; ValueError says in one line what is wrong with the text."""
        try:
            return getattr(cls.model_validate_strings({name: text}), name)
        except Exception as error:
            # A validator of the user's may raise anything: it may have been written for what the JSON says.
            try:
                return getattr(cls.model_validate({name: json.loads(text)}), name)
            except Exception:
                raise ValueError(_in_one_line(error)) from None

    def updated(self, configs: Mapping[str, str]) -> tuple[Self, dict[str, str]]:
        """These settings with what `configs` says, and the faults of what it says wrongly, by key.

        A value that does not validate leaves the field as it was; a config that is gone, its default.
        """
        values: dict[str, object] = {}
        faults: dict[str, str] = {}
        for name in type(self).model_fields:
            if name in configs:
                try:
                    values[name] = self.parsed(name, configs[name])
                except ValueError as error:
                    values[name], faults[name] = getattr(self, name), str(error)
        try:
            return type(self).model_validate(values), faults
        except Exception as error:
            return self, {**faults, "settings": _in_one_line(error)}


def _in_one_line(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return f"{type(error).__name__}: {error}"
    return "; ".join(fault["msg"] for fault in error.errors())
