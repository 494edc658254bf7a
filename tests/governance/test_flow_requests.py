"""The texts of requests and answers in providers' formats, whole or as a stream of events."""

from __future__ import annotations

import msgspec

from perdure.core.labels import Label
from perdure.governance.flow_context import Context
from perdure.governance.flow_requests import answer_texts, texts_of

IBAN = "US133000000121212121212"
CHAT = (
    'data: {"id":"x","choices":[{"index":0,"delta":{"role":"assistant","content":"I will pay US1330"}}]}\n\n'
    'data: {"id":"x","choices":[{"index":0,"delta":{"content":"00000121212121212 now"}}]}\n\n'
    'data: {"id":"x","choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"name":"pay","arguments":"{\\"to\\": \\"US13"}}]}}]}\n\n'
    'data: {"id":"x","choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"arguments":"3000000121212121212\\"}"}}]}}]}\n\n'
    "data: [DONE]\n\n"
)
ANTHROPIC = (
    'event: content_block_delta\ndata: {"type":"content_block_delta","index":1,"delta":{"type":"input_json_delta","partial_json":"{\\"to\\": \\"US13300"}}\n\n'
    'event: content_block_delta\ndata: {"type":"content_block_delta","index":1,"delta":{"type":"input_json_delta","partial_json":"0000121212121212\\"}"}}\n\n'
)


def test_pieces_of_a_stream_are_put_together() -> None:
    for text in (CHAT, ANTHROPIC):
        assert any(IBAN in found for found in answer_texts(text))
    assert any(found == f"I will pay {IBAN} now" for found in answer_texts(CHAT))


def test_a_whole_answer() -> None:
    data = {"id": "x", "choices": [{"message": {"role": "assistant", "content": f"to {IBAN}"}}]}
    assert answer_texts(msgspec.json.encode(data).decode()) == [f"to {IBAN}"]


def test_what_is_no_answer_is_one_text() -> None:
    for text in ("", "not json", '{"a": ' * 3_000, "data: {broken"):
        assert answer_texts(text) in ([text], [])


def test_words_of_the_format_are_no_texts_but_sentences_in_their_places_are() -> None:
    body = {
        "model": "m-1",
        "messages": [{"role": "user", "content": "hello"}],
        "name": "a whole sentence here",
    }
    assert sorted(texts_of(body)) == ["a whole sentence here", "hello"]


def test_a_value_that_a_streamed_answer_asked_with_has_the_label_of_its_request() -> None:
    seen = Context("r")
    seen.learn("output", 1, "tool:mail", f"pay {IBAN}", (("", Label(sources=("tool:mail",))),))
    for text in answer_texts(CHAT):
        seen.learn("answer", 2, "model", text, (("", Label(sources=("model",))),))
    origin = seen.origin_of(IBAN)
    assert (origin.how, origin.source) == ("found", "tool:mail")
