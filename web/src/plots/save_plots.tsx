/** Buttons that save the plots of a section. */
import type { RefObject } from "preact";
import { plotsAsSvg, savePng, saveSvg } from "./export";

export interface SavePlotsProps {
  readonly name: string;
  readonly container: RefObject<HTMLElement | null>;
}

export function SavePlots({ name, container }: SavePlotsProps) {
  const save = (write: (name: string, picture: SVGSVGElement) => unknown) => () => {
    if (container.current) write(name, plotsAsSvg(container.current));
  };
  return (
    <span class="actions small">
      <button type="button" onClick={save(saveSvg)}>
        Save SVG
      </button>
      <button type="button" onClick={save(savePng)}>
        Save PNG
      </button>
    </span>
  );
}
