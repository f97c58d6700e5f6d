/** One sensor on the page: its picture, what the mask says of it, its source, and buttons that break it. */
import type { Summary } from "../core/health";
import type { Modality } from "../core/modality";
import type { Received } from "../loop/mailbox";
import { FAULTS, type Fault } from "../sources/rig";
import { Chooser, type Choice } from "./chooser";
import { draw } from "./draw";

export interface Actions {
  choose(value: string): void;
  /** A file picked as the source. */
  file(file: File): void;
  /** Break the simulated sensor, or mend it with null. */
  breakIt(fault: Fault | null): void;
}

// Reasons that the source itself explains better than numbers do.
const UNREACHED = ["disconnected", "absent", "starting"];
const FAULT_WORDS: Record<Fault, string> = { unplug: "Unplug", freeze: "Freeze", dark: "Darken" };

export class Card {
  private readonly item: HTMLElement;
  private readonly canvas: HTMLCanvasElement;
  private readonly picker: HTMLInputElement;
  private readonly chooser: Chooser;
  private drawn: Received | null = null;
  // Why a source was refused, until another is chosen.
  private refusal: string | null = null;

  constructor(
    private readonly modality: Modality,
    list: HTMLElement,
    actions: Actions,
  ) {
    const template = document.getElementById("sensor") as HTMLTemplateElement;
    this.item = template.content.firstElementChild!.cloneNode(true) as HTMLElement;
    this.item.dataset["sensor"] = modality.name;
    this.part("h2").textContent = modality.name;
    this.canvas = this.part("canvas") as HTMLCanvasElement;
    this.canvas.setAttribute("role", "img");
    this.canvas.setAttribute("aria-label", `newest sample of ${modality.name}`);
    const select = this.part("select") as HTMLSelectElement;
    select.setAttribute("aria-label", `source of ${modality.name}`);
    this.chooser = new Chooser(select, (value) => actions.choose(value));
    this.picker = this.part("input") as HTMLInputElement;
    this.picker.accept = modality.kind === "audio" ? "audio/*,.npy" : "image/*,video/*,.npy";
    this.part(".open").onclick = () => this.picker.click();
    this.picker.onchange = () => this.picked(actions);
    this.faultButtons(actions);
    list.append(this.item);
  }

  /** Which sources there are, and which one is used. */
  offer(choices: readonly Choice[], chosen: string): void {
    this.chooser.offer(choices, chosen);
    this.part(".faults").hidden = chosen !== "rig";
  }

  /** Why the source was refused; it stays until another is chosen, which null says. */
  say(refusal: string | null): void {
    this.refusal = refusal;
    this.part(".evidence").textContent = refusal ?? "";
  }

  /** Which fault's button is pressed. */
  press(fault: Fault | null): void {
    for (const button of this.item.querySelectorAll<HTMLElement>("[data-fault]")) {
      button.setAttribute("aria-pressed", String(button.dataset["fault"] === fault));
    }
  }

  /** What the newest decision says, and the newest sample. */
  show({ status, reason, ageS, evidence }: Summary, newest: Received | null, error: string | null): void {
    this.item.className = status;
    const age = ageS === null ? "" : `, ${Math.round(1000 * ageS)} ms old`;
    this.part(".state").textContent = (reason === null ? status : `${status}: ${reason}`) + (status === "ok" ? age : "");
    const numbers = Object.entries(evidence).map(([key, value]) => `${key} ${Number(value.toPrecision(3))}`).join(", ");
    const found = UNREACHED.includes(reason ?? "") && error !== null ? error : numbers;
    this.part(".evidence").textContent = this.chooser.hint ?? this.refusal ?? found;
    if (newest !== null && newest !== this.drawn) draw(this.canvas, newest.frame.sample, this.modality);
    this.drawn = newest;
  }

  private part(selector: string): HTMLElement {
    return this.item.querySelector<HTMLElement>(selector)!;
  }

  private picked(actions: Actions): void {
    const file = this.picker.files?.[0];
    // The same file may be picked again: it may have changed.
    this.picker.value = "";
    if (file !== undefined) actions.file(file);
  }

  private faultButtons(actions: Actions): void {
    for (const fault of FAULTS) {
      const button = document.createElement("button");
      button.type = "button";
      button.dataset["fault"] = fault;
      button.textContent = FAULT_WORDS[fault];
      button.setAttribute("aria-pressed", "false");
      button.onclick = () => actions.breakIt(button.getAttribute("aria-pressed") === "true" ? null : fault);
      this.part(".faults").append(button);
    }
  }
}
