"""Whoever writes text on request: a local model, or any server that speaks the OpenAI protocol. Imports no torch."""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from pathlib import Path
from typing import Any, Protocol

from pydantic import Field

from cluster.errors import DataError, RunError
from cluster.settings import Settings

Chat = list[dict[str, str]]
"""Messages with `role` and `content`; the last one is the user's."""


class Draw(Settings):
    """How texts are drawn."""

    temperature: float = Field(0.0, ge=0, description="0 takes the likeliest token")
    top_p: float = Field(1.0, gt=0, le=1, description="smallest set of tokens with this probability")
    max_tokens: int = Field(512, gt=0, description="longest text, in tokens")
    samples: int = Field(1, gt=0, description="texts per chat")
    stop: tuple[str, ...] = Field((), description="a text ends before any of these strings")
    seed: int = Field(0, ge=0, description="of the draws")


class Writer(Protocol):
    """What can answer chats, and say how likely it finds an answer. What it says of a chat depends on no other."""

    name: str

    def write(self, chats: Sequence[Chat], draw: Draw) -> list[list[str]]:
        """`samples` texts for each chat."""
        ...

    def label_log_probs(self, chats: Sequence[Chat], labels: Sequence[str]) -> list[list[float]]:
        """log p that the answer begins with each label, [chats][labels], in nats."""
        ...


def user(text: str) -> Chat:
    """One message of a user."""
    return [{"role": "user", "content": text}]


def key_of(*parts: Any) -> str:
    """A name for a request: 32 hexadecimal digits of its JSON."""
    plain = json.dumps(parts, sort_keys=True, ensure_ascii=False)
    return hashlib.blake2b(plain.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def cut(text: str, stop: Sequence[str]) -> str:
    """The text before the first of the stop strings, without space around it."""
    ends = [at for at in (text.find(one) for one in stop) if at >= 0]
    return text[: min(ends)].strip() if ends else text.strip()


class Remember:
    """An append-only JSONL file of finished work by key. A torn last line, of a killed process, is dropped."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.known: dict[str, Any] = {}
        self._lock = threading.Lock()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            raw = self.path.read_bytes()
            whole = raw[: raw.rfind(b"\n") + 1]
            if len(whole) < len(raw):
                os.truncate(self.path, len(whole))
            for line in whole.splitlines():
                entry = json.loads(line)
                self.known[entry["key"]] = entry["value"]

    def add(self, entries: Sequence[tuple[str, Any]]) -> None:
        """Remember these, on disk before this returns."""
        with self._lock:
            text = "".join(json.dumps({"key": key, "value": value}) + "\n" for key, value in entries)
            with self.path.open("a", encoding="utf-8") as out:
                out.write(text)
                out.flush()
                os.fsync(out.fileno())
            self.known.update(entries)


class Endpoint(Settings):
    """A server with /chat/completions. Answers are kept in `cache`, so that a repeated run asks for what is missing."""

    url: str = Field(description="up to /v1, such as http://localhost:8000/v1")
    model: str = Field(description="the model's name on that server")
    key_variable: str | None = Field(None, description="environment variable that holds the API key")
    at_once: int = Field(8, gt=0, description="requests in flight")
    per_minute: float = Field(0, ge=0, description="at most so many requests a minute; 0: no limit")
    tries: int = Field(6, gt=0, description="per request; 429, 5xx, time-outs and lost connections are tried again")
    first_wait: float = Field(1.0, ge=0, description="seconds before the second try; doubles each time")
    seconds: float = Field(120.0, gt=0, description="time-out of one request")
    cache: str | None = Field(None, description="JSONL file of all answers so far")


RETRIED = (408, 409, 425, 429, 500, 502, 503, 504, 529)


class Server:
    """A writer behind HTTP."""

    def __init__(self, settings: Endpoint):
        self.settings, self.name = settings, settings.model
        self._cache = Remember(settings.cache) if settings.cache else None
        self._turn, self._next = threading.Lock(), 0.0
        self.requests = 0
        """Sent so far, tries included."""

    def write(self, chats: Sequence[Chat], draw: Draw) -> list[list[str]]:
        """See `Writer.write`. One request per text, for not every server gives several."""
        bodies = []
        for chat in chats:
            for sample in range(draw.samples):
                body: dict[str, Any] = {"messages": chat, "temperature": draw.temperature, "top_p": draw.top_p}
                body |= {"max_tokens": draw.max_tokens, "seed": draw.seed * 1_000_003 + sample}
                bodies.append(body | ({"stop": list(draw.stop)} if draw.stop else {}))
        texts = [cut(choice["message"].get("content") or "", draw.stop) for choice in self._ask_all(bodies)]
        return [texts[i : i + draw.samples] for i in range(0, len(texts), draw.samples)]

    def label_log_probs(self, chats: Sequence[Chat], labels: Sequence[str]) -> list[list[float]]:
        """See `Writer.label_log_probs`: of the first token alone, among the 20 likeliest; absent ones get the last's.

        Raises RunError when the server gives no log-probabilities.
        """
        common = {"temperature": 0, "max_tokens": 1, "logprobs": True, "top_logprobs": 20}
        found = []
        for choice in self._ask_all([{"messages": chat, **common} for chat in chats]):
            tokens = ((choice.get("logprobs") or {}).get("content") or [{}])[0].get("top_logprobs")
            if not tokens:
                raise RunError(
                    f"{self.settings.url}: {self.name} gives no top_logprobs; use a mode that reads its text"
                )
            by_text: dict[str, float] = {}
            for token in tokens:
                text = token["token"].strip()
                by_text[text] = max(by_text.get(text, -1e9), float(token["logprob"]))
            least = min(float(token["logprob"]) for token in tokens)
            found.append([by_text.get(label.strip(), least) for label in labels])
        return found

    def _ask_all(self, bodies: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        with ThreadPoolExecutor(self.settings.at_once) as pool:
            return list(pool.map(self._ask, bodies))

    def _ask(self, body: dict[str, Any]) -> dict[str, Any]:
        body = {"model": self.settings.model, **body}
        key = key_of(self.settings.url, body)
        if self._cache and key in self._cache.known:
            return self._cache.known[key]  # type: ignore[no-any-return]
        choice = self._send(body)
        if self._cache:
            self._cache.add([(key, choice)])
        return choice

    def _send(self, body: dict[str, Any]) -> dict[str, Any]:
        headers = {"Content-Type": "application/json"}
        if self.settings.key_variable:
            secret = os.environ.get(self.settings.key_variable)
            if not secret:
                raise RunError(f"{self.settings.url}: environment variable {self.settings.key_variable} is not set")
            headers["Authorization"] = f"Bearer {secret}"
        request = urllib.request.Request(
            self.settings.url.rstrip("/") + "/chat/completions", json.dumps(body).encode(), headers
        )
        why = ""
        for attempt in range(self.settings.tries):
            pause = self.settings.first_wait * 2**attempt
            self._wait_for_turn()
            try:
                with urllib.request.urlopen(request, timeout=self.settings.seconds) as reply:
                    choice = json.loads(reply.read())["choices"][0]
                    choice["message"].get("content")
                    return choice  # type: ignore[no-any-return]
            except urllib.error.HTTPError as error:
                why = f"HTTP {error.code}: {error.read()[:300].decode(errors='replace')}"
                if error.code not in RETRIED:
                    raise RunError(f"{self.settings.url}: {self.name} refused a request: {why}") from None
                asked = error.headers.get("Retry-After", "")
                pause = max(pause, float(asked)) if asked.replace(".", "", 1).isdigit() else pause
            except (OSError, HTTPException) as error:  # lost connection, time-out, half a reply
                why = f"{type(error).__name__}: {error}"
            except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
                why = f"a reply that is no chat completion ({type(error).__name__}: {error})"
            if attempt + 1 < self.settings.tries:
                time.sleep(pause)
        raise RunError(
            f"{self.settings.url}: {self.name} failed {self.settings.tries} times, at last with {why}; what was "
            "answered is kept where `cache` is set, the same command asks for the rest"
        )

    def _wait_for_turn(self) -> None:
        with self._turn:
            self.requests += 1
            now = time.monotonic()
            start = max(now, self._next)
            self._next = start + (60.0 / self.settings.per_minute if self.settings.per_minute else 0.0)
        time.sleep(max(0.0, start - now))


class Model(Settings):
    """Either of the two kinds of writer."""

    folder: str | None = Field(None, description="transformers folder of a local model")
    endpoint: Endpoint | None = Field(None, description="a server that speaks the OpenAI protocol")

    def open(self) -> Writer:
        """Load the model, or make ready to ask the server."""
        if (self.folder is None) == (self.endpoint is None):
            raise DataError("a writer is either a `folder` or an `endpoint`; give one of the two")
        if self.endpoint is not None:
            return Server(self.endpoint)
        from trainers.feedback.local import open_model

        assert self.folder is not None
        return open_model(self.folder)
