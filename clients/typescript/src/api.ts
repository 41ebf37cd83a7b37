/** Routes, their arguments and their answers, read off the generated OpenAPI types. Types only. */
import type { components, paths } from "./openapi.js";

export type Schemas = components["schemas"];

type Method = "get" | "put" | "post" | "delete";

type OperationsOf<P extends keyof paths> = {
  [M in Method as paths[P][M] extends object ? `${Uppercase<M>} ${P & string}` : never]: paths[P][M];
};

type Intersection<U> = (U extends unknown ? (each: U) => void : never) extends (all: infer I) => void ? I : never;

/** Every operation under `"POST /v1/feedback"` and the like. */
export type Operations = Intersection<{ [P in keyof paths]: OperationsOf<P> }[keyof paths]>;

/** `"GET /v1/versions"`, `"POST /v1/rollouts/{rollout_id}/pause"` and so on. */
export type Route = keyof Operations & string;

type Parameters<R extends Route> = Operations[R] extends { parameters: infer P } ? P : never;
type Given<R extends Route, K extends string> =
  Parameters<R> extends { [key in K]: infer V } ? V : Parameters<R> extends { [key in K]?: infer V } ? V : never;

type PathOf<R extends Route> = Given<R, "path">;

/** Arguments in the query of a route. `metadata[name]` filters are strings of any name. */
export type QueryOf<R extends Route> = NonNullable<Given<R, "query">>;

type RequestOf<R extends Route> = Operations[R] extends { requestBody?: infer Q } ? Q : never;

/** The JSON that a route takes; `never` for a route without a body. */
export type BodyOf<R extends Route> =
  NonNullable<RequestOf<R>> extends { content: { "application/json": infer B } } ? B : never;

type Replies<R extends Route> = Operations[R] extends { responses: infer A } ? A : never;
type JsonIn<A> = A extends { content: { "application/json": infer T } } ? T : never;

/** The JSON that a route answers with. */
export type ReplyOf<R extends Route> = JsonIn<Replies<R>[keyof Replies<R> & (200 | 201)]>;

type Part<Name extends string, T> = [T] extends [never] | [undefined] ? unknown : { [key in Name]: T };
type OptionalPart<Name extends string, T> = [T] extends [never] | [undefined] ? unknown : { [key in Name]?: T };

/** What `client.request` takes beside the route. */
export type Arguments<R extends Route> = Part<"path", PathOf<R>> &
  OptionalPart<"query", QueryOf<R>> &
  (Operations[R] extends { requestBody: unknown } ? Part<"body", BodyOf<R>> : OptionalPart<"body", BodyOf<R>>);

export type QueryValue = string | number | Date | null | undefined;
