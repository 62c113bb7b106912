"""The page's two tools, as a language model's client meets them."""

import ast
import asyncio
import base64
import json

import pytest

pytest.importorskip("gradio")
mcp = pytest.importorskip("mcp")

from mcp.client.streamable_http import streamable_http_client  # noqa: E402

from imrseg.app.examples import EXAMPLES_FOLDER  # noqa: E402

PORTRAIT, RUNNING = (EXAMPLES_FOLDER / f"{name}.jpg" for name in ("cheetah-portrait", "cheetah-running"))


def talk(server, *requests):
    """The answers to (method of ``mcp.ClientSession``, arguments), one after the other."""

    async def session():
        async with (
            streamable_http_client(f"{server}/gradio_api/mcp/") as (read, write, _),
            mcp.ClientSession(read, write) as session,
        ):
            await session.initialize()
            return [await getattr(session, method)(*arguments) for method, *arguments in requests]

    return asyncio.run(session())


def sent(path):
    return f"data:image/jpeg;base64,{base64.b64encode(path.read_bytes()).decode()}"


def test_the_schema_says_what_each_parameter_is(mcp_server):
    (listed,) = talk(mcp_server, ("list_tools",))
    tools = {tool.name: tool for tool in listed.tools}
    assert {"segment", "segment_steps"} <= set(tools)
    for name in ("segment", "segment_steps"):
        schema = tools[name].inputSchema
        assert schema["required"] == ["query", "label"]
        assert schema["properties"]["steps"] == {
            "type": "number",
            "description": "refinement steps, 0 to 20; without, the preset's own number.",
        }
        assert all(parameter.get("description") for parameter in schema["properties"].values())
    assert "what a label names" in tools["segment"].description


def test_both_tools_answer(mcp_server, segmenter):
    given = {"query": sent(PORTRAIT), "supports": [sent(RUNNING)], "label": "cheetah", "steps": 2}
    whole, stepwise = talk(mcp_server, ("call_tool", "segment", given), ("call_tool", "segment_steps", given))
    assert not whole.isError
    assert not stepwise.isError
    result = ast.literal_eval(whole.content[0].text)[0]
    last = ast.literal_eval(stepwise.content[-1].text)
    expected = segmenter.segment(PORTRAIT, [RUNNING], "cheetah", steps=2).mask
    assert [step["step"] for step in result["steps"]] == [0, 1, 2]
    assert last["step"] == 2
    assert last["covered"] == pytest.approx(expected.mean())
    assert last["mask"]["size"] == list(expected.shape)


def test_bad_input_is_told_in_words(mcp_server):
    bad = [{"label": " "}, {"steps": 21}, {"query": sent(EXAMPLES_FOLDER.parent / "ATTRIBUTION.md")}]
    calls = [("call_tool", "segment", {"query": sent(PORTRAIT), "label": "cheetah"} | one) for one in bad]
    answers = talk(mcp_server, *calls)
    assert all(answer.isError for answer in answers)
    said = json.dumps([answer.content[0].text for answer in answers])
    for words in ("The label is empty", "from 0 to 20", "not a picture"):
        assert words in said
