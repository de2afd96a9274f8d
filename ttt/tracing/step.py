"""What a step did, position by position, and what it changed."""

from dataclasses import dataclass

from refine_server.ttt.decoding.token_bytes import TokenBytes
from refine_server.ttt.fast_weights import FastWeights
from refine_server.ttt.interface.measures import EvalResult
from refine_server.ttt.interface.traces import (
    MAX_ROLLOUT_TOKENS,
    StepTrace,
    TextSpan,
    TracedPosition,
    TracedRollout,
)
from refine_server.ttt.refine.inputs.rows import Rows, continuations
from refine_server.ttt.refine.loss import StepLoss
from refine_server.ttt.tracing.characters import Characters
from refine_server.ttt.tracing.token_text import traced_tokens
from refine_server.ttt.tracing.weights import WeightChanges


@dataclass(frozen=True, kw_only=True, slots=True)
class StepTracer:
    """Describes the steps of one adaptation."""

    rows: Rows
    """What the rollouts start in."""
    document_context: int
    """Tokens of the prompt before the document."""
    characters: Characters
    """Of the document's tokens."""
    steps: int
    """The most steps that are made; they share what a run lists."""
    changes: WeightChanges
    token_bytes: TokenBytes

    def describe(self, loss: StepLoss, fast: FastWeights, held_out: EvalResult | None) -> StepTrace:
        """Describe a step.

        Args:
            loss: of the step, computed on the rows.
            fast: the weights that the step has made.
            held_out: the evaluation that was made in this step, if any was.
        """
        positions, left_out = self._positions(loss)
        return StepTrace(
            positions=positions,
            left_out=left_out,
            weights=self.changes.measure(fast),
            held_out=held_out,
        )

    def _positions(self, loss: StepLoss) -> tuple[tuple[TracedPosition, ...], int]:
        """List positions, as many as the run's size allows, and count the others."""
        rollouts = loss.rollouts
        if rollouts is None:
            return (), 0
        starts = rollouts.starts  # [S, G]
        P, G = starts.numel(), starts.shape[1]
        at = (starts - self.rows.first).clamp(0, loss.entropy.shape[1] - 1)
        entropies = loss.entropy.gather(1, at).flatten().tolist()  # [P]
        k = rollouts.tokens.shape[1]
        own = continuations(self.rows.input_ids, starts, k)  # [P, k]
        tokens = rollouts.tokens.unflatten(0, (P, rollouts.group))  # [P, group, k]
        matches = (tokens == own[:, None]).tolist()
        listed = min(P, MAX_ROLLOUT_TOKENS // self.steps // tokens[0].numel())
        positions = []
        for n, start in enumerate(starts.flatten().tolist()[:listed]):
            place = self._place(n // G, start, k)
            written = [
                TracedRollout(
                    **dict(traced_tokens(ids, self.token_bytes)),
                    matches=tuple(matches[n][m]),
                    reward=float(loss.group_rewards[n, m]),
                    advantage=float(loss.advantages[n, m]),
                    is_demonstration=m >= rollouts.sampled,
                )
                for m, ids in enumerate(tokens[n].tolist())
            ]
            position = TracedPosition(
                row=n // G,
                token=start,
                start=place and place.start,
                end=place and place.end,
                entropy=entropies[n],
                own=traced_tokens(own[n].tolist(), self.token_bytes),
                rollouts=tuple(written),
            )
            positions.append(position)
        return tuple(positions), P - listed

    def _place(self, row: int, start: int, k: int) -> TextSpan | None:
        """Return the characters of ``k`` tokens of a row; None if they are not the document's."""
        places = self.rows.places_in_document[row, start : start + k] - self.document_context
        if int(places.min()) < 0:
            return None
        return self.characters.span(int(places[0]), int(places[-1]) + 1)
