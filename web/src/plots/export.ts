/** Plots as files: SVG with its styles written into it, and PNG drawn from that. */
import { saveBlob } from "../parts/save";

/** The properties by which the style sheet draws plots; all of them are attributes in SVG, too. */
const DRAWN = ["fill", "stroke", "stroke-width", "stroke-linejoin", "font-family", "font-size"];
const SVG = "http://www.w3.org/2000/svg";
const PNG_SCALE = 2;
const GAP = 24;
const HEAD = 18;

/** Put the plots of an element one below the other into one picture. */
export function plotsAsSvg(container: Element): SVGSVGElement {
  const figures = [...container.querySelectorAll("figure.plot")];
  const sheet = document.createElementNS(SVG, "svg");
  const style = getComputedStyle(container);
  let height = GAP / 2;
  let width = 0;
  for (const figure of figures) {
    const plot = figure.querySelector("svg")!;
    const title = textAt(figure.querySelector("b")!.textContent, GAP / 2, height + HEAD - 6, style);
    const copy = withStyles(plot);
    copy.setAttribute("x", String(GAP / 2));
    copy.setAttribute("y", String(height + HEAD));
    sheet.append(title, copy);
    height += HEAD + plot.clientHeight + GAP / 2;
    width = Math.max(width, plot.clientWidth + GAP);
  }
  sheet.setAttribute("width", String(width));
  sheet.setAttribute("height", String(height));
  const paper = document.createElementNS(SVG, "rect");
  paper.setAttribute("width", "100%");
  paper.setAttribute("height", "100%");
  paper.setAttribute("fill", backgroundOf(container));
  sheet.prepend(paper);
  return sheet;
}

export function saveSvg(name: string, picture: SVGSVGElement): void {
  saveBlob(`${name}.svg`, svgBlob(picture));
}

export async function savePng(name: string, picture: SVGSVGElement): Promise<void> {
  const url = URL.createObjectURL(svgBlob(picture));
  const image = new Image();
  image.src = url;
  await image.decode();
  const canvas = document.createElement("canvas");
  canvas.width = image.width * PNG_SCALE;
  canvas.height = image.height * PNG_SCALE;
  canvas.getContext("2d")!.drawImage(image, 0, 0, canvas.width, canvas.height);
  URL.revokeObjectURL(url);
  canvas.toBlob((blob) => blob && saveBlob(`${name}.png`, blob), "image/png");
}

function svgBlob(picture: SVGSVGElement): Blob {
  return new Blob([new XMLSerializer().serializeToString(picture)], { type: "image/svg+xml" });
}

/** Copy a plot with what the style sheet says of its elements as attributes. */
function withStyles(plot: SVGSVGElement): SVGSVGElement {
  const copy = plot.cloneNode(true) as SVGSVGElement;
  const copies = [copy, ...copy.querySelectorAll("*")];
  [plot, ...plot.querySelectorAll("*")].forEach((element, index) => {
    const style = getComputedStyle(element);
    for (const name of DRAWN) copies[index]!.setAttribute(name, style.getPropertyValue(name));
    copies[index]!.removeAttribute("class");
  });
  return copy;
}

function textAt(text: string, x: number, y: number, style: CSSStyleDeclaration): SVGTextElement {
  const element = document.createElementNS(SVG, "text");
  const attributes = { x, y, fill: style.color, "font-family": style.fontFamily, "font-size": 13 };
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, String(value));
  element.textContent = text;
  return element;
}

function backgroundOf(element: Element): string {
  return getComputedStyle(element.closest(".card") ?? element).backgroundColor;
}
