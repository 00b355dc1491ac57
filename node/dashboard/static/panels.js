// What is not a chart: tiles, engines, GPUs, providers, money.

import { $, fill, h } from "./dom.js";
import { bytes, count, dollars, duration, NONE, number, perSecond, seconds, share, timeOf, words } from "./format.js";

/** The first row: what an operator looks at first. `points` are the last five minutes. */
export function tiles(points, now) {
  const recent = points.slice(-10);
  const rate = (...fields) => recent.reduce((all, point) => all + fields.reduce((sum, field) => sum + (point[field] ?? 0), 0), 0) / Math.max(1, recent.length);
  const all = ["local_per_s", "premises_per_s", "cloud_per_s", "cache_per_s"];
  const total = now.totals;
  const answered = total.local + total.premises + total.cloud + total.cache;
  const promised = sum(points, "promises");
  const kept = sum(points, "promises_kept");
  const tightest = tightestBudget(now.budget);
  const spentShare = tightest && tightest.spent_nano_usd / Math.max(1, tightest.limit_nano_usd);
  fill($("tiles"),
    tile("rate", "Answered", perSecond(rate(...all)), `${number(rate("tokens_per_s"))} tok/s · ${count(now.inside)} inside`),
    tile("stayed", "Stayed here", answered ? share(1 - total.cloud / answered) : NONE, `${count(answered - total.cloud)} of ${count(answered)} answers`),
    tile("kept", "Within the budget", promised ? share(kept / promised) : total.promises ? share(total.promises_kept / total.promises) : NONE,
      promised ? `first tokens, last 5 min` : total.promises ? "first tokens, since the start" : "no streamed answer yet", promised && kept / promised < 0.95 ? "warn" : ""),
    tile("spent", "Spent", dollars(total.spent_nano_usd), `in ${duration(now.uptime_s)}`),
    tile("saved", "Saved", dollars(total.cloud_nano_usd - total.spent_nano_usd), `of ${dollars(total.cloud_nano_usd)} all-cloud`),
    now.budget === null
      ? tile("left", "Budget left", NONE, "the ledger cannot be read", "warn")
      : tightest === null
        ? tile("left", "Budget left", "No limit", "set budget.day_usd")
        : tile("left", "Budget left", dollars(Math.max(0, tightest.limit_nano_usd - tightest.spent_nano_usd)), `of ${dollars(tightest.limit_nano_usd)} ${WINDOWS[tightest.window]}`, spentShare > 0.9 ? "bad" : spentShare > 0.7 ? "warn" : ""),
  );
}

const WINDOWS = { hour: "this hour", day: "today, UTC", month: "this month" };
const capital = (text) => text[0].toUpperCase() + text.slice(1);
const tile = (id, name, value, note, tone = "") => h("div", { class: `card tile ${tone}`, id: `tile-${id}` }, h("dt", { text: name }), h("dd", { class: "big", text: value }), h("dd", { class: "faint", text: note }));
const sum = (points, field) => points.reduce((all, point) => all + (point[field] ?? 0), 0);
const tightestBudget = (budget) => [...(budget ?? [])].sort((a, b) => a.limit_nano_usd - a.spent_nano_usd - (b.limit_nano_usd - b.spent_nano_usd))[0] ?? null;

export function meter(label, used, value, tone = "") {
  const bar = h("i", {});
  bar.style.width = `${Math.min(100, Math.max(0, 100 * (used ?? 0)))}%`;
  return h("div", { class: "meter" }, h("div", { class: "meter-head" }, h("span", { text: label }), h("b", { text: value })), h("div", { class: `bar ${tone}`, role: "meter", "aria-label": label, "aria-valuemin": "0", "aria-valuemax": "100", "aria-valuenow": String(Math.round(100 * (used ?? 0))) }, bar));
}

export function gpus(now) {
  const list = now.gpus;
  if (!list || list.length === 0) {
    fill($("gpu-list"), h("p", { class: "big-note", text: list ? "No GPU" : "GPU not known" }), h("p", { class: "faint", text: now.no_gpu_because ?? "" }));
    return;
  }
  fill($("gpu-list"), list.map((gpu) => h("div", { class: "gpu" },
    gpu.problem
      ? h("p", { class: "error", text: `GPU ${gpu.index}: ${gpu.problem}` })
      : meter(`GPU ${gpu.index} · ${gpu.name ?? "unknown"}`, gpu.vram_total_bytes ? gpu.vram_used_bytes / gpu.vram_total_bytes : null, `${bytes(gpu.vram_used_bytes)} of ${bytes(gpu.vram_total_bytes)}`),
    gpu.problem ? null : h("p", { class: "faint", text: [gpu.utilisation !== null ? `${share(gpu.utilisation)} busy` : null, gpu.temperature_c !== null ? `${gpu.temperature_c} °C` : null, gpu.power_w !== null ? `${Math.round(gpu.power_w)} W` : null].filter(Boolean).join(" · ") }),
  )));
}

const STATES = { closed: "in use", open: "away", isolated: "left alone" };
const STATE_TONE = { closed: "good", open: "bad", isolated: "bad", ready: "good", starting: "wait", suspect: "warn", asleep: "wait", down: "bad", given_up: "bad" };
const badge = (tone, text) => h("span", { class: `badge ${tone}`, text });
const fact = (name, value) => h("div", {}, h("dt", { text: name }), h("dd", { text: value }));

export function engines(now, at) {
  fill($("engine-list"), now.models.map((model) => {
    const engine = model.engine;
    if (!engine) return h("article", { class: "card" }, h("div", { class: "card-head" }, h("h3", { text: model.name }), badge("none", "no engine here")), h("p", { class: "faint", text: "The cloud serves this model." }));
    const state = engine.given_up ? "given_up" : engine.state;
    return h("article", { class: "card", "data-engine": model.name },
      h("div", { class: "card-head" }, h("h3", { text: model.name }), badge(STATE_TONE[state], words(state))),
      h("p", { class: "faint", text: `for ${duration(engine.since_s)}${engine.rebuild_in_s !== null ? ` · started anew in ${duration(engine.rebuild_in_s)}` : ""}` }),
      state === "down" || state === "given_up" ? h("p", { class: "error", text: engine.why ?? "" }) : null,
      meter("Running", engine.max_sequences ? engine.running / engine.max_sequences : 0, `${count(engine.running)} of ${count(engine.max_sequences)}`),
      meter("KV cache", engine.kv_cache_usage, share(engine.kv_cache_usage), engine.kv_cache_usage > 0.95 ? "bad" : engine.kv_cache_usage > 0.85 ? "warn" : ""),
      h("dl", { class: "facts" }, fact("In the queue", count(model.queued)), fact("Per token", seconds(engine.tpot_s)), fact("Starts", count(engine.starts)), fact("Failures", `${count(engine.deaths)}${engine.hangs ? `, ${engine.hangs} hung` : ""}`)),
      strip(engine.changes, at),
    );
  }));
}

/** What states an engine or a provider was in, as a bar of proportional lengths, and in words. */
function strip(changes, at) {
  if (!changes.length) return null;
  const from = changes[0].at_s;
  const lasted = (i) => Math.max(0, (changes[i + 1]?.at_s ?? at) - changes[i].at_s);
  const nameOf = (state) => STATES[state] ?? words(state);
  const bar = h("div", { class: "strip", "aria-hidden": "true" }, changes.map((change, i) => {
    const part = h("i", { class: STATE_TONE[change.state], title: nameOf(change.state) });
    part.style.flexGrow = String(Math.max(0.01, lasted(i) / Math.max(1, at - from)));
    return part;
  }));
  const items = changes.map((change, i) => h("li", {}, h("time", { text: timeOf(change.at_s) }), badge(STATE_TONE[change.state], nameOf(change.state)), h("span", { text: `for ${duration(lasted(i))}` }), change.why ? h("span", { class: "faint", text: CAUSES[change.why] ?? change.why }) : null)).reverse().slice(0, 5);
  return h("div", { class: "history" }, h("h4", { text: "History" }), bar, h("ol", {}, items));
}

const BREAKER_TONE = { closed: "good", half_open: "warn", open: "bad", isolated: "bad" };

const CAUSES = { upstream_fault: "it kept failing", local_fault: "it could not be reached", operator: "by the operator" };

/** Why nothing or little goes to a provider, for how long already, and when it is tried again; nothing if it is used. */
function trouble(each) {
  const since = each.not_closed_for_s === null ? "" : ` for ${duration(each.not_closed_for_s)}`;
  const next = each.tried_in_s > 0 ? `The next call is tried in ${seconds(each.tried_in_s)}.` : "One call at a time is let through to see.";
  const why = each.isolated_by ?? each.opened_by; // neither while a provider that was left alone is tried again
  const cause = why === null ? "" : `: ${CAUSES[why] ?? words(why)}`;
  if (each.isolated_by) return `Left alone${since}${cause}. Nothing goes there until somebody takes that back.`;
  if (each.breaker !== "closed") return `Away${since}${cause}. ${next}`;
  return each.paused_s > 0 ? `It asked for a pause. ${next}` : null;
}

/** A mark at the links on top, which are always to be seen, to where something is wrong. */
export function troubles(now) {
  $("engines-trouble").hidden = now.models.every(({ engine }) => !engine || (engine.state === "ready" && !engine.given_up) || engine.state === "asleep");
  $("providers-trouble").hidden = now.providers.every((each) => trouble(each) === null);
}

/** Every provider. `at` is now; `change(name, how)` leaves one alone or uses it again, null where nobody may. */
export function providers(now, at, change) {
  if (!now.providers.length) {
    fill($("provider-list"), h("p", { class: "card empty", text: "No provider is configured: nothing can leave this machine." }));
    return;
  }
  fill($("provider-list"), now.providers.map((each) => {
    const standing = each.isolated_by ? ["bad", "left alone"] : each.breaker === "closed" && each.paused_s > 0 ? ["warn", `paused ${seconds(each.paused_s)}`] : [BREAKER_TONE[each.breaker] ?? "warn", `breaker ${words(each.breaker)}`];
    const why = trouble(each);
    return h("article", { class: "card", "data-provider": each.name },
      h("div", { class: "card-head" }, h("h3", { text: each.name }), each.emulated ? badge("wait", "emulator") : null, badge(...standing)),
      h("p", { class: "faint", text: `${each.emulated ? "on this machine, its prices are made up" : each.zone === "premises" ? "on the premises" : "in the cloud"} · ${count(each.in_flight)} under way` }),
      why ? h("p", { class: "error", text: why }) : null,
      h("div", { class: "percentiles" }, ["50", "95", "99"].map((p) => h("div", {}, h("b", { text: seconds(each[`ttft_p${p}_s`]) }), h("span", { text: `TTFT p${p}` })))),
      h("dl", { class: "facts" }, fact("Spent", dollars(each.spent_nano_usd)), fact("Answers", count(each.requests)), fact("Tokens", count(each.prompt_tokens + each.completion_tokens)), fact("Counted on", seconds(each.counted_on_s))),
      each.changes.length > 1 ? strip(each.changes, at) : null,
      change ? h("button", { type: "button", class: "quiet", text: each.isolated_by ? "Use it again" : "Leave it alone", onclick: () => change(each.name, each.isolated_by ? "restore" : "isolate") }) : null,
    );
  }));
}

export function money(now) {
  const total = now.totals;
  const windows = now.budget ?? [];
  fill($("money-list"),
    h("article", { class: "card" }, h("div", { class: "card-head" }, h("h3", { text: "Since the node started" })),
      h("dl", { class: "facts" }, fact("Spent", dollars(total.spent_nano_usd)), fact("Saved", dollars(total.cloud_nano_usd - total.spent_nano_usd)), fact("All in the cloud", dollars(total.cloud_nano_usd)), fact("At list prices", dollars(total.reference_nano_usd)), fact("Tokens", count(total.prompt_tokens + total.completion_tokens))),
      h("p", { class: "faint", text: "Saved: what the same tokens cost at each model's first cloud equivalent, less what was spent." })),
    h("article", { class: "card" }, h("div", { class: "card-head" }, h("h3", { text: "Budget" }), now.ledger_down_because ? badge("bad", "ledger down") : null),
      now.ledger_down_because ? h("p", { class: "error", text: `Nothing that costs leaves: ${now.ledger_down_because}` }) : null,
      now.budget === null ? h("p", { class: "faint", text: "Not known: the ledger cannot be read." })
        : windows.length ? windows.map((each) => {
          const used = each.spent_nano_usd / Math.max(1, each.limit_nano_usd);
          return h("div", {}, meter(capital(WINDOWS[each.window]), used, `${dollars(Math.max(0, each.limit_nano_usd - each.spent_nano_usd))} left of ${dollars(each.limit_nano_usd)}`, used > 0.9 ? "bad" : used > 0.7 ? "warn" : ""), h("p", { class: "faint", text: `ends in ${duration(each.ends_in_s)}` }));
        }) : h("p", { class: "faint", text: "No limit is set for the node: budget.hour_usd, budget.day_usd, budget.month_usd." })),
  );
}
