/** Encodes arguments for HTTP; one that cannot be encoded is an error that names it. */
import { defaultPathSerializer } from "openapi-fetch";

const LONE_SURROGATE = /\p{Surrogate}/u;

/** An argument that cannot be encoded. Nothing was sent. */
export class InvalidArgumentError extends Error {
  /** The dotted path of the argument, as in a server's error: `adapt.steps`. */
  readonly param: string;

  constructor(path: string, reason: string) {
    const param = path === "" ? "body" : path;
    super(`${param}: ${reason}`);
    this.name = "InvalidArgumentError";
    this.param = param;
  }
}

/**
 * Encode a request's arguments as a JSON object. `JSON.stringify` alone would send a number that is
 * not finite as `null`, which is an option's default, and a set as `{}`.
 *
 * @throws InvalidArgumentError
 */
export function encodeBody(body: unknown): string {
  check(body, "", []);
  return JSON.stringify(body);
}

/**
 * Put arguments into the places of a path.
 *
 * @throws InvalidArgumentError
 */
export function encodePath(path: string, params: Record<string, unknown>): string {
  for (const [name, value] of Object.entries(params)) {
    check(value, name, []);
    // A URL would resolve these to the path of something else.
    if (value === "" || value === "." || value === "..") {
      throw new InvalidArgumentError(name, `${JSON.stringify(value)} cannot be part of a URL`);
    }
  }
  return defaultPathSerializer(path, params);
}

function check(value: unknown, path: string, ancestors: readonly unknown[]): void {
  if (typeof value === "string") {
    const { index } = LONE_SURROGATE.exec(value) ?? {};
    if (index !== undefined) {
      throw new InvalidArgumentError(path, `the character at ${index} is half of a surrogate pair`);
    }
  } else if (typeof value === "number") {
    if (!Number.isFinite(value)) throw new InvalidArgumentError(path, `${value} is not finite`);
  } else if (typeof value === "object" && value !== null) {
    if (ancestors.includes(value)) throw new InvalidArgumentError(path, "contains itself");
    checkParts(value, path, [...ancestors, value]);
  } else if (value !== null && typeof value !== "boolean" && value !== undefined) {
    throw new InvalidArgumentError(path, `a ${typeof value} cannot be sent as JSON`);
  }
}

function checkParts(value: object, path: string, ancestors: readonly unknown[]): void {
  const kind = Object.prototype.toString.call(value).slice("[object ".length, -1);
  if (kind !== "Object" && kind !== "Array") {
    throw new InvalidArgumentError(path, `a ${kind} cannot be sent as JSON`);
  }
  for (const [key, part] of Object.entries(value)) {
    check(key, path, ancestors);
    check(part, path === "" ? key : `${path}.${key}`, ancestors);
  }
}
