// The API's own types, from its document.
import type { components } from "../../../typescript/src/openapi";

type Schemas = components["schemas"];
export type Alias = Schemas["Alias"];
export type AuditEntry = Schemas["AuditEntry"];
export type Batch = Schemas["LeaseState"];
export type Completion = Schemas["StoredCompletion"];
export type Feedback = Schemas["Feedback"];
export type GateCheck = Schemas["GateCheck"];
export type Key = Schemas["Key"];
export type Lineage = Schemas["Lineage"];
export type NewKey = Schemas["NewKey"];
export type Overview = Schemas["Overview"];
export type Rollout = Schemas["Rollout"];
export type RolloutReport = Schemas["RolloutReport"];
export type Run = Schemas["Run"];
export type RunNow = Schemas["RunNow"];
export type RunPoint = Schemas["RunMetricPoint"];
export type Version = Schemas["Version"];
export type VoteStatistics = Schemas["VoteStatistics"];

/** A list as the API gives it. */
export interface Page<T> {
  data: T[];
  has_more?: boolean;
  next?: string | null;
}

/** A path with a query; what is empty is left out. */
export function address(path: string, query: Record<string, string | number | null | undefined>): string {
  const given = Object.entries(query).filter(([, value]) => value !== "" && value !== null && value !== undefined);
  const written = new URLSearchParams(given.map(([name, value]) => [name, String(value)])).toString();
  return written ? `${path}?${written}` : path;
}

/** An address with more behind its query. */
export function further(path: string, query: Record<string, string | number>): string {
  const [bare = "", given] = path.split("?");
  return address(bare, { ...Object.fromEntries(new URLSearchParams(given)), ...query });
}
