/** How far each layer's weights have moved from the base weights, after a step. */
import { max } from "d3-array";
import { scaleBand, scaleLinear } from "d3-scale";
import type { WeightChange } from "../api/contract";
import { measured } from "../parts/numbers";
import { useWidth } from "./use_width";

const HEIGHT = 150;
const MARGIN = { top: 10, right: 4, bottom: 20, left: 48 };

export interface LayerBarsProps {
  readonly weights: readonly WeightChange[];
  /** The largest change in any step, so that steps can be compared. */
  readonly top: number;
  readonly step: number;
}

/** The change of a layer: as a share of the base weights where it is known. */
export const changeOf = ({ relative, change }: WeightChange) => relative ?? change ?? 0;

export function LayerBars({ weights, top, step }: LayerBarsProps) {
  const [figure, width] = useWidth<HTMLElement>(600);
  const names = weights.map(({ layer }) => (layer === null ? "other" : String(layer)));
  const x = scaleBand(names, [MARGIN.left, width - MARGIN.right]).padding(0.25);
  const y = scaleLinear([0, top || 1], [HEIGHT - MARGIN.bottom, MARGIN.top]).nice(4);
  const every = Math.ceil((names.length * 26) / width);
  return (
    <figure ref={figure} class="plot">
      <figcaption>
        <b>Change of the weights by layer</b> <output>{measured(max(weights, changeOf))}</output>
        <small>after step {step}: norm of the change, as a share of the base weights’ norm</small>
      </figcaption>
      <svg
        role="img"
        aria-label={`Change by layer: ${weights.map((w) => measured(changeOf(w))).join(", ")}`}
        width={width}
        height={HEIGHT}
        viewBox={`0 0 ${width} ${HEIGHT}`}
      >
        {y.ticks(3).map((tick) => (
          <g key={tick} transform={`translate(0 ${y(tick)})`}>
            <line class="grid" x1={MARGIN.left} x2={width - MARGIN.right} />
            <text class="tick" x={MARGIN.left - 6} dy="0.32em" text-anchor="end">
              {measured(tick)}
            </text>
          </g>
        ))}
        {weights.map((weight, index) => (
          <rect
            key={index}
            class="bar"
            x={x(names[index]!)}
            width={x.bandwidth()}
            y={y(changeOf(weight))}
            height={Math.max(0, y(0) - y(changeOf(weight)))}
          >
            <title>{`Layer ${names[index]}: ${measured(changeOf(weight))}`}</title>
          </rect>
        ))}
        {names.map((name, index) =>
          index % every === 0 ? (
            <text
              key={name}
              class="tick"
              x={x(name)! + x.bandwidth() / 2}
              y={HEIGHT - 5}
              text-anchor="middle"
            >
              {name}
            </text>
          ) : null,
        )}
      </svg>
    </figure>
  );
}
