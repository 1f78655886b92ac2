"""SQL of the reading edge: how one value of a file becomes text, an id, a list, a number or a time.

Readers work in DuckDB's SQL up to typed columns; everything after that is Ibis. An SQL fragment here is a
`str`; `identifier` and `literal` quote whatever comes from outside.
"""

from typing import Annotated, Final
from zoneinfo import ZoneInfo

from ibis.backends import BaseBackend
from pydantic import AfterValidator

MACROS: Final = r"""
CREATE OR REPLACE TEMP MACRO tt_text(x) AS nullif(trim(x), '');
CREATE OR REPLACE TEMP MACRO tt_number(x) AS
  CASE WHEN isfinite(TRY_CAST(x AS DOUBLE)) THEN TRY_CAST(x AS DOUBLE) END;
CREATE OR REPLACE TEMP MACRO tt_whole(x) AS
  CASE WHEN tt_number(x) = trunc(tt_number(x)) AND abs(tt_number(x)) < 9e18
       THEN CAST(tt_number(x) AS BIGINT) END;
CREATE OR REPLACE TEMP MACRO tt_number_id(x) AS
  CASE WHEN isfinite(x) AND x = trunc(x) AND abs(x) < 9e15 THEN CAST(CAST(x AS BIGINT) AS VARCHAR)
       WHEN isfinite(x) THEN CAST(x AS VARCHAR) END;
CREATE OR REPLACE TEMP MACRO tt_untyped_id(x) AS
  CASE WHEN regexp_full_match(x, '-?\d+\.0+') THEN split_part(x, '.', 1) ELSE nullif(x, '') END;
CREATE OR REPLACE TEMP MACRO tt_json_text(x) AS
  CASE json_type(x) WHEN 'NULL' THEN NULL WHEN 'VARCHAR' THEN x->>'$' ELSE CAST(x AS VARCHAR) END;
CREATE OR REPLACE TEMP MACRO tt_json_id(x) AS
  CASE WHEN json_type(x) = 'DOUBLE' THEN tt_number_id(TRY_CAST(x->>'$' AS DOUBLE))
       ELSE nullif(tt_json_text(x), '') END;
CREATE OR REPLACE TEMP MACRO tt_json_list(x) AS
  list_transform(from_json(x, '["JSON"]'), lambda e: tt_json_id(e));
CREATE OR REPLACE TEMP MACRO tt_text_list(x, separator) AS
  CASE WHEN x IS NULL THEN NULL
       WHEN NOT starts_with(trim(x), '[')
         THEN list_transform(string_split(x, separator), lambda e: tt_untyped_id(trim(e)))
       WHEN json_valid(x) THEN tt_json_list(x::JSON)
       WHEN json_valid(replace(x, '''', '"')) THEN tt_json_list(replace(x, '''', '"')::JSON) END;
CREATE OR REPLACE TEMP MACRO tt_json_or_text_list(x, separator) AS
  CASE WHEN json_type(x) = 'ARRAY' THEN tt_json_list(x)
       WHEN json_type(x) NOT IN ('OBJECT', 'BOOLEAN') THEN tt_text_list(tt_json_text(x), separator) END;
CREATE OR REPLACE TEMP MACRO tt_json_kind(x) AS
  CASE json_type(x) WHEN 'ARRAY' THEN 'list' WHEN 'BIGINT' THEN 'number' WHEN 'UBIGINT' THEN 'number'
       WHEN 'DOUBLE' THEN 'number' ELSE 'text' END;
CREATE OR REPLACE TEMP MACRO tt_feature(kind, x) AS
  CASE WHEN x IS NOT NULL THEN {'kind': kind, 'text': x} END;
CREATE OR REPLACE TEMP MACRO tt_truth(x) AS
  CASE WHEN lower(x) IN ('true', 't', 'yes', 'y') THEN true
       WHEN lower(x) IN ('false', 'f', 'no', 'n') THEN false
       ELSE tt_number(x) > 0 END;
CREATE OR REPLACE TEMP MACRO tt_epoch(v) AS
  make_timestamp(TRY_CAST(round(
    CASE WHEN abs(v) < 1e11 THEN v * 1e6 WHEN abs(v) < 1e14 THEN v * 1e3 WHEN abs(v) < 1e17 THEN v
         WHEN abs(v) < 1e20 THEN v / 1e3 END) AS BIGINT));
CREATE OR REPLACE TEMP MACRO tt_clock(x, zone) AS
  CASE WHEN NOT regexp_matches(x, '^[+-]?\d{4}') THEN NULL
       WHEN regexp_matches(x, ':.*(Z|UTC|GMT|[+-]\d\d(:?\d\d)?)$') THEN TRY_CAST(x AS TIMESTAMPTZ)
       ELSE timezone(zone, TRY_CAST(x AS TIMESTAMP)) END;
CREATE OR REPLACE TEMP MACRO tt_any_time(x, zone) AS
  CASE WHEN regexp_full_match(x, '(19|20)\d{6}')
         THEN timezone('UTC', timezone(zone, try_strptime(x, '%Y%m%d')))
       WHEN regexp_full_match(x, '(19|20)\d{12}')
         THEN timezone('UTC', timezone(zone, try_strptime(x, '%Y%m%d%H%M%S')))
       WHEN regexp_full_match(x, '[+-]?\d+(\.\d*)?([eE][+-]?\d+)?') THEN tt_epoch(TRY_CAST(x AS DOUBLE))
       ELSE timezone('UTC', tt_clock(regexp_replace(upper(x), '\s+([+-]\d)', '\1'), zone)) END;
CREATE OR REPLACE TEMP MACRO tt_time(x, zone) AS
  CASE WHEN year(tt_any_time(x, zone)) BETWEEN 1900 AND 9999 THEN tt_any_time(x, zone) END;
"""
"""Blank text is null. Ids: 12.0 is "12" where the file has a number, or has no types (CSV). Epochs: below
1e11 seconds, below 1e14 milliseconds, below 1e17 microseconds, else nanoseconds; eight or fourteen digits
that start with 19 or 20 are a date. `zone` is that of times that state none; the result is UTC, zoneless."""


def _known_zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (ValueError, OSError, KeyError):
        raise ValueError(f"{name!r} is no time zone; write one such as UTC or Europe/Berlin") from None
    return name


Zone = Annotated[str, AfterValidator(_known_zone)]
"""Name of a time zone."""


def define_macros(connection: BaseBackend) -> None:
    """Define the `tt_` macros on a DuckDB connection."""
    connection.raw_sql(MACROS)


def identifier(name: str) -> str:
    """Quote a name for SQL."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """Quote a text for SQL."""
    return "'" + text.replace("'", "''") + "'"
