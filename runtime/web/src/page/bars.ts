/** A list of named numbers as bars; rows are kept, so that nothing flickers and nothing leaks. */

export interface Bar {
  readonly name: string;
  /** 0..1. */
  readonly share: number;
  readonly text: string;
}

/** Show these bars and no others. */
export function showBars(list: HTMLElement, bars: readonly Bar[]): void {
  while (list.children.length < bars.length) list.append(row());
  [...list.children].forEach((item, index) => {
    const bar = bars[index];
    (item as HTMLElement).hidden = bar === undefined;
    if (bar === undefined) return;
    const [name, meter, text] = item.children as unknown as [HTMLElement, HTMLMeterElement, HTMLElement];
    name.textContent = bar.name;
    meter.value = bar.share;
    meter.setAttribute("aria-label", bar.name);
    text.textContent = bar.text;
  });
}

function row(): HTMLElement {
  const item = document.createElement("li");
  item.append(document.createElement("span"), document.createElement("meter"), document.createElement("span"));
  return item;
}
