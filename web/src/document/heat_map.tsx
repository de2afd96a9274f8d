/** A document whose tokens are coloured, with its marks. */
import { memo } from "preact/compat";
import { blocksOf, type Segment } from "./segments";
import { visible } from "./visible";

export interface HeatMapProps {
  readonly segments: readonly Segment[];
  /** The level of each bin; null colours nothing. */
  readonly levels: readonly (number | null)[] | null;
  /** The rollout position that is looked at. */
  readonly position: number | null;
  readonly onPosition: (number: number) => void;
}

/** The id of the element where a range of the document begins. */
export const placeId = (start: number) => `at-${start}`;

export const HeatMap = memo(function HeatMap(props: HeatMapProps) {
  return blocksOf(props.segments).map((block) => (
    <div key={block[0]!.start} class="block" dir="auto">
      {block.map((segment) => (
        <Piece key={segment.start} segment={segment} {...props} />
      ))}
    </div>
  ));
});

function Piece({ segment, levels, position, onPosition }: HeatMapProps & { segment: Segment }) {
  const level = levels?.[segment.bin] ?? null;
  const classes = [...segment.kinds];
  return (
    <>
      {segment.begins.map(({ kind, number = 0 }) =>
        kind === "page" ? (
          <span key={kind} class="page-number">
            Page {number}
          </span>
        ) : (
          <button
            key={`${kind}${number}`}
            type="button"
            class="position-mark"
            aria-label={`Rollouts at position ${number}`}
            aria-pressed={position === number}
            data-number={number}
            onClick={() => onPosition(number)}
          />
        ),
      )}
      <span
        id={segment.isTarget ? placeId(segment.start) : undefined}
        class={classes.length > 0 ? classes.join(" ") : undefined}
        data-level={level ?? undefined}
        data-bin={segment.bin < 0 ? undefined : segment.bin}
        data-unread={segment.bin < 0 && levels !== null ? "" : undefined}
      >
        {visible(segment.text)}
      </span>
    </>
  );
}
