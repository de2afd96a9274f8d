"""Strategies for whole requests, as the bytes that go over a connection."""

import gzip
import json
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from refine_server.benchmarks.robustness.fuzz.values import changed
from refine_server.server.api.adaptations_schema import AdaptationBody
from refine_server.server.api.answers_schema import AnswerBody
from refine_server.server.api.batch_requests import ENDPOINTS
from refine_server.server.api.openai.requests import ChatBody, CompletionBody
from refine_server.server.api.openai.responses_api.request import LOGPROBS, ResponsesBody
from refine_server.ttt.interface.config import AdaptConfig

TEXT_FILE, BATCH_FILE = f"file-{'d' * 32}", f"file-{'b' * 32}"
"""Stand for the ids of a document and of a batch's input, which the server chooses; as long as
these, so that they can be replaced in a request."""
DOCUMENT = "The harbour code is amber. The bakery owner is Tobias Hartley. Ask the captain at noon."
MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "hello"}]},
    {"role": "assistant", "content": None},
    {"role": "user", "content": "Which code?"},
]
WITH_FILE = [
    {
        "role": "user",
        "content": [
            {"type": "file", "file": {"file_data": DOCUMENT, "filename": "a.txt"}},
            {"type": "text", "text": "Which code?"},
        ],
    }
]
INPUT = [
    {"type": "message", "role": "system", "content": "Be brief."},
    {"role": "assistant", "content": [{"type": "output_text", "text": "a", "annotations": []}]},
    {"type": "reasoning", "summary": []},
    {
        "role": "user",
        "content": [
            {"type": "input_file", "file_data": "data:text/plain;base64,VGhlIGNvZGUgaXMgYW1iZXIu"},
            {"type": "input_text", "text": "Which code?"},
        ],
    },
]
SCHEMA = {"type": "object", "properties": {"a": {"enum": ["b", None]}}, "required": ["a"]}
FORM = {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA, "strict": True}}
REGEX = {"regex": "[ab]{2}|\u6f22"}
TEXT = {"format": {"type": "json_schema", "name": "a", "schema": SCHEMA}, "verbosity": "low"}
ADAPT = {"optimizer": {"steps": 1}, "rollouts": {"positions": 2, "tokens": 2}}
KINDS = ("document", "prompt", "spans", "query_spans", "evidence")
EVIDENCE: tuple[dict[str, Any], ...] = (
    {"by": "bm25", "words": "harbour"},
    {"by": "attention", "count": 1},
    {"by": "utility", "tokens": 16},
    {"by": "spans", "spans": [{"start": 0, "end": 10}]},
)


def _whole(model: Any, **fields: Any) -> dict[str, Any]:
    """Return a valid body that has every field of its contract."""
    body: dict[str, Any] = model.model_validate(fields).model_dump(mode="json")
    return body | fields


def _bodies() -> list[tuple[str, dict[str, Any]]]:
    adapts = [
        AdaptConfig.model_validate({**ADAPT, "on": {"kind": kind}}).model_dump(mode="json")
        for kind in KINDS
    ]
    answers = [
        _whole(AnswerBody, document=DOCUMENT, query="Which code?", adapt=adapt, max_tokens=4)
        for adapt in adapts
    ]
    answers += [{**answers[0], "adapt": {}, "evidence": evidence} for evidence in EVIDENCE]
    answers.append({"adaptation": "adapt-0", "query": "Which code?", "stream": True})
    short = {"max_tokens": 4, "stop": ["~", "\n\n"], "stream": True, "stream_options": {}}
    ttt = {"document": DOCUMENT, "adapt": ADAPT}
    adaptation = _whole(AdaptationBody, document=DOCUMENT, adapt=ADAPT)
    completion = _whole(CompletionBody, prompt=["a", "b"], **short, logprobs=2, echo=True, n=2)
    chat = _whole(ChatBody, messages=MESSAGES, **short, logprobs=True, top_logprobs=1)
    asked = {"document": {"file_id": TEXT_FILE}, "query": "Which code?", "max_tokens": 2}
    parts = [
        {"type": "input_file", "file_id": TEXT_FILE},
        {"type": "input_text", "text": "Which code?"},
    ]
    response = _whole(
        ResponsesBody, input="hello", max_output_tokens=2, stream=True, include=[LOGPROBS]
    )
    batch: dict[str, Any] = {
        "input_file_id": BATCH_FILE,
        "endpoint": "/v1/responses",
        "completion_window": "24h",
    }
    batch["metadata"] = {"run": "7"}
    return [
        *(("/v1/answers", body) for body in answers),
        ("/v1/answers", {**asked, "guided_choice": ["amber", "coral"]}),
        ("/v1/adaptations", adaptation),
        ("/v1/estimate", answers[0]),
        ("/v1/estimate", asked),
        ("/v1/estimate", adaptation),
        ("/v1/completions", completion),
        ("/v1/completions", {"prompt": [5, 6, 7], "max_tokens": 2, "temperature": 0.5}),
        ("/v1/completions", {"prompt": "a", "max_tokens": 2, "ttt": ttt}),
        ("/v1/chat/completions", chat),
        ("/v1/chat/completions", {"messages": WITH_FILE, "max_tokens": 2}),
        ("/v1/responses", response),
        ("/v1/responses", {"input": INPUT, "max_output_tokens": 2, "ttt": {"adapt": ADAPT}}),
        ("/v1/responses", {"input": "hello", "max_output_tokens": 2, "text": TEXT}),
        ("/v1/responses", {"input": [{"role": "user", "content": parts}], "max_output_tokens": 2}),
        ("/v1/chat/completions", {"messages": MESSAGES, "max_tokens": 4, "response_format": FORM}),
        ("/v1/completions", {"prompt": "a", "max_tokens": 4, "structured_outputs": REGEX}),
        ("/v1/batches", batch),
        ("/v1/chat/completions", {"messages": MESSAGES, "max_tokens": 2, "ttt": ttt}),
        ("/tokenize", {"prompt": "a b", "return_token_strs": True}),
        ("/tokenize", {"messages": MESSAGES}),
        ("/detokenize", {"tokens": [5, 6]}),
    ]


BODIES = _bodies()
"""Valid requests of every route that has a body."""
LINES = [case for case in BODIES if case[0] in ENDPOINTS]
"""Those that a batch may have."""
PATHS = (
    *("/health/live", "/health/ready", "/metrics", "/version", "/v1/models", "/tokenizer_info"),
    *("/v1/files", f"/v1/files/{TEXT_FILE}", f"/v1/files/{TEXT_FILE}/content", "/v1/embeddings"),
    *("/v1/batches", "/v1/batches?limit=1&after=x", "/v1/batches/x/cancel", "/v1/files?limit=2"),
    *("/v1/documents", f"/v1/documents/{TEXT_FILE}"),
    *("/v1/adaptations", "/v1/adaptations/x/events", "/v1/models/%ED%A0%BD", "/openapi.json", "/"),
    *dict(BODIES),
)
HEADERS = (
    *(b"accept", b"authorization", b"content-type", b"content-encoding", b"x-request-id", b"host"),
    *(b"x-api-key", b"origin", b"expect", b"connection", b"transfer-encoding", b"content-length"),
    *(b"access-control-request-method", b"range", b"cookie", b"upgrade", b"te"),
    *(b"\xff", b"a b", b""),
)
METHODS = (
    *(b"GET", b"HEAD", b"POST", b"DELETE", b"OPTIONS", b"PUT", b"PATCH", b"TRACE"),
    *(b"get", b"", b"G\xff", b"GET POST"),
)
JSON_TYPE = (b"content-type", b"application/json")


@dataclass(frozen=True, kw_only=True)
class Request:
    """One request, which need not be HTTP."""

    method: bytes
    target: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes
    sets_timeout: bool = False
    """Whether its body asks for a time limit of its own."""

    @property
    def data(self) -> bytes:
        """The bytes to send; the length of the body is added unless a header says it."""
        names = {name.lower() for name, _ in self.headers}
        headers = self.headers
        if not names & {b"content-length", b"transfer-encoding"}:
            headers = (*headers, (b"content-length", b"%d" % len(self.body)))
        if b"host" not in names:
            headers = ((b"host", b"x"), *headers)
        lines = [b"%s %s HTTP/1.1" % (self.method, self.target)]
        lines += [b"%s: %s" % header for header in headers]
        return b"\r\n".join([*lines, b"", self.body])


@st.composite
def contract_requests(draw: st.DrawFn) -> Request:
    """Bodies of the contract that are changed in a few places, in any valid encoding of JSON."""
    path, valid = draw(st.sampled_from(BODIES))
    body = draw(changed(valid))
    text = json.dumps(body, ensure_ascii=draw(st.booleans()))
    data = text.encode("utf-8", draw(st.sampled_from(("surrogatepass", "backslashreplace"))))
    sets_timeout = isinstance(body, dict) and body.get("timeout_seconds") is not None
    return Request(
        method=b"POST",
        target=path.encode(),
        headers=(JSON_TYPE,),
        body=data,
        sets_timeout=sets_timeout,
    )


@st.composite
def raw_bodies(draw: st.DrawFn) -> Request:
    """Bodies that are no JSON, or were damaged on their way."""
    path, valid = draw(st.sampled_from(BODIES))
    data = json.dumps(valid).encode()
    headers = [JSON_TYPE]
    match draw(st.sampled_from(("random", "cut", "bytes", "nested", "packed", "other type"))):
        case "random":
            data = draw(st.binary(max_size=200))
        case "cut":
            data = data[: draw(st.integers(0, len(data)))]
        case "bytes":
            at = draw(st.integers(0, len(data)))
            data = data[:at] + draw(st.binary(min_size=1, max_size=4)) + data[at + 2 :]
        case "nested":
            data = draw(st.sampled_from((b"[", b'{"a":', b"[[", b'"\\u'))) * 5_000
        case "packed":
            data = gzip.compress(data)[: draw(st.integers(0, 400))]
            encodings = (b"gzip", b"deflate", b"br", b"GZIP", b"identity", b"\xff")
            headers.append((b"content-encoding", draw(st.sampled_from(encodings))))
        case "other type":
            types = (
                b"",
                b"text/plain",
                b"application/x+json",
                b"multipart/form-data",
                b"\xff/\xfe",
            )
            headers = [(b"content-type", draw(st.sampled_from(types)))]
    return Request(
        method=b"POST",
        target=path.encode(),
        headers=tuple(headers),
        body=data,
        sets_timeout=b"timeout_seconds" in data,
    )


_VISIBLE = st.binary(max_size=40).map(lambda data: data.translate(None, b"\r\n\x00"))


@st.composite
def raw_heads(draw: st.DrawFn) -> Request:
    """Heads of requests with any method, target and headers."""
    target = draw(st.sampled_from(PATHS)).encode()
    target += draw(st.sampled_from((b"", b"?", b"/", b"//", b"%"))) + draw(_VISIBLE | st.just(b""))
    headers = draw(
        st.lists(
            st.tuples(
                st.sampled_from(HEADERS),
                _VISIBLE | st.sampled_from((b"", b"chunked", b"-1", b"9" * 5_000, b"x" * 9_000)),
            ),
            max_size=4,
        )
    )
    body = draw(st.binary(max_size=20))
    return Request(
        method=draw(st.sampled_from(METHODS)),
        target=target,
        headers=tuple(headers),
        body=body,
    )


FIELDS = (
    *(b"file", b"purpose", b"expires_after[anchor]", b"expires_after[seconds]", b"expires_after"),
    *(b"expires_after[", b"", b"\xff", b"a" * 300),
)
VALUES = (b"user_data", b"batch", b"fine-tune", b"created_at", b"3600", b"-1", b"9" * 400, b"\xff")


@st.composite
def uploads(draw: st.DrawFn) -> Request:
    """Forms with files, whole and damaged."""
    boundary = draw(st.sampled_from((b"x", b"x" * 80, b"", b"\xff")))
    pieces = []
    for name in draw(st.lists(st.sampled_from(FIELDS), max_size=5)):
        head = b'content-disposition: form-data; name="%s"' % name
        content = draw(st.sampled_from(VALUES) | st.binary(max_size=60))
        if draw(st.booleans()):
            head += b'; filename="%s"' % draw(_VISIBLE)
            content = draw(
                st.sampled_from((b"text", b"%PDF-1.4", b"{}\n{\xff}")) | st.just(content)
            )
        pieces.append(b"--%s\r\n%s\r\n\r\n%s\r\n" % (boundary, head, content))
    data = b"".join(pieces) + b"--%s--\r\n" % boundary
    if draw(st.booleans()):
        data = data[: draw(st.integers(0, len(data)))]
    charset = draw(st.sampled_from((b"", b"; charset=utf-16", b"; charset=idna", b"; charset=x")))
    kind = b"multipart/form-data; boundary=%s%s" % (boundary, charset)
    target = draw(st.sampled_from((b"/v1/files", b"/v1/documents")))
    return Request(method=b"POST", target=target, headers=((b"content-type", kind),), body=data)


@st.composite
def batch_inputs(draw: st.DrawFn) -> Request:
    """Uploads of a batch's input, whose lines are changed in a few places."""
    cases = draw(st.lists(st.sampled_from(LINES), min_size=1, max_size=8))
    lines = []
    for number, (path, valid) in enumerate(cases):
        line = {"custom_id": f"r{number}", "method": "POST", "url": path, "body": valid}
        # Escaped, because a file that is not UTF-8 is refused as a whole.
        lines.append(json.dumps(draw(changed(line))))
    return upload(draw(st.sampled_from(("\n", "\r\n", "\n\n"))).join(lines).encode(), "batch")


def upload(content: bytes, purpose: str) -> Request:
    """Return the request that uploads a file."""
    body = (
        b'--x\r\ncontent-disposition: form-data; name="purpose"\r\n\r\n%s\r\n'
        b'--x\r\ncontent-disposition: form-data; name="file"; filename="a"\r\n\r\n%s\r\n--x--\r\n'
    ) % (purpose.encode(), content)
    form = (b"content-type", b"multipart/form-data; boundary=x")
    return Request(method=b"POST", target=b"/v1/files", headers=(form,), body=body)


def post(path: str, body: object) -> Request:
    """Return the request that sends JSON."""
    data = json.dumps(body).encode()
    return Request(method=b"POST", target=path.encode(), headers=(JSON_TYPE,), body=data)


def get(path: str) -> Request:
    """Return the request that reads a resource."""
    return Request(method=b"GET", target=path.encode(), headers=(), body=b"")


REQUESTS = {
    "contract": contract_requests,
    "bodies": raw_bodies,
    "heads": raw_heads,
    "uploads": uploads,
    "batches": batch_inputs,
}
"""Strategies by the name under which their inputs are counted."""
