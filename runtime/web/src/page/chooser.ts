/** The list of a sensor's sources: it always shows the one that is used, or says that Enter would use another. */

export interface Choice {
  readonly value: string;
  readonly text: string;
}

// They commit what other keys have brought into view.
const COMMIT = ["Enter", " "];

export class Chooser {
  private chosen = "";
  private shown = "";
  // Keys step through the list one by one, and change it at every step.
  private stepping = false;

  constructor(
    private readonly select: HTMLSelectElement,
    private readonly choose: (value: string) => void,
  ) {
    select.onpointerdown = () => (this.stepping = false);
    select.onkeydown = (event) => this.key(event);
    select.onchange = () => !this.stepping && this.commit();
    select.onblur = () => this.revert();
  }

  /** Which sources there are, and which one is used; a list that is open for choosing stays as it is if nothing changed. */
  offer(choices: readonly Choice[], chosen: string): void {
    const shown = JSON.stringify([choices, chosen]);
    if (shown === this.shown) return;
    [this.shown, this.chosen, this.stepping] = [shown, chosen, false];
    this.select.replaceChildren(...choices.map(({ value, text }) => new Option(text, value, false, value === chosen)));
  }

  /** How to use the source that is in view and not used. */
  get hint(): string | null {
    if (this.select.value === this.chosen) return null;
    return `press Enter to use: ${this.select.selectedOptions[0]?.text ?? ""}`;
  }

  private key(event: KeyboardEvent): void {
    const commits = COMMIT.includes(event.key);
    if (event.key === "Escape") this.revert();
    this.stepping = !commits;
    if (!commits || this.hint === null) return;
    // Else the key would open the list.
    event.preventDefault();
    this.commit();
  }

  private commit(): void {
    if (this.select.value === this.chosen) return;
    // Whether it is used is for `offer` to say.
    this.chosen = this.select.value;
    this.shown = "";
    this.choose(this.select.value);
  }

  private revert(): void {
    this.select.value = this.chosen;
  }
}
