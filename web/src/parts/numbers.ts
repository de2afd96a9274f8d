/** Numbers as people read them. */

/** Write seconds with as many digits as they are worth. */
export function seconds(value: number): string {
  if (value < 0.095) return `${Math.round(value * 1000)} ms`;
  if (value < 9.95) return `${value.toFixed(1)} s`;
  if (value < 119.5) return `${Math.round(value)} s`;
  return `${Math.floor(value / 60)} min ${Math.round(value % 60)} s`;
}

/** Write a measured value with three significant digits; a dash where there is none. */
export function measured(value: number | null | undefined): string {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size < 0.001 || size >= 100_000) return value.toExponential(1).replace("e", " e");
  return size >= 1000 ? Math.round(value).toLocaleString("en") : String(+value.toPrecision(3));
}

/** Write a size in bytes. */
export function bytes(value: number): string {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let unit = 0;
  for (; value >= 999.5 && unit < units.length - 1; unit += 1) value /= 1000;
  return `${unit === 0 ? value : +value.toPrecision(3)} ${units[unit]}`;
}

/** Write a share of 1 in percent. */
export function percent(share: number): string {
  return `${+(100 * share).toPrecision(2)}%`;
}
