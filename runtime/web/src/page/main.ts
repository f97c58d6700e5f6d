/** The page: a model that is served or picked, its sensors, and what it decides. */
import { UsageError } from "../core/errors";
import type { Manifest } from "../core/manifest";
import { openModel, type Opened } from "../engine/engine";
import { PAGE_TIMING } from "../loop/connection";
import type { Decision } from "../loop/pipeline";
import { PLACES, WEBGPU } from "../mars-edge";
import { RigStream, type Fault } from "../sources/rig";
import { showBars } from "./bars";
import { Card } from "./card";
import { Session } from "./session";
import { Silence } from "./silence";

/** What the server offers; a page without a server has nothing but files. */
interface Served {
  readonly model: string;
  readonly rig: boolean;
  /** Whether onnxruntime's files for the graphics processor are there. */
  readonly webgpu: boolean;
}

const SHOWN_MS = 100;
const LOOK_MS = 250;
const INSECURE = "this page needs https or localhost: browsers give cameras and checksums to no other (mars-edge serve --cert)";
// What the server keeps beside the page, as the service worker calls its cache of it.
const DATA = "data";
const silence = new Silence();
// What of the server works offline once it is kept.
const used: string[] = [];
const cards = new Map<string, Card>();
let session: Session | null = null;
let rig: RigStream | null = null;
// The model opens while the rig's recording is still on its way.
let rigLoaded: Promise<void> = Promise.resolve();
let shownMs = 0;
// Its scripts load while the model does.
let spare: Worker | null = PLACES.worker();
const places = {
  ...PLACES,
  worker: (): Worker => {
    const worker = spare ?? PLACES.worker();
    spare = null;
    return worker;
  },
};

const part = (id: string): HTMLElement => document.getElementById(id)!;
const say = (message: string, failed = false): void => {
  part("link").textContent = message;
  part("link").className = failed ? "failed" : "";
};

async function start(): Promise<void> {
  part("other").onchange = async (event) => {
    const picker = event.target as HTMLInputElement;
    const file = picker.files?.[0];
    if (file === undefined) return;
    // The same file may be picked again: it may have changed.
    picker.value = "";
    await use(new Uint8Array(await file.arrayBuffer()), file.name);
  };
  if (!window.isSecureContext) {
    say(INSECURE, true);
    return;
  }
  setInterval(watch, LOOK_MS);
  part("device").onchange = async () => {
    if (session !== null) await use(session.opened.sealed.data, session.name);
  };
  navigator.mediaDevices.addEventListener("devicechange", () => void offer());
  try {
    await useServed();
  } catch (error) {
    say((error as Error).message, true);
  }
}

/** Open what the server offers; throws a UsageError where it refuses this page. */
async function useServed(): Promise<void> {
  const served = await found<Served>("./served.json", (answer) => answer.json() as Promise<Served>);
  if (served === null) {
    say("no model is served; open an .onnx file");
    return;
  }
  part("devices").hidden = !(served.webgpu && (await navigator.gpu?.requestAdapter()));
  if (served.rig) rigLoaded = loadRig();
  const bytes = await found("./model", bytesOf);
  if (bytes === null) say("the served model cannot be loaded", true);
  else await use(bytes, served.model);
}

async function loadRig(): Promise<void> {
  const recorded = await found("./rig", bytesOf);
  if (recorded !== null) rig = RigStream.from(recorded, PAGE_TIMING.clock);
}

/** What the server has at an address, null where it has nothing or is away; throws a UsageError where it may not be read. */
async function found<T>(address: string, read: (answer: Response) => Promise<T>): Promise<T | null> {
  try {
    const answer = await fetch(address);
    // The page itself may come from this browser, kept while the server had another token.
    if (answer.status === 401) throw new UsageError("token needed: open the address that mars-edge serve printed");
    if (!answer.ok) return null;
    const content = await read(answer);
    used.push(address);
    return content;
  } catch (error) {
    if (error instanceof UsageError) throw error;
    return null;
  }
}

async function bytesOf(answer: Response): Promise<Uint8Array> {
  return new Uint8Array(await answer.arrayBuffer());
}

/** Open a model and decide with it in the place of any other. */
async function use(bytes: Uint8Array, name: string): Promise<void> {
  if (!window.isSecureContext) {
    say(INSECURE, true);
    return;
  }
  say(`opening ${name}`);
  const device = part("device") as HTMLSelectElement;
  let opened: Opened;
  try {
    opened = await openModel(bytes, name, device.value === "webgpu" ? WEBGPU : places);
  } catch (error) {
    say((error as Error).message, true);
    // What runs goes on running where it ran.
    device.value = session?.device ?? "wasm";
    return;
  }
  await rigLoaded;
  session?.close();
  silence.begin();
  part("sensors").replaceChildren();
  cards.clear();
  for (const modality of opened.engine.manifest.modalities) {
    const actions = {
      choose: (value: string) => {
        cards.get(modality.name)?.say(null);
        session?.choose(modality, value);
        void offer();
      },
      file: (file: File) => {
        cards.get(modality.name)?.say(null);
        session?.open(modality, file);
        void offer();
      },
      breakIt: (fault: Fault | null) => { session?.breakIt(modality.name, fault); cards.get(modality.name)?.press(fault); },
    };
    cards.set(modality.name, new Card(modality, part("sensors"), actions));
  }
  describe(opened, name);
  session = new Session(opened, name, device.value, rig, {
    decided: show,
    refused: (sensor, message) => { cards.get(sensor)?.say(message); void offer(); },
    failed: (message) => {
      say(message, true);
      silence.end(message);
      watch();
    },
  });
  await offer();
  say("deciding");
  void session.run();
}

/** List the sources of every sensor. */
async function offer(): Promise<void> {
  if (session === null) return;
  const devices = await navigator.mediaDevices.enumerateDevices();
  for (const modality of session.opened.engine.manifest.modalities) {
    const chosen = session.chosen.get(modality.name) ?? "none";
    const card = cards.get(modality.name);
    card?.offer(session.choices(modality, devices), chosen);
    card?.press(session.fault(modality.name));
  }
}

function describe({ engine: { manifest }, sealed }: Opened, name: string): void {
  part("name").textContent = manifest.name;
  document.title = manifest.name;
  const certified = Object.values(manifest.operatingPoints).filter((point) => point.certified).length;
  part("model").textContent =
    `${name}: ${manifest.precision}, ${manifest.activeExperts} of ${manifest.experts} experts` +
    `${manifest.sharedExpert ? " and the shared one" : ""}; decides on ${certified} of ${2 ** manifest.names.length - 1} subsets` +
    `${policyWords(manifest)}; sha256 ${sealed.digest}, verified`;
}

function policyWords({ policy }: Manifest): string {
  const words = [
    policy.require.length > 0 ? `requires ${policy.require.join(", ")}` : "",
    policy.onMissing === "continue" ? "" : `${policy.onMissing} when a sensor is missing`,
    policy.maskingFaults.length > 0 ? `masks ${policy.maskingFaults.join(", ")} sensors` : "",
  ];
  return words.filter((each) => each !== "").map((each) => `; ${each}`).join("");
}

/** Take back a verdict that no newer decision confirms. */
function watch(): void {
  const reason = silence.reason(performance.now());
  document.body.classList.toggle("silent", reason !== null);
  if (reason === null) return;
  part("word").textContent = "abstain";
  part("word").className = "abstain";
  part("why").textContent = reason;
}

function show(decision: Decision): void {
  const nowMs = performance.now();
  silence.decided(nowMs);
  const root = document.documentElement.dataset;
  if (decision.experts.length > 0 && root["firstDecisionMs"] === undefined) {
    root["firstDecisionMs"] = String(Math.round(nowMs));
    // Only now: keeping the files takes the processor that the first decision needs.
    keepOffline();
  }
  if (nowMs - shownMs < SHOWN_MS) return;
  shownMs = nowMs;
  const { outcome, modalities, latencyMs } = decision;
  part("word").textContent = outcome.verdict;
  part("word").className = outcome.verdict;
  part("why").textContent = outcome.reason ?? words(decision);
  part("subset").textContent = `present: ${decision.subset}`;
  part("alarm").textContent = decision.alarm.length === 0 ? "" : `alarm: ${decision.alarm.join(", ")} was used before and is missing`;
  for (const [name, summary] of Object.entries(modalities)) {
    cards.get(name)?.show(summary, session?.latest(name) ?? null, session?.error(name) ?? null);
  }
  showBars(part("experts"), decision.experts.map(({ id, gate }) => ({ name: `expert ${id}`, share: gate, text: gate.toFixed(2) })));
  showLatency(latencyMs);
  part("truth").textContent = rig === null || !usesRig() ? "" : `simulated: ${rig.species} is on stage (the truth, not seen by the model)`;
}

function usesRig(): boolean {
  return [...(session?.chosen.values() ?? [])].includes("rig");
}

function words({ outcome }: Decision): string {
  if (outcome.shares !== null) {
    return Object.entries(outcome.shares).map(([label, share]) => `${label} ${Math.round(100 * share)} %`).join(", ");
  }
  return `${outcome.label}: score ${outcome.score?.toFixed(3)}, threshold ${outcome.threshold?.toFixed(3)}`;
}

function showLatency(latencyMs: Readonly<Record<string, number>>): void {
  const { total = 0, ...stages } = latencyMs;
  part("total").textContent = `${total.toFixed(1)} ms`;
  const bars = Object.entries(stages).map(([name, ms]) => ({ name, share: total > 0 ? ms / total : 0, text: `${ms.toFixed(1)} ms` }));
  showBars(part("latency"), bars);
}

function keepOffline(): void {
  // There is none on pages that came over plain http from another machine.
  if (navigator.serviceWorker === undefined) return;
  const kept = navigator.serviceWorker.register("./sw.js").then(async () => {
    await navigator.serviceWorker.ready;
    // On the first visit all of it was fetched before there was a service worker to keep it.
    await (await caches.open(DATA)).addAll(used);
    part("offline").textContent = "works offline";
  });
  // It works without: the page then says nothing of offline.
  kept.catch(() => undefined);
}

void start();
