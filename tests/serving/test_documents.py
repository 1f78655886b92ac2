import json

import numpy as np
import pandas as pd

from serving.documents import documents_at


def test_documents_are_as_json_has_them(make):
    frame = make.catalogue()
    frame["price"] = np.array([1.5, np.nan, np.inf, *[2.0] * 20])
    frame["colours"] = pd.Series(
        [np.array(["red", "blue"], dtype=object), None, [], *[["x"]] * 20], dtype=object
    )
    frame["stock"] = pd.array([3, None, 5, *[1] * 20], dtype="Int64")
    frame["brand"] = pd.array(["a", None, "c", *["d"] * 20], dtype="string")
    frame["sold"] = np.array([True, False, True, *[False] * 20])
    frame["updated_at"] = pd.to_datetime(pd.Series(["2026-01-02T03:04:05Z", None, *[None] * 21]), utc=True)
    third, first, second = documents_at(frame, [2, 0, 1])
    assert first.fields == {"price": 1.5, "colours": ["red", "blue"], "stock": 3, "brand": "a", "sold": True}
    assert second.fields == {"sold": False}
    assert third.fields == {"colours": [], "stock": 5, "brand": "c", "sold": True}
    assert (first.updated_at, second.updated_at) == ("2026-01-02T03:04:05+00:00", None)
    assert [document.doc_id for document in (third, first, second)] == ["d02", "d00", "d01"]
    json.dumps([first.fields, second.fields, third.fields], allow_nan=False)
    assert documents_at(frame, []) == []
