"""The official `openai` package, as tests/openai.rs drives it: a command as a line of JSON in, its answer as a line out.

It judges nothing: it tells what the package gave or raised, and the Rust test says what is right. The package finds the
server and the key in its own variables, OPENAI_BASE_URL and OPENAI_API_KEY. Nothing is ever tried a second time.
"""

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import openai

INSTANCE = "x-openclaw-instance"

client = openai.OpenAI(max_retries=0, timeout=60)
threads = ThreadPoolExecutor(max_workers=16)


def raised(error):
    """What a caller of the package can tell about an error."""
    return {
        "error": type(error).__name__,
        "is_status_error": isinstance(error, openai.APIStatusError),
        "status": getattr(error, "status_code", None),
        "message": str(error),
        "kind": getattr(error, "type", None),
        "code": getattr(error, "code", None),
    }


def attempt(call, *arguments):
    began = time.monotonic()
    try:
        answer = call(*arguments)
    # Whatever reaches a caller is a finding, also what the package lets through from below.
    except Exception as error:
        answer = raised(error)
    answer["ms"] = round((time.monotonic() - began) * 1000)
    return answer


def plain(of, params):
    raw = of.chat.completions.with_raw_response.create(**params)
    return {"instance": raw.headers.get(INSTANCE), "completion": raw.parse().to_dict()}


def opened(of, params):
    return of.chat.completions.create(**params)


def read(stream):
    began = time.monotonic()
    chunks, arrived = [], []
    try:
        for chunk in stream:
            chunks.append(chunk.to_dict())
            arrived.append(round((time.monotonic() - began) * 1000))
    except Exception as error:
        return raised(error) | {"chunks": chunks}
    finally:
        stream.close()
    return {"instance": stream.response.headers.get(INSTANCE), "chunks": chunks, "arrived_ms": arrived}


def one(params):
    params = dict(params)
    of = client.with_options(api_key=params.pop("api_key")) if "api_key" in params else client
    if params.get("stream"):
        return read(opened(of, params))
    return plain(of, params)


def accumulated(params):
    """The package's own helper, which builds the whole completion from the chunks and is strict about them."""
    with client.chat.completions.stream(**params) as stream:
        events = [event.type for event in stream]
        return {"events": events, "completion": stream.get_final_completion().to_dict()}


def models(_):
    listed = [model.to_dict() for model in client.models.list()]
    return {"listed": listed, "again": [client.models.retrieve(model["id"]).to_dict() for model in listed]}


under_way = []


def begin(calls):
    """Streams are opened in order, plain calls are left to threads; `finish` has what becomes of all of them."""
    instances = []
    for params in calls:
        if params.get("stream"):
            stream = opened(client, params)
            instances.append(stream.response.headers.get(INSTANCE))
            under_way.append(threads.submit(attempt, read, stream))
        else:
            under_way.append(threads.submit(attempt, one, params))
    return {"streams": instances}


def finish(_):
    answers = [each.result() for each in under_way]
    under_way.clear()
    return {"answers": answers}


def calls(each):
    return {"answers": [attempt(one, params) for params in each]}


COMMANDS = {
    "models": models,
    "calls": calls,
    "accumulated": accumulated,
    "begin": begin,
    "finish": finish,
}

for line in sys.stdin:
    command, argument = json.loads(line)
    print(json.dumps(attempt(COMMANDS[command], argument)), flush=True)
