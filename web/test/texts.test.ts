import { expect, test } from "vitest";
import { CodePoints } from "../src/document/code_points";
import { visible } from "../src/document/visible";
import { bytes, measured, percent, seconds } from "../src/parts/numbers";
import { parseRoute, runLink } from "../src/parts/route";

test("places are counted in code points, whatever the characters take in UTF-16", () => {
  const text = new CodePoints("a😀b😀😀c");
  expect(text.length).toBe(6);
  expect(text.slice(1, 3)).toBe("😀b");
  expect(text.slice(4, 99)).toBe("😀c");
  expect(new CodePoints("abc").slice(1, 2)).toBe("b");
  expect(new CodePoints("").slice(0, 5)).toBe("");
});

test("half of a surrogate pair is one place", () => {
  expect(new CodePoints("a\ud83d😀b").slice(2, 4)).toBe("😀b");
});

test("characters that are not seen are shown, each as one character", () => {
  const hostile = "a\0b\u001b[31m\u202ereversed\u2066\u007f\u0085";
  expect(visible(hostile)).toBe("a␀b␛[31m␦reversed␦␡␦");
  expect(visible(hostile)).toHaveLength(hostile.length);
  expect(visible("tab\tand\nline")).toBe("tab\tand\nline");
});

test("a run's link is read as it was written", () => {
  for (const query of ["", "Who? & what = %2F #", "😀 שלום"]) {
    for (const file of [null, "file-1"]) {
      const link = runLink("adapt-1", file, query);
      expect(parseRoute(link)).toEqual({ view: "run", id: "adapt-1", file, query });
    }
  }
});

test("an address that is unknown or was cut leads to the beginning", () => {
  for (const hash of ["", "#", "#/", "#/run", "#/nowhere/else", "#?x"]) {
    expect(parseRoute(hash)).toEqual({ view: "compose" });
  }
  expect(parseRoute("#/run/adapt%")).toMatchObject({ view: "run", id: "adapt%" });
});

test("numbers have the digits that they are worth", () => {
  expect([0.0042, 0.5, 9.94, 42.4, 125].map(seconds)).toEqual([
    "4 ms",
    "0.5 s",
    "9.9 s",
    "42 s",
    "2 min 5 s",
  ]);
  expect([1.23456, 0, 0.00012, 12345.6, null, Number.NaN].map(measured)).toEqual([
    "1.23",
    "0",
    "1.2 e-4",
    "12,346",
    "–",
    "–",
  ]);
  expect([0, 999, 1500, 2.5e9].map(bytes)).toEqual(["0 B", "999 B", "1.5 kB", "2.5 GB"]);
  expect(percent(0.125)).toBe("13%");
});
