import io
import logging
import re

import pytest

from serving.trace import PRESENT, TraceFormatter, trace_of

ID, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.mark.parametrize(
    "header",
    [f"00-{ID}-{PARENT}-01", f"00-{ID}-{PARENT}-00", f"01-{ID}-{PARENT}-01", f"cc-{ID}-{PARENT}-01-more"],
)
def test_a_valid_trace_goes_on_with_a_span_of_our_own(client, header):
    reply = client.post("/v1/search", json={"text": "red"}, headers={"traceparent": header})
    version, trace, span, flags = reply.headers["traceparent"].split("-")
    assert (version, trace, flags) == ("00", ID, header.split("-")[3])
    assert re.fullmatch("[0-9a-f]{16}", span)
    assert span != PARENT


@pytest.mark.parametrize(
    "header",
    [
        "",
        "no trace",
        f"00-{ID.upper()}-{PARENT}-01",
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{ID}-{'0' * 16}-01",
        f"ff-{ID}-{PARENT}-01",
        f"00-{ID}-{PARENT}-01-more",
        f"00-{ID}-{PARENT}-1",
        f"00-{ID[:-1]}-{PARENT}-01",
        f"00-{ID}-{PARENT}-01\n",
    ],
)
def test_a_trace_that_is_not_valid_is_replaced(header):
    found = trace_of(header.encode())
    assert found.trace_id != ID
    assert re.fullmatch("00-[0-9a-f]{32}-[0-9a-f]{16}-00", found.header)
    assert found.trace_id != trace_of(None).trace_id


def test_refusals_and_the_page_carry_the_trace_too(client):
    for path in ("/nothing", "/", "/livez"):
        assert ID in client.get(path, headers={"traceparent": f"00-{ID}-{PARENT}-01"}).headers["traceparent"]


def test_log_lines_of_a_request_end_with_its_trace_and_others_stay_as_they_are():
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(TraceFormatter("%(message)s"))
    logger = logging.Logger("a test")
    logger.addHandler(handler)
    logger.info("before")
    token = PRESENT.set(trace_of(f"00-{ID}-{PARENT}-01".encode()))
    logger.info("during\na second line")
    PRESENT.reset(token)
    assert stream.getvalue() == f"before\nduring [trace {ID}]\na second line\n"
