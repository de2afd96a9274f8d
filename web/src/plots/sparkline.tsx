/** A value over the last minutes, without axes. */
import { max } from "d3-array";
import { scaleLinear } from "d3-scale";
import { area, line } from "d3-shape";
import { measured } from "../parts/numbers";
import { useWidth } from "./use_width";

export interface SparklineProps {
  readonly title: string;
  readonly unit: string;
  /** The values, the latest last; null where nothing was measured. */
  readonly values: readonly (number | null)[];
}

const HEIGHT = 64;

export function Sparkline({ title, unit, values }: SparklineProps) {
  const [figure, width] = useWidth<HTMLElement>(220);
  const x = scaleLinear([0, Math.max(1, values.length - 1)], [2, width - 6]);
  const top = max(values, (value) => value ?? 0) || 1;
  const y = scaleLinear([0, top], [HEIGHT - 2, 6]);
  const points = values.map((value, index) => ({ value, index }));
  const isThere = ({ value }: { value: number | null }) => value !== null;
  const shape = { x: (p: { index: number }) => x(p.index), y: (p: { value: number | null }) => y(p.value ?? 0) };
  const curve = line<(typeof points)[number]>(shape.x, shape.y).defined(isThere);
  const below = area<(typeof points)[number]>(shape.x, y(0), shape.y).defined(isThere);
  return (
    <figure ref={figure} class="plot">
      <figcaption>
        <b>{title}</b> <output>{measured(values.at(-1))}</output>
        <small>
          {unit}, at most {measured(top)}
        </small>
      </figcaption>
      <svg role="img" aria-label={`${title}: now ${measured(values.at(-1))}`} width={width} height={HEIGHT}>
        <path class="area" d={below(points) ?? ""} />
        <path class="line" d={curve(points) ?? ""} />
      </svg>
    </figure>
  );
}
