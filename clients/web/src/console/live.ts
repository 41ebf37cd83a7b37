// The overview as it changes: streamed, or asked for again and again where too many listen.
import { useEffect, useState } from "preact/hooks";
import { type Api, ApiError } from "../shared/api";
import type { Overview } from "./data";

export type Connection = "connecting" | "live" | "polled" | "lost";

const POLL_MS = 5000;
const WAITS_MS = [500, 2000, 5000, 10_000];

const pause = (ms: number, signal: AbortSignal): Promise<void> =>
  new Promise((done) => {
    const timer = setTimeout(done, ms);
    signal.addEventListener("abort", () => (clearTimeout(timer), done()), { once: true });
  });

export interface Ear {
  overview: Overview | null;
  connection: Connection;
}

type Tell = (connection: Connection, part?: Partial<Overview>) => void;

async function poll(api: Api, signal: AbortSignal, tell: Tell): Promise<void> {
  tell("polled", await api.get<Overview>("/v1/overview"));
  await pause(POLL_MS, signal);
}

/** Why the server ended a stream: there were too many, or this key may listen no more. */
const ended = ({ message, code }: { message: string; code: string | null }): ApiError =>
  new ApiError(code === "too_many_listeners" ? 503 : 401, message, code);

async function listen(api: Api, signal: AbortSignal, tell: Tell): Promise<void> {
  await api.follow("/v1/live", signal, ({ name, data }) => {
    const part = JSON.parse(data) as Partial<Overview> & { error?: { message: string; code: string | null } };
    if (name === "error" && part.error) throw ended(part.error);
    tell("live", part);
  });
}

/** Listen until `signal` ends it. A key that is refused ends it too: `leave` is called. */
async function keepListening(api: Api, signal: AbortSignal, tell: Tell, leave: () => void): Promise<void> {
  let failures = 0;
  while (!signal.aborted) {
    try {
      await listen(api, signal, (connection, part) => ((failures = 0), tell(connection, part)));
      await pause(WAITS_MS[0]!, signal); // streams end after a while, so that keys are looked at anew
      continue;
    } catch (error) {
      if (signal.aborted) return;
      if (error instanceof ApiError && error.status === 401) return leave();
      const crowded = error instanceof ApiError && error.code === "too_many_listeners";
      if (crowded && (await poll(api, signal, tell).then(() => true, () => false))) continue;
    }
    tell("lost");
    await pause(WAITS_MS[Math.min(failures++, WAITS_MS.length - 1)]!, signal);
  }
}

/** What is known of the loop now. */
export function useLive(api: Api, leave: () => void): Ear {
  const [ear, setEar] = useState<Ear>({ overview: null, connection: "connecting" });
  useEffect(() => {
    const control = new AbortController();
    const tell: Tell = (connection, part) =>
      setEar((was) => ({
        connection,
        overview: part ? ({ ...(was.overview ?? {}), ...part } as Overview) : was.overview,
      }));
    void keepListening(api, control.signal, tell, leave);
    return () => control.abort();
  }, [api]);
  // At first the parts come one by one: half an overview is none.
  const whole = ear.overview && "rollout" in ear.overview && "server" in ear.overview && "newest" in ear.overview;
  return whole ? ear : { ...ear, overview: null };
}
