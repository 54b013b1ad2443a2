"""Writers: a real HTTP server that fails now and then, and a local model by the rollout protocol."""

import json
import math
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import StreamRequestHandler, ThreadingTCPServer
from typing import ClassVar

import pytest

from cluster.errors import DataError, RunError
from trainers.feedback.writer import Draw, Endpoint, Model, Server, user


class Flaky(BaseHTTPRequestHandler):
    """Fails every request's first try with 503, and answers with the content in capitals."""

    seen: ClassVar[dict] = {}
    lock = threading.Lock()

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with self.lock:
            tries = self.seen[body] = self.seen.get(body, 0) + 1
        asked = json.loads(body)
        text = asked["messages"][-1]["content"]
        if text == "forbidden":
            return self._send(400, {"error": "no such thing"})
        if tries == 1:
            return self._send(503, {"error": "busy"})
        choice = {"message": {"content": text.upper() + f" {asked['seed']} STOP more" if "seed" in asked else "A"}}
        if asked.get("logprobs"):
            top = [{"token": t, "logprob": math.log(p)} for t, p in (("A", 0.5), (" A", 0.2), ("B", 0.1))]
            choice["logprobs"] = {"content": [{"top_logprobs": top}]}
        return self._send(200, {"choices": [choice]})

    def _send(self, code, content):
        raw = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *_):
        pass


@pytest.fixture
def url():
    Flaky.seen = {}
    server = ThreadingHTTPServer(("127.0.0.1", 0), Flaky)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


def test_a_server_is_asked_again_when_it_fails_and_never_twice_for_what_it_answered(url, tmp_path):
    settings = Endpoint(url=url, model="m", first_wait=0.01, cache=str(tmp_path / "cache.jsonl"))
    draw = Draw(samples=2, seed=3, stop=("STOP",))
    server = Server(settings)
    texts = server.write([user("a"), user("b")], draw)
    assert texts == [["A 3000009", "A 3000010"], ["B 3000009", "B 3000010"]]
    assert server.requests == 8  # each of four failed once
    again = Server(settings)
    assert again.write([user("a"), user("b")], draw) == texts
    assert again.requests == 0


def test_labels_are_found_among_the_likeliest_tokens(url):
    server = Server(Endpoint(url=url, model="m", first_wait=0.01))
    found = server.label_log_probs([user("which")], ["A", "B", "C"])
    assert found[0] == pytest.approx([math.log(0.5), math.log(0.1), math.log(0.1)])


def test_what_cannot_be_answered_is_an_error_that_says_why(url):
    with pytest.raises(RunError, match=r"HTTP 400.*no such thing"):
        Server(Endpoint(url=url, model="m")).write([user("forbidden")], Draw())
    with pytest.raises(RunError, match="failed 2 times"):
        Server(Endpoint(url="http://127.0.0.1:9/v1", model="m", tries=2, first_wait=0.0)).write([user("a")], Draw())
    with pytest.raises(DataError, match="either a `folder` or an `endpoint`"):
        Model().open()


BROKEN = {
    "429 that says when": b"HTTP/1.0 429 Slow\r\nRetry-After: 0\r\nContent-Length: 0\r\n\r\n",
    "500 with a page": b"HTTP/1.0 500 Oops\r\n\r\n<html>\xff</html>",
    "no JSON": b"HTTP/1.0 200 OK\r\n\r\n<html></html>",
    "no text": b"HTTP/1.0 200 OK\r\n\r\n\xff\xfe",
    "a list": b"HTTP/1.0 200 OK\r\n\r\n[]",
    "null": b"HTTP/1.0 200 OK\r\n\r\nnull",
    "no choices": b'HTTP/1.0 200 OK\r\n\r\n{"choices": []}',
    "no message": b'HTTP/1.0 200 OK\r\n\r\n{"choices": [{}]}',
    "a null choice": b'HTTP/1.0 200 OK\r\n\r\n{"choices": [null]}',
    "a null message": b'HTTP/1.0 200 OK\r\n\r\n{"choices": [{"message": null}]}',
    "half a reply": b'HTTP/1.0 200 OK\r\nContent-Length: 999\r\n\r\n{"choices"',
    "no HTTP": b"SSH-2.0-OpenSSH_9.6\r\n",
    "nothing": b"",
    "silence": None,
}
GOOD = b'HTTP/1.0 200 OK\r\n\r\n{"choices": [{"message": {"content": "well"}}]}'


@pytest.mark.parametrize("name", BROKEN)
def test_no_broken_reply_is_taken_for_an_answer_or_kept(name, tmp_path):
    """The first reply is broken, the second is good; then with one try alone."""
    waiting = threading.Event()

    class Broken(StreamRequestHandler):
        replies: ClassVar[list] = [BROKEN[name], GOOD, BROKEN[name]]

        def handle(self):
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                head += self.rfile.readline()
            size = next(int(x.split(b":")[1]) for x in head.splitlines() if x.lower().startswith(b"content-length"))
            self.rfile.read(size)
            reply = self.replies.pop(0)
            if reply is None:
                waiting.wait(20)
            else:
                self.wfile.write(reply)

    with ThreadingTCPServer(("127.0.0.1", 0), Broken) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        common = {"url": f"http://127.0.0.1:{server.server_address[1]}/v1", "model": "m", "first_wait": 0.0}
        common |= {"cache": str(tmp_path / "cache.jsonl"), "seconds": 0.3 if BROKEN[name] is None else 20}
        patient = Server(Endpoint(**common))
        assert patient.write([user("a")], Draw()) == [["well"]]
        assert patient.requests == 2
        with pytest.raises(RunError, match="failed 1 times, at last with"):
            Server(Endpoint(**common, tries=1)).write([user("b")], Draw())
        waiting.set()
        server.shutdown()
    assert (tmp_path / "cache.jsonl").read_text().count("\n") == 1


def test_a_limit_of_requests_per_minute_is_kept(url):
    server = Server(Endpoint(url=url, model="m", first_wait=0.0, per_minute=600))

    began = time.monotonic()
    server.write([user("a"), user("b")], Draw())
    assert server.requests == 4
    assert time.monotonic() - began > 0.29  # four requests, three pauses of a tenth


@pytest.fixture(scope="module")
def folder(chat_tokenizer, tmp_path_factory):
    from transformers import AutoTokenizer

    from trainers.model import ModelSettings, build

    out = tmp_path_factory.mktemp("lm")
    shape = ModelSettings(hidden_size=32, layers=2, heads=4, kv_heads=2, intermediate_size=64)
    build(shape, vocab_size=302, seq_len=192, seed=0, pad=0, eos=1).save_pretrained(out)
    AutoTokenizer.from_pretrained(chat_tokenizer).save_pretrained(out)
    return str(out)


def test_a_local_models_labels_have_the_probabilities_that_the_model_gives_them(folder):
    import torch

    writer = Model(folder=folder).open()
    chats = [user("the cat"), user("a much longer text than the other one"), user("the cat")]
    found = writer.label_log_probs(chats, ["1", "2", "12"])
    assert found[0] == pytest.approx(found[2])
    for chat, row in zip(chats, found, strict=True):
        for label, log_prob in zip(["1", "2", "12"], row, strict=True):
            before, whole = writer.ids(writer.render(chat)), writer.ids(writer.render(chat) + label)
            logs = torch.log_softmax(writer.lm(torch.tensor([whole])).logits[0], -1)
            wanted = sum(float(logs[i - 1, whole[i]]) for i in range(len(before), len(whole)))
            assert log_prob == pytest.approx(wanted, abs=1e-4)


def test_a_local_models_text_depends_on_its_chat_alone(folder):
    writer = Model(folder=folder).open()
    draw = Draw(temperature=1.0, max_tokens=12, samples=2, seed=1)
    chats = [user("the cat"), user("a much longer text"), user("sat")]
    together = writer.write(chats, draw)
    assert together[0][0] != together[0][1]
    assert [writer.write([chat], draw)[0] for chat in reversed(chats)] == together[::-1]
    assert not any("<|im_end|>" in text for texts in together for text in texts)
