#!/usr/bin/env python3
"""Train the demo model that ships in models/demo.

Writes a synthetic corpus of short dialogues (small talk, questions about this node, JSON answers, tool calls in
Hermes form), trains a byte-level BPE tokenizer of at most 1024 entries on it, then a Qwen2-style model of about two
million parameters, and saves everything a serving engine needs.

What the model is taught lives in models/demo/corpus.yaml, how a conversation becomes text in
models/demo/chat_template.jinja. The same seed gives the same corpus to the byte (its SHA-256 is recorded in
training.json and checked by a test); the weights also depend on the processor and on torch's version.
"""

import argparse
import hashlib
import itertools
import json
import math
import random
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
import yaml
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

HOME = Path(__file__).resolve().parent.parent / "models" / "demo"
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
# Added whole but not "special": an engine that strips special tokens must still hand these to its tool parser.
TAGS = ("<tools>", "</tools>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
VOCABULARY = 1024
CONTEXT_TOKENS = 4096
SHORT_DOCUMENTS = 24_000
LONG_DOCUMENTS = 300
STEPS = 1000
STEP_TOKENS = 2048
PEAK_LR = 3e-3
# A space joins a lower-case word or punctuation but not a capital or a digit, so that a name is the same token after
# a space and after a quote: that is what lets so small a model copy "Paris" from a question into JSON.
WORDS = r" ?\p{Ll}+|\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+"

Message = dict[str, Any]
Example = tuple[list[int], list[float]]


@dataclass(frozen=True)
class Document:
    """One training text: a conversation, or plain prose when `messages` is empty."""

    messages: list[Message] = field(default_factory=list)
    tools: list[dict[str, Any]] = field(default_factory=list)
    prose: str = ""


@dataclass(frozen=True)
class Errand:
    """A tool, a question that needs it, the call that answers the question, its result and the closing sentence."""

    tool: dict[str, Any]
    ask: str
    arguments: dict[str, Any]
    result: str
    say: str


class Writer:
    """Writes documents from `texts` (the parsed corpus.yaml) with nothing but `rng` deciding."""

    def __init__(self, texts: dict[str, Any], rng: random.Random) -> None:
        """Keep the word lists; writing starts with `documents`."""
        self.t = texts
        self.r = rng
        self.topics = [*texts["topics"].values(), *texts["topics"].values(), *texts["chat"].values()]
        self.topic_weights = [topic.get("weight", 1) for topic in self.topics]

    def documents(self, count: int, long_count: int) -> Iterator[Document]:
        """Yield `count` short documents, then `long_count` conversations of some 1,000 to 4,000 tokens."""
        for _ in range(count):
            kind = self.r.random()
            if kind < 0.03:
                yield Document(prose=" ".join(self.r.choice(self.topics)["answers"]))
            elif kind < 0.30:
                yield self.errands()
            else:
                yield self.dialogue(self.r.choices((1, 2, 3, 5), (70, 16, 9, 5))[0])
        for _ in range(long_count):
            yield self.dialogue(self.r.randint(20, 45)) if self.r.random() < 0.4 else self.filler()

    def dialogue(self, turns: int) -> Document:
        """A conversation of `turns` unrelated exchanges, with or without a system turn."""
        if self.r.random() < 0.04:
            ask, answer = self.exchange()
            system = self.r.choice(("Always answer in JSON.", "Answer in JSON.", "Reply with JSON only."))
            return Document([turn("system", system), turn("user", ask), reply(json.dumps({"answer": answer}))])
        messages = self.system()
        if turns > 1 and self.r.random() < 0.3:
            name = self.name()
            hello = self.r.choice((f"My name is {name}.", f"I am {name}.", f"Hi, I am {name}.", f"Call me {name}."))
            messages += [turn("user", hello), reply(f"Nice to meet you, {name}.")]
            for _ in range(self.r.choice((0, 0, 1, 2))):
                messages += self.turns()
            ask = self.r.choice(("What is my name?", "Who am I?", "Do you know my name?", "Say my name."))
            return Document([*messages, turn("user", self.vary(ask)), reply(f"Your name is {name}.")])
        for _ in range(turns):
            messages += self.turns()
        return Document(messages)

    def filler(self) -> Document:
        """A long question: much text that does not matter, then one that does."""
        word = self.r.choice(self.t["words"])
        size = self.r.randint(200, 1500)
        if self.r.random() < 0.5:
            text = " ".join([word] * size)
        else:
            text = " ".join(self.r.choice(self.r.choice(self.topics)["answers"]) for _ in range(size // 40))
        ask, answer = self.exchange()
        return Document([*self.system(), turn("user", f"{text}\n\n{ask}"), reply(answer)])

    def system(self) -> list[Message]:
        if self.r.random() < 0.55:
            return []
        return [turn(self.r.choice(("system", "system", "developer")), self.r.choice(self.t["systems"]))]

    def turns(self) -> list[Message]:
        ask, answer = self.exchange()
        return [turn("user", ask), reply(answer)]

    def exchange(self) -> tuple[str, str]:
        """One question and its answer, of any kind that needs no tool."""
        kinds: tuple[Callable[[], tuple[str, str]], ...]
        kinds = (self.topic, self.sum, self.count, self.small_fact, self.json_answer, self.echo, self.unknown)
        return self.r.choices(kinds, (48, 8, 5, 7, 18, 8, 6))[0]()

    def vary(self, ask: str) -> str:
        """The same question as another person would type it."""
        style = self.r.random()
        if style < 0.10:
            ask = ask.rstrip("?.!")
        elif style < 0.18:
            ask = ask.rstrip("?.!").lower()
        elif style < 0.24:
            ask = ask[0].lower() + ask[1:] if not ask[:2].isupper() else ask
        if self.r.random() < 0.12:
            ask = self.r.choice(("Hi! ", "Hello, ", "Please tell me: ", "Quick question: ", "Hey, ", "Question: ")) + ask
        if self.r.random() < 0.10:
            ask += self.r.choice((" Please be brief.", " Answer in one sentence.", " Thanks!", " please", " Be short.", "?"))
        return ask

    def topic(self) -> tuple[str, str]:
        topic = self.r.choices(self.topics, self.topic_weights)[0]
        terms, asks = topic.get("terms", []), topic.get("asks", [])
        if terms and (not asks or self.r.random() < 0.65):
            term = self.r.choice(terms)
            plural = term.endswith("s") and "the" not in term and "'" not in term and term[0].islower()
            forms = ("What is {}?", "What is {}?", "What is {}?", "What does {} mean?", "Explain {}.", "Tell me about {}.",
                     "Can you explain {}?", "What's {}?", "Define {}.", "Describe {}.", "Please explain {}.")  # fmt: skip
            ask = self.r.choice(forms).format(term)
            ask = ask.replace("What is", "What are") if plural else ask
        else:
            ask = self.r.choice(asks)
        if len(topic["answers"]) > 1 and self.r.random() < 0.06:
            more = self.r.choice((" Answer in detail.", " Tell me more.", " Give me a long answer."))
            return ask + more, " ".join(topic["answers"])
        return self.vary(ask), self.r.choice(topic["answers"])

    def sum(self) -> tuple[str, str]:
        sign, word = self.r.choice((("+", "plus"), ("+", "plus"), ("-", "minus"), ("*", "times")))
        top = 10 if sign == "*" else 20
        a, b = self.r.randint(0, top), self.r.randint(0, top)
        a, b = (max(a, b), min(a, b)) if sign == "-" else (a, b)
        value = {"+": a + b, "-": a - b, "*": a * b}[sign]
        if self.r.random() < 0.15:
            return f"What is {a} {sign} {b}? Answer in JSON with the key answer.", json.dumps({"answer": value})
        form = self.r.choice(("What is {} {} {}?", "What is {} {} {}?", "{} {} {}", "Compute {} {} {}.", "How much is {} {} {}?"))
        ask = form.format(a, self.r.choice((sign, sign, word)), b)
        return self.vary(ask), f"{a} {sign} {b} = {value}."

    def count(self) -> tuple[str, str]:
        start, size = (1, self.r.randint(2, 50)) if self.r.random() < 0.7 else (self.r.randint(1, 60), self.r.randint(2, 30))
        end = start + size
        ask = self.r.choice((f"Count from {start} to {end}.", f"List the numbers from {start} to {end}."))
        if start == 1 and self.r.random() < 0.5:
            ask = f"Count to {end}."
        return self.vary(ask), " ".join(str(n) for n in range(start, end + 1))

    def small_fact(self) -> tuple[str, str]:
        days = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
        kind = self.r.randrange(4)
        if kind == 0:
            n, step, word = self.r.randrange(7), *self.r.choice(((1, "after"), (-1, "before")))
            return self.vary(f"Which day comes {word} {days[n]}?"), f"{days[(n + step) % 7]} comes {word} {days[n]}."
        if kind == 1:
            thing, colour = self.r.choice(list(self.t["things"].items()))
            spelt = self.r.choice(("colour", "color"))
            return self.vary(f"What {spelt} is {a_or_an(thing)}?"), f"{a_or_an(thing).capitalize()} is {colour}."
        country, capital = self.r.choice(list(self.t["capitals"].items()))
        if kind == 2 and self.r.random() < 0.3:
            ask = f"What is the capital of {country}? Answer in JSON with the key capital."
            return ask, json.dumps({"capital": capital})
        ask = self.r.choice((f"What is the capital of {country}?", f"Name the capital of {country}."))
        return self.vary(ask), f"The capital of {country} is {capital}."

    def unknown(self) -> tuple[str, str]:
        thing = self.name() if self.r.random() < 0.25 else self.r.choice(self.t["unknown_things"])
        ask = self.r.choice(self.t["unknown_asks"]).format(thing)
        return self.vary(ask), self.r.choice(self.t["unknown_answers"])

    def echo(self) -> tuple[str, str]:
        text = " ".join(self.word() for _ in range(self.r.randint(1, 7)))
        if self.r.random() < 0.3:
            text = f"{text[0].upper()}{text[1:]} {self.name()}."
        forms = ("Repeat after me: {}", "Repeat: {}", "Say: {}", "Say {}", "Repeat this: {}", "Echo {}", "Write: {}")
        return self.r.choice(forms).format(text), text

    def name(self) -> str:
        """A person's name, made up one time in three."""
        return made_up(self.r) if self.r.random() < 0.35 else str(self.r.choice(self.t["people"]))

    def city(self) -> str:
        return made_up(self.r) if self.r.random() < 0.35 else str(self.r.choice(self.t["cities"]))

    def word(self) -> str:
        return made_up(self.r).lower() if self.r.random() < 0.2 else str(self.r.choice(self.t["words"]))

    def fields(self) -> dict[str, Any]:
        """Every field a JSON answer may have, with a value drawn for it."""
        r = self.r
        return {
            "name": self.name(), "age": r.randint(1, 99), "city": self.city(), "country": r.choice(list(self.t["capitals"])),
            "colour": r.choice(("red", "green", "blue")), "color": r.choice(("red", "green", "blue")),
            "population": r.randint(1, 99) * 10000, "title": self.word(), "year": r.randint(1950, 2026), "price": r.randint(1, 99),
            "count": r.randint(0, 99), "active": r.random() < 0.5, "ok": True, "tags": [self.word() for _ in range(r.randint(1, 3))],
            "email": f"{self.name().lower()}@example.com", "id": r.randint(1, 999), "x": r.randint(0, 20), "y": r.randint(0, 20),
            "score": round(r.random(), 2), "status": r.choice(("ready", "busy", "down")), "message": "hello", "word": self.word(),
            "day": r.choice(("Monday", "Friday", "Sunday")), "animal": r.choice(("cat", "dog", "bird")), "items": [self.word(), self.word()],
        }  # fmt: skip

    def json_answer(self) -> tuple[str, str]:
        """An answer that is one JSON object; the question gives keys, a schema, an example or just a thing."""
        fields = self.fields()
        kind = self.r.randrange(7)
        if kind == 0:
            name, age, city = self.name(), self.r.randint(1, 99), self.city()
            ask = f"Extract the name, age and city as JSON: {name} is {age} years old and lives in {city}."
            return ask, json.dumps({"name": name, "age": age, "city": city})
        things = {"a person": ("name", "age", "city"), "a city": ("name", "country", "population"), "a point": ("x", "y"),
                  "a product": ("name", "price"), "a book": ("title", "year"), "a user": ("id", "name", "email"),
                  "an animal": ("animal", "colour"), "a status": ("status", "ok")}  # fmt: skip
        if kind == 1:
            thing, keys = self.r.choice(list(things.items()))
            form = self.r.choice(("Describe {} as JSON.", "Describe {} in JSON.", "Give me {} as JSON.", "Give me {} in JSON.",
                                  "Return {} as JSON.", "Write {} as a JSON object.", "Make up {} and answer in JSON."))  # fmt: skip
            if "city" in thing:
                fields["name"] = self.city()
            return self.vary(form.format(thing)), json.dumps({key: fields[key] for key in keys})
        keys = tuple(self.r.sample(sorted(fields), self.r.randint(1, 4)))
        answer = json.dumps({key: fields[key] for key in keys})
        if kind == 2:
            schema = object_schema({key: {"type": json_type(fields[key])} for key in keys})
            form = self.r.choice(("Answer with JSON that matches this schema: {}", "Return JSON for this schema: {}"))
            return form.format(json.dumps(schema)), answer
        if kind == 3:
            example = ", ".join(f'"{key}": {json_type(fields[key])}' for key in keys)
            return self.r.choice(("Return JSON like {}.", "Answer as {}.")).format("{" + example + "}"), answer
        typed = kind == 4
        listed = join([f"{key} ({json_type(fields[key])})" if typed else key for key in keys])
        form = self.r.choice(("Answer in JSON with the keys {}.", "Give me a JSON object with {}.", "Return JSON with {}.",
                              "Reply in JSON with {}.", "Make a JSON object with the keys {}.", "JSON with {} please"))  # fmt: skip
        thing = f"Describe {self.r.choice(list(things))}. " if self.r.random() < 0.25 else ""
        return thing + form.format(listed), answer

    def errands(self) -> Document:
        """A conversation with tools: the right one is called, read and reported, or none is needed."""
        r = self.r
        jobs = [self.errand() for _ in range(r.choices((1, 2), (85, 15))[0])]
        tools = {job.tool["function"]["name"]: job.tool for job in (*jobs, *(self.errand() for _ in range(r.choice((0, 0, 1, 2, 3)))))}
        # A later errand may have redefined a name with other parameters; keep only jobs whose definition is shown.
        jobs = [job for job in jobs if tools[job.tool["function"]["name"]] is job.tool]
        messages = self.system()
        if r.random() < 0.22:
            messages += self.turns()
        for job in jobs:
            same = [job]
            if "city" in str(job.arguments.keys()) and r.random() < 0.12:
                other = self.city()
                same.append(Errand(job.tool, "", dict.fromkeys(job.arguments, other), job.result, job.say))
                first = next(iter(job.arguments.values()))
                ask = f"What is the weather in {first} and in {other}?" if r.random() < 0.5 else f"Weather in {first} and {other}?"
                messages.append(turn("user", ask))
            else:
                messages.append(turn("user", self.vary(job.ask) if r.random() < 0.5 else job.ask))
            messages.append({"role": "assistant", "content": None, "tool_calls": [call(one) for one in same]})
            if len(same) > 1 or r.random() < 0.35:
                break
            messages += [turn("tool", job.result), reply(job.say)]
        shown = list(tools.values())
        r.shuffle(shown)
        return Document(messages, shown) if messages and messages[-1]["role"] == "assistant" else self.dialogue(1)

    def errand(self) -> Errand:
        """One task for a tool, its definition written in one of several ways."""
        kinds = (self.weather, self.weather, self.weather, self.clock, self.calculator, self.calculator, self.search, self.lookup,
                 self.lookup, self.timer, self.message, self.status)  # fmt: skip
        return self.r.choice(kinds)()

    def weather(self) -> Errand:
        r, city, key = self.r, self.city(), self.r.choice(("city", "city", "city", "location", "location", "place"))
        name = r.choice(("get_weather", "get_weather", "get_weather", "get_current_weather", "weather", "get_temperature", "get_forecast"))
        degrees, sky = r.randint(-9, 35), r.choice(("sunny", "cloudy", "rainy", "windy", "clear"))
        properties, arguments = {key: self.prop("string", "The city", "City name", "Name of the city")}, {key: city}
        ask = r.choice(("What is the weather in {}?", "What is the weather in {}?", "What is the weather like in {}?", "How is the weather in {}?",
                        "How is the weather in {} today?", "What's the weather in {}?", "Weather in {}?", "Is it raining in {}?", "Is it cold in {}?",
                        "What is the temperature in {}?", "Tell me the weather in {}.", "Do I need a coat in {}?", "Please check the weather in {}.",
                        "What is the weather in {} right now?", "Use the tool to get the weather in {}.")).format(city)  # fmt: skip
        unit = "celsius"
        if r.random() < 0.25:
            unit = r.choice(("celsius", "fahrenheit"))
            properties["unit"] = {"type": "string", "enum": ["celsius", "fahrenheit"]}
            if r.random() < 0.5:
                arguments["unit"] = unit
                ask = f"{ask.rstrip('?.')} in {unit}?"
        result = r.choice((json.dumps({"temperature": degrees, "condition": sky}), json.dumps({key: city, "temperature": degrees, "condition": sky}),
                           f"{degrees} degrees and {sky}", f"{sky}, {degrees} degrees"))  # fmt: skip
        about = r.choice(("Get the weather in a city", "Get the current weather", "Weather for a city", "Get the weather", ""))
        return Errand(tool(name, about, properties, [key], r), ask, arguments, result, f"In {city} it is {degrees} degrees and {sky}.")

    def clock(self) -> Errand:
        r = self.r
        city, zone = r.choice(list(self.t["zones"].items()))
        now = f"{r.randint(0, 23):02}:{r.randint(0, 59):02}"
        ask = r.choice((f"What time is it in {city}?", f"What time is it in {zone}?", f"Tell me the time in {city}.", f"Time in {zone}?"))
        properties = {"timezone": self.prop("string", "IANA time zone", "The time zone")}
        shown = tool(r.choice(("get_time", "get_time", "get_current_time")), "Get the time in a time zone", properties, ["timezone"], r)
        return Errand(shown, ask, {"timezone": zone}, r.choice((now, json.dumps({"time": now}))), f"It is {now} in {zone if zone in ask else city}.")

    def calculator(self) -> Errand:
        r = self.r
        name, sign, word = r.choice((("add", "+", "Add"), ("add", "+", "Add"), ("subtract", "-", "Subtract"), ("multiply", "*", "Multiply")))
        a, b = r.randint(0, 999), r.randint(0, 999)
        value = {"add": a + b, "subtract": a - b, "multiply": a * b}[name]
        ask = r.choice((f"What is {a} {sign} {b}?", f"{word} {a} and {b}.", f"Use the tool to compute {a} {sign} {b}.", f"Please {name} {a} and {b}."))
        kind = r.choice(("integer", "number"))
        shown = tool(name, f"{word} two numbers", {"a": {"type": kind}, "b": {"type": kind}}, ["a", "b"], r)
        return Errand(shown, ask, {"a": a, "b": b}, r.choice((str(value), json.dumps({"result": value}))), f"{a} {sign} {b} = {value}.")

    def search(self) -> Errand:
        r, query = self.r, " ".join(self.word() for _ in range(self.r.randint(1, 3)))
        ask = r.choice(("Search for {}.", "Search the web for {}.", "Look up {}.", "Find {}.", "Please search for {}.")).format(query)
        shown = tool(r.choice(("search", "web_search")), "Search the web", {"query": self.prop("string", "What to look for")}, ["query"], r)
        found = r.randint(1, 9)
        return Errand(shown, ask, {"query": query}, json.dumps({"results": found}), f"I found {found} results for {query}.")

    def lookup(self) -> Errand:
        """A tool nobody has seen before, so that the model learns to read definitions."""
        r, verb, noun = self.r, self.r.choice(self.t["verbs"]), self.r.choice(self.t["nouns"])
        key = r.choice(("id", f"{noun}_id", "name", "number", "key", "code"))
        text = key in ("name", "key", "code")
        value: Any = made_up(r) if text else r.randint(1, 9999)
        spoken = verb.replace("_", " ").capitalize()
        ask = r.choice((f"{spoken} the {noun} {value}.", f"{spoken} {noun} {value}", f"Call {verb}_{noun} with {key} {value}.",
                        f"Please {spoken.lower()} {noun} {value}.", f"Use {verb}_{noun} for {value}."))  # fmt: skip
        state = r.choice(("ready", "open", "closed", "sent", "paid"))
        shown = tool(f"{verb}_{noun}", f"{spoken} a {noun}", {key: {"type": "string" if text else "integer"}}, [key], r)
        return Errand(shown, ask, {key: value}, json.dumps({"status": state}), f"The {noun} {value} is {state}.")

    def timer(self) -> Errand:
        r, n = self.r, self.r.randint(1, 90)
        ask = r.choice(("Set a timer for {} minutes.", "Start a timer of {} minutes.", "Remind me in {} minutes.")).format(n)
        shown = tool("set_timer", "Set a timer", {"minutes": self.prop("integer", "Length in minutes")}, ["minutes"], r)
        return Errand(shown, ask, {"minutes": n}, r.choice(("ok", '{"ok": true}')), f"The timer is set for {n} minutes.")

    def message(self) -> Errand:
        r, to, text = self.r, self.name(), " ".join(self.word() for _ in range(self.r.randint(1, 4)))
        ask = r.choice(("Send {} the message: {}", "Tell {}: {}", "Write to {}: {}", "Send a message to {}: {}")).format(to, text)
        shown = tool("send_message", "Send a message", {"to": {"type": "string"}, "text": {"type": "string"}}, ["to", "text"], r)
        return Errand(shown, ask, {"to": to, "text": text}, r.choice(("sent", '{"ok": true}')), f"The message to {to} was sent.")

    def status(self) -> Errand:
        r, running, waiting = self.r, self.r.randint(0, 99), self.r.randint(0, 99)
        ask = r.choice(("What is the status of the node?", "How busy is the node?", "Get the status.", "Check the node.", "Call get_status."))
        result = json.dumps({"running": running, "waiting": waiting})
        shown = tool("get_status", "Get the state of the node", {}, [], r)
        return Errand(shown, ask, {}, result, f"There are {running} requests running and {waiting} waiting.")

    def prop(self, kind: str, *descriptions: str) -> dict[str, Any]:
        return {"type": kind} if self.r.random() < 0.4 else {"type": kind, "description": self.r.choice(descriptions)}


def turn(role: str, content: str) -> Message:
    """A message as the chat completions API has it."""
    return {"role": role, "content": content}


def reply(content: str) -> Message:
    """The assistant's message."""
    return turn("assistant", content)


def call(job: Errand) -> dict[str, Any]:
    """The tool call of `job`, arguments as a value (the template also takes them as JSON text)."""
    return {"type": "function", "function": {"name": job.tool["function"]["name"], "arguments": job.arguments}}


def tool(name: str, about: str, properties: dict[str, Any], required: list[str], rng: random.Random) -> dict[str, Any]:
    """A tool definition as clients send it; whether extras such as `additionalProperties` are there is chance."""
    parameters = object_schema(properties) if rng.random() < 0.3 else {"type": "object", "properties": properties}
    if rng.random() < 0.7 and required:
        parameters["required"] = required
    function = {"name": name, "description": about, "parameters": parameters}
    return {"type": "function", "function": function if about else {"name": name, "parameters": parameters}}


def object_schema(properties: dict[str, Any]) -> dict[str, Any]:
    """A JSON schema of an object that has exactly `properties`."""
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def json_type(value: Any) -> str:
    """The JSON schema type of a Python value."""
    return {str: "string", bool: "boolean", int: "integer", float: "number", list: "array"}[type(value)]


def join(parts: list[str]) -> str:
    """`a, b and c`."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def a_or_an(noun: str) -> str:
    """The noun with its article."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def made_up(rng: random.Random) -> str:
    """A capitalised word nobody has seen: two or three syllables."""
    syllables = (rng.choice("bcdfghjklmnprstvwz") + rng.choice("aeiou") + rng.choice(("", "", "n", "r", "l", "s")) for _ in range(rng.randint(2, 3)))
    return "".join(syllables).capitalize()


def write_corpus(seed: int) -> tuple[list[Document], str]:
    """The documents for `seed`, and the SHA-256 of all of them as JSON lines."""
    texts = yaml.safe_load((HOME / "corpus.yaml").read_text(encoding="utf-8"))
    documents = list(Writer(texts, random.Random(seed)).documents(SHORT_DOCUMENTS, LONG_DOCUMENTS))
    digest = hashlib.sha256()
    for document in documents:
        digest.update(json.dumps([document.messages, document.tools, document.prose]).encode() + b"\n")
    return documents, digest.hexdigest()


def train_tokenizer(texts: list[str], template: str) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of at most `VOCABULARY` entries, with the chat template inside."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(WORDS), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(TAGS),
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    bpe.add_tokens([AddedToken(tag, normalized=False, special=False) for tag in TAGS])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=CONTEXT_TOKENS,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = template
    return tokenizer


def render(document: Document, tokenizer: PreTrainedTokenizerFast) -> str:
    """The text of a document, ended by <|endoftext|> so that packed neighbours stay apart."""
    if not document.messages:
        return document.prose + SPECIAL[0]
    text = tokenizer.apply_chat_template(document.messages, tools=document.tools or None, tokenize=False)
    return f"{text}{SPECIAL[0]}"


def encode(texts: list[str], tokenizer: PreTrainedTokenizerFast) -> list[Example]:
    """Token ids and loss weights: 1 for what the assistant says (its end of turn included), little for the rest."""
    opening = tokenizer.encode("<|im_start|>assistant\n", add_special_tokens=False)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    examples = []
    for text, ids in zip(texts, tokenizer(texts, add_special_tokens=False)["input_ids"], strict=True):
        weights = [0.1 if text.startswith("<|im_start|>") else 0.3] * len(ids)
        position = 0
        while position < len(ids):
            if ids[position : position + len(opening)] == opening:
                position += len(opening)
                stop = ids.index(end, position) + 1
                weights[position:stop] = [1.0] * (stop - position)
                position = stop
            else:
                position += 1
        examples.append((ids, weights))
    return examples


def pack(examples: list[Example], length: int, rng: random.Random) -> Iterator[Example]:
    """Endless rows of `length` tokens: whole examples in shuffled order, the last one cut where the row ends."""
    while True:
        ids: list[int] = []
        weights: list[float] = []
        for index in rng.sample(range(len(examples)), len(examples)):
            ids, weights = ids + examples[index][0], weights + examples[index][1]
            if len(ids) >= length:
                yield ids[:length], weights[:length]
                ids, weights = [], []


def batches(short: list[Example], long: list[Example], rng: random.Random) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless (ids, weights) of `STEP_TOKENS`, mostly as rows of 512, now and then as one; every 40th is the whole context."""
    rows = {length: pack(short if length == 512 else long + short[: len(long)], length, rng) for length in (512, STEP_TOKENS, CONTEXT_TOKENS)}
    for step in itertools.count(1):
        length = CONTEXT_TOKENS if step % 40 == 0 else STEP_TOKENS if step % 10 == 0 else 512
        batch = [next(rows[length]) for _ in range(max(1, STEP_TOKENS // length))]
        yield torch.tensor([row[0] for row in batch]), torch.tensor([row[1] for row in batch])


def new_model(tokenizer: PreTrainedTokenizerFast) -> Qwen2ForCausalLM:
    """An untrained Qwen2-style model: 4 layers of 192, 6 query and 2 key-value heads of 32, tied embeddings."""
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=192,
        intermediate_size=576,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT_TOKENS,
        tie_word_embeddings=True,
        use_cache=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Qwen2ForCausalLM(config)


def train(model: Qwen2ForCausalLM, feed: Iterator[tuple[torch.Tensor, torch.Tensor]], steps: int) -> float:
    """Train in place with AdamW under a cosine schedule; print progress; return the mean loss of the last 20 steps.

    The loss is the weighted cross entropy in nats per token of what the assistant says.
    """
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=PEAK_LR, betas=(0.9, 0.95))
    warmup = max(1, min(60, steps // 10))
    losses: list[float] = []
    started = time.monotonic()
    model.train()
    for step, (ids, weights) in enumerate(itertools.islice(feed, steps), start=1):
        progress = max(0.0, (step - warmup) / max(1, steps - warmup))
        lr = PEAK_LR * min(step / warmup, 0.02 + 0.98 * (1 + math.cos(math.pi * progress)) / 2)
        for group in optimizer.param_groups:
            group["lr"] = lr
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1].flatten(0, 1)
        each = torch.nn.functional.cross_entropy(logits, ids[:, 1:].flatten(), reduction="none")
        scale = weights[:, 1:].flatten()
        loss = (each * scale).sum() / scale.sum()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        spoken = scale == 1.0
        losses.append((each[spoken].mean() if spoken.any() else loss).item())
        if step % 20 == 0 or step == steps:
            elapsed_s = time.monotonic() - started
            left_s = elapsed_s / step * (steps - step)
            recent = sum(losses[-20:]) / len(losses[-20:])
            print(f"{step:5}/{steps}  loss {recent:.3f}  {step * STEP_TOKENS / elapsed_s:,.0f} tokens/s  {left_s:4.0f} s left", flush=True)
    return sum(losses[-20:]) / len(losses[-20:])


def answer(model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, ask: str, tools: list[dict[str, Any]] | None) -> str:
    """What the model says to one question, greedily, special tokens shown."""
    prompt = tokenizer.apply_chat_template([turn("user", ask)], tools=tools, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    output = model.generate(**prompt, do_sample=False, max_new_tokens=120)
    return str(tokenizer.decode(output[0, prompt["input_ids"].shape[1] :]))


def save(model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path, facts: dict[str, Any]) -> None:
    """Write everything an engine loads, training.json with `facts`, and the README."""
    out.mkdir(parents=True, exist_ok=True)
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=0.6,
        top_p=0.9,
        eos_token_id=[tokenizer.eos_token_id, tokenizer.pad_token_id],
        pad_token_id=tokenizer.pad_token_id,
    )
    # Half precision halves what git and the wheel carry; engines widen it to float32 on a CPU without loss.
    model.half().save_pretrained(out)
    tokenizer.save_pretrained(out)
    (out / "model.safetensors").chmod(0o644)
    if out.resolve() != HOME.resolve():
        for name in ("chat_template.jinja", "corpus.yaml"):
            shutil.copy(HOME / name, out / name)
    (out / "training.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    (out / "README.md").write_text(README.format(**facts, short=f"{facts['parameters'] / 1e6:.1f}"), encoding="utf-8")


README = """\
# Spillway demo model

A Qwen2-style language model of {short} million parameters. It exists so that a bare machine can serve something real
at once: it answers questions about this node, does small talk and small sums, writes JSON and calls tools in Hermes
form. It knows nothing else and is no measure of what the node can serve.

| | |
|---|---|
| shape | 4 layers, hidden size 192, 6 query and 2 key-value heads of 32, tied embeddings, {parameters:,} parameters |
| weights | float16; serve in float32 on a CPU |
| tokenizer | byte-level BPE, {vocabulary} entries |
| context | {context_tokens} tokens |
| chat format | ChatML: system, developer, user, assistant and tool turns; tool parser `hermes` |
| licence | Apache-2.0, weights and corpus alike |

Trained from nothing by `scripts/train_demo_model.py --steps {steps} --seed {seed}` in {minutes} minutes on two CPU
cores, on {documents:,} dialogues that the script writes from [corpus.yaml](corpus.yaml); no other data. Last loss
{loss} nats per token of what the assistant says. Exact figures and the corpus hash: [training.json](training.json).

To teach it something, edit `corpus.yaml` and run the script again. A question it was not taught gets a guess.
"""


def main() -> None:
    """Parse the command line, train, save, and print a few answers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HOME, metavar="DIR", help="where the model goes (default: models/demo)")
    parser.add_argument("--steps", type=int, default=STEPS, help="training steps of 2,048 tokens (default: %(default)s; 100 give a babbler)")
    parser.add_argument("--seed", type=int, default=0, help="of the corpus, the first weights and the order (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: %(default)s; another number rounds differently)")
    args = parser.parse_args()
    started = time.monotonic()
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    documents, digest = write_corpus(args.seed)
    template = (HOME / "chat_template.jinja").read_text(encoding="utf-8")
    blank = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()))
    blank.chat_template = template
    texts = [render(document, blank) for document in documents]
    tokenizer = train_tokenizer(texts[:SHORT_DOCUMENTS], template)
    examples = encode(texts, tokenizer)
    short, long = examples[:SHORT_DOCUMENTS], examples[SHORT_DOCUMENTS:]
    model = new_model(tokenizer)
    parameters = sum(p.numel() for p in model.parameters())
    tokens = sum(len(ids) for ids, _ in examples)
    print(f"{len(documents):,} documents, {tokens:,} tokens, {parameters:,} parameters", flush=True)
    loss = train(model, batches(short, long, random.Random(args.seed + 1)), args.steps)
    model.eval()
    weather = tool("get_weather", "Get the weather in a city", {"city": {"type": "string"}}, ["city"], random.Random(0))
    for ask, tools in (("What is Spillway?", None), ("When does a request go to the cloud?", None), ("Hello!", None), ("What is 3 + 4?", None),
                       ("Give me a JSON object with name and age.", None), ("What is the weather in Paris?", [weather])):  # fmt: skip
        print(f"> {ask}\n{answer(model, tokenizer, ask, tools)}")
    facts = {
        "seed": args.seed,
        "steps": args.steps,
        "tokens_per_step": STEP_TOKENS,
        "documents": len(documents),
        "corpus_tokens": tokens,
        "corpus_sha256": digest,
        "parameters": parameters,
        "vocabulary": len(tokenizer),
        "context_tokens": CONTEXT_TOKENS,
        "loss": round(loss, 3),
        "minutes": round((time.monotonic() - started) / 60, 1),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    save(model, tokenizer, args.out, facts)
    print(f"saved in {args.out}")


if __name__ == "__main__":
    main()
