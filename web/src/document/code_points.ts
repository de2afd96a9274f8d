/** A text whose places are counted in code points, as the server does, instead of UTF-16 units. */

const PAIR = /[\ud800-\udbff][\udc00-\udfff]/;

export class CodePoints {
  /** The first unit of each code point, and the text's length; null where both counts agree. */
  private readonly units: Uint32Array | null;

  constructor(readonly text: string) {
    this.units = PAIR.test(text) ? firstUnits(text) : null;
  }

  /** The number of code points. */
  get length(): number {
    return this.units ? this.units.length - 1 : this.text.length;
  }

  /** Return a part of the text. */
  slice(start: number, end: number): string {
    return this.text.slice(this.unit(start), this.unit(end));
  }

  /** Return the place of a code point in units. */
  unit(place: number): number {
    const bounded = Math.min(Math.max(place, 0), this.length);
    return this.units ? this.units[bounded]! : bounded;
  }
}

function firstUnits(text: string): Uint32Array {
  const units = new Uint32Array(text.length + 1);
  let count = 0;
  let unit = 0;
  for (const character of text) {
    units[count++] = unit;
    unit += character.length;
  }
  units[count] = unit;
  return units.slice(0, count + 1);
}
