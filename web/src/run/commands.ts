/** The requests of a run as commands and as a program, for people to run themselves. */
import type { Adaptation } from "../api/contract";

export interface Done {
  readonly server: string;
  /** The document's file on the server; null where the run is known without it. */
  readonly document: string | null;
  readonly adaptation: Adaptation["adapt"] | undefined;
  readonly query: string;
  /** The bodies of the questions, the last one first. */
  readonly asked: readonly Record<string, unknown>[];
}

const FILE_PLACE = "file-ID-OF-THE-DOCUMENT";

/** Write the requests for a shell, with `jq` to read the id. */
export function asCurl(done: Done): string {
  const url = (path: string) => shellQuoted(done.server + path);
  const post = "-H 'content-type: application/json' ${REFINE_API_KEY:+-H \"authorization: Bearer $REFINE_API_KEY\"}";
  const made = `ID=$(curl -s ${url("/v1/adaptations")} ${post} \\\n  -d ${shellQuoted(JSON.stringify(madeBy(done)))} | jq -r .id)`;
  const followed = `curl -sN ${url("/v1/adaptations/")}$ID/events ${post}`;
  const answers = questions(done).map((body) => {
    const rest = JSON.stringify(body).slice(1);
    return `curl -s ${url("/v1/answers")} ${post} \\\n  -d '{"adaptation": "'$ID'", '${shellQuoted(rest)}`;
  });
  return [made, followed, ...answers, ""].join("\n");
}

/** Write the requests for the Python client. */
export function asPython(done: Done): string {
  const { document, adapt, queries } = madeBy(done);
  const lines = [
    "from refine_server.clients import RefineClient",
    "",
    `with RefineClient(${python(done.server)}) as client:`,
    `    made = client.adapt(${python(document)}, queries=${python(queries)}, adapt=${python(adapt)})`,
    "    adaptation = client.wait_for_adaptation(made.id)",
    ...questions(done).map(({ query, ...rest }) => {
      const options = Object.entries(rest).map(([name, value]) => `, ${name}=${python(value)}`);
      return `    print(client.answer(${python(query)}, adaptation=adaptation.id${options.join("")}))`;
    }),
  ];
  return `${lines.join("\n")}\n`;
}

function madeBy({ document, query, adaptation }: Done) {
  const { preset: _, ...adapt } = adaptation ?? {};
  return { document: { file_id: document ?? FILE_PLACE }, queries: query ? [query] : [], adapt };
}

/** Return the questions, the first one first, without the adaptation's id. */
function questions(done: Done): Record<string, unknown>[] {
  return done.asked.map(({ adaptation: _, ...body }) => body).reverse();
}

/** Quote a text for a POSIX shell. */
export function shellQuoted(text: string): string {
  return `'${text.replaceAll("'", `'\\''`)}'`;
}

/** Write a JSON value as a Python expression. */
export function python(value: unknown): string {
  if (value === null || value === undefined) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (Array.isArray(value)) return `[${value.map(python).join(", ")}]`;
  if (typeof value === "object") {
    const fields = Object.entries(value).map(([key, part]) => `${python(key)}: ${python(part)}`);
    return `{${fields.join(", ")}}`;
  }
  return JSON.stringify(value); // of numbers and texts, Python reads the same; \/ is not written
}
