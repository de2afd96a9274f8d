/** A rollout token by token: what agrees with the document, and what it was worth. */
import type { Rollout } from "../api/contract";
import { visible } from "../document/visible";
import { measured } from "../parts/numbers";

export function Continuation({ rollout }: { rollout: Rollout }) {
  const { pieces, matches, reward, advantage } = rollout;
  return (
    <p class="continuation">
      <span dir="auto">
        {pieces.map((piece, index) =>
          matches[index] ? (
            <ins key={index}>{shown(piece)}</ins>
          ) : (
            <span key={index}>{shown(piece)}</span>
          ),
        )}
      </span>
      <span class="worth">
        {rollout.is_demonstration && "demonstration · "}
        reward <b>{measured(reward)}</b> · advantage <b>{signed(advantage)}</b>
      </span>
    </p>
  );
}

const shown = (piece: string) => visible(piece).replaceAll("\n", "⏎");

function signed(value: number | null): string {
  return value !== null && value > 0 ? `+${measured(value)}` : measured(value).replace("-", "−");
}
