#!/usr/bin/env python3
"""Train the demo model that ships in models/demo.

Writes a synthetic corpus of short dialogues (small talk, questions about this node, JSON answers, tool calls in
Hermes form), trains a byte-level BPE tokenizer of at most 1024 entries on it, then a Qwen2-style model of about one
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
import re
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
STEPS = 3000
STEP_TOKENS = 1024
MUON_LR = 2.5e-2
EMBEDDING_LR = 1.5e-2
OTHERS_LR = 3e-3
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
    """A tool, a question that needs it, the arguments of its one or two calls, its result and the closing sentence."""

    tool: dict[str, Any]
    ask: str
    arguments: list[dict[str, Any]]
    result: str
    say: str

    @property
    def name(self) -> str:
        """The tool's name."""
        return str(self.tool["function"]["name"])


class Writer:
    """Writes documents from `texts` (the parsed corpus.yaml) with nothing but `rng` deciding."""

    def __init__(self, texts: dict[str, Any], rng: random.Random) -> None:
        self.t = texts
        self.r = rng
        self.topics = [*texts["topics"].values(), *texts["topics"].values(), *texts["chat"].values()]
        self.topic_weights = [topic.get("weight", 1) for topic in self.topics]
        self.tool_weights = [spec.get("weight", 1) for spec in texts["tools"]]

    def documents(self, count: int, long_count: int) -> Iterator[Document]:
        """Yield `count` short documents, then `long_count` conversations of some 1,000 to 4,000 tokens."""
        for _ in range(count):
            kind = self.r.random()
            if kind < 0.03:
                yield Document(prose=" ".join(self.r.choice(self.topics)["answers"]))
            elif kind < 0.36:
                yield self.errands()
            else:
                yield self.dialogue(self.r.choices((1, 2, 3, 5), (70, 16, 9, 5))[0])
        for _ in range(long_count):
            yield self.dialogue(self.r.randint(20, 45)) if self.r.random() < 0.4 else self.filler()

    def dialogue(self, turns: int) -> Document:
        """A conversation of `turns` unrelated exchanges, with or without a system turn."""
        if self.r.random() < 0.04:
            ask, answer = self.exchange()
            system = self.form("always_json")
            return Document([turn("system", system), turn("user", ask), reply(json.dumps({"answer": answer}))])
        messages = self.system()
        if turns > 1 and self.r.random() < 0.3:
            name = self.name()
            messages += [turn("user", self.form("hello", name)), reply(f"Nice to meet you, {name}.")]
            for _ in range(self.r.choice((0, 0, 1, 2))):
                messages += self.turns()
            return Document([*messages, turn("user", self.vary(self.form("recall"))), reply(f"Your name is {name}.")])
        for _ in range(turns):
            messages += self.turns()
        return Document(messages)

    def filler(self) -> Document:
        """A long question: much text that does not matter, then a question that does."""
        word = self.r.choice(self.t["words"])
        size = self.r.randint(200, 1500)
        text = " ".join([word] * size)
        if self.r.random() < 0.5:
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
        return self.r.choices(kinds, (46, 8, 4, 8, 17, 11, 6))[0]()

    def form(self, kind: str, *parts: object) -> str:
        """One way to ask for `kind`, filled with `parts`."""
        return str(self.r.choice(self.t["forms"][kind])).format(*parts)

    def vary(self, ask: str) -> str:
        """The same question as another person would type it."""
        style = self.r.random()
        if style < 0.10:
            ask = ask.rstrip("?.!")
        elif style < 0.18:
            ask = ask.rstrip("?.!").lower()
        elif style < 0.24:
            ask = ask[0].lower() + ask[1:] if not ask[:2].isupper() else ask
        before = self.form("before") if self.r.random() < 0.12 else ""
        after = self.form("after") if self.r.random() < 0.10 else ""
        return before + ask + after

    def topic(self) -> tuple[str, str]:
        topic = self.r.choices(self.topics, self.topic_weights)[0]
        terms, asks = topic.get("terms", []), topic.get("asks", [])
        ask = self.r.choice(asks) if asks else ""
        if terms and (not asks or self.r.random() < 0.65):
            ask = self.form("topic", self.r.choice(terms))
        if len(topic["answers"]) > 1 and self.r.random() < 0.06:
            return ask + self.form("detail"), " ".join(topic["answers"])
        return self.vary(ask), self.r.choice(topic["answers"])

    def sum(self) -> tuple[str, str]:
        sign, word = self.r.choice((("+", "plus"), ("+", "plus"), ("-", "minus"), ("*", "times")))
        top = 5 if sign == "*" else 10
        a, b = self.r.randint(0, top), self.r.randint(0, top)
        a, b = (max(a, b), min(a, b)) if sign == "-" else (a, b)
        value = {"+": a + b, "-": a - b, "*": a * b}[sign]
        if self.r.random() < 0.15:
            return f"What is {a} {sign} {b}? Answer in JSON with the key answer.", json.dumps({"answer": value})
        spoken = f"{a} {self.r.choice((sign, sign, word))} {b}"
        return self.vary(self.form("sum", spoken)), f"{a} {sign} {b} = {value}."

    def count(self) -> tuple[str, str]:
        start = 1 if self.r.random() < 0.8 else self.r.randint(2, 20)
        end = start + self.r.choice((2, 4, 9, 9, 14, 19, 29))
        ask = f"Count to {end}." if start == 1 and self.r.random() < 0.5 else self.form("count", start, end)
        return self.vary(ask), " ".join(str(n) for n in range(start, end + 1))

    def small_fact(self) -> tuple[str, str]:
        days = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
        kind = self.r.randrange(4)
        if kind == 0:
            n, step, word = self.r.randrange(7), *self.r.choice(((1, "after"), (-1, "before")))
            return self.vary(f"Which day comes {word} {days[n]}?"), f"{days[(n + step) % 7]} comes {word} {days[n]}."
        if kind == 1:
            thing, colour = self.r.choice(list(self.t["things"].items()))
            thing = f"{'an' if thing[0] in 'aeiou' else 'a'} {thing}"
            ask = f"What {self.r.choice(('colour', 'color'))} is {thing}?"
            return self.vary(ask), f"{thing.capitalize()} is {colour}."
        country, capital = self.r.choice(list(self.t["capitals"].items()))
        if self.r.random() < 0.15:
            ask = f"What is the capital of {country}? Answer in JSON with the key capital."
            return ask, json.dumps({"capital": capital})
        return self.vary(self.form("capital", country)), f"The capital of {country} is {capital}."

    def unknown(self) -> tuple[str, str]:
        thing = self.name() if self.r.random() < 0.25 else self.r.choice(self.t["unknown_things"])
        ask = self.r.choice(self.t["unknown_asks"]).format(thing)
        return self.vary(ask), self.r.choice(self.t["unknown_answers"])

    def echo(self) -> tuple[str, str]:
        text = self.phrase(4)
        if self.r.random() < 0.3:
            text = f"{text[0].upper()}{text[1:]} {self.name()}."
        return self.form("echo", text), text

    def made_up(self) -> str:
        """A capitalised word nobody has seen: two or three syllables."""
        syllables = ("bcdfghjklmnprstvwz", "aeiou", ("", "", "n", "r", "l", "s"))
        return "".join(self.r.choice(part) for _ in range(self.r.randint(2, 3)) for part in syllables).capitalize()

    def name(self) -> str:
        """A person's name, made up one time in four, as cities are."""
        return self.made_up() if self.r.random() < 0.25 else str(self.r.choice(self.t["people"]))

    def city(self) -> str:
        return self.made_up() if self.r.random() < 0.25 else str(self.r.choice(self.t["cities"]))

    def word(self) -> str:
        return self.made_up().lower() if self.r.random() < 0.1 else str(self.r.choice(self.t["words"]))

    def phrase(self, most: int) -> str:
        """One to `most` words."""
        return " ".join(self.word() for _ in range(self.r.randint(1, most)))

    def json_fields(self) -> dict[str, Any]:
        """Every field a JSON answer may have, with a value drawn for it."""
        r = self.r
        # Few values each: what cannot be known from the question should cost little to guess.
        numbers = {"age": 9, "price": 9, "id": 9, "x": 9, "y": 9}
        words = self.t["words"][:20]
        lists = {"status": "ready busy down", "day": "Monday Friday Sunday", "animal": "cat dog bird"}
        colours = {"colour": "red green blue", "color": "red green blue"}
        return {
            "name": r.choice(self.t["people"]),
            "email": f"{r.choice(self.t['people']).lower()}@example.com",
            "city": r.choice(self.t["cities"][:20]),
            "country": r.choice(list(self.t["capitals"])),
            "population": r.randint(1, 9) * 100000,
            "year": 2000 + r.randint(1, 9),
            "score": r.randint(1, 9) / 10,
            "active": r.random() < 0.5,
            "ok": True,
            "title": r.choice(words),
            "tags": r.sample(words, 2),
            **{key: 3 * r.randint(1, most) for key, most in numbers.items()},
            **{key: r.choice(choices.split()) for key, choices in (lists | colours).items()},
        }

    def json_answer(self) -> tuple[str, str]:
        """An answer that is one JSON object; the question gives keys, a schema, an example or just a thing."""
        fields = self.json_fields()
        kind = self.r.randrange(7)
        if kind == 0:
            ask = "Extract the name, age and city as JSON: {name} is {age} years old and lives in {city}."
            fields = {"name": self.name(), "age": self.r.randint(1, 99), "city": self.city()}
            return ask.format(**fields), json.dumps(fields)
        if kind == 1:
            thing, wanted = self.r.choice(list(self.t["json_things"].items()))
            return self.vary(self.form("json_thing", thing)), json.dumps({key: fields[key] for key in wanted})
        fields = {key: fields[key] for key in self.r.sample(sorted(fields), self.r.randint(1, 3))}
        types = {key: json_type(value) for key, value in fields.items()}
        answer = json.dumps(fields)
        if kind == 2:
            schema = object_schema({key: {"type": name} for key, name in types.items()})
            return self.form("json_schema", json.dumps(schema)), answer
        if kind == 3:
            example = ", ".join(f'"{key}": {name}' for key, name in types.items())
            return self.form("json_example", f"{{{example}}}"), answer
        keys = [f"{key} ({name})" if kind == 4 else key for key, name in types.items()]
        listed = keys[0] if len(keys) == 1 else f"{', '.join(keys[:-1])} and {keys[-1]}"
        thing = f"Describe {self.r.choice(list(self.t['json_things']))}. " if self.r.random() < 0.25 else ""
        return thing + self.form("json_keys", listed), answer

    def errands(self) -> Document:
        """A conversation with tools: a question that needs none, or the right one is called, read and reported."""
        shown: dict[str, Errand] = {}
        for _ in range(self.r.choice((1, 1, 1, 2, 3, 4))):
            job = self.errand()
            shown.setdefault(job.name, job)
        jobs = list(shown.values())
        messages = self.system()
        if self.r.random() < 0.22:
            messages += self.turns()
        for job in jobs[: self.r.choice((1, 1, 1, 1, 1, 2))]:
            ask = self.vary(job.ask) if self.r.random() < 0.4 else job.ask
            calls = [{"type": "function", "function": {"name": job.name, "arguments": one}} for one in job.arguments]
            messages += [turn("user", ask), {"role": "assistant", "content": None, "tool_calls": calls}]
            if len(calls) > 1 or self.r.random() < 0.35:
                break
            messages += [turn("tool", job.result), reply(job.say)]
        else:
            if self.r.random() < 0.2:
                messages += self.turns()
        self.r.shuffle(jobs)
        return Document(messages, [job.tool for job in jobs])

    def errand(self) -> Errand:
        """One task for one of the tools, whose definition differs from time to time as clients' definitions do."""
        spec = self.r.choices(self.t["tools"], self.tool_weights)[0]
        values = self.tool_values()
        arguments: dict[str, Any] = {}
        properties: dict[str, Any] = {}
        keys: dict[str, str] = {}
        for value, facts in spec["arguments"].items():
            key = keys[value] = fill(self.r.choice(facts["keys"]), values)
            arguments[key] = values[value]
            properties[key] = {"type": facts["type"]}
            if "about" in facts and self.r.random() < 0.6:
                properties[key]["description"] = self.r.choice(facts["about"])
        ask = fill(self.r.choice(spec["asks"]), values)
        calls = [arguments]
        for key, schema in spec.get("options", {}).items():
            if self.r.random() < 0.25:
                properties[key] = schema
                if self.r.random() < 0.5:
                    arguments[key] = values[key]
                    ask = f"{ask.rstrip('?.')} in {values[key]}?"
        if "parallel" in spec and self.r.random() < 0.12:
            ask = fill(self.r.choice(spec["parallel"]), values)
            calls = [{keys["city"]: values[value]} for value in ("city", "other")]
        parameters = object_schema(properties)
        for extra, chance in (("additionalProperties", 0.7), ("required", 0.2 if arguments else 1.0)):
            if self.r.random() < chance:
                del parameters[extra]
        if "required" in parameters:
            parameters["required"] = list(keys.values())
        function = {"name": fill(self.r.choice(spec["names"]), values)}
        if about := fill(self.r.choice(spec["about"]), values):
            function["description"] = about
        shown = {"type": "function", "function": {**function, "parameters": parameters}}
        result = fill(self.r.choice(spec["results"]), values)
        return Errand(shown, ask[0].upper() + ask[1:], calls, result, fill(spec["say"], values))

    def tool_values(self) -> dict[str, Any]:
        """A value for everything that tools, questions and results may mention."""
        r = self.r
        a, b = r.randint(1, 99), r.randint(1, 99)
        zone_city, zone = r.choice(list(self.t["zones"].items()))
        return {
            "city": self.city(),
            "other": self.city(),
            "unit": r.choice(("celsius", "fahrenheit")),
            "degrees": r.randint(-9, 35),
            "sky": r.choice(("sunny", "cloudy", "rainy", "windy", "clear")),
            "zone": zone,
            "zone_city": zone_city,
            "time": f"{r.randint(0, 23):02}:{r.randint(0, 59):02}",
            "a": a,
            "b": b,
            "sum": a + b,
            "product": a * b,
            "n": r.randint(1, 90),
            "to": self.name(),
            "query": self.phrase(3),
            "verb": r.choice(self.t["verbs"]),
            "noun": r.choice(self.t["nouns"]),
            "number": r.randint(1, 99),
            "code": self.made_up(),
            "state": r.choice(("ready", "open", "closed", "sent", "paid")),
        }


def fill(text: str, values: dict[str, Any]) -> str:
    """`text` with each {name} that `values` knows replaced; other braces, as JSON has them, stay."""
    return re.sub(r"\{(\w+)\}", lambda match: str(values.get(match[1], match[0])), text)


def turn(role: str, content: str) -> Message:
    """A message as the chat completions API has it."""
    return {"role": role, "content": content}


def reply(content: str) -> Message:
    """The assistant's message."""
    return turn("assistant", content)


def object_schema(properties: dict[str, Any]) -> dict[str, Any]:
    """A JSON schema of an object that has exactly `properties`."""
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def json_type(value: Any) -> str:
    """The JSON schema type of a Python value."""
    return {str: "string", bool: "boolean", int: "integer", float: "number", list: "array"}[type(value)]


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
        [
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
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
    for text, ids in zip(texts, tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"], strict=True):
        weights = [0.03 if text.startswith("<|im_start|>") else 0.3] * len(ids)
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


def batches(
    short: list[Example], long: list[Example], rng: random.Random
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless (ids, weights) of `STEP_TOKENS`, mostly as rows of 512, now and then as one or as the whole context."""
    rows = {
        length: pack(short if length == 512 else long + short[: len(long)], length, rng)
        for length in (512, STEP_TOKENS, CONTEXT_TOKENS)
    }
    for step in itertools.count(1):
        length = CONTEXT_TOKENS if step % 100 == 0 else STEP_TOKENS if step % 10 == 0 else 512
        batch = [next(rows[length]) for _ in range(max(1, STEP_TOKENS // length))]
        yield torch.tensor([row[0] for row in batch]), torch.tensor([row[1] for row in batch])


def new_model(tokenizer: PreTrainedTokenizerFast) -> Qwen2ForCausalLM:
    """An untrained Qwen2-style model: 4 layers of 128, 4 heads of 32, tied embeddings."""
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=CONTEXT_TOKENS,
        tie_word_embeddings=True,
        use_cache=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Qwen2ForCausalLM(config)


class Muon:
    """Momentum whose step is made orthogonal, for weight matrices of shape (out, in).

    The published method (Jordan et al. 2024, five Newton-Schulz iterations). torch.optim.Muon iterates in bfloat16,
    which a CPU without AVX512 has to emulate; this one stays in float32.
    """

    def __init__(self, weights: list[torch.nn.Parameter]) -> None:
        """Start with no momentum."""
        self.weights = weights
        self.momenta = [torch.zeros_like(weight) for weight in weights]

    def step(self, lr: float) -> None:
        """Change the weights in place by about `lr` in spectral norm; call under no_grad with every `.grad` set."""
        for weight, momentum in zip(self.weights, self.momenta, strict=True):
            assert weight.grad is not None
            momentum.lerp_(weight.grad, 0.05)
            x = weight.grad.lerp(momentum, 0.95)
            tall = x.shape[0] > x.shape[1]
            x = x.T if tall else x
            x = x / (x.norm() + 1e-7)
            for _ in range(5):
                gram = x @ x.T
                x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
            weight.mul_(1 - 0.05 * lr)
            weight.add_(x.T if tall else x, alpha=-lr * max(1.0, weight.shape[0] / weight.shape[1]) ** 0.5)


def train(model: Qwen2ForCausalLM, feed: Iterator[tuple[torch.Tensor, torch.Tensor]], steps: int) -> float:
    """Train in place under a cosine schedule; print progress; return the mean loss of the last 20 steps.

    The loss is the weighted cross entropy in nats per token of what the assistant says.
    """
    # The tied embeddings start small and have far to go: at a tenth of this rate copying is learnt much later.
    embedding = [model.model.embed_tokens.weight]
    hidden = [p for p in model.model.layers.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if p.ndim == 1]
    muon = Muon(hidden)
    groups = [{"params": embedding, "peak": EMBEDDING_LR}, {"params": others, "peak": OTHERS_LR}]
    adam = torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=0.0)
    warmup = max(1, min(60, steps // 10))
    losses: list[float] = []
    started = time.monotonic()
    model.train()
    for step, (ids, weights) in enumerate(itertools.islice(feed, steps), start=1):
        progress = max(0.0, (step - warmup) / max(1, steps - warmup))
        pace = min(step / warmup, 0.02 + 0.98 * (1 + math.cos(math.pi * progress)) / 2)
        for group in adam.param_groups:
            group["lr"] = group["peak"] * pace
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1].flatten(0, 1)
        each = torch.nn.functional.cross_entropy(logits, ids[:, 1:].flatten(), reduction="none")
        scale = weights[:, 1:].flatten()
        loss = (each * scale).sum() / scale.sum()
        model.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        with torch.no_grad():
            muon.step(MUON_LR * pace)
        adam.step()
        spoken = scale == 1.0
        losses.append((each[spoken].mean() if spoken.any() else loss).item())
        if step % 20 == 0 or step == steps:
            elapsed_s = time.monotonic() - started
            left_s = elapsed_s / step * (steps - step)
            recent = sum(losses[-20:]) / len(losses[-20:])
            rate = f"{step * STEP_TOKENS / elapsed_s:,.0f} tokens/s"
            print(f"{step:5}/{steps}  loss {recent:.3f}  {rate}  {left_s:4.0f} s left", flush=True)
    return sum(losses[-20:]) / len(losses[-20:])


def answer(
    model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, ask: str, tools: list[dict[str, Any]] | None
) -> str:
    """What the model says to one question, greedily, special tokens shown."""
    prompt = tokenizer.apply_chat_template(
        [turn("user", ask)], tools=tools, add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
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
| shape | 4 layers, hidden size 128, 4 heads of 32, tied embeddings, {parameters:,} parameters |
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
    parser.add_argument(
        "--out", type=Path, default=HOME, metavar="DIR", help="where the model goes (default: models/demo)"
    )
    parser.add_argument(
        "--steps",
        type=int,
        default=STEPS,
        help="training steps of 1,024 tokens (default: %(default)s; 100 give a babbler)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of the corpus, the first weights and the order (default: %(default)s)"
    )
    parser.add_argument(
        "--threads", type=int, default=2, help="CPU threads (default: %(default)s; another number rounds differently)"
    )
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
    schema = object_schema({"city": {"type": "string"}})
    weather = [{"type": "function", "function": {"name": "get_weather", "parameters": schema}}]
    print(f"> What is the weather in Paris?\n{answer(model, tokenizer, 'What is the weather in Paris?', weather)}")
    for ask in (
        "What is Spillway?",
        "When does a request go to the cloud?",
        "What is 3 + 4?",
        "Describe a city as JSON.",
    ):
        print(f"> {ask}\n{answer(model, tokenizer, ask, None)}")
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
