// The live page: one stream of events in, pictures fetched when they are wanted, faults posted.
"use strict";

const byId = (id) => document.getElementById(id);
const cards = new Map();
// Latency is drawn on a scale that grows at once and shrinks slowly, so that bars stay comparable.
let scaleMs = 1;

function text(element, value) {
  if (element.textContent !== value) element.textContent = value;
}

async function change(method, body) {
  const answer = await fetch("faults", {
    method,
    headers: { "Content-Type": "application/json" },
    body: body === undefined ? undefined : JSON.stringify(body),
  });
  if (!answer.ok) text(byId("link"), (await answer.json()).error);
}

function card(sensor, faults) {
  const item = byId("sensor").content.firstElementChild.cloneNode(true);
  item.dataset.sensor = sensor.name;
  text(item.querySelector("h2"), sensor.name);
  text(item.querySelector(".source"), sensor.source ?? "no source was named");
  const image = item.querySelector("img");
  image.alt = `newest sample of ${sensor.name}`;
  image.hidden = !["image", "audio"].includes(sensor.kind) || sensor.source === null;
  image.dataset.free = "yes";
  image.onload = image.onerror = () => { image.dataset.free = "yes"; };
  const choice = item.querySelector("select");
  item.querySelector(".faults").hidden = faults.length === 0;
  for (const fault of faults) choice.append(new Option(fault, fault));
  choice.setAttribute("aria-label", `fault of ${sensor.name}`);
  item.querySelector("button").setAttribute("aria-label", `Break ${sensor.name}`);
  item.querySelector("button").onclick = () => change("POST", { sensor: sensor.name, kind: choice.value });
  byId("sensors").append(item);
  cards.set(sensor.name, { item, image });
}

// What a reason was judged on: "still_s 2.1, still_share 0.0004".
function because(evidence) {
  return Object.entries(evidence ?? {}).map(([name, value]) => `${name} ${value}`).join(", ");
}

function milliseconds(ms) {
  return `${ms.toFixed(ms < 10 ? 2 : 1)} ms`;
}

function bars(list, rows) {
  list.classList.add("bars");
  while (list.children.length > rows.length) list.lastElementChild.remove();
  while (list.children.length < rows.length) {
    const row = document.createElement("li");
    row.append(document.createElement("span"), document.createElement("meter"), document.createElement("span"));
    list.append(row);
  }
  rows.forEach(([name, share, value], i) => {
    const [label, meter, number] = list.children[i].children;
    text(label, name);
    meter.value = share;
    meter.textContent = value;
    text(number, value);
  });
}

function show(decision) {
  const word = byId("word");
  text(word, decision.verdict);
  word.className = decision.verdict;
  const score = decision.score === null ? "" : `${decision.label} ${decision.score.toFixed(2)}`;
  const alarm = decision.alarm?.length ? `alarm: ${decision.alarm.join(", ")} went missing` : "";
  text(byId("why"), [decision.reason, score, `on ${decision.subset}`, alarm].filter(Boolean).join(" · "));
  for (const [name, { item, image }] of cards) {
    const state = decision.modalities[name];
    item.className = state.status;
    const age = state.age_ms === null ? "" : ` · ${Math.round(state.age_ms)} ms old`;
    text(item.querySelector(".state"), `${state.reason ?? state.status}${age}`);
    text(item.querySelector(".evidence"), [state.error, because(state.evidence)].filter(Boolean).join(" · "));
    if (!image.hidden && image.dataset.free === "yes" && !document.hidden) {
      image.dataset.free = "no";
      image.src = `picture/${encodeURIComponent(name)}?${decision.seq}`;
    }
  }
  bars(byId("experts"), decision.experts.map(({ id, gate }) => [`expert ${id}`, gate, `${Math.round(100 * gate)} %`]));
  const { total, capture_wait: waited, ...stages } = decision.latency_ms;
  scaleMs = Math.max(0.9 * scaleMs, total, 0.1);
  bars(byId("latency"), Object.entries(stages).map(([name, ms]) => [name, ms / scaleMs, milliseconds(ms)]));
  text(byId("total"), milliseconds(total));
  text(byId("truth"), decision.truth === null ? "" : `simulated: ${decision.truth} is on stage (the model does not see this)`);
}

async function start() {
  const about = await (await fetch("about")).json();
  document.title = `${about.name} · mars-edge`;
  text(byId("name"), `${about.name}, ${about.precision}, ${about.active_experts} of ${about.experts} experts`);
  for (const sensor of about.sensors) card(sensor, about.faults);
  byId("mend").hidden = about.faults.length === 0;
  byId("mend").onclick = () => change("DELETE");
  const events = new EventSource("events");
  events.onopen = () => text(byId("link"), "live");
  events.onerror = () => text(byId("link"), "connection lost, trying again");
  events.onmessage = (event) => show(JSON.parse(event.data));
}

start().catch((error) => text(byId("link"), `cannot start: ${error.message}`));
