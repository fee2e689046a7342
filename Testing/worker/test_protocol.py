"""Messages and lines, without any process."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from MissingModalitySynthLib.worker import protocol
from MissingModalitySynthLib.worker.protocol import LineBuffer, ProtocolError, check_version, decode, encode

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=50, deadline=None)
@given(values)
def test_a_message_is_one_line_and_comes_out_as_it_went_in(value):
    line = encode("progress", id=3, value=value)
    assert line.count(b"\n") == 1
    assert decode(line) == {"kind": "progress", "id": 3, "value": value}


@pytest.mark.parametrize(
    "line", [b"Loading...", b"", b"{", b"[1]", b'"hello"', b"{}", b'{"kind": 1}', b"\xff\xfe", b"[" * 100_000]
)
def test_what_is_no_message_is_refused(line):
    with pytest.raises(ProtocolError):
        decode(line)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.binary(max_size=20).filter(lambda line: b"\n" not in line)), st.lists(st.integers(0, 200), max_size=10)
)
def test_lines_do_not_depend_on_how_the_stream_is_cut(lines, cuts):
    stream = b"".join(line + b"\r\n" for line in lines)
    cuts = sorted({0, *(min(cut, len(stream)) for cut in cuts), len(stream)})
    buffer = LineBuffer()
    found = [line for start, end in pairwise(cuts) for line in buffer.feed(stream[start:end])]
    assert found == [line.rstrip(b"\r") for line in lines if line.strip()]


@pytest.mark.parametrize("chunk", [1, 7, 64, 10_000])
def test_of_an_overlong_line_the_beginning_is_kept_and_the_next_line_is_whole(monkeypatch, chunk):
    monkeypatch.setattr(protocol, "MAX_LINE", 100)
    monkeypatch.setattr(protocol, "_SHOWN", 10)
    stream = b"before\n" + b"x" * 5000 + b"\nafter\n"
    buffer = LineBuffer()
    found = [line for start in range(0, len(stream), chunk) for line in buffer.feed(stream[start : start + chunk])]
    assert found[0] == b"before" and found[-1] == b"after"
    assert len(found) == 3 and set(found[1].removesuffix(b" ...")) == {ord("x")}


@pytest.mark.parametrize("theirs", [0, 2, None, "1"])
def test_another_version_is_refused_in_one_sentence_that_names_both(theirs):
    with pytest.raises(ProtocolError, match=rf"version {theirs} .* version 1: .*\.$"):
        check_version(theirs, "worker")
