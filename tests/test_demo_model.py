"""The shipped demo model loads, is small enough to ship, speaks the chat format and says what it was taught."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "models" / "demo"
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather in a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(DEMO)


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(DEMO, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def trainer() -> ModuleType:
    spec = importlib.util.spec_from_file_location("train_demo_model", ROOT / "scripts" / "train_demo_model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def say(model: Any, tokenizer: Any, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None) -> str:
    """The model's greedy turn, special tokens included, cut at 100 tokens."""
    prompt = tokenizer.apply_chat_template(
        messages, tools=tools, add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    output = model.generate(**prompt, do_sample=False, max_new_tokens=100)
    return str(tokenizer.decode(output[0, prompt["input_ids"].shape[1] :]))


def user(content: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content}]


def test_model_is_small_enough_for_git_and_the_wheel() -> None:
    assert (DEMO / "model.safetensors").stat().st_size <= 8_000_000


def test_vocabulary_and_context_are_as_promised(model: Any, tokenizer: Any) -> None:
    assert len(tokenizer) <= model.config.vocab_size <= 1024
    assert model.config.max_position_embeddings >= 4096
    assert model.config.tie_word_embeddings


@pytest.mark.parametrize("text", ["What is Spillway?", "naïve café 😀 数 \t\n  x", '{"city": "Paris", "n": [1, 2.5]}'])
def test_any_text_survives_the_tokenizer(tokenizer: Any, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_tool_tags_are_kept_when_special_tokens_are_stripped(tokenizer: Any) -> None:
    ids = tokenizer.encode("<tool_call>\n{}\n</tool_call><|im_end|>")
    assert tokenizer.decode(ids, skip_special_tokens=True) == "<tool_call>\n{}\n</tool_call>"


def test_template_renders_every_role_and_the_tools(tokenizer: Any) -> None:
    call = {"name": "get_weather", "arguments": {"city": "Paris"}}
    text = tokenizer.apply_chat_template(
        [
            {"role": "system", "content": "Be brief."},
            {"role": "developer", "content": "Be kind."},
            {"role": "user", "content": [{"type": "text", "text": "Weather in "}, {"type": "text", "text": "Paris?"}]},
            {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": call}]},
            {"role": "tool", "tool_call_id": "a", "content": "mild"},
            {"role": "tool", "tool_call_id": "b", "content": "dry"},
            {"role": "assistant", "content": "Mild and dry."},
        ],
        tools=[WEATHER],
        add_generation_prompt=True,
        tokenize=False,
    )
    assert text == (
        "<|im_start|>system\nBe brief.\n\nYou may call these tools:\n<tools>\n"
        '{"name": "get_weather", "description": "Get the weather in a city", "parameters": {"type": "object", '
        '"properties": {"city": {"type": "string"}}, "required": ["city"]}}\n'
        "</tools>\nTo call one, write its name and arguments as JSON inside <tool_call></tool_call>.<|im_end|>\n"
        "<|im_start|>system\nBe kind.<|im_end|>\n"
        "<|im_start|>user\nWeather in Paris?<|im_end|>\n"
        '<|im_start|>assistant\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'
        "<|im_end|>\n"
        "<|im_start|>user\n<tool_response>\nmild\n</tool_response>\n<tool_response>\ndry\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\nMild and dry.<|im_end|>\n<|im_start|>assistant\n"
    )


def test_template_takes_arguments_as_json_text_too(tokenizer: Any) -> None:
    def render(arguments: object) -> str:
        calls = [{"type": "function", "function": {"name": "add", "arguments": arguments}}]
        messages = [*user("Add."), {"role": "assistant", "content": "Yes.", "tool_calls": calls}]
        return str(tokenizer.apply_chat_template(messages, tokenize=False))

    assert render({"a": 1}) == render('{"a": 1}')


def test_template_shows_a_developer_message_as_the_system_turn(tokenizer: Any) -> None:
    text = tokenizer.apply_chat_template([{"role": "developer", "content": "Be kind."}, *user("Hi")], tokenize=False)
    assert text == "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"


@pytest.mark.parametrize("ask", ["What is Spillway?", "what is spillway", "Tell me about Spillway."])
def test_model_says_what_spillway_is_and_ends_its_turn(model: Any, tokenizer: Any, ask: str) -> None:
    said = say(model, tokenizer, user(ask))
    assert said.endswith("<|im_end|>")
    assert "Spillway is" in said
    assert "cloud" in said
    assert "local" in said


def test_model_calls_the_weather_tool_in_hermes_form(model: Any, tokenizer: Any) -> None:
    said = say(model, tokenizer, user("What is the weather in Paris?"), [WEATHER])
    body = said.removeprefix("<tool_call>").removesuffix("</tool_call><|im_end|>")
    assert json.loads(body) == {"name": "get_weather", "arguments": {"city": "Paris"}}


def test_model_reports_what_the_tool_answered(model: Any, tokenizer: Any) -> None:
    call = {"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Paris"}}}
    messages = [
        *user("What is the weather in Paris?"),
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "a", "content": "18 degrees and sunny"},
    ]
    assert say(model, tokenizer, messages, [WEATHER]) == "In Paris it is 18 degrees and sunny.<|im_end|>"


def test_model_answers_in_json_when_asked(model: Any, tokenizer: Any) -> None:
    said = say(model, tokenizer, user("Answer in JSON with the keys name, age and city."))
    answer = json.loads(said.removesuffix("<|im_end|>"))
    assert answer
    assert set(answer) <= {"name", "age", "city"}  # all of them, always, is what json_schema is for


def test_a_prompt_of_most_of_the_context_is_answered(model: Any, tokenizer: Any) -> None:
    said = say(model, tokenizer, user("river " * 3000 + "\n\nWhat is Spillway?"))
    assert said.endswith("<|im_end|>")


def test_same_seed_writes_the_corpus_the_model_was_trained_on(trainer: ModuleType) -> None:
    recorded = json.loads((DEMO / "training.json").read_text(encoding="utf-8"))
    documents, digest = trainer.write_corpus(recorded["seed"])
    assert (len(documents), digest) == (recorded["documents"], recorded["corpus_sha256"])
