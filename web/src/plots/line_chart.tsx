/** A small line chart over the steps of a run. Charts side by side share the step pointed at. */
import { max, min } from "d3-array";
import { scaleLinear } from "d3-scale";
import { line } from "d3-shape";
import type { Signal } from "@preact/signals";
import { measured } from "../parts/numbers";
import { useWidth } from "./use_width";

export interface Point {
  readonly step: number;
  readonly value: number | null;
}

export interface LineChartProps {
  readonly title: string;
  /** What is measured, in a few words. */
  readonly about: string;
  readonly points: readonly Point[];
  /** Measured beside the line, such as evaluations on held-out text; drawn as dots. */
  readonly dots?: readonly Point[];
  readonly firstStep: number;
  readonly lastStep: number;
  readonly pointedAt: Signal<number | null>;
}

const HEIGHT = 132;
const MARGIN = { top: 10, right: 10, bottom: 20, left: 40 };

type Known = Point & { readonly value: number };
const known = (points: readonly Point[]) =>
  points.filter((point): point is Known => point.value !== null);

export function LineChart(props: LineChartProps) {
  const { title, about, points, dots = [], firstStep, lastStep, pointedAt } = props;
  const [figure, width] = useWidth<HTMLElement>(260);
  const x = scaleLinear([firstStep, Math.max(lastStep, firstStep + 1)], [MARGIN.left, width - MARGIN.right]);
  const values = known([...points, ...dots]).map(({ value }) => value);
  const low = min(values) ?? 0;
  const high = max(values) ?? 1;
  const y = scaleLinear(high > low ? [low, high] : [low - 0.5, low + 0.5], [HEIGHT - MARGIN.bottom, MARGIN.top]).nice(4);
  const label = y.tickFormat(3);
  const path = line<Known>((point) => x(point.step), (point) => y(point.value));
  const shown = points.find(({ step }) => step === pointedAt.value) ?? points.at(-1);
  const point = (event: PointerEvent) => {
    const box = (event.currentTarget as Element).getBoundingClientRect();
    const step = Math.round(x.invert(event.clientX - box.left));
    pointedAt.value = Math.min(Math.max(step, firstStep), lastStep);
  };
  const ticks = x.ticks(Math.min(6, lastStep - firstStep || 1)).filter(Number.isInteger);
  return (
    <figure ref={figure} class="plot">
      <figcaption>
        <b>{title}</b> <output>{measured(shown?.value)}</output>
        <small>{about}</small>
      </figcaption>
      <svg
        role="img"
        aria-label={`${title} by step: ${points.map((p) => measured(p.value)).join(", ")}`}
        width={width}
        height={HEIGHT}
        viewBox={`0 0 ${width} ${HEIGHT}`}
        onPointerMove={point}
        onPointerLeave={() => (pointedAt.value = null)}
      >
        {y.ticks(3).map((tick) => (
          <g key={tick} transform={`translate(0 ${y(tick)})`}>
            <line class="grid" x1={MARGIN.left} x2={width - MARGIN.right} />
            <text class="tick" x={MARGIN.left - 6} dy="0.32em" text-anchor="end">
              {label(tick)}
            </text>
          </g>
        ))}
        {ticks.map((tick) => (
          <text key={tick} class="tick" x={x(tick)} y={HEIGHT - 5} text-anchor="middle">
            {tick}
          </text>
        ))}
        <path class="line" d={path(known(points)) ?? ""} />
        {known(dots).map(({ step, value }) => (
          <circle key={step} class="ring" cx={x(step)} cy={y(value)} r={3.5} />
        ))}
        {shown && shown.value !== null && (
          <circle class="dot" cx={x(shown.step)} cy={y(shown.value)} r={3.5} />
        )}
      </svg>
    </figure>
  );
}
