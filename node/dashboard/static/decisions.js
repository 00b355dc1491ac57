// The last decisions. Unfiltered they come with the feed; a filter asks the node, which remembers many more.

import { $, fill, h } from "./dom.js";
import { authorization, messageOf } from "./feed.js";
import { count, dollars, NONE, seconds, timeOf, words } from "./format.js";
import { REASONS } from "./reasons.js";

const KEPT = 200;
const PAGE = 12;
const MOST_REASONS = 12;
const PLACES = { local: "local", premises: "premises", cloud: "cloud", cache: "cache", nobody: "unserved" };
const ENDINGS = ["done", "failed", "refused", "rejected", "client_closed"];

export function makeDecisions() {
  const form = $("filters");
  let rows = []; // newest first
  let found = null; // what the node answered to the filter; null without one
  let searched = 0;
  let searches = 0; // so many were begun: only the last one counts
  let shown = PAGE;
  let reasons = []; // of the last minutes: ["place reason", how many]
  let paused = false;
  let error = "";
  let timer = 0;

  for (const reason of Object.keys(REASONS).sort()) form.reason.append(h("option", { value: reason, text: words(reason) }));
  for (const ending of ENDINGS) form.ending.append(h("option", { value: ending, text: words(ending) }));
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", () => {
    clearTimeout(timer);
    shown = PAGE;
    timer = setTimeout(search, 200);
    drawReasons();
  });
  $("pause").addEventListener("click", () => {
    paused = !paused;
    $("pause").setAttribute("aria-pressed", String(paused));
    $("pause").textContent = paused ? "Go on" : "Pause";
    draw();
  });
  $("more").addEventListener("click", () => {
    shown += 4 * PAGE;
    draw();
  });

  const filter = () => Object.fromEntries(["backend", "reason", "ending", "text"].map((name) => [name, form[name].value.trim()]).filter(([, value]) => value));

  async function search() {
    const query = filter();
    const asked = ++searches;
    error = "";
    if (!Object.keys(query).length) {
      found = null;
      draw();
      return;
    }
    try {
      const answer = await fetch(`/dashboard/decisions?${new URLSearchParams(query)}`, { headers: authorization(), cache: "no-store" });
      const told = answer.ok ? await answer.json() : { error: await messageOf(answer) };
      if (asked !== searches) return; // something else has been asked for since
      if (answer.ok) ({ decisions: found, searched } = told);
      else ({ error } = told);
    } catch (failure) {
      if (!(failure instanceof TypeError)) throw failure;
      if (asked !== searches) return;
      error = "The node does not answer.";
    }
    draw();
  }

  function matches(row) {
    const query = filter();
    const text = query.text?.toLowerCase();
    return (!query.backend || (row.backend ?? "none") === query.backend) && (!query.reason || row.reason === query.reason) && (!query.ending || row.ending === query.ending)
      && (!text || [row.request_id, row.model, row.tenant, row.reason, row.error_code].some((field) => field?.toLowerCase().includes(text)));
  }

  function draw() {
    const list = found ?? rows;
    fill($("decision-rows"), list.slice(0, shown).map(asRow));
    $("decision-table").hidden = list.length === 0;
    $("more").hidden = list.length <= shown;
    $("decisions-empty").hidden = list.length > 0 && !error;
    $("decisions-empty").textContent = error || (found ? `None of the last ${count(searched)} requests is like that.` : "No request has ended yet. Ask something in the playground below.");
    $("decisions-count").textContent = (found ? `${count(found.length)}${found.length === 100 ? " or more" : ""} of the last ${count(searched)}` : list.length ? "newest first" : "") + (paused ? " · paused" : "");
  }

  function drawReasons() {
    fill($("reasons"), reasons.length ? h("li", { class: "faint", text: "In five minutes" }) : null, reasons.map(([key, n]) => {
      const [place, reason] = key.split(" ");
      return h("li", {}, h("button", { type: "button", class: "quiet", "aria-pressed": String(form.reason.value === reason), title: REASONS[reason] ?? "", onclick: () => only(reason) },
        h("span", { class: `place ${PLACES[place]}`, text: place }), h("span", { text: words(reason) }), h("b", { text: count(n) })));
    }));
  }

  /** Only those with this reason; those with any, if it was chosen already. */
  function only(reason) {
    form.reason.value = form.reason.value === reason ? "" : reason;
    shown = PAGE;
    drawReasons();
    search();
  }

  return {
    /**
     * Who answered and why in the last minutes, what nobody did and the most frequent of the rest, in an order that does
     * not change with the counts.
     */
    reasons(points) {
      const sums = new Map();
      for (const point of points) {
        for (const [place, counts] of Object.entries(point.reasons ?? {})) {
          for (const [reason, n] of Object.entries(counts)) sums.set(`${place} ${reason}`, (sums.get(`${place} ${reason}`) ?? 0) + n);
        }
      }
      const placeOf = ([key]) => Object.keys(PLACES).indexOf(key.split(" ")[0]);
      const weight = ([key, n]) => (key.startsWith("nobody ") ? Infinity : n);
      reasons = [...sums].sort((a, b) => (weight(a) === weight(b) ? 0 : weight(b) - weight(a))).slice(0, MOST_REASONS)
        .sort((a, b) => placeOf(a) - placeOf(b) || a[0].localeCompare(b[0]));
      drawReasons();
    },
    begin(decisions, providers) {
      rows = [...decisions];
      const chosen = form.backend.value;
      fill(form.backend, h("option", { value: "", text: "anybody" }), ["local", "cache", ...providers, "none"].map((name) => h("option", { value: name, text: name === "none" ? "nobody" : name })));
      form.backend.value = chosen;
      if (found !== null) search();
      draw();
    },
    add(decisions) {
      if (!decisions.length) return;
      rows = joined(decisions, rows).slice(0, KEPT);
      if (found !== null) found = joined(decisions.filter(matches), found).slice(0, 100);
      if (!paused) draw();
    },
  };
}

/** `fresh` before `rows`, and each request once: the first tick, or a search, may bring some a second time. */
function joined(fresh, rows) {
  const known = new Set(rows.map((row) => row.request_id));
  return [...fresh.filter((row) => !known.has(row.request_id)), ...rows];
}

const PLACE = { local: "local", cache: "cache" };

function asRow(row) {
  const place = row.backend === undefined ? "unserved" : (PLACE[row.backend] ?? "cloud");
  const late = row.ttft_s !== undefined && row.ttft_s > row.ttft_budget_s;
  const went = row.ending === "done" ? null : h("span", { class: `badge ${row.ending === "failed" ? "bad" : "warn"}`, text: words(row.ending) });
  const tokens = row.prompt_tokens === undefined ? NONE : `${count(row.prompt_tokens)} → ${count(row.completion_tokens)}`;
  const cell = (label, props, ...children) => h("td", { "data-label": label, ...props }, ...children);
  return h("tr", { class: place, "data-request": row.request_id },
    cell("Ended at", {}, h("time", { text: timeOf(row.at_s) })),
    cell("Answered by", {}, h("span", { class: `place ${place}`, text: row.backend ?? "nobody" }), went, h("small", { text: row.served_model && row.served_model !== row.model ? row.served_model : "" })),
    cell("Why", { class: "why" }, h("b", { text: words(row.reason ?? row.error_code ?? row.ending) }), h("small", { text: (REASONS[row.reason] ?? "") + (row.pinned_by ? ` Pinned by ${row.pinned_by}.` : "") + (row.error_code && row.reason && row.error_code !== row.reason ? ` (${words(row.error_code)})` : "") + (row.attempts > 1 ? ` ${row.attempts} attempts.` : "") })),
    cell("Queue", { class: "n", text: seconds(row.queue_s ?? 0) }),
    cell("Predicted", { class: "n", text: seconds(row.predicted_ttft_s) }),
    cell("First token", { class: "n" }, h("span", { class: late ? "late" : "", text: seconds(row.ttft_s) }), h("small", { text: row.ttft_s === undefined ? (row.ending === "done" ? "not streamed" : "") : `of ${seconds(row.ttft_budget_s)}` })),
    cell("Tokens", { class: "n", text: tokens }),
    cell("Price", { class: "n", text: dollars(row.cost_nano_usd ?? 0) }),
    cell("Request", { class: "id" }, h("code", { title: row.request_id, text: `…${row.request_id.slice(-10)}` }), h("small", { text: `${row.model} · ${row.tenant}` })),
  );
}
