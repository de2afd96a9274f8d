/** A document cut into segments: each lies in one bin of the trace and under the same marks. */
import { group } from "d3-array";
import type { Range } from "../api/contract";
import type { CodePoints } from "./code_points";

export type MarkKind = "evidence" | "quote" | "position" | "page";

/** Something to be shown in the document. An empty range is a place between two characters. */
export interface Mark extends Range {
  readonly kind: MarkKind;
  /** What tells it from others of its kind: the number of a position or of a page. */
  readonly number?: number;
}

export interface Bins {
  readonly starts: readonly number[];
  readonly ends: readonly number[];
}

export interface Segment extends Range {
  readonly text: string;
  /** The bin that it lies in; -1 where the model did not read. */
  readonly bin: number;
  readonly kinds: ReadonlySet<MarkKind>;
  /** Marks that begin here and have a number. */
  readonly begins: readonly Mark[];
  /** Whether any mark begins here, so that one can jump to it. */
  readonly isTarget: boolean;
}

const SHORTEST_BLOCK = 400;

/** Cut a document where bins and marks begin and end, and after the line that ends a block. */
export function segmentsOf(text: CodePoints, bins: Bins, marks: readonly Mark[]): Segment[] {
  const edges = new Set<number>([0, text.length, ...lineEnds(text)]);
  for (const place of [...bins.starts, ...bins.ends]) edges.add(place);
  for (const { start, end } of marks) edges.add(start).add(end);
  const cuts = [...edges].filter((place) => place >= 0 && place <= text.length).sort((a, b) => a - b);
  const bin = rangeAt(bins);
  const byStart = group(marks, ({ start }) => start);
  const open = openMarks(marks);
  return cuts.slice(0, -1).map((start, index): Segment => {
    const end = cuts[index + 1]!;
    const begins = byStart.get(start) ?? [];
    return {
      start,
      end,
      text: text.slice(start, end),
      bin: bin(start),
      kinds: open(start),
      begins: begins.filter(({ number }) => number !== undefined),
      isTarget: begins.length > 0,
    };
  });
}

/** Group segments into blocks that end with a line, so that a browser lays out those in view. */
export function blocksOf(segments: readonly Segment[]): Segment[][] {
  const blocks: Segment[][] = [];
  let block: Segment[] = [];
  for (const segment of segments) {
    block.push(segment);
    const length = segment.end - block[0]!.start;
    if (length >= SHORTEST_BLOCK && segment.text.endsWith("\n")) {
      blocks.push(block);
      block = [];
    }
  }
  return block.length > 0 ? [...blocks, block] : blocks;
}

/** Return the places behind line feeds that are far enough apart to end blocks. */
function lineEnds(text: CodePoints): number[] {
  const ends: number[] = [];
  let place = 0;
  let last = 0;
  for (const character of text.text) {
    place += 1;
    if (character !== "\n" || place - last < SHORTEST_BLOCK) continue;
    ends.push(place);
    last = place;
  }
  return ends;
}

/** Return a function that finds the bin of rising places; -1 in a gap. */
function rangeAt({ starts, ends }: Bins): (place: number) => number {
  let next = 0;
  return (place) => {
    while (next < ends.length && ends[next]! <= place) next += 1;
    return next < starts.length && starts[next]! <= place ? next : -1;
  };
}

/** Return a function that says which kinds of marks lie over rising places. */
function openMarks(marks: readonly Mark[]): (place: number) => ReadonlySet<MarkKind> {
  const waiting = marks.filter(({ start, end }) => end > start).sort((a, b) => b.start - a.start);
  let open: Mark[] = [];
  return (place) => {
    while (waiting.length > 0 && waiting.at(-1)!.start <= place) open.push(waiting.pop()!);
    open = open.filter(({ end }) => end > place);
    return new Set(open.map(({ kind }) => kind));
  };
}
