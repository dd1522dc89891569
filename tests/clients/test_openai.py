"""The official openai package, unmodified, against the embedded server."""
import asyncio

import openai
import pytest

MATH = [{"role": "user", "content": "What is 37 + 48 - 5?"}]


def test_models_lists_the_served_model(client):
    models = client.models.list().data
    assert [m.id for m in models] == ["tiny-r1"]
    assert client.models.retrieve("tiny-r1").id == "tiny-r1"


def test_chat_answers_and_splits_reasoning(client):
    answer = client.chat.completions.create(model="tiny-r1", messages=MATH, temperature=0)
    message = answer.choices[0].message
    assert "80" in message.content
    assert "<think>" not in message.content and "</think>" not in message.content
    assert len(message.reasoning_content) > 5
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.object == "chat.completion"


def test_streaming_says_the_same_as_not_streaming(client):
    whole = client.chat.completions.create(model="tiny-r1", messages=MATH, temperature=0)
    stream = client.chat.completions.create(model="tiny-r1", messages=MATH, temperature=0, stream=True,
                                            stream_options={"include_usage": True})
    content, reasoning, finish, usage = "", "", None, None
    for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            content += choice.delta.content or ""
            reasoning += getattr(choice.delta, "reasoning_content", None) or ""
            finish = choice.finish_reason or finish
    assert (content, reasoning, finish) == (whole.choices[0].message.content,
                                            whole.choices[0].message.reasoning_content, "stop")
    assert usage == whole.usage


def test_async_streams_side_by_side(embedded):
    async def ask(client, n):
        text = ""
        async for chunk in await client.chat.completions.create(
                model="tiny-r1", messages=[{"role": "user", "content": f"What is {n} + {n}?"}], temperature=0, stream=True):
            for choice in chunk.choices:
                text += choice.delta.content or ""
        return text

    async def run():
        async with openai.AsyncOpenAI(base_url=embedded.url + "/v1", api_key="none", max_retries=0) as client:
            together = await asyncio.gather(*(ask(client, n) for n in range(10, 26)))
            alone = [await ask(client, n) for n in (10, 25)]
        return together, alone

    together, alone = asyncio.run(run())
    assert [together[0], together[-1]] == alone
    assert "20" in together[0]


def test_completions_with_ids_logprobs_and_echo(client):
    text = client.completions.create(model="tiny-r1", prompt="The capital of", max_tokens=5, temperature=0, logprobs=3, echo=True)
    choice = text.choices[0]
    assert choice.text.startswith("The capital of")
    assert len(choice.logprobs.tokens) == len(choice.logprobs.token_logprobs) == text.usage.total_tokens
    assert choice.logprobs.token_logprobs[0] is None
    assert all(v <= 0 for v in choice.logprobs.token_logprobs[1:])
    ids = client.completions.create(model="tiny-r1", prompt=[5, 17, 300], max_tokens=4, temperature=0, extra_body={"return_token_ids": True})
    assert len(ids.choices[0].token_ids) == ids.usage.completion_tokens
    assert ids.usage.prompt_tokens == 3


def test_chat_logprobs(client):
    answer = client.chat.completions.create(model="tiny-r1", messages=MATH, temperature=0, logprobs=True, top_logprobs=4, max_completion_tokens=6)
    content = answer.choices[0].logprobs.content
    assert len(content) == 6
    for entry in content:
        assert len(entry.top_logprobs) == 4
        assert entry.logprob == max(t.logprob for t in entry.top_logprobs)
    assert answer.choices[0].finish_reason == "length"


def test_seeded_sampling_repeats_and_choices_differ(client):
    def draw(seed):
        out = client.chat.completions.create(model="tiny-r1", messages=[{"role": "user", "content": "Hello!"}], temperature=1.5, seed=seed,
                                             n=3, max_completion_tokens=24)
        return [(c.message.content, c.message.reasoning_content) for c in sorted(out.choices, key=lambda c: c.index)]

    assert draw(7) == draw(7)
    assert len(set(draw(7))) > 1
    assert draw(7) != draw(8)


def test_stop_strings_end_the_text_before_them(client):
    whole = client.completions.create(model="tiny-r1", prompt="What is 12 + 3", max_tokens=40, temperature=0).choices[0].text
    stop = whole[len(whole) // 2:][:3]
    cut = client.completions.create(model="tiny-r1", prompt="What is 12 + 3", max_tokens=40, temperature=0, stop=[stop]).choices[0]
    assert cut.text == whole[: whole.index(stop)]
    assert cut.finish_reason == "stop"


def test_logit_bias_forces_and_forbids_tokens(client):
    def ids(**more):
        answer = client.completions.create(model="tiny-r1", prompt="What is 12 + 3", max_tokens=12, temperature=0,
                                           extra_body={"return_token_ids": True, "ignore_eos": True}, **more)
        return answer.choices[0].token_ids

    plain = ids()
    assert set(ids(logit_bias={"300": 100})) == {300}
    forbidden = ids(logit_bias={str(plain[0]): -100})
    assert plain[0] not in forbidden and forbidden != plain
    with pytest.raises(openai.BadRequestError, match="logit_bias"):
        ids(logit_bias={"300": 101})


def test_min_tokens_holds_the_end_back(client):
    def answer(**more):
        return client.completions.create(model="tiny-r1", prompt="x", max_tokens=9, temperature=0,
                                         # Nothing is likelier than the end-of-sequence token.
                                         logit_bias={"1": 100}, extra_body={"return_token_ids": True, **more}).choices[0]

    assert (len(answer().token_ids), answer().finish_reason) == (1, "stop")
    held = answer(min_tokens=5)
    assert len(held.token_ids) == 6 and held.token_ids[-1] == 1 and 1 not in held.token_ids[:-1]
    with pytest.raises(openai.BadRequestError, match="min_tokens"):
        answer(min_tokens=10)


def test_routed_experts(client):
    answer = client.completions.create(model="tiny-r1", prompt=[5, 17, 300], max_tokens=2, temperature=0, extra_body={"return_routed_experts": True})
    routed = answer.choices[0].routed_experts
    assert len(routed) == 3 + 2 - 1  # every position that was computed
    assert [r["position"] for r in routed] == [0, 1, 2, 3]
    assert answer.moe_layers == [1, 2, 3, 4]
    for r in routed:
        assert len(r["experts"]) == len(r["weights"]) == 4
        for experts, weights in zip(r["experts"], r["weights"]):
            assert len(experts) == 4 and experts == sorted(set(experts))
            assert abs(sum(weights) - 2.5) < 1e-3


@pytest.mark.parametrize("field, body", [
    ("tools", {"tools": [{"type": "function", "function": {"name": "f"}}]}),
    ("response_format", {"response_format": {"type": "json_object"}}),
    ("temperature", {"temperature": -1}),
    ("top_p", {"top_p": 2}),
    ("max_tokens", {"max_tokens": 0}),
])
def test_what_is_not_supported_is_a_400_that_names_it(client, field, body):
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(model="tiny-r1", messages=MATH, extra_body=body)
    assert error.value.body["param"] == field
    assert field in error.value.body["message"]


def test_images_are_refused_by_name(client):
    parts = [{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {"url": "data:,x"}}]
    with pytest.raises(openai.BadRequestError, match="image_url"):
        client.chat.completions.create(model="tiny-r1", messages=[{"role": "user", "content": parts}])


def test_text_parts_and_developer_role(client):
    parts = [{"type": "text", "text": "What is 37 + "}, {"type": "text", "text": "48 - 5?"}]
    answer = client.chat.completions.create(model="tiny-r1", temperature=0, messages=[
        {"role": "developer", "content": "You are a helpful assistant."}, {"role": "user", "content": parts}])
    assert "80" in answer.choices[0].message.content


def test_unknown_model_and_long_prompt(client):
    with pytest.raises(openai.NotFoundError, match="no-such"):
        client.chat.completions.create(model="no-such", messages=MATH)
    with pytest.raises(openai.BadRequestError, match="4096"):
        client.completions.create(model="tiny-r1", prompt=[5] * 5000, max_tokens=5)
    with pytest.raises(openai.BadRequestError, match="99999"):
        client.completions.create(model="tiny-r1", prompt=[5, 99999], max_tokens=5)


def test_usage_tells_what_the_prefix_cache_had(client):
    def ask(length, **more):
        prompt = [(11 * i) % 1900 + 5 for i in range(length)]
        return client.completions.create(model="tiny-r1", prompt=prompt, max_tokens=3, temperature=0, **more)

    first, again, longer = ask(100), ask(100), ask(150)
    cached = [a.usage.prompt_tokens_details.cached_tokens for a in (first, again, longer)]
    assert cached == [0, 96, 96]
    assert again.choices[0].text == first.choices[0].text
    salted = ask(100, extra_body={"cache_salt": "of my own"}).usage
    assert salted.prompt_tokens_details.cached_tokens == 0
    several = ask(100, n=3)
    assert (several.usage.prompt_tokens, several.usage.prompt_tokens_details.cached_tokens) == (100, 96)
    assert [c.text for c in several.choices] == [first.choices[0].text] * 3
