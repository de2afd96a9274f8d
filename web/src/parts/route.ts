/** The address of what the page shows, in the URL's fragment, which is not sent to the server. */
import { signal } from "@preact/signals";

export type Route =
  | { readonly view: "compose" }
  | { readonly view: "run"; readonly id: string; readonly file: string | null; readonly query: string }
  | { readonly view: "adaptations" }
  | { readonly view: "operations" };

/** Read an address; one that is unknown is where the page begins. */
export function parseRoute(hash: string): Route {
  const [path = "", search = ""] = hash.replace(/^#/, "").split("?", 2);
  const [, view, id] = path.split("/");
  const fields = new URLSearchParams(search);
  if (view === "run" && id) {
    return { view, id: decoded(id), file: fields.get("file"), query: fields.get("query") ?? "" };
  }
  if (view === "adaptations" || view === "operations") return { view };
  return { view: "compose" };
}

/** Write the address of a run. */
export function runLink(id: string, file: string | null, query: string): string {
  const fields = new URLSearchParams({ ...(file && { file }), ...(query && { query }) });
  const search = fields.toString();
  return `#/run/${encodeURIComponent(id)}${search && `?${search}`}`;
}

function decoded(part: string): string {
  try {
    return decodeURIComponent(part);
  } catch {
    return part; // a link that was cut
  }
}

/** Where the page is. */
export const route = signal<Route>({ view: "compose" });

/** Follow the address from now on. */
export function followAddress(): void {
  const update = () => (route.value = parseRoute(location.hash));
  addEventListener("hashchange", update);
  update();
}
