"""The base of every configuration object: frozen, keyword-only, unknown keys refused."""

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """A frozen configuration that stands beside the component it configures.

    Ranges are checked where the object is built, so a component never re-checks them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
