/** JSON as strictly as the device reads it: no key twice, no number beyond float64, whole numbers kept apart. */

/** A number that is written with a fraction or an exponent; whole numbers are plain numbers. */
export class Fraction {
  constructor(readonly value: number) {}
}

export type Json = null | boolean | number | string | Fraction | Json[] | { [key: string]: Json };

/** An object with these entries and nothing inherited: a name out of a file may be "constructor". */
export function tableOf<T>(entries: Iterable<readonly [string, T]>): Record<string, T> {
  const table = Object.create(null) as Record<string, T>;
  for (const [key, value] of entries) table[key] = value;
  return table;
}

/** The document; throws an Error that says what is wrong. */
export function parseStrict(text: string): Json {
  // The platform's parser knows the grammar; ours only what it does not tell.
  JSON.parse(text);
  return new Reader(text).document();
}

/** The same document with plain numbers. */
export function plain(value: Json): unknown {
  if (value instanceof Fraction) return value.value;
  if (Array.isArray(value)) return value.map(plain);
  if (value !== null && typeof value === "object") {
    return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, plain(item)]));
  }
  return value;
}

/** Walks a text that is known to be JSON. */
class Reader {
  private at = 0;

  constructor(private readonly text: string) {}

  document(): Json {
    return this.value();
  }

  private skip(): void {
    while (" \t\n\r".includes(this.text[this.at] ?? "!")) this.at += 1;
  }

  private peek(): string {
    this.skip();
    return this.text[this.at] ?? "";
  }

  private value(): Json {
    const first = this.peek();
    if (first === "{") return this.object();
    if (first === "[") return this.array();
    if (first === '"') return this.string();
    return this.scalar();
  }

  private object(): Json {
    const table = tableOf<Json>([]);
    this.at += 1;
    while (this.peek() !== "}") {
      const key = this.string();
      if (key in table) throw new Error(`the key '${key}' is there twice`);
      this.peek();
      this.at += 1;
      table[key] = this.value();
      if (this.peek() === ",") this.at += 1;
    }
    this.at += 1;
    return table;
  }

  private array(): Json {
    const items: Json[] = [];
    this.at += 1;
    while (this.peek() !== "]") {
      items.push(this.value());
      if (this.peek() === ",") this.at += 1;
    }
    this.at += 1;
    return items;
  }

  private string(): string {
    this.skip();
    const start = this.at;
    this.at += 1;
    while (this.text[this.at] !== '"') this.at += this.text[this.at] === "\\" ? 2 : 1;
    this.at += 1;
    return JSON.parse(this.text.slice(start, this.at)) as string;
  }

  private scalar(): Json {
    const start = this.at;
    while (this.at < this.text.length && !" \t\n\r,]}".includes(this.text[this.at] ?? ",")) this.at += 1;
    const word = this.text.slice(start, this.at);
    const value = JSON.parse(word) as null | boolean | number;
    if (typeof value !== "number") return value;
    if (!Number.isFinite(value)) throw new Error(`${word} is too large for a number`);
    return /[.eE]/.test(word) ? new Fraction(value) : value;
  }
}
