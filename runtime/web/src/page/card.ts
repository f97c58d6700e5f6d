/** One sensor on the page: its picture, what the mask says of it, its source, and buttons that break it. */
import type { Summary } from "../core/health";
import type { Modality } from "../core/modality";
import type { Received } from "../loop/mailbox";
import { FAULTS, type Fault } from "../sources/rig";
import { draw } from "./draw";

export interface Choice {
  readonly value: string;
  readonly text: string;
}

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
  private readonly select: HTMLSelectElement;
  private readonly picker: HTMLInputElement;
  private drawn: Received | null = null;

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
    this.select = this.part("select") as HTMLSelectElement;
    this.select.setAttribute("aria-label", `source of ${modality.name}`);
    this.picker = this.part("input") as HTMLInputElement;
    this.picker.accept = modality.kind === "audio" ? "audio/*,.npy" : "image/*,video/*,.npy";
    this.select.onchange = () => (this.select.value === "file" ? this.picker.click() : actions.choose(this.select.value));
    this.picker.onchange = () => this.picker.files?.[0] && actions.file(this.picker.files[0]);
    this.faultButtons(actions);
    list.append(this.item);
  }

  /** Which sources there are, and which one is used. */
  offer(choices: readonly Choice[], chosen: string): void {
    const options = choices.map(({ value, text }) => new Option(text, value, false, value === chosen));
    this.select.replaceChildren(...options);
    this.part(".faults").hidden = chosen !== "rig";
  }

  /** What is wrong with the source, before any decision says so. */
  say(message: string): void {
    this.part(".evidence").textContent = message;
  }

  /** Which fault's button is pressed. */
  press(fault: Fault | null): void {
    for (const button of this.item.querySelectorAll("button")) {
      button.setAttribute("aria-pressed", String(button.dataset["fault"] === fault));
    }
  }

  /** What the newest decision says, and the newest sample. */
  show({ status, reason, ageS, evidence }: Summary, newest: Received | null, error: string | null): void {
    this.item.className = status;
    const age = ageS === null ? "" : `, ${Math.round(1000 * ageS)} ms old`;
    this.part(".state").textContent = (reason === null ? status : `${status}: ${reason}`) + (status === "ok" ? age : "");
    const numbers = Object.entries(evidence).map(([key, value]) => `${key} ${Number(value.toPrecision(3))}`).join(", ");
    this.part(".evidence").textContent = UNREACHED.includes(reason ?? "") && error !== null ? error : numbers;
    if (newest !== null && newest !== this.drawn) draw(this.canvas, newest.frame.sample, this.modality);
    this.drawn = newest;
  }

  private part(selector: string): HTMLElement {
    return this.item.querySelector<HTMLElement>(selector)!;
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
