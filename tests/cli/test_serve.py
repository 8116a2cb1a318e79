"""`sconce serve` over a real socket, with the official client and with clients that misbehave."""

import asyncio
import json
import re
import socket
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from commands import serving, start
from small_run import write_run
from tiny import INSTALLED

import sconce
from sconce.errors import DataError
from sconce.generation.engine import Engine
from sconce.generation.model import Prompt
from sconce.tokenizer.bpe import load_tokenizer

httpx = pytest.importorskip("httpx", reason="comes with the openai client")
app = pytest.importorskip("sconce.serving.app", reason="pip install 'sconce-lm[serve]'")
openai = pytest.importorskip("openai", reason="the client under test: pip install openai")

BACKEND = INSTALLED[-1]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("models") / "night", max_position_embeddings=512)


@pytest.fixture(scope="module", params=INSTALLED)
def server(run, request):
    with serving(run, request.param, "--concurrency", 6, "--queue", 40, "--max-request-bytes", 20000) as up:
        yield up[0]


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=f"{server}/v1", api_key="none", max_retries=0) as client:
        yield client


def idle(server, seconds=10):
    """Wait until nobody is being served; False when that does not come."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if httpx.get(f"{server}/health").json() == {"status": "ok", "requests": 0}:
            return True
        time.sleep(0.05)
    return False


def complete(client, **changes):
    asked = {"model": "night", "prompt": "a lamp", "max_tokens": 16, "seed": 3, **changes}
    return client.completions.create(**asked)


def test_the_official_client_completes(run, client):
    assert [model.id for model in client.models.list()] == ["night"]
    whole = complete(client, logprobs=2)
    (choice,) = whole.choices
    assert choice.finish_reason == "length"
    ids = load_tokenizer(run / "tokenizer/tokenizer.json").encode("a lamp")
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (len(ids), 16)
    assert len(choice.logprobs.tokens) == len(choice.logprobs.top_logprobs) == 16
    assert all(len(likeliest) <= 2 for likeliest in choice.logprobs.top_logprobs)
    *chunks, last = complete(client, stream=True, stream_options={"include_usage": True})
    assert "".join(chunk.choices[0].text for chunk in chunks) == choice.text
    assert last.usage == whole.usage
    chunks = list(complete(client, stream=True, logprobs=2, n=2))
    for index, alone in enumerate(complete(client, logprobs=2, n=2).choices):
        streamed = [place for chunk in chunks for place in offsets(chunk.choices[0]) if chunk.choices[0].index == index]
        assert streamed == offsets(alone)
        assert len(set(streamed)) > 8
    assert complete(client, seed=4).choices[0].text != choice.text


def offsets(choice):
    return choice.logprobs.text_offset if choice.logprobs else []


def test_the_official_client_chats(client):
    asked = {"model": "night", "messages": [{"role": "user", "content": "a hill?"}], "seed": 1, "max_tokens": 12}
    whole = client.chat.completions.create(**asked, logprobs=True, top_logprobs=2)
    assert whole.choices[0].message.role == "assistant"
    content = whole.choices[0].logprobs.content
    assert len(content) == 12
    said = b"".join(bytes(token.bytes or []) for token in content)
    assert said.decode(errors="replace") == whole.choices[0].message.content
    chunks = list(client.chat.completions.create(**asked, stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content for chunk in chunks) == whole.choices[0].message.content
    as_text = complete(client, prompt="User: a hill?\nAssistant:", seed=1, max_tokens=12)
    assert as_text.choices[0].text == whole.choices[0].message.content
    turns = [*asked["messages"], {"role": "assistant", "content": " a lamp"}, {"role": "user", "content": "a wall?"}]
    further = client.chat.completions.create(**{**asked, "messages": turns})
    text = "User: a hill?\nAssistant: a lamp\nUser: a wall?\nAssistant:"
    assert further.choices[0].message.content == complete(client, prompt=text, seed=1, max_tokens=12).choices[0].text


def test_several_prompts_and_choices_in_order(client):
    prompts = ["a lamp", "the wall", "in the night"]
    together = complete(client, prompt=prompts, n=2).choices
    assert [choice.index for choice in together] == list(range(6))
    alone = [complete(client, prompt=prompt, n=2).choices[i].text for prompt in prompts for i in range(2)]
    assert [choice.text for choice in together] == alone
    assert len(set(alone)) == 6


def test_stop_and_token_ids(client):
    free = complete(client, max_tokens=40).choices[0].text
    stop = free[8:10]
    stopped = complete(client, max_tokens=40, stop=[stop]).choices[0]
    assert (stopped.text, stopped.finish_reason) == (free.split(stop)[0], "stop")
    assert complete(client, prompt=[5, 6, 7]).usage.prompt_tokens == 3


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"top_logprobs": 2}, "top_logprobs has no meaning without logprobs"),
        ({"top_logprobs": 2, "logprobs": False}, "top_logprobs has no meaning without logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options has no meaning without stream"),
        ({"stream_options": {}, "stream": False}, "stream_options has no meaning without stream"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "give one of them"),
        ({"messages": [{"role": "user", "content": "a", "name": "Ann"}]}, "messages.0.name: Extra inputs"),
    ],
)
def test_a_parameter_that_would_do_nothing_is_refused(server, asked, says):
    body = {"messages": [{"role": "user", "content": "a"}], **asked}
    answer = httpx.post(f"{server}/v1/chat/completions", json=body)
    assert answer.status_code == 400, answer.text
    assert says in answer.json()["error"]["message"]
    assert idle(server)


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        (b'{"prompt": ', 400, "Invalid JSON"),
        (b"[1]", 400, "body"),
        (b'{"promt": "a"}', 400, "promt"),
        (b'{"prompt": "a", "temperature": -1}', 400, "temperature"),
        (b'{"prompt": "a", "frequency_penalty": 1}', 400, "frequency_penalty"),
        (b'{"prompt": [999]}', 400, "token id 999"),
        (b'{"prompt": "a", "model": "other"}', 404, "other"),
        (json.dumps({"prompt": "night " * 2000}).encode(), 400, "positions"),
        (json.dumps({"prompt": "a" * 30000}).encode(), 413, "20,000 bytes"),
        (json.dumps({"prompt": "a", "n": 100}).encode(), 400, "takes 46 at most"),
        (json.dumps({"prompt": ["a"] * 24, "n": 2}).encode(), 400, "48 texts"),
        (json.dumps({"prompt": ["a"] * 2000, "n": 128}).encode(), 400, "256,000 texts"),
        (b'{"prompt": "a", "repetition_penalty": 5e-324}', 400, "found 5e-324, expected from 0.01 to 100"),
        (b'{"prompt": "a", "repetition_penalty": 1e-308, "stream": true}', 400, "repetition_penalty"),
        (b'{"prompt": "a", "repetition_penalty": NaN}', 400, "repetition_penalty"),
        (b'{"prompt": "a", "repetition_penalty": 101}', 400, "repetition_penalty"),
        (b'{"prompt": "a", "stop": ""}', 400, "stop"),
        (b'{"prompt": "a", "stop": ["b", ""]}', 400, "stop"),
        (b"\xff\xfe", 400, "JSON"),
    ],
)
def test_bad_requests_are_told_what_is_wrong(server, body, status, says):
    answer = httpx.post(f"{server}/v1/completions", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == status, answer.text
    assert says in answer.json()["error"]["message"]
    assert idle(server)


@pytest.mark.parametrize("announced", [True, False])
def test_a_body_may_be_as_long_as_the_limit_and_not_a_byte_longer(server, announced):
    """Also where no Content-Length announces it."""
    body = b'{"prompt": "a", "max_tokens": 1}'
    for size, status in ((20000, 200), (20001, 413)):
        padded = body.ljust(size)
        content = padded if announced else (padded[at : at + 1000] for at in range(0, size, 1000))
        answer = httpx.post(f"{server}/v1/completions", content=content, headers={"Content-Type": "application/json"})
        assert answer.status_code == status, answer.text
    assert idle(server)


def test_more_connections_than_it_could_serve_are_turned_away(run):
    """Four for each prompt that is decoded or waits; who comes when they are taken gets 503, until one is free."""
    with serving(run, BACKEND, "--concurrency", 1, "--queue", 1) as (server, _), ExitStack() as held:
        address = httpx.URL(server)
        for _ in range(7):
            waiting = held.enter_context(socket.create_connection((address.host, address.port)))
            waiting.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n")
        assert statuses_of(server, until=503)[-1] == 503
        held.close()
        assert statuses_of(server, until=200)[-1] == 200


def statuses_of(server, until, tries=100):
    """What the server answers, asked again until it is that."""
    seen = []
    while until not in seen and len(seen) < tries:
        seen.append(httpx.get(f"{server}/health").status_code)
        time.sleep(0.05)
    return seen


def test_a_path_that_there_is_not_is_told_of(server, client):
    with pytest.raises(openai.NotFoundError, match="POST /v1/embeddings: Not Found; this server has POST /v1/comp"):
        client.embeddings.create(model="night", input="a lamp")
    wrong = httpx.get(f"{server}/v1/completions")
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
    assert "GET /v1/completions: Method Not Allowed" in wrong.json()["error"]["message"]


def test_a_refusal_names_the_parameter(client):
    with pytest.raises(openai.BadRequestError) as refused:
        complete(client, temperature=3)
    assert refused.value.param == "temperature"
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="night", messages=[{"role": "wizard", "content": "a"}])
    assert refused.value.param == "messages.0.role"


@pytest.mark.parametrize(
    ("asked", "param", "says"),
    [
        ({"stop": ""}, "stop", "stop: String should have at least 1 character; stop: Input should be a valid list"),
        ({"prompt": [1, "a"]}, "prompt", "prompt.1: Input should be a valid"),
        ({"logit_bias": {"1": 3}}, "logit_bias", "logit_bias: not supported here"),
        ({"echo": True}, "echo", "echo: not supported here"),
        ({"best_of": 2}, "best_of", "best_of: not supported here"),
        ({"suffix": "a"}, "suffix", "suffix: not supported here"),
        ({"frequency_penalty": 0.5}, "frequency_penalty", "frequency_penalty: not supported here"),
        ({"presence_penalty": 0.5}, "presence_penalty", "presence_penalty: not supported here"),
        ({"temprature": 1}, "temprature", "temprature: Extra inputs"),
        ({"stream": True, "stream_options": {"usage": True}}, "stream_options.usage", "Extra inputs"),
    ],
)
def test_a_refusal_names_parameters_and_no_types(server, asked, param, says):
    answer = httpx.post(f"{server}/v1/completions", json={"prompt": "a", **asked}).json()["error"]
    assert answer["param"] == param
    assert says in answer["message"]
    assert "[" not in answer["message"]


def test_who_finds_the_line_full_may_come_again(server):
    long = {"prompt": "a", "max_tokens": 500, "stream": True, "temperature": 2, "n": 40}
    with httpx.stream("POST", f"{server}/v1/completions", json=long) as answer:
        events = answer.iter_lines()  # which closes the connection when it goes
        assert next(events).startswith("data: ")
        refused = httpx.post(f"{server}/v1/completions", json={"prompt": "a", "n": 46})
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
    assert idle(server)
    assert httpx.post(f"{server}/v1/completions", json={"prompt": "a", "n": 46, "max_tokens": 1}).status_code == 200


def test_what_another_web_page_could_send_is_refused(server):
    body = b'{"prompt": "a"}'
    plain = httpx.post(f"{server}/v1/completions", content=body, headers={"Content-Type": "text/plain"})
    assert plain.status_code == 415
    assert httpx.get(f"{server}/health", headers={"Host": "elsewhere.example"}).status_code == 400


def test_a_client_that_goes_frees_its_row(server):
    body = {"prompt": "a", "max_tokens": 500, "stream": True, "temperature": 2}
    for _ in range(12):  # twice as many as there are rows
        with httpx.stream("POST", f"{server}/v1/completions", json=body) as answer:
            assert next(answer.iter_lines()).startswith("data: ")
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{server}/v1/completions", json={**body, "stream": False, "n": 8}, timeout=0.05)
    assert idle(server)


def test_half_a_request_does_not_hold_the_server_up(server):
    host, port = server.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as half:
        half.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n")
        half.sendall(b"Content-Length: 100\r\n\r\n{")
        assert httpx.get(f"{server}/health").status_code == 200
    assert idle(server)


class SlowToEncode:
    """A model that encodes a text only when somebody else has been answered."""

    has_chat_template = False

    def __init__(self):
        self.answered = threading.Event()

    def encode(self, _):
        raise DataError("encoded" if self.answered.wait(10) else "everybody waited")


def test_others_are_served_while_a_long_text_is_encoded():
    model = SlowToEncode()
    transport = httpx.ASGITransport(app=app.Api(model, app.ServerOptions(name="night")).app())

    async def both():
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            slow = asyncio.ensure_future(client.post("/v1/completions", json={"prompt": "long"}))
            await asyncio.sleep(0.1)
            assert (await client.get("/health")).status_code == 200
            model.answered.set()
            return await slow

    answer = asyncio.run(both())
    assert (answer.status_code, answer.json()["error"]["message"]) == (400, "encoded")


def ask(api, *paths):
    """Status and body of a GET of /health, and of a small completion for any other path."""

    async def one(client, path):
        answer = await (client.get(path) if path == "/health" else client.post(path, json={"prompt": [5]}))
        return answer.status_code, answer.json()

    async def each():
        transport = httpx.ASGITransport(app=api.app())
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return [await one(client, path) for path in paths]

    return asyncio.run(each())


def test_a_fault_while_decoding_is_a_500_and_the_server_goes_on(run, monkeypatch):
    faults = [IndexError("list index out of range"), ZeroDivisionError()]
    step = Engine.step
    monkeypatch.setattr(Engine, "step", lambda engine: throw(faults.pop()) if faults else step(engine))
    api = app.Api(sconce.load(run, backend=BACKEND), app.ServerOptions(name="night"))
    with api.scheduler:
        first, second, third, health = ask(api, *["/v1/completions"] * 3, "/health")
    assert (first[0], first[1]["error"]["message"]) == (500, "the model could not go on: ZeroDivisionError")
    assert (second[0], second[1]["error"]["message"]) == (500, "the model could not go on: list index out of range")
    assert third[0] == 200
    assert health == (200, {"status": "ok", "requests": 0})


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_health_tells_when_nothing_is_decoded_any_more(run, monkeypatch):
    """SystemExit stands for what a thread cannot go on after."""
    monkeypatch.setattr(Engine, "step", lambda _: throw(SystemExit()))
    api = app.Api(sconce.load(run, backend=BACKEND), app.ServerOptions(name="night"))
    with api.scheduler:
        api.scheduler.submit([Prompt(text="a")], lambda _: None)
        api.scheduler._thread.join(10)
        health, refused = ask(api, "/health", "/v1/completions")
    assert health == (503, {"status": "ended", "requests": 1})
    assert (refused[0], "started anew" in refused[1]["error"]["message"]) == (503, True)


def throw(error):
    raise error


def test_the_page_is_there_and_loads_nothing_from_elsewhere(server):
    page = httpx.get(f"{server}/")
    assert page.status_code == 200
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", page.text)


def stream(server, number, tokens):
    """One client's text, read as it comes."""
    body = {"prompt": f"a lamp {number}", "max_tokens": tokens, "seed": number, "stream": True, "temperature": 1.2}
    text = ""
    with httpx.stream("POST", f"{server}/v1/completions", json=body, timeout=120) as answer:
        assert answer.status_code == 200
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                text += json.loads(line[6:])["choices"][0]["text"]
    return text


def test_concurrent_streams_are_what_each_would_be_alone(server):
    with ThreadPoolExecutor(12) as pool:
        together = list(pool.map(lambda number: stream(server, number, 24), range(12)))
    assert together == [stream(server, number, 24) for number in range(12)]
    assert len(set(together)) == 12


def test_a_key_keeps_others_out(run):
    with serving(run, BACKEND, "--api-key", "secret", "--name", "mine") as (server, _):
        assert httpx.get(f"{server}/v1/models").status_code == 401
        wrong = {"Authorization": "Bearer wrong"}
        assert httpx.post(f"{server}/v1/completions", json={}, headers=wrong).status_code == 401
        with openai.OpenAI(base_url=f"{server}/v1", api_key="secret") as client:
            assert next(iter(client.models.list())).id == "mine"


def test_a_port_that_is_taken_is_one_line(run):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        process = start("serve", run, "--port", taken.getsockname()[1], "--backend", BACKEND)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert re.fullmatch(r"sconce: --host 127\.0\.0\.1 --port \d+: .*; choose another\n", err), err


def memory_mib(process: subprocess.Popen) -> float:
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) / 1024


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="reads the server's memory from /proc")
@pytest.mark.parametrize("backend", INSTALLED)
def test_thirty_two_clients_for_many_rounds_in_bounded_memory(run, backend):
    with serving(run, backend, "--concurrency", 32) as (server, process):
        alone = [stream(server, number, 200) for number in range(32)]
        after = []
        with ThreadPoolExecutor(32) as pool:
            for _ in range(6):
                assert list(pool.map(lambda number: stream(server, number, 200), range(32))) == alone
                after.append(memory_mib(process))
        assert after[-1] < after[1] + 20, after
