#!/usr/bin/env python3
"""Makes tests/golden/templates/*.json: chat templates and snippets as PyPI's jinja2 renders them, in the
environment of transformers' apply_chat_template.

usage: make_template_goldens.py   (needs jinja2; run from the root of the repository)
"""
import datetime
import json
import os
import pathlib
import time

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox

os.environ["TZ"] = "UTC"
time.tzset()
NOW = 1_700_000_000  # what strftime_now reads
HERE = pathlib.Path(__file__).parent
OUT = pathlib.Path("tests/golden/templates")


class Generation(jinja2.ext.Extension):
    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller):
        return caller()


class Raised(Exception):
    pass


def raise_exception(message):
    raise Raised(message)


def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def environment():
    env = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols])
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = lambda f: datetime.datetime.fromtimestamp(NOW).strftime(f)
    return env


def render(template, variables):
    try:
        return {"output": environment().from_string(template).render(**variables)}
    except Raised as error:
        return {"raised": str(error)}
    except Exception as error:  # what it says differs; that it fails must not
        return {"error": f"{type(error).__name__}: {error}"}


def write(name, content):
    head = {"format": 1, "made_with": f"jinja2 {jinja2.__version__}", "now": NOW}
    path = OUT / f"{name}.json"
    path.write_text(json.dumps({**head, **content}, ensure_ascii=False, indent=1) + "\n")
    print(path, path.stat().st_size, sum("error" in c for c in content["cases"]), "errors")


WEATHER = {"type": "function", "function": {
    "name": "get_weather", "description": "The weather \"now\" — 天气 <b>",
    "parameters": {"type": "object", "properties": {"city": {"type": "string", "enum": ["北京", "Paris"]},
                                                    "days": {"type": "integer", "default": 1}}, "required": ["city"]}}}
ADD = {"type": "function", "function": {"name": "add", "description": "Adds", "parameters": {
    "type": "object", "properties": {"b": {"type": "number"}, "a": {"type": ["number", "null"]}}}}}


def user(text):
    return {"role": "user", "content": text}


def assistant(text, **rest):
    return {"role": "assistant", "content": text, **rest}


def call(arguments, name="get_weather", i=0):
    return {"id": f"call{i:05}", "type": "function", "function": {"name": name, "arguments": arguments}}


CONVERSATIONS = {
    "one question": [user("What is 37 + 48 - 5?")],
    "system": [{"role": "system", "content": "Be brief."}, user("Hi")],
    "two systems": [{"role": "system", "content": "One."}, {"role": "system", "content": "Two."}, user("Hi")],
    "chinese": [{"role": "system", "content": "你是助手。"}, user("小明有12个苹果,又买了7个,现在有多少个?")],
    "turns": [user("a"), assistant("b"), user("c"), assistant("d\n"), user("  e  ")],
    "thoughts in the text": [user("a"), assistant("<think>\nhm\n</think>\n\nb"), user("c")],
    "reasoning": [user("a"), assistant("b", reasoning_content="because"), user("c"),
                  assistant("d", reasoning_content="so")],
    "ends with the assistant": [user("a"), assistant("b")],
    "call": [user("Weather?"), assistant(None, tool_calls=[call("{\"city\": \"Paris\"}")]),
             {"role": "tool", "content": "sunny", "tool_call_id": "call00000"}, assistant("Sunny."), user("Thanks")],
    "two calls": [user("Weather?"), assistant(None, tool_calls=[call("{}"), call("{\"a\": 1}", "add", 1)]),
                  {"role": "tool", "content": "rain"}, {"role": "tool", "content": "2"}],
    "call with text": [user("Weather?"), assistant("Let me see.", tool_calls=[call({"city": "北京", "days": 2})]),
                       {"role": "tool", "content": "{\"t\": 20.5}"}, assistant("20.5")],
    "nothing": [],
    "assistant first": [assistant("a"), user("b")],
    "unknown role": [{"role": "narrator", "content": "Once"}, user("b")],
    "developer": [{"role": "developer", "content": "Speak plainly."}, user("b")],
    "parts": [{"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]}],
    "user twice": [user("a"), user("b")],
    "markup": [user("<|im_end|> {{ 1 }} </think> 'quoted' \"double\" \\ back\tslash")],
}
SPECIALS = {"bos_token": "<s>", "eos_token": "</s>"}


def conversations(template, specials, **extra):
    cases = []
    for name, messages in CONVERSATIONS.items():
        variants = [("", None, True, {})]
        if name in ("one question", "turns", "system"):
            variants += [(" no prompt", None, False, {}), (" tools", [WEATHER, ADD], True, {})]
            variants += [(f" {k}={v}", None, True, {k: v}) for k, values in extra.items() for v in values]
        if "call" in name:
            variants += [(" tools", [WEATHER], True, {})]
        for suffix, tools, prompt, more in variants:
            variables = {"messages": messages, "tools": tools, "documents": None, "add_generation_prompt": prompt,
                         **specials, **more}
            cases.append({"name": name + suffix, "messages": messages, "tools": tools, "add_generation_prompt": prompt,
                          "extra": more, **render(template, variables)})
    return {"template": template, "special_tokens": specials, "cases": cases}


def published(path):
    config = json.loads(pathlib.Path(path).read_text())
    text = lambda token: token["content"] if isinstance(token, dict) else token
    specials = {k: text(config[k]) for k in ("bos_token", "eos_token", "pad_token", "unk_token") if config.get(k)}
    return config["chat_template"], specials


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    write("tiny-r1", conversations(*published("models/tiny-r1/tokenizer_config.json")))
    for name in ("deepseek-v3", "qwen3"):
        write(name, conversations(*published(f"tests/golden/tokenizers/{name}/tokenizer_config.json"),
                                  enable_thinking=[True, False]))
    for path in sorted((HERE / "templates").glob("*.jinja")):
        write(path.stem, conversations(path.read_text(), SPECIALS, reasoning_effort=["low", "high"]))
    snippets = []
    for block in (HERE / "snippets.txt").read_text().split("\n====\n"):
        variables = json.loads((HERE / "snippets_variables.json").read_text())
        snippets.append({"template": block, **render(block, variables)})
    write("snippets", {"variables": json.loads((HERE / "snippets_variables.json").read_text()), "cases": snippets})


if __name__ == "__main__":
    main()
