// One request to the ordinary endpoint with the caller's own key, and what the node says of where it went.

import { $, fill, h } from "./dom.js";
import { messageOf } from "./feed.js";
import { count, dollars, NONE, number, seconds, words } from "./format.js";
import { REASONS } from "./reasons.js";

export function makePlayground() {
  const form = $("ask");
  let abort = null;

  if (document.documentElement.dataset.port === "admin") {
    fill($("play"), h("p", { class: "card empty", text: "This is the admin port. The playground is on the node's own, where clients call." }));
    return;
  }

  const headers = () => (form.key.value ? { authorization: `Bearer ${form.key.value}` } : {});

  async function models() {
    try {
      const answer = await fetch("/v1/models", { headers: headers() });
      if (!answer.ok) {
        $("play-status").textContent = answer.status === 401 ? "Enter an API key of this node." : await messageOf(answer);
        return;
      }
      const chosen = form.model.value;
      fill(form.model, (await answer.json()).data.map((model) => h("option", { value: model.id, text: model.id })));
      if (chosen && [...form.model.options].some((option) => option.value === chosen)) form.model.value = chosen;
      $("play-status").textContent = "";
    } catch (error) {
      if (!(error instanceof TypeError)) throw error;
      $("play-status").textContent = "The node does not answer.";
    }
  }

  function body() {
    const wishes = {};
    if (form.privacy.value === "premises") wishes.require_local = true;
    if (form.privacy.value === "prefer") wishes.prefer_local = true;
    if (form.ttft.value) wishes.ttft_budget_ms = Number(form.ttft.value);
    if (form.latency.value) wishes.latency_budget_ms = Number(form.latency.value);
    if (form.cost.value) wishes.cost_budget_usd = Number(form.cost.value);
    return {
      model: form.model.value,
      messages: [{ role: "user", content: form.prompt.value }],
      stream: true,
      stream_options: { include_usage: true },
      ...(form.max.value ? { max_tokens: Number(form.max.value) } : {}),
      ...(Object.keys(wishes).length ? { spillway: wishes } : {}),
    };
  }

  async function ask() {
    abort = new AbortController();
    const begun = performance.now();
    const since = () => (performance.now() - begun) / 1000;
    const told = { headers: null, first: null, usage: null, end: null };
    busy(true, "Asking");
    $("text").replaceChildren();
    facts(told);
    try {
      const answer = await fetch("/v1/chat/completions", {
        method: "POST", signal: abort.signal, body: JSON.stringify(body()),
        headers: { "content-type": "application/json", ...headers() },
      });
      told.headers = answer.headers;
      if (!answer.ok) {
        fail(`${await messageOf(answer)}`, told);
        return;
      }
      busy(true, "Answering");
      const wrong = await read(answer.body, (chunk) => {
        if (chunk.usage) told.usage = chunk.usage;
        const delta = chunk.choices?.[0]?.delta;
        const text = delta?.content ?? delta?.reasoning_content ?? delta?.reasoning;
        if (!text) return;
        if (told.first === null) {
          told.first = since();
          facts(told);
        }
        $("text").append(text);
      });
      told.end = since();
      if (wrong) fail(wrong, told);
      else {
        facts(told);
        busy(false, "The answer is complete.");
      }
    } catch (error) {
      if (error.name === "AbortError") busy(false, "Stopped.");
      else if (error instanceof TypeError) fail("The connection to the node was lost.", told);
      else throw error;
    }
  }

  function fail(message, told) {
    $("text").append(h("p", { class: "error", role: "alert", text: message }));
    facts(told);
    busy(false, "It failed.");
  }

  function busy(is, said) {
    $("send").disabled = is;
    $("stop").hidden = !is;
    $("play-status").textContent = said;
  }

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    ask();
  });
  form.prompt.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });
  $("stop").addEventListener("click", () => abort?.abort());
  form.key.addEventListener("change", models);
  facts({ headers: null, first: null, usage: null, end: null });
  models();
  return models;
}

/** What of the answer is known so far. */
function facts({ headers, first, usage, end }) {
  const said = (name) => headers?.get(`x-spillway-${name}`) ?? null;
  const reason = said("reason");
  const queueMs = said("queue-ms");
  const pinned = said("pinned-by");
  const speed = usage && end !== null && first !== null && end > first ? usage.completion_tokens / (end - first) : null;
  const fact = (id, name, value, note = "") => h("div", { "data-fact": id }, h("dt", { text: name }), h("dd", {}, h("b", { text: value }), note ? h("small", { text: note }) : null));
  fill($("facts"),
    fact("where", "Where", said("backend") ?? NONE, said("model") ?? ""),
    fact("why", "Why", reason ? words(reason) : NONE, (REASONS[reason] ?? "") + (pinned ? ` Pinned by ${pinned}.` : "")),
    fact("queue", "Queue", queueMs === null ? NONE : seconds(Number(queueMs) / 1000)),
    fact("first", "First token", seconds(first), first === null ? "" : "as seen here"),
    fact("speed", "Speed", speed === null ? NONE : `${number(speed)} tokens/s`),
    fact("tokens", "Tokens", usage ? `${count(usage.prompt_tokens)} → ${count(usage.completion_tokens)}` : NONE),
    fact("cost", "Cost", usage?.cost_usd === undefined ? NONE : dollars(usage.cost_usd * 1e9)),
  );
}

/** Read an SSE answer; gives the message of an error that ended it, or null. */
async function read(stream, take) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return "The answer broke off.";
    held += value;
    const events = held.split("\n\n");
    held = events.pop();
    for (const event of events) {
      if (!event.startsWith("data: ")) continue;
      const data = event.slice("data: ".length);
      if (data === "[DONE]") return null;
      const chunk = JSON.parse(data);
      if (chunk.error) return chunk.error.message;
      take(chunk);
    }
  }
}
