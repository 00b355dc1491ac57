// The page: one feed in, every panel out. States: loading, locked, live, lost (what is shown is old), by `data-state`.

import { makeCharts } from "./charts.js";
import { makeDecisions } from "./decisions.js";
import { $, fill, h } from "./dom.js";
import { adminKey, authorization, follow, messageOf } from "./feed.js";
import { duration, timeOf } from "./format.js";
import * as panels from "./panels.js";
import { makePlayground } from "./playground.js";

const KEPT = 300;
const FEED_VERSION = 1;
const root = document.documentElement;

let points = [];
let hello = null;
let latest = null;
let entered = false; // whether the key was typed in just now
const charts = makeCharts($);
const decisions = makeDecisions();
const refreshModels = makePlayground();

function state(name, text) {
  root.dataset.state = name;
  $("status").textContent = text;
  $("locked").hidden = name !== "locked";
  $("live").hidden = name === "locked";
  $("live").inert = name === "loading";
  $("forget").hidden = adminKey.get() === null;
}

function draw() {
  if (latest === null || document.hidden) return;
  const end = points.at(-1)?.at_s ?? Date.now() / 1000;
  panels.tiles(points, latest);
  panels.gpus(latest);
  panels.engines(latest, end);
  panels.providers(latest, end, hello.may_change ? change : null);
  panels.money(latest);
  panels.troubles(latest);
  decisions.reasons(points);
  charts.show(points.length ? points : [{ at_s: end }], latest, end);
  notices();
  $("foot").textContent = `Spillway ${hello.node} · running for ${duration(latest.uptime_s)} since ${timeOf(hello.started_s)} · figures of ${timeOf(end)}`;
}

function notices(lost = null) {
  const list = [];
  if (lost) list.push(h("div", { class: "notice bad", role: "alert" }, h("p", {}, h("b", { text: lost.message }), h("span", { text: ` ${latest ? `What you see is of ${timeOf(points.at(-1)?.at_s ?? Date.now() / 1000)}. ` : ""}Trying again.` })), h("button", { type: "button", class: "quiet", text: "Try now", onclick: retry })));
  if (hello && hello.feed !== FEED_VERSION) list.push(h("p", { class: "notice warn", text: "The node is of another version than this page: reload it." }));
  if (latest && !lost) {
    if (latest.draining) list.push(h("p", { class: "notice warn", text: `The node is shutting down: ${latest.inside} requests are still being answered.` }));
    else if (!latest.ready) list.push(h("p", { class: "notice warn", text: "Not ready: an engine starts for the first time, or is away with no provider in its place." }));
    if (latest.strain && latest.strain !== "calm") list.push(h("p", { class: "notice warn", text: `The machine is ${latest.strain}: the node holds fewer requests.` }));
    const clouds = latest.providers.filter((each) => each.zone === "cloud");
    const pretended = clouds.filter((each) => each.emulated).map((each) => each.name);
    if (pretended.length) list.push(h("p", { class: "notice", text: pretended.length < clouds.length ? `An emulator on this machine, with answers and a bill that are made up: ${pretended.join(", ")}.` : "The cloud is an emulator on this machine: its answers and its bill are made up, and nothing leaves." }));
  }
  fill($("notices"), list);
}

const retry = follow({
  hello(document_) {
    const restarted = hello !== null && hello.started_s !== document_.started_s;
    hello = document_;
    entered = false;
    latest = hello.now;
    points = hello.history.slice(-KEPT);
    decisions.begin(hello.decisions, latest.providers.map((each) => each.name));
    state("live", "Live");
    if (restarted) refreshModels?.();
    draw();
  },
  tick(tick) {
    latest = tick.now;
    points = [...points, tick.point].slice(-KEPT);
    decisions.add(tick.decisions);
    draw();
  },
  locked(wrongKey, why) {
    if (wrongKey) {
      adminKey.forget();
      if (!entered) { // one of an earlier time: perhaps none is needed any more
        retry();
        return;
      }
    }
    $("unlock-error").textContent = why ?? (wrongKey ? "That is not the admin key of this node." : "");
    notices();
    state("locked", "Locked");
  },
  lost(message) {
    state(latest === null ? "loading" : "lost", "Disconnected");
    notices({ message });
  },
});

async function change(provider, how) {
  const question = how === "isolate" ? `Send nothing to ${provider} until somebody takes that back?` : `Use ${provider} again?`;
  if (!confirm(question)) return;
  const answer = await fetch(`/admin/providers/${encodeURIComponent(provider)}/${how}`, { method: "POST", headers: authorization() });
  if (!answer.ok) alert(await messageOf(answer));
}

$("unlock").addEventListener("submit", (event) => {
  event.preventDefault();
  adminKey.set($("admin-key").value.trim());
  entered = true;
  $("admin-key").value = "";
  retry();
});
$("forget").addEventListener("click", () => {
  adminKey.forget();
  location.reload();
});
$("theme").value = root.dataset.theme ?? "";
$("theme").addEventListener("change", () => {
  const wanted = $("theme").value;
  if (wanted) {
    root.dataset.theme = wanted;
    localStorage.setItem("spillway-theme", wanted);
  } else {
    delete root.dataset.theme;
    localStorage.removeItem("spillway-theme");
  }
  charts.recolour();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => charts.recolour());
document.addEventListener("visibilitychange", draw);
