/** A strip beside the document that shows the whole of it, to see where something is and go there. */
import { useEffect, useRef } from "preact/hooks";
import { LEVELS } from "./levels";
import type { Segment } from "./segments";

export interface OverviewProps {
  readonly segments: readonly Segment[];
  readonly levels: readonly (number | null)[] | null;
  /** Shows the part at this share of the document, 0 to 1. */
  readonly onGo: (share: number) => void;
}

const WIDTH = 18;
const HEIGHT = 400;

export function Overview({ segments, levels, onGo }: OverviewProps) {
  const canvas = useRef<HTMLCanvasElement>(null);
  useEffect(() => {
    if (canvas.current) draw(canvas.current, segments, levels);
  });
  const go = (event: MouseEvent) => {
    const box = (event.currentTarget as Element).getBoundingClientRect();
    onGo((event.clientY - box.top) / box.height);
  };
  return (
    <canvas ref={canvas} class="overview" width={WIDTH} height={HEIGHT} aria-hidden onClick={go} />
  );
}

/** Draw the highest level of what each row stands for, and the evidence at the side. */
function draw(
  canvas: HTMLCanvasElement,
  segments: readonly Segment[],
  levels: readonly (number | null)[] | null,
): void {
  const context = canvas.getContext("2d")!;
  const style = getComputedStyle(canvas);
  const [heat, cool, mark] = [style.fill, style.stroke, style.color];
  const length = segments.at(-1)?.end ?? 1;
  const row = (place: number) => Math.min(HEIGHT - 1, Math.floor((HEIGHT * place) / length));
  const rows = new Float32Array(HEIGHT);
  context.clearRect(0, 0, WIDTH, HEIGHT);
  context.fillStyle = mark;
  for (const { start, end, bin, kinds } of segments) {
    const level = levels?.[bin] ?? 0;
    for (let y = row(start); y <= row(end - 1); y += 1) {
      if (Math.abs(level) > Math.abs(rows[y]!)) rows[y] = level;
      if (kinds.has("evidence") || kinds.has("quote")) context.fillRect(WIDTH - 4, y, 4, 1);
    }
  }
  rows.forEach((level, y) => {
    context.globalAlpha = Math.abs(level) / LEVELS;
    context.fillStyle = level < 0 ? cool : heat;
    context.fillRect(0, y, WIDTH - 6, 1);
  });
  context.globalAlpha = 1;
}
